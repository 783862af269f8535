"""What a run takes from another one (--init, --teacher, fine-tuning): heads agree, the fbank scale is converted."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shards_spec.errors import UserError
from tests.test_initial_weights import DIM, inputs, model, tiny
from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE, write_json
from training.finetune.classifier import Classifier, load_encoders
from training.initial_weights import initialise, initialise_from_run, take_teacher
from training.methods.crossmae import CrossMAE, config_to_dict, with_variant
from training.methods.crossmae.config import EmbeddingConfig
from training.methods.shared.encoder import EncoderConfig
from training.trained import FbankScale

SCALE = FbankScale(mean=-4.0, std=4.0)
OTHER = FbankScale(mean=-5.081, std=4.4849)


def saved(folder, source, scale=SCALE):
    """As `save_pretrained` writes it."""
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, folder / WEIGHTS_FILE)
    told = {"model": config_to_dict(source.config), "fbank_mean": scale.mean, "fbank_std": scale.std}
    write_json(folder / CONFIG_FILE, told)
    return folder


def with_heads(config, heads):
    return replace(config, encoder=replace(config.encoder, heads=heads))


# ---------------------------------------------------------------- which parts


def test_a_selfmae_run_gives_all_that_crossmae_shares_with_it(tmp_path):
    config = tiny()
    selfmae, ours = model(with_variant(config, "selfmae"), seed=1), model(config)
    fresh = {name: value.clone() for name, value in ours.state_dict().items()}
    lines = initialise_from_run(ours, saved(tmp_path / "selfmae", selfmae), SCALE)
    source = selfmae.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, source.get(name, fresh[name])), name
    assert "condition" in "".join(name for name in fresh if name not in source)
    shared = sum(name in source for name in fresh)
    assert lines[0].startswith(f"{shared} of {len(fresh)} tensors from {tmp_path / 'selfmae'}: image_encoder (")
    assert lines[1].startswith("  not in it, or of another shape, so from a random start: ")
    assert "image_from_audio (" in lines[1] and "image_decoder (" in lines[1] and len(lines) == 2


def test_parts_of_another_shape_keep_their_start_and_a_teacher_starts_at_the_encoders(tmp_path):
    source, ours = model(tiny(targets="ema"), seed=1), model(tiny(targets="ema", loss_on="all"))
    torch.nn.init.zeros_(source.teacher.image_encoder.norm.weight)
    source.image_decoder.predict = nn.Linear(32, 5)
    fresh = ours.image_decoder.predict.weight.clone()
    lines = initialise_from_run(ours, saved(tmp_path / "run", source), SCALE)
    assert torch.equal(ours.image_decoder.predict.weight, fresh)
    assert torch.equal(ours.teacher.image_encoder.norm.weight, source.image_encoder.norm.weight)
    assert lines[1:] == [
        "  not in it, or of another shape, so from a random start: image_decoder (2)",
        "  left in the file: image_decoder (2)",
    ]


def test_decoders_of_other_heads_keep_their_start_and_are_named(tmp_path):
    config = tiny()
    source = model(replace(config, embedding=EmbeddingConfig(dim=32, depth=1, heads=4)), seed=1)
    ours = model(config)
    fresh = {name: value.clone() for name, value in ours.state_dict().items()}
    lines = initialise_from_run(ours, saved(tmp_path / "run", source), SCALE)
    for name, value in ours.state_dict().items():
        is_fresh = name.startswith(("image_from_audio.", "audio_from_image."))
        assert torch.equal(value, (fresh if is_fresh else source.state_dict())[name]), name
    assert lines[1] == "  not taken, for other heads: embedding decoders (4 there, 2 here)"


# ---------------------------------------------------------------- refusals


def test_a_run_with_other_encoders_is_refused(tmp_path):
    wide = saved(tmp_path / "wide", model(tiny(dim=48)))
    lacking = model()
    del lacking.image_encoder.cls_token
    for folder, message in (
        (wide, "--init: the encoders of .* have dim 48, this run's have dim 32: give --model.encoder.dim 48, or"),
        (
            saved(tmp_path / "lacking", lacking),
            r"holds other encoders: image_encoder.cls_token is missing, expected \[1",
        ),
        (tmp_path, "is no checkpoint and no run folder"),
    ):
        with pytest.raises(UserError, match=message):
            initialise_from_run(model(), folder, SCALE)


@pytest.mark.parametrize("option", ["--init", "--teacher", "--init-visual", "--init-audio", "finetune"])
def test_encoders_of_other_heads_are_refused(tmp_path, option):
    """Their weights have the same names and shapes, and compute something else."""
    folder = saved(tmp_path / "run", model(with_heads(tiny(), 1)))
    file, flag = folder / WEIGHTS_FILE, "--model.encoder"
    if option == "finetune":
        option, flag = "--init", "--encoder"
        classifier = Classifier(EncoderConfig(dim=DIM, depth=3, heads=4), inputs="av", classes=3)
        take = lambda: load_encoders(classifier, folder, SCALE)  # noqa: E731
    else:
        ours = model(tiny(targets="teacher"))
        take = {
            "--init": lambda: initialise_from_run(ours, folder, SCALE),
            "--teacher": lambda: take_teacher(ours, folder, SCALE),
            "--init-visual": lambda: initialise(ours, visual=file, audio=None, scale=SCALE),
            "--init-audio": lambda: initialise(ours, visual=None, audio=file, scale=SCALE),
        }[option]
    said = f"{option}: the encoders of {folder} have heads 1, this run's have heads 4: give {flag}.heads 1, or the"
    with pytest.raises(UserError, match=re.escape(said)):
        take()


def test_a_teacher_where_there_is_no_place_for_one_is_refused(tmp_path):
    folder = saved(tmp_path / "run", model())
    with pytest.raises(UserError, match=r"--teacher .*: a teacher was given, but .* 'online': allowed is 'teacher'"):
        take_teacher(model(), folder, SCALE)


def test_what_describes_no_model_of_ours_is_refused(tmp_path):
    folder = saved(tmp_path / "run", model())
    write_json(folder / CONFIG_FILE, {"model": {"encoder": {"dim": 32}}})
    with pytest.raises(UserError, match=r"config.json describes no model of this program: KeyError\('fbank_mean'\)"):
        initialise_from_run(model(), folder, SCALE)


# ---------------------------------------------------------------- the scale of fbanks


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A model of another scale, its folder, and what it makes of an fbank as stored."""
    source = model(tiny(), seed=3).eval()
    with torch.no_grad():
        for parameter in source.audio_encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    fbank = 4 * inputs()[1] - 6
    with torch.no_grad():
        tokens = source.encode_audio((fbank - OTHER.mean) / OTHER.std).tokens
    return saved(tmp_path_factory.mktemp("stage") / "run", source, OTHER), fbank, tokens


