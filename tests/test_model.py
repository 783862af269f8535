"""The whole model: gradients of every variant, every switch, and what conditions what."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import TINY, batch, build, switched, told
from training.methods.crossmae import VARIANTS, CrossMAE, CrossMAEConfig, with_variant
from training.methods.shared.blocks import CrossAttention
from training.methods.shared.patches import patchify_fbank, patchify_image

PARTS = {
    "crossmae": {"contrast", "cdt_audio", "cdt_visual", "emb_audio", "emb_visual"},
    "cl-av": {"contrast"},
    "selfmae": {"cdt_audio", "cdt_visual"},
    "cl-selfmae": {"contrast", "cdt_audio", "cdt_visual"},
    "cl-crosscdtmae": {"contrast", "cdt_audio", "cdt_visual"},
    "cl-crossembmae": {"contrast", "emb_audio", "emb_visual"},
}

pytestmark = pytest.mark.usefixtures("one_thread")


def without_gradient(model: CrossMAE) -> list[str]:
    """Names of the parameters whose gradient is missing, zero or not finite."""
    grads = {name: p.grad for name, p in model.named_parameters()}
    return [name for name, grad in grads.items() if grad is None or not grad.isfinite().all() or not grad.any()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_every_variant_gets_a_gradient(variant: str) -> None:
    model = build(with_variant(TINY, variant))
    output = model(told(*batch()))
    output.loss.backward()
    assert without_gradient(model) == []
    assert set(output.parts) == PARTS[variant]
    weighted = sum((0.1 if name == "contrast" else 1) * part.item() for name, part in output.parts.items())
    assert output.loss.item() == pytest.approx(weighted, rel=1e-5)  # eq. 13
    assert not any(part.requires_grad for part in output.parts.values())


@pytest.mark.parametrize("conditioning", ["first", "every_block"])
def test_a_conditioned_decoder_starts_as_the_plain_one_and_learns(conditioning: str) -> None:
    config = switched("pixel", conditioning=conditioning, condition_start="zero")
    plain, model = build(with_variant(config, "cl-selfmae")), build(with_variant(config, "cl-crosscdtmae"))
    assert {name: part.item() for name, part in model(told(*batch())).parts.items()} == {
        name: part.item() for name, part in plain(told(*batch())).parts.items()
    }
    model(told(*batch())).loss.backward()
    assert {name.split(".", 1)[1] for name in without_gradient(model)} <= {
        name.split(".", 1)[1] for name, _ in model.named_parameters() if "condition." in name or "cross." in name
    }
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    model.zero_grad()
    model(told(*batch())).loss.backward()
    assert without_gradient(model) == []


def test_variants_of_one_seed_start_from_the_same_weights() -> None:
    """Otherwise two rows of Table 2 differ by the luck of the draw, too."""
    weights: dict[str, Tensor] = {}
    for variant in VARIANTS:
        for conditioning in ("first", "every_block"):
            config = with_variant(switched("pixel", conditioning=conditioning), variant)
            for name, weight in build(config).state_dict().items():
                assert torch.equal(weights.setdefault(name, weight), weight), (variant, conditioning, name)


SWITCHES: list[tuple[str, dict[str, Any]]] = [
    ("mask", {"audio_strategy": "time"}),
    ("mask", {"audio_strategy": "time-frequency", "image_ratio": 0.6, "audio_ratio": 0.9}),
    ("attentive", {"base": "patches"}),
    ("attentive", {"score": "cosine"}),
    ("attentive", {"kind": "random"}),
    ("attentive", {"image_ratio": 0.5, "audio_ratio": 0.75}),
    ("attentive", {"image_ratio": 0.0, "audio_ratio": 0.0}),
    ("contrast", {"pooling": "cls"}),
    ("contrast", {"pooling": "mlp"}),
    ("contrast", {"learnable_temperature": True}),
    ("contrast", {"reduction": "mean", "negatives": "local", "temperature": 0.07, "weight": 1.0}),
    ("pixel", {"conditioning": "every_block"}),
    ("pixel", {"loss_on": "visible"}),
    ("pixel", {"loss_on": "all", "norm_pix": False, "reduction": "patch_sum"}),
    ("embedding", {"queries": "sincos"}),
    ("embedding", {"queries": "tokens"}),
    ("embedding", {"targets": "visible_only"}),
    ("embedding", {"target_gradient": True}),
    ("embedding", {"targets": "visible_only", "target_gradient": True}),
    ("embedding", {"normalise": "feature", "reduction": "patch_sum"}),
]


@pytest.mark.parametrize(("section", "values"), SWITCHES)
def test_every_switch_trains_every_parameter(section: str, values: dict[str, Any]) -> None:
    model = build(switched(section, **values))
    model(told(*batch())).loss.backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize(
    ("config", "places"),
    [
        (switched("attentive", kind="zeros"), (".condition.",)),
        (switched("embedding", queries="zeros"), ("image_from_audio.", "audio_from_image.")),
    ],
)
def test_what_meets_only_zeros_learns_nothing(config: CrossMAEConfig, places: tuple[str, ...]) -> None:
    """Tables 6 and 7, "zero vectors" and "empty query": some gradients are zero, none is missing (DDP would stop)."""
    model = build(config)
    model(told(*batch())).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    dead = without_gradient(model)
    assert dead and all(any(place in name for place in places) for name in dead), dead


def test_what_is_not_used_is_not_built() -> None:
    names = {
        variant: {name.split(".")[0] for name, _ in build(with_variant(TINY, variant)).named_parameters()}
        for variant in VARIANTS
    }
    encoders, pixels = {"image_encoder", "audio_encoder"}, {"image_decoder", "audio_decoder"}
    embeddings = {"image_from_audio", "audio_from_image"}
    assert names["cl-av"] == encoders
    assert names["cl-selfmae"] == names["selfmae"] == names["cl-crosscdtmae"] == encoders | pixels
    assert names["cl-crossembmae"] == encoders | embeddings
    assert names["crossmae"] == encoders | pixels | embeddings


def test_a_top_ratio_of_0_builds_no_cross_attention_on_that_side() -> None:
    no_audio = [name for name, _ in build(switched("attentive", audio_ratio=0.0)).named_parameters()]
    assert not any(name.startswith("image_decoder.condition") for name in no_audio)
    assert any(name.startswith("audio_decoder.condition") for name in no_audio)
    in_blocks = [name for name, _ in build(switched("pixel", conditioning="every_block")).named_parameters()]
    assert not any(".condition." in name for name in in_blocks)
    assert sum(name.startswith("image_decoder") and name.endswith("cross.q.weight") for name in in_blocks) == 2


def halves(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of two bits each: left and right half of the image, first and second half of the sound, +1 or -1."""
    bits = torch.randint(0, 2, (count, 2), generator=generator) * 2.0 - 1
    image = bits[:, None, None].repeat_interleave(112, dim=3).expand(-1, 3, 224, -1)
    fbank = bits[:, :, None].repeat_interleave(512, dim=1).expand(-1, -1, 128)
    return image, fbank, torch.randint(0, 2**31, (count,), generator=generator)


