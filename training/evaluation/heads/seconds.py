"""Features of the single seconds of a clip, out of one pass over all of it."""

import torch
from torch import Tensor

from shards_spec.sample import FBANK_SHIFT_MS
from training.methods.shared.patches import FBANK_GRID, PATCH

# B samples, T = 64 patches in time, N = 512 audio tokens, D features.
_ROWS = 1000 // FBANK_SHIFT_MS  # fbank rows a second


def overlaps(seconds: int) -> Tensor:
    """The share of each second that each column of audio patches covers, float32 [seconds, T]; rows add up to 1.

    A patch is 16 fbank rows (0.16 s), so the seconds' borders cut patches: these count for both, by what lies in each.
    """
    patch, second = PATCH * torch.arange(FBANK_GRID[0]), _ROWS * torch.arange(seconds).unsqueeze(1)
    rows = torch.minimum(patch + PATCH, second + _ROWS) - torch.maximum(patch, second)
    return rows.clamp(min=0).float() / _ROWS


def per_second(tokens: Tensor, seconds: int) -> Tensor:
    """Audio tokens [B, N, D], token t * 8 + f -> their mean in each second, float32 [B, seconds, D]."""
    columns = tokens.float().unflatten(1, FBANK_GRID).mean(dim=2)  # [B, T, D]
    return torch.einsum("st,btd->bsd", overlaps(seconds).to(tokens.device), columns)
