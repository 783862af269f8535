"""Embedding targets from a teacher: a running mean of the encoders, or the encoders of a finished run."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from tests.models import SMALLEST, batch, build, switched, told
from training.config import OptimizerConfig
from training.methods.crossmae import CrossMAE, CrossMAEConfig, with_variant
from training.methods.crossmae.config import EmbeddingConfig
from training.methods.shared.encoder import EncoderConfig
from training.optimizer import make_optimizer

EMA = switched("embedding", targets="ema", ema_momentum=0.75)
FROZEN = switched("embedding", targets="teacher")


def encoder_state(model: CrossMAE) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {name: value.clone() for name, value in state.items() if name.split(".")[0].endswith("_encoder")}


def teacher_state(model: CrossMAE) -> dict[str, torch.Tensor]:
    assert model.teacher is not None
    return model.teacher.state_dict()


def disturb(model: CrossMAE) -> None:
    """Moves every weight that a step would move."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def targets(model: CrossMAE) -> tuple[torch.Tensor, torch.Tensor]:
    image, fbank, seeds = batch()
    return model.embedding_targets(image, fbank, model.see_image(image, seeds), model.see_audio(fbank, seeds))


def test_only_the_option_builds_one_and_the_rest_starts_the_same() -> None:
    plain = build()
    assert plain.teacher is None and not any(name.startswith("teacher") for name in plain.state_dict())
    plain.update_teacher()  # the loop calls these whatever the targets
    plain.reset_teacher()
    own = {name: value for name, value in build(EMA).state_dict().items() if not name.startswith("teacher")}
    assert_same(own, plain.state_dict())
    assert build(with_variant(EMA, "cl-selfmae")).teacher is None


def test_it_begins_as_the_encoders() -> None:
    model = build(EMA)
    assert_same(teacher_state(model), encoder_state(model))
    loss = model(told(*batch())).loss
    assert torch.equal(loss, build()(told(*batch())).loss)  # so the first step is that of `online`


def test_targets_are_those_of_a_stored_copy() -> None:
    model = build(EMA)
    stored = build()
    disturb(model)
    for got, want in zip(targets(model), targets(stored), strict=True):
        assert torch.equal(got, want) and not got.requires_grad


def test_the_running_mean_by_hand() -> None:
    model = build(EMA)
    before = {name: value.clone() for name, value in teacher_state(model).items()}
    for _ in range(2):
        disturb(model)
        online = encoder_state(model)
        model.update_teacher()
        for name, value in teacher_state(model).items():
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * online[name])
        before = {name: value.clone() for name, value in teacher_state(model).items()}
    assert all(torch.equal(before[name], online[name]) for name in before if name.endswith("pos_embed"))


def test_reset_takes_weights_from_elsewhere() -> None:
    model = build(EMA)
    disturb(model)
    with torch.no_grad():
        model.audio_encoder.pos_embed += 1  # AudioMAE brings a table of its own
    model.reset_teacher()
    assert_same(teacher_state(model), encoder_state(model))


@pytest.mark.parametrize("config", [EMA, FROZEN])
def test_no_gradient_reaches_it_and_no_optimizer_holds_it(config: CrossMAEConfig) -> None:
    model = build(config)
    if model.config.embedding.targets == "teacher":
        model.set_teacher(build())
    assert model.teacher is not None
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-2), fused=False)
    before = {name: value.clone() for name, value in teacher_state(model).items()}
    model.train()
    assert not any(module.training for module in model.teacher.modules()) and model.image_encoder.training
    model(told(*batch())).loss.backward()
    optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if not name.startswith("teacher.")}
    assert_same(teacher_state(model), before)


def test_it_travels_with_the_state() -> None:
    model = build(EMA)
    disturb(model)
    model.update_teacher()
    state = load(save({name: value.contiguous() for name, value in model.state_dict().items()}))
    other = build(EMA)
    other.load_state_dict(state)
    assert_same(other.state_dict(), model.state_dict())
    disturb(model)
    disturb(other)
    model.update_teacher()
    other.update_teacher()
    assert_same(other.state_dict(), model.state_dict())


def test_a_frozen_teacher_must_be_given() -> None:
    model = build(FROZEN)
    with pytest.raises(ValueError, match=r"embedding.targets is 'teacher', but no teacher was loaded"):
        model(told(*batch()))
    model.load_state_dict(encoder_state(model), strict=False)  # MAE's weights, say: no teacher
    with pytest.raises(ValueError, match=r"no teacher was loaded"):
        model(told(*batch()))


@pytest.mark.parametrize("as_state", [True, False])
def test_a_frozen_teacher_is_the_first_stage(as_state: bool) -> None:
    first = build()
    disturb(first)
    model = build(FROZEN)
    model.set_teacher(first.state_dict() if as_state else first)
    assert_same(teacher_state(model), encoder_state(first))
    assert all(torch.equal(got, want) for got, want in zip(targets(model), targets(first), strict=True))
    model.update_teacher()
    model.reset_teacher()
    assert_same(teacher_state(model), encoder_state(first))
    resumed = build(FROZEN)
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed(told(*batch())).loss, model(told(*batch())).loss)


def test_what_is_no_teacher_is_refused() -> None:
    state = build().state_dict()
    with pytest.raises(ValueError, match=r"embedding.targets is 'online': allowed is 'teacher'"):
        build().set_teacher(state)
    with pytest.raises(ValueError, match=r"weights are missing, the first is image_encoder.cls_token"):
        build(FROZEN).set_teacher({name: value for name, value in state.items() if name != "image_encoder.cls_token"})
    wider = build(replace(SMALLEST, encoder=EncoderConfig(dim=64, depth=2, heads=2)))
    with pytest.raises(ValueError, match=r"is \[1, 1, 64\], the model's own is \[1, 1, 32\]"):
        build(FROZEN).set_teacher(wider)


def test_contradictions_are_refused() -> None:
    for kind in ("ema", "teacher"):
        with pytest.raises(ValueError, match=f"target_gradient is True, but embedding.targets is '{kind}'"):
            EmbeddingConfig(targets=kind, target_gradient=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ema_momentum is 1.5: allowed are 0 to 1"):
        EmbeddingConfig(ema_momentum=1.5)