@pytest.mark.parametrize(
    ("side", "conditioning", "steps"), [("image", "first", 150), ("image", "every_block", 50), ("audio", "first", 100)]
)
def test_what_the_other_modality_alone_can_tell_is_learned(side: str, conditioning: str, steps: int) -> None:
    """One or two patches of a side are left, which show one of its halves: the other half is told by the other side.

    The pixel loss alone teaches it, through the Attentive Tokens. With those of another pair it must be far higher.
    """
    config = with_variant(switched("pixel", norm_pix=False, conditioning=conditioning), "cl-crosscdtmae")
    mask, attentive = ({f"{side}_ratio": ratio} for ratio in (0.997, 1.0))
    config = replace(config, mask=replace(config.mask, **mask), attentive=replace(config.attentive, **attentive))
    model, generator = build(config), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    decoder = model.image_decoder if side == "image" else model.audio_decoder
    assert decoder is not None

    def losses(count: int) -> list[Tensor]:
        image, fbank, seeds = halves(generator, count)
        own, other = model.see_image(image, seeds), model.see_audio(fbank, seeds)
        patches = patchify_image(image)
        if side == "audio":
            own, other, patches = other, own, patchify_fbank(fbank)
        told = (other.attentive, other.attentive.roll(1, dims=0))
        return [model.pixel_loss(decoder(own.features, own.mask.visible, t), patches, own.mask) for t in told]

    for _ in range(steps):
        optimizer.zero_grad()
        losses(16)[0].backward()
        optimizer.step()
    matched, shuffled = losses(64)
    assert matched < 0.8 * shuffled, (matched.item(), shuffled.item())


