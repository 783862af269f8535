"""Padding: the rows that fill an fbank after its sound has ended, and what it takes to leave them out.

B samples, N tokens. A token with one row of sound or more is valid: `is_valid` is None where padding is counted.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.methods.shared.patches import FBANK_GRID, PATCH

Padding = Literal["counted", "left_out"]


def valid_tokens(padding: Padding, valid_frames: Tensor | None) -> Tensor | None:
    """Which of the 512 tokens hold sound, bool [B, 512], of the fbanks' rows before padding, int64 [B].

    None where padding is counted. Of no rows at all the first count, so that nothing is a mean over nothing.

    Raises:
        ValueError: padding is to be left out, and nobody said where it begins.
    """
    if padding == "counted":
        return None
    if valid_frames is None:
        raise ValueError(
            "encoder.padding is 'left_out', which needs valid_frames, the rows of each fbank before its padding"
            " (training.stream.loader.count_valid_frames, of fbanks as stored)"
        )
    times, bands = FBANK_GRID
    begin = torch.arange(times, device=valid_frames.device) * PATCH
    return (begin < valid_frames.clamp(min=1)[:, None]).repeat_interleave(bands, dim=1)


def attention_bias(is_valid: Tensor | None, *, has_cls: bool = False) -> Tensor | None:
    """What is added to the scores of attention over tokens of which is_valid [B, N] tells: 0 or -inf, [B, 1, 1, N].

    With has_cls for a [CLS] token before them too, which always counts.
    """
    if is_valid is None:
        return None
    if has_cls:
        is_valid = F.pad(is_valid, (1, 0), value=True)
    bias = torch.zeros(is_valid.shape, device=is_valid.device).masked_fill(~is_valid, -torch.inf)
    return bias[:, None, None]


def mean_of_samples(values: Tensor, is_counted: Tensor) -> Tensor:
    """The mean over samples of each one's mean over what counts of its values, both [B, N]: a scalar.

    A short clip counts as a long one, so that the loss does not depend on how a batch is divided.
    """
    return ((values * is_counted).sum(dim=1) / is_counted.sum(dim=1).clamp(min=1)).mean()


def share_of(counts: Tensor, ratio: float) -> Tensor:
    """`masking.kept_count` of each of counts [B], but at least one: int64 [B]."""
    return (counts.double() * ratio + 0.5).long().clamp(min=1)
