"""Every loss against the same written out in plain Python."""

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor

from training.methods.cav_mae.losses import contrast as cav_mae_contrast
from training.methods.shared.contrast import info_nce
from training.methods.shared.losses import LossOn, Reduction, embedding_loss, patch_errors, patch_statistics, pixel_loss

B, N, P = 2, 5, 6


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def standardised(values: list[float], eps: float, correction: int) -> list[float]:
    center = mean(values)
    variance = sum((v - center) ** 2 for v in values) / (len(values) - correction)
    return [(v - center) / math.sqrt(variance + eps) for v in values]


def error(predicted: list[float], true: list[float], reduction: str) -> float:
    total = sum((p - t) ** 2 for p, t in zip(predicted, true, strict=True))
    return total / len(true) if reduction == "mean" else total


@pytest.mark.parametrize("reduction", get_args(Reduction))
@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("on", get_args(LossOn))
def test_pixel_loss_by_hand(on: LossOn, norm_pix: bool, reduction: Reduction) -> None:
    predicted, patches = random(B, N, P, seed=0), random(B, N, P, seed=1)
    is_masked = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    errors = []
    for b in range(B):
        for n in range(N):
            hidden = bool(is_masked[b, n])
            if on == "all" or (on == "masked") == hidden:
                true = patches[b, n].tolist()
                # MAE: the variance with Bessel's correction, 1e-6 added under the root.
                true = standardised(true, 1e-6, correction=1) if norm_pix else true
                errors.append(error(predicted[b, n].tolist(), true, reduction))
    loss = pixel_loss(predicted, patches, is_masked, on=on, norm_pix=norm_pix, reduction=reduction)
    assert loss.item() == pytest.approx(mean(errors), rel=1e-5)


def test_pixel_loss_counts_hidden_patches_only() -> None:
    """Polarity: with `masked`, what is predicted for a visible patch does not matter."""
    patches, is_masked = random(1, 2, P, seed=2), torch.tensor([[True, False]])
    predicted = patches.clone()
    predicted[0, 1] += 100
    assert pixel_loss(predicted, patches, is_masked, on="masked", norm_pix=False, reduction="mean") == 0
    assert pixel_loss(predicted, patches, is_masked, on="visible", norm_pix=False, reduction="mean") == 10_000


def test_flat_patches_are_finite() -> None:
    """The padding of a short clip is constant: its normalised target is 0, not NaN."""
    patches = torch.full((1, N, P), -1.25)
    is_masked = torch.ones(1, N, dtype=torch.bool)
    assert pixel_loss(torch.zeros(1, N, P), patches, is_masked, on="masked", norm_pix=True, reduction="mean") == 0
    _, std = patch_statistics(patches)
    torch.testing.assert_close(std, torch.full((1, N, 1), 1e-3))


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_embedding_loss_a_token_by_hand(reduction: Reduction) -> None:
    predicted, target = random(B, N, P, seed=3), random(B, N, P, seed=4)
    errors = [
        error(predicted[b, n].tolist(), standardised(target[b, n].tolist(), 1e-6, correction=0), reduction)
        for b in range(B)
        for n in range(N)
    ]
    loss = embedding_loss(predicted, target, normalise="token", reduction=reduction)
    assert loss.item() == pytest.approx(mean(errors), rel=1e-5)


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_embedding_loss_a_feature_by_hand(reduction: Reduction) -> None:
    predicted, target = random(B, N, P, seed=5), random(B, N, P, seed=6)
    columns = [standardised(target[:, :, d].flatten().tolist(), 1e-6, correction=0) for d in range(P)]
    errors = [
        error(predicted[b, n].tolist(), [column[b * N + n] for column in columns], reduction)
        for b in range(B)
        for n in range(N)
    ]
    loss = embedding_loss(predicted, target, normalise="feature", reduction=reduction)
    assert loss.item() == pytest.approx(mean(errors), rel=1e-5)


def test_errors_are_taken_in_float32() -> None:
    predicted = torch.full((1, 1, 4), 1.0, dtype=torch.bfloat16)
    assert patch_errors(predicted, torch.zeros(1, 1, 4), "mean").dtype == torch.float32


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_info_nce_by_hand(reduction: str) -> None:
    """Eq. 1 term by term."""
    audio, image, tau = random(3, 4, seed=7), random(3, 4, seed=8), 0.3

    def cosine(x: list[float], y: list[float]) -> float:
        dot = sum(p * q for p, q in zip(x, y, strict=True))
        return dot / math.sqrt(sum(p * p for p in x)) / math.sqrt(sum(q * q for q in y))

    a, v = audio.tolist(), image.tolist()
    terms = []
    for i in range(3):
        own = math.exp(cosine(a[i], v[i]) / tau)
        to_image = own / sum(math.exp(cosine(a[i], v[j]) / tau) for j in range(3))
        to_audio = own / sum(math.exp(cosine(v[i], a[j]) / tau) for j in range(3))
        terms.append(-(math.log(to_image) + math.log(to_audio)))
    expected = mean(terms) / (1 if reduction == "sum" else 2)
    loss = info_nce(audio, image, tau, reduction=reduction, is_global=True)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        partial(info_nce, reduction="sum", is_global=True),
        partial(cav_mae_contrast, direction="both", in_groups=True),
    ],
)
def test_info_nce_tells_features_apart_that_are_nearly_alike(call: Callable[..., Tensor]) -> None:
    """At a mean cosine of 0.97 bf16, with steps of 2^-8 there, leaves few values: the scores are float32's anyway."""
    shared = random(1, 64, seed=9) * 4
    audio, image = ((shared + 0.7 * random(32, 64, seed=seed)).requires_grad_() for seed in (10, 11))
    cosines = torch.nn.functional.cosine_similarity(audio[:, None], image[None], dim=-1)
    assert cosines.mean() > 0.95 and cosines.bfloat16().unique().numel() < 20

    def loss_and_gradient(*, is_low: bool) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            loss = call(audio, image, 0.1)
        return (loss, *torch.autograd.grad(loss, [audio, image]))

    torch.testing.assert_close(loss_and_gradient(is_low=True), loss_and_gradient(is_low=False))
