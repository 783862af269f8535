"""Diagnostics against values by hand: ranks that are known, partners swapped by hand, a model that has collapsed."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models import SMALLEST, batch, build, switched, told
from training.methods.crossmae import VARIANTS, CrossMAE, with_variant
from training.methods.crossmae.diagnostics import MAX_TOKENS, accuracies, diagnose, effective_rank, spread
from training.methods.shared.losses import embedding_target, pixel_target
from training.methods.shared.patches import patchify_fbank

SIZE = 3
EVERY = {f"global_{what}_{side}" for what in ("std", "rank") for side in ("audio", "visual")}
CONTRAST = {"contrast_accuracy_audio_to_visual", "contrast_accuracy_visual_to_audio"}
ATTENTIVE = {"attentive_share_audio", "attentive_share_visual"}
PIXELS = {f"cdt_{side}_{what}" for side in ("audio", "visual") for what in ("matched", "mean")}
CROSS = {"cdt_audio_shuffled", "cdt_visual_shuffled"} | ATTENTIVE
EMBEDDINGS = {f"emb_{side}_{what}" for side in ("audio", "visual") for what in ("matched", "shuffled", "mean")} | {
    f"target_{what}_{side}" for what in ("std", "rank") for side in ("audio", "visual")
}

pytestmark = pytest.mark.usefixtures("one_thread")


def test_effective_rank_of_known_spectra() -> None:
    eye = torch.cat([torch.eye(6), -torch.eye(6)]).view(
        2, 6, 6
    )  # rows [B, N, D] about a mean of 0, all directions alike
    assert effective_rank(eye).item() == pytest.approx(6, rel=1e-6)
    line = torch.arange(20.0)[:, None] * torch.tensor([[1.0, -2.0, 3.0]]) + 7
    assert effective_rank(line).item() == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.full((4, 5, 3), 2.5)).item() == 1  # constant: nothing is left but a point
    two = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])  # singular values in 3 : 1
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(two).item() == pytest.approx(math.exp(entropy), rel=1e-6)
    for bad in (math.nan, math.inf):
        rows = torch.eye(40, 8)
        rows[3, 4] = bad
        assert effective_rank(rows).isnan()  # and no LinAlgError


@pytest.mark.parametrize("shape", [(40, 8), (8, 40)])  # by the covariance, and by the products of the rows
def test_effective_rank_is_that_of_numpys_singular_values(shape: tuple[int, int]) -> None:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2, shape[1]) + 5
    values = np.linalg.svd((rows - rows.mean(dim=0)).double().numpy(), compute_uv=False)
    share = values[values > 1e-9] / values.sum()
    assert effective_rank(rows).item() == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_effective_rank_takes_a_bounded_number_of_tokens() -> None:
    rows = torch.randn(2, MAX_TOKENS, 4)
    assert effective_rank(rows) == effective_rank(rows.flatten(0, 1)[::2])


def test_spread_by_hand() -> None:
    features = torch.tensor([[[1.0, 0], [3, 0]], [[1, 4], [3, 4]]])  # deviations 1 and 2
    assert spread(features).item() == pytest.approx(1.5)


def test_accuracies_by_hand() -> None:
    audio = torch.eye(3)
    visual = torch.tensor([[2.0, 0, 0], [9, 1, 0], [0, 0, 5]])  # the second image is nearest to the first sound
    found = accuracies(audio, visual)
    assert found["contrast_accuracy_audio_to_visual"].item() == pytest.approx(1)  # sound 2: image 2 alone has any of it
    assert found["contrast_accuracy_visual_to_audio"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [1, SIZE])
def test_every_variant_has_what_it_has(variant: str, size: int) -> None:
    model = build(with_variant(SMALLEST, variant))
    expected: set[str] = set(EVERY)
    if "cl" in variant or variant == "crossmae":
        expected |= CONTRAST
    if model.config.pixel.target != "none":
        expected |= PIXELS
    if model.config.pixel.target == "cross":
        expected |= CROSS
    if model.config.embedding.enabled:
        expected |= EMBEDDINGS
    if size == 1:  # nobody to be confused with
        apart = {name for name in expected if name.endswith(("_shuffled", "_mean"))}
        expected -= EVERY | CONTRAST | apart
    found = diagnose(model, told(*batch(size)))
    assert set(found) == expected
    assert all(value.ndim == 0 and value.isfinite() and not value.requires_grad for value in found.values())


def test_matched_losses_are_those_of_the_step() -> None:
    model = build()
    found, parts = diagnose(model, told(*batch(SIZE))), model(told(*batch(SIZE))).parts
    for name in ("cdt_audio", "cdt_visual", "emb_audio", "emb_visual"):
        assert torch.equal(found[f"{name}_matched"], parts[name])


@torch.no_grad()
def test_a_shuffled_partner_by_hand() -> None:
    """Sample i with what sample i - 1 heard: its own masks and targets, the other's Attentive or visible tokens."""
    model, (image, fbank, seeds) = build(), batch(SIZE)
    found = diagnose(model, told(image, fbank, seeds))
    other = torch.tensor([2, 0, 1])
    seen, heard = model.see_image(image, seeds), model.see_audio(fbank, seeds)
    assert model.audio_decoder is not None and model.image_from_audio is not None
    patches = model.audio_decoder(heard.features, heard.mask.visible, seen.attentive[other])
    expected = model.pixel_loss(patches, patchify_fbank(fbank), heard.mask)
    torch.testing.assert_close(found["cdt_audio_shuffled"], expected)
    target, _ = model.embedding_targets(image, fbank, seen, heard)
    rebuilt = model.image_from_audio(heard.features.tokens[other])
    torch.testing.assert_close(found["emb_visual_shuffled"], model.embedding_loss(rebuilt, target, seen.mask))
    assert not torch.equal(found["cdt_audio_shuffled"], found["cdt_audio_matched"])


