"""Images and fbanks to patches and back, and the positions of the patches.

Tokens run along the rows of their grid: an image's index is y * 14 + x, an fbank's t * 8 + f, time-major.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PATCH = 16  # both sides, both modalities (Sec. 4.1)
IMAGE_SHAPE = (224, 224)
IMAGE_CHANNELS = 3
FBANK_SHAPE = (1024, 128)  # time, mel
IMAGE_GRID = (IMAGE_SHAPE[0] // PATCH, IMAGE_SHAPE[1] // PATCH)
FBANK_GRID = (FBANK_SHAPE[0] // PATCH, FBANK_SHAPE[1] // PATCH)
IMAGE_TOKENS = IMAGE_GRID[0] * IMAGE_GRID[1]
FBANK_TOKENS = FBANK_GRID[0] * FBANK_GRID[1]


@dataclass(frozen=True)
class Grids:
    """Rows and columns of the tokens of both modalities: what a model's inputs are cut into."""

    image: tuple[int, int] = IMAGE_GRID  # y, x
    audio: tuple[int, int] = FBANK_GRID  # time, mel


FULL = Grids()


def patchify_image(image: Tensor) -> Tensor:
    """Image [B, 3, 224, 224] to patches [B, 196, 768], a patch as (y, x, channel), as MAE's."""
    return _patchify(image)


def unpatchify_image(patches: Tensor) -> Tensor:
    """Patches [B, 196, 768] to image [B, 3, 224, 224]."""
    return _unpatchify(patches, IMAGE_GRID)


def patchify_fbank(fbank: Tensor) -> Tensor:
    """Fbank [B, 1024, 128] to patches [B, 512, 256], a patch as (time, mel)."""
    return _patchify(fbank.unsqueeze(1))


def unpatchify_fbank(patches: Tensor) -> Tensor:
    """Patches [B, 512, 256] to fbank [B, 1024, 128]."""
    return _unpatchify(patches, FBANK_GRID).squeeze(1)


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2-D sine-cosine positions [rows * columns, dim] ("2D sin-cos", Sec. A.3).

    MAE's table: the first half of the width holds the column, the second the row.
    """
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.cat([_sincos(dim // 2, column.flatten()), _sincos(dim // 2, row.flatten())], dim=1).float()


def _sincos(dim: int, position: Tensor) -> Tensor:
    """Positions [N] to [N, dim]: sines of dim / 2 frequencies, then their cosines."""
    frequency = 10000 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angle = position[:, None] * frequency[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _patchify(x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, N, 16 * 16 * C]."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, PATCH * PATCH * channels)


def _unpatchify(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, N, 16 * 16 * C] to [B, C, H, W]."""
    rows, columns = grid
    x = patches.reshape(patches.shape[0], rows, columns, PATCH, PATCH, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, rows * PATCH, columns * PATCH)
