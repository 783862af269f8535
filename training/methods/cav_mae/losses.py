"""CAV-MAE's contrastive loss (eqs. 6 and 7)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.methods.cav_mae.config import Direction
from training.methods.shared.blocks import without_autocast
from training.methods.shared.contrast import all_pairs

GROUPS = 4  # the authors' GPUs, each of which compared its own share of the batch


def contrast(audio: Tensor, image: Tensor, temperature: float, *, direction: Direction, in_groups: bool) -> Tensor:
    """Eq. 7 of audio and image features [B, D] of B pairs, with cosine similarity; a scalar.

    With torch.distributed these are a rank's rows of the global batch, and the mean over the ranks is its loss.

    Args:
        in_groups: each frame is compared with the sounds of its quarter of the global batch alone.
    """
    pairs = all_pairs(F.normalize(audio.float(), dim=-1), F.normalize(image.float(), dim=-1))
    rows = torch.arange(len(audio), device=audio.device) + pairs.first
    columns = torch.arange(len(pairs.all_audio), device=audio.device)
    is_other = None
    if in_groups:
        size = -(-len(columns) // GROUPS)
        is_other = rows[:, None] // size != columns[None, :] // size
    to_audio = _cross_entropy(pairs.image, pairs.all_audio, temperature, rows, is_other)
    if direction == "video_to_audio":
        return to_audio
    return (to_audio + _cross_entropy(pairs.audio, pairs.all_image, temperature, rows, is_other)) / 2


def _cross_entropy(rows: Tensor, columns: Tensor, temperature: float, own: Tensor, is_other: Tensor | None) -> Tensor:
    with without_autocast(rows):  # bf16 leaves a handful of values to cosines that are nearly alike
        logits = rows @ columns.T / temperature
    if is_other is not None:
        logits = logits.masked_fill(is_other, -torch.inf)
    return F.cross_entropy(logits, own)
