"""DeepAVFusion's segmentation: which pixels belong to what sounds (Sec. 4.2, App. A.2).

"We fuse the global audio representation with the local visual representations, and upsample these localized
audio-visual representations using an upsampling decoder with three sequential up-convolution blocks." The code takes
image tokens of four layers, the shallowest at the coarsest stage, and leaves the fusion tokens out.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.methods.deepavfusion.encoder import Streams
from training.methods.deepavfusion.fusion import EPS
from training.methods.deepavfusion.unet import DoubleConv, Up, as_map, init_decoder, layers_at, spread

# B samples, N tokens, D width, C classes.
_SCALES = (1, 2, 4, 8)
_NARROWEST = 128


class SegmentationDecoder(nn.Module):
    """Tokens of all layers -> scores of each pixel."""

    def __init__(self, dim: int, *, classes: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        widths = [max(_NARROWEST, dim // scale) for scale in _SCALES]
        self.image_norms = nn.ModuleList(nn.LayerNorm(dim, eps=EPS) for _ in widths)
        self.audio_projs = nn.ModuleList(nn.Linear(dim, width) for width in widths)
        self.audio_norms = nn.ModuleList(nn.LayerNorm(width, eps=EPS) for width in widths)
        self.top = DoubleConv(dim + widths[0], widths[0])
        self.enlarge = nn.ModuleList(
            Up(dim, width, factor=scale) for width, scale in zip(widths[1:], _SCALES[1:], strict=True)
        )
        self.up = nn.ModuleList(Up(coarse, fine, joined=2 * fine) for coarse, fine in pairwise(widths))
        self.first = nn.Conv2d(widths[-1], 128, 3, padding=1)
        self.last = nn.Conv2d(128, classes, 3, padding=1)
        init_decoder(self)

    def forward(self, layers: Sequence[Streams]) -> Tensor:
        """The tokens after each layer, before the last norms -> scores [B, C, 16 rows, 16 columns]."""
        chosen = [layers[place].image for place in layers_at(len(layers), len(_SCALES))]
        maps = [as_map(norm(tokens), self.grid) for norm, tokens in zip(self.image_norms, chosen, strict=True)]
        sides = zip(self.audio_norms, self.audio_projs, strict=True)
        sounds = [norm(proj(layers[-1].audio)).mean(dim=1) for norm, proj in sides]
        x = self.top(torch.cat([maps[0], spread(sounds[0], maps[0])], dim=1))
        for enlarge, up, coarse, sound in zip(self.enlarge, self.up, maps[1:], sounds[1:], strict=True):
            fine = enlarge(coarse)
            x = up(x, fine, spread(sound, fine))
        x = F.interpolate(self.first(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.last(x)


def segmentation_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Of scores [B, C, H, W] and the true class of each pixel, int64 [B, H, W]; of one channel, whether it sounds."""
    if scores.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(scores[:, 0], target.to(scores.dtype))
    return F.cross_entropy(scores, target)