@pytest.mark.parametrize(("target", "conditioning"), [("self", "first"), ("cross", "first"), ("cross", "every_block")])
def test_pixels_depend_on_the_other_modality_only_if_cross(target: str, conditioning: str) -> None:
    model = build(switched("pixel", target=target, conditioning=conditioning))
    image, fbank, seeds = batch()
    here, there = model.rebuild(told(image, fbank, seeds)), model.rebuild(told(image, fbank.flip(1), seeds))
    assert torch.equal(here["image"].patches, there["image"].patches) == (target == "self")


def test_embeddings_come_from_the_other_modality_alone() -> None:
    """Eq. 10: audio features out of learned queries and visual tokens, with no look at the audio."""
    model = build()
    image, fbank, seeds = batch()
    image_view, audio_view = model.see_image(image, seeds), model.see_audio(fbank, seeds)
    other_view = model.see_audio(fbank.flip(1), seeds)
    of_image, of_audio = model.decode_embeddings(image_view, audio_view)
    of_other, of_same = model.decode_embeddings(image_view, other_view)
    assert of_image.shape == (2, 196, 32) and of_audio.shape == (2, 512, 32)
    assert torch.equal(of_audio, of_same) and not torch.equal(of_image, of_other)


@torch.no_grad()
def test_hints_are_the_samples_own_tokens_at_their_own_places() -> None:
    """Table 7's "tokens from the other modality": the Attentive Tokens of what is rebuilt, zeros between them."""
    model, (image, fbank, seeds) = build(switched("embedding", queries="tokens")), batch()
    views = model.see_image(image, seeds), model.see_audio(fbank, seeds)
    for view, tokens, count in zip(views, (196, 512), (12, 32), strict=True):
        expected = torch.zeros(2, tokens, 32)
        for b in range(2):
            for place in view.features.attention[b].topk(count).indices.tolist():
                expected[b, view.mask.visible[b, place]] = view.features.tokens[b, place]
        hints = model.hints(view)
        assert hints is not None and torch.equal(hints, expected)
    seen, heard = views
    assert model.image_from_audio is not None and model.audio_from_image is not None
    found = model.decode_embeddings(seen, heard)
    assert torch.equal(found[0], model.image_from_audio(heard.features.tokens, model.hints(seen)))
    assert torch.equal(found[1], model.audio_from_image(seen.features.tokens, model.hints(heard)))
    assert not torch.equal(found[0], model.image_from_audio(heard.features.tokens))


@torch.no_grad()
def test_with_visible_only_the_visible_tokens_are_scored() -> None:
    """Each on the feature that its encoder gave it: token t of the decoder's against that of the visible token t."""
    model, (image, fbank, seeds) = build(switched("embedding", targets="visible_only")), batch()
    views = model.see_image(image, seeds), model.see_audio(fbank, seeds)
    parts = model(told(image, fbank, seeds)).parts
    for name, view, made in zip(("visual", "audio"), views, model.decode_embeddings(*views), strict=True):
        errors = [
            (made[b, token] - torch.nn.functional.layer_norm(view.features.tokens[b, place], (32,), eps=1e-6)).square()
            for b in range(2)
            for place, token in enumerate(view.mask.visible[b].tolist())
        ]
        torch.testing.assert_close(parts[f"emb_{name}"], torch.stack(errors).mean())


@pytest.mark.parametrize("conditioning", ["first", "every_block"])
def test_a_decoder_looks_at_every_attentive_token_of_its_own_pair(conditioning: str) -> None:
    model, (image, fbank, seeds) = build(switched("pixel", conditioning=conditioning)), batch()
    seen, heard = model.see_image(image, seeds), model.see_audio(fbank, seeds)
    for number, other in enumerate((heard, seen)):  # what the image's decoder is given, and the fbank's
        patches = model.decode_pixels(seen, heard)[number]
        for b in range(2):
            (grad,) = torch.autograd.grad(patches[b].square().sum(), other.attentive, retain_graph=True)
            assert grad[b].abs().sum(dim=1).min() > 0 and not grad[1 - b].any()
    given: list[tuple[str, Tensor]] = []
    for name, module in model.named_modules():
        if isinstance(module, CrossAttention) and "decoder" in name:
            side = name.split("_")[0]
            module.register_forward_pre_hook(lambda _, args, side=side: given.append((side, args[1])))
    model.decode_pixels(seen, heard)
    attentive = {"image": heard.attentive, "audio": seen.attentive}
    assert len(given) == (4 if conditioning == "every_block" else 2)
    assert all(torch.equal(context, attentive[side]) for side, context in given)


