"""Frames to patches of tubes: what a video token is of.

Tokens run through the frames, then along the rows: t * 196 + y * 14 + x. A patch is (time, y, x, channel).
"""

import torch
from torch import Tensor

from training.methods.shared.patches import PATCH


def patchify_video(video: Tensor, tube: int) -> Tensor:
    """Frames [B, F, 3, H, W] to patches [B, N, tube * 16 * 16 * 3]; of one frame, an image's own."""
    batch, frames, channels, height, width = video.shape
    cut = (batch, frames // tube, tube, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return video.reshape(cut).permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(batch, -1, tube * PATCH * PATCH * channels)


def patches_by_frame(patches: Tensor, slots: int, values: int) -> Tensor:
    """Patches [B, N, P] of tubes to those of their frames, one frame after the other: [B, frames * N / slots, values].

    Args:
        values: of the patch of one frame, of which P is a multiple.
    """
    return patches.unflatten(2, (-1, values)).unflatten(1, (slots, -1)).transpose(2, 3).flatten(1, 3)


def repeat_by_frame(of_tokens: Tensor, slots: int, frames: int) -> Tensor:
    """What is known of tokens [B, N] for the patches of `patches_by_frame`, where each slot gives `frames` of them."""
    return of_tokens.unflatten(1, (slots, 1, -1)).expand(-1, -1, frames, -1).flatten(1)


def first_frame(patches: Tensor, tube: int) -> Tensor:
    """Patches [B, N, tube * V] to those of the first frame of each tube [B, N, V]."""
    return torch.unflatten(patches, 2, (tube, -1))[:, :, 0]
