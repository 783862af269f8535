"""Reconstruction losses of both levels: pure functions, in float32 whatever comes in.

Eq. 2 writes 1/N times a squared norm. `mean` also divides by the number of values in a patch (as MAE does),
`patch_sum` does not.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from training.methods.shared.padding import mean_of_samples

LossOn = Literal["masked", "visible", "all"]
Reduction = Literal["mean", "patch_sum"]
Normalise = Literal["token", "feature"]

PIXEL_EPS = 1e-6  # MAE's, on the variance of a patch
TOKEN_EPS = 1e-6


def pixel_loss(
    predicted: Tensor,
    patches: Tensor,
    is_masked: Tensor,
    is_valid: Tensor | None = None,
    *,
    on: LossOn,
    norm_pix: bool,
    reduction: Reduction,
) -> Tensor:
    """One modality's half of eq. 9: a scalar from predicted and true patches [B, N, P] and is_masked [B, N].

    `on` names the patches that count: the hidden ones (`masked`), the others (`visible`, the letter of eq. 9), `all`.
    With is_valid [B, N] those of them that are not padding; each sample then has a mean of its own.
    """
    error = patch_errors(predicted, pixel_target(patches, norm_pix=norm_pix), reduction)
    if is_valid is not None:
        counted = is_valid if on == "all" else is_valid & (is_masked if on == "masked" else ~is_masked)
        return mean_of_samples(error, counted)
    if on == "all":
        return error.mean()
    counted = is_masked if on == "masked" else ~is_masked
    return (error * counted).sum() / counted.sum()


def pixel_target(patches: Tensor, *, norm_pix: bool) -> Tensor:
    """What the decoder is to say for patches [B, N, P]: themselves, or with `norm_pix` each in its own units."""
    target = patches.float()
    if not norm_pix:
        return target
    mean, std = patch_statistics(patches)
    return (target - mean) / std


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [B, N, 1] of each patch [B, N, P], as MAE's normalised targets take them."""
    patches = patches.float()
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + PIXEL_EPS).sqrt()


def embedding_loss(
    predicted: Tensor, target: Tensor, is_valid: Tensor | None = None, *, normalise: Normalise, reduction: Reduction
) -> Tensor:
    """One modality's half of eq. 12: a scalar from predicted and true features [B, N, D].

    With is_valid [B, N] of those tokens that are not padding; each sample then has a mean of its own.
    """
    error = patch_errors(predicted, embedding_target(target, normalise, is_valid), reduction)
    return error.mean() if is_valid is None else mean_of_samples(error, is_valid)


def embedding_target(target: Tensor, normalise: Normalise, is_valid: Tensor | None = None) -> Tensor:
    """What the decoder is to say for features [B, N, D].

    "The normalized complete original features": each token over its D values (`token`), or each of the D values over
    the batch and its tokens (`feature`), neither with learned scales.
    """
    target = target.float()
    if normalise == "token":
        return F.layer_norm(target, target.shape[-1:], eps=TOKEN_EPS)
    if is_valid is None:
        mean, variance = target.mean(dim=(0, 1)), target.var(dim=(0, 1), correction=0)
    else:
        weight = (is_valid / is_valid.sum()).unsqueeze(-1)
        mean = (target * weight).sum(dim=(0, 1))
        variance = ((target - mean).square() * weight).sum(dim=(0, 1))
    return (target - mean) / (variance + TOKEN_EPS).sqrt()


def patch_errors(predicted: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
    """Squared error [B, N] of each patch or token of [B, N, P] (eq. 2)."""
    error = (predicted.float() - target).square()
    return error.mean(dim=-1) if reduction == "mean" else error.sum(dim=-1)