def test_empty_queries_know_no_place_and_the_others_do() -> None:
    for queries in ("learnable", "sincos", "zeros", "tokens"):
        model = build(switched("embedding", queries=queries))
        image, fbank, seeds = batch()
        rebuilt, _ = model.decode_embeddings(model.see_image(image, seeds), model.see_audio(fbank, seeds))
        spread = (rebuilt - rebuilt[:, :1]).abs().max().item()
        assert (spread < 1e-5) == (queries == "zeros"), queries


@pytest.mark.parametrize("targets", ["online", "visible_only"])
@pytest.mark.parametrize("target_gradient", [False, True])
def test_targets(targets: str, target_gradient: bool) -> None:
    model = build(switched("embedding", targets=targets, target_gradient=target_gradient))
    image, fbank, seeds = batch()
    views = model.see_image(image, seeds), model.see_audio(fbank, seeds)
    made = model.embedding_targets(image, fbank, *views)
    full = model.encode_image(image).tokens, model.encode_audio(fbank).tokens
    expected = full if targets == "online" else (views[0].features.tokens, views[1].features.tokens)
    for got, want in zip(made, expected, strict=True):
        torch.testing.assert_close(got, want)
        assert got.requires_grad == target_gradient


def test_features_of_the_full_view() -> None:
    model = build()
    image, fbank, _ = batch()
    for features, tokens in ((model.encode_image(image), 196), (model.encode_audio(fbank), 512)):
        assert features.tokens.shape == (2, tokens, 32) and features.attention.shape == (2, tokens)
        assert features.pooled.shape == features.cls.shape == (2, 32)
        assert ((features.attention.sum(dim=1) < 1) & (features.attention.sum(dim=1) > 0.9)).all()


def test_reconstruction_is_in_the_units_of_the_input() -> None:
    """With norm_pix a decoder that says 0 draws each patch's mean, one that says 1 a deviation above it."""
    model, (image, fbank, seeds) = build(), batch()
    image, fbank = 3 * image + 5, 2 * fbank - 4
    for decoder in (model.image_decoder, model.audio_decoder):
        assert decoder is not None
        torch.nn.init.zeros_(decoder.predict.weight)
        torch.nn.init.ones_(decoder.predict.bias)
    shown = model.rebuild(told(image, fbank, seeds))
    for got, patches in ((shown["image"], patchify_image(image)), (shown["audio"], patchify_fbank(fbank))):
        level = patches.mean(dim=-1, keepdim=True) + patches.std(dim=-1, keepdim=True)
        torch.testing.assert_close(got.patches, level.expand_as(patches), rtol=1e-4, atol=1e-4)
        assert got.is_marked is not None and not (got.is_marked & got.is_masked).any()  # Attentive Tokens are visible
    assert (~shown["image"].is_masked).sum(dim=1).tolist() == [49, 49]
    assert (~shown["audio"].is_masked).sum(dim=1).tolist() == [128, 128]
    assert shown["image"].is_marked.sum(dim=1).tolist() == [12, 12]
    assert shown["audio"].is_marked.sum(dim=1).tolist() == [32, 32]
    assert not build(with_variant(TINY, "cl-av")).rebuild(told(image, fbank, seeds))  # nothing to show


def test_a_batch_is_its_samples() -> None:
    """Without the contrastive loss, which looks at the others, a batch's loss is the mean of its samples'."""
    model = build(switched("contrast", enabled=False))
    with torch.no_grad():
        whole = model(told(*batch(3))).loss
        alone = torch.stack([model(told(*(x[i : i + 1] for x in batch(3)))).loss for i in range(3)])
    torch.testing.assert_close(whole, alone.mean())


def test_seeds_decide() -> None:
    model, (image, fbank, seeds) = build(), batch()
    with torch.no_grad():
        first = model(told(image, fbank, seeds)).loss
        torch.manual_seed(99)
        assert torch.equal(first, model(told(image, fbank, seeds)).loss)
        assert not torch.equal(first, model(told(image, fbank, seeds + 1)).loss)