@torch.no_grad()
def test_the_means_by_hand() -> None:
    model, (image, fbank, seeds) = build(), batch(SIZE)
    found = diagnose(model, told(image, fbank, seeds))
    seen, heard = model.see_image(image, seeds), model.see_audio(fbank, seeds)
    raw, _ = model.embedding_targets(image, fbank, seen, heard)
    target = embedding_target(raw, "token")
    assert found["emb_visual_mean"].item() == pytest.approx(target.var(dim=0, correction=0).mean().item(), rel=1e-5)
    assert found["target_std_visual"].item() == pytest.approx(spread(raw).item())  # before the normalisation
    patches = pixel_target(patchify_fbank(fbank), norm_pix=True)
    error = (patches - patches.mean(dim=0)).square().mean(dim=-1)
    hidden = error[heard.mask.is_masked].mean()
    assert found["cdt_audio_mean"].item() == pytest.approx(hidden.item(), rel=1e-5)


def test_uniform_attention_gives_the_share_of_the_tokens() -> None:
    model = build()
    with torch.no_grad():
        for encoder in (model.image_encoder, model.audio_encoder):
            last: torch.nn.Module = encoder.blocks[-1]
            last.attn.qkv.weight.zero_()
            last.attn.qkv.bias.zero_()
    found = diagnose(model, told(*batch(2)))
    assert found["attentive_share_visual"].item() == pytest.approx(12 / 49, rel=1e-4)
    assert found["attentive_share_audio"].item() == pytest.approx(32 / 128, rel=1e-4)
    assert (
        diagnose(build(), told(*batch(2)))["attentive_share_visual"] > 12 / 49 + 0.01
    )  # the top k have more than their share


def collapsed() -> CrossMAE:
    """Encoders whose tokens all lie on one short line: the last norm keeps a single direction."""
    model = build()
    with torch.no_grad():
        for encoder in (model.image_encoder, model.audio_encoder):
            encoder.norm.weight.zero_()
            encoder.norm.weight[3] = 0.05
            encoder.norm.bias.fill_(1.0)
    return model


def test_a_collapse_is_seen_where_the_embedding_loss_would_fall() -> None:
    healthy, sick = diagnose(build(), told(*batch(SIZE))), diagnose(collapsed(), told(*batch(SIZE)))
    for side in ("audio", "visual"):
        assert healthy[f"target_rank_{side}"] > 10 and healthy[f"target_std_{side}"] > 0.5
        assert sick[f"target_rank_{side}"] < 1.01 and sick[f"target_std_{side}"] < 0.01
        assert sick[f"global_rank_{side}"] < 1.01


def test_a_model_that_ignores_its_partner_is_seen() -> None:
    model = build()
    with torch.no_grad():
        for decoder in (model.image_decoder, model.audio_decoder):
            assert decoder is not None and decoder.condition is not None
            decoder.condition.proj.weight.zero_()
    found = diagnose(model, told(*batch(SIZE)))
    for side in ("audio", "visual"):
        assert torch.equal(found[f"cdt_{side}_shuffled"], found[f"cdt_{side}_matched"])


def test_with_other_switches() -> None:
    without = diagnose(build(switched("embedding", targets="visible_only")), told(*batch(SIZE)))
    assert "emb_audio_shuffled" in without and "emb_audio_mean" not in without
    hinted = diagnose(build(switched("embedding", queries="tokens")), told(*batch(SIZE)))
    assert hinted["emb_audio_shuffled"] != hinted["emb_audio_matched"]
    one_sided = diagnose(build(switched("attentive", audio_ratio=0.0)), told(*batch(SIZE)))
    assert "cdt_visual_shuffled" not in one_sided and "cdt_audio_shuffled" in one_sided
    assert "attentive_share_audio" not in one_sided and "attentive_share_visual" in one_sided
    teacher = diagnose(build(switched("embedding", targets="ema", normalise="feature")), told(*batch(SIZE)))
    assert set(teacher) == EVERY | CONTRAST | PIXELS | CROSS | EMBEDDINGS


def test_ranks_do_not_suffer_from_autocast() -> None:
    rows: Tensor = torch.arange(64.0)[:, None] * torch.randn(1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert effective_rank(rows).item() == pytest.approx(1, abs=1e-3)