def assert_as_before(encoder, fbank, tokens):
    """On fbanks of our scale it makes what it made on its own; without a conversion it would not."""
    with torch.no_grad():
        ours = encoder(((fbank - SCALE.mean) / SCALE.std).unsqueeze(1)).tokens
        unlike = encoder(((fbank - OTHER.mean) / OTHER.std).unsqueeze(1)).tokens
    torch.testing.assert_close(ours, tokens, rtol=1e-4, atol=1e-4)
    assert (unlike - tokens).abs().max() > 0.05


SAID = "  adapted: its audio patch embedding, from fbanks of mean -5.081 and std 4.4849 to this run's mean -4 and std 4"


def test_init_teacher_and_a_file_give_the_features_that_they_gave(first_stage, tmp_path):
    folder, fbank, tokens = first_stage
    ours = model(tiny(targets="ema"))
    assert SAID in initialise_from_run(ours, folder, SCALE)
    assert_as_before(ours.audio_encoder, fbank, tokens)
    assert_as_before(ours.teacher.audio_encoder, fbank, tokens)
    ours = model(tiny(targets="teacher"))
    assert take_teacher(ours, folder, SCALE) == [f"the embedding targets are those of {folder}", SAID]
    assert_as_before(ours.teacher.audio_encoder, fbank, tokens)
    ours = model()
    assert SAID in initialise(ours, visual=None, audio=folder / WEIGHTS_FILE, scale=SCALE)
    assert_as_before(ours.audio_encoder, fbank, tokens)


@pytest.mark.parametrize(("part", "shape"), [("weight", (32, 256)), ("weight", (0,)), ("bias", (1,)), ("bias", ())])
def test_a_patch_embedding_that_is_none_is_refused(part, shape, first_stage, tmp_path):
    whole = first_stage[0]
    name = f"audio_encoder.patch_embed.proj.{part}"
    folder = shutil.copytree(whole, tmp_path / "run")
    save_file(load_file(whole / WEIGHTS_FILE) | {name: torch.zeros(shape)}, folder / WEIGHTS_FILE)
    said = r"model\.safetensors holds no encoder of ours: .* has a weight of \[.*\], expected \[D, 1, 16, 16\] and"
    with pytest.raises(UserError, match=said):
        initialise_from_run(model(), folder, SCALE)
    with pytest.raises(UserError, match=said):
        take_teacher(model(tiny(targets="teacher")), folder, SCALE)
    with pytest.raises(UserError, match=said):
        load_encoders(Classifier(tiny().encoder, inputs="a", classes=3), folder, SCALE)


def test_fine_tuning_on_another_scale_begins_with_the_same_features(first_stage):
    folder, fbank, tokens = first_stage
    classifier = Classifier(tiny().encoder, inputs="a", classes=3)
    assert SAID in load_encoders(classifier, folder, SCALE)
    assert_as_before(classifier.audio_encoder, fbank, tokens)


def test_on_the_same_scale_nothing_is_touched(first_stage):
    folder, _, _ = first_stage
    ours = model()
    assert not any("adapted" in line for line in initialise_from_run(ours, folder, OTHER))
    source = CrossMAE(tiny())
    initialise_from_run(source, folder, OTHER)
    assert torch.equal(ours.audio_encoder.patch_embed.proj.weight, source.audio_encoder.patch_embed.proj.weight)
