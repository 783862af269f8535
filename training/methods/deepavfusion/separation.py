"""DeepAVFusion's source separation: of a mix of two clips, what the one sounds like whose frame is shown (App. A.3).

"We attach an audio U-Net decoder to the pre-trained audio-visual encoders. [...] through a series of transposed
convolutions and an output head, the decoder predicts a time-frequency separation mask".

B samples, D width; spectrograms are log10 of mel power, [B, 128, 192].
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.methods.deepavfusion.encoder import Streams
from training.methods.deepavfusion.fusion import EPS
from training.methods.deepavfusion.unet import DoubleConv, Up, as_map, init_decoder, layers_at, spread

MaskTarget = Literal["dominant", "ratio", "louder_than_mix"]
_STAGES = 5


class SeparationDecoder(nn.Module):
    """Tokens of all layers -> scores of each bin of the spectrogram, [B, 128, 192]."""

    def __init__(self, dim: int, *, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        widths = [dim // 2**stage for stage in range(_STAGES)]  # coarsest first
        self.image_norm = nn.LayerNorm(dim, eps=EPS)
        self.image_projs = nn.ModuleList(nn.Linear(dim, width) for width in widths)
        self.audio_norms = nn.ModuleList(nn.LayerNorm(dim, eps=EPS) for _ in widths)
        self.top = DoubleConv(2 * dim, dim)
        self.enlarge = nn.ModuleList(Up(dim, width, factor=2**stage) for stage, width in enumerate(widths) if stage)
        self.up = nn.ModuleList(Up(coarse, fine, joined=2 * fine) for coarse, fine in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], 1, 3, padding=1)
        init_decoder(self)

    def forward(self, layers: Sequence[Streams]) -> Tensor:
        """The tokens after each layer, before the last norms, of the mix and the frame."""
        chosen = [layers[place].audio for place in layers_at(len(layers), _STAGES)]
        maps = [as_map(norm(tokens), self.grid) for norm, tokens in zip(self.audio_norms, chosen, strict=True)]
        seen = self.image_norm(layers[-1].image).mean(dim=1)
        looks = [proj(seen) for proj in self.image_projs]
        x = self.top(torch.cat([maps[0], spread(looks[0], maps[0])], dim=1))
        for enlarge, up, coarse, look in zip(self.enlarge, self.up, maps[1:], looks[1:], strict=True):
            fine = enlarge(coarse)
            x = up(x, fine, spread(look, fine))
        scores: Tensor = self.last(x)
        return scores[:, 0]


def mask_target(source: Tensor, mix: Tensor, other: Tensor | None = None, *, kind: MaskTarget = "dominant") -> Tensor:
    """What the mask of a source is to be, 0 to 1, of spectrograms [B, 128, 192].

    `dominant`: "binary target masks, which identify the time-frequency bins where the target source is the most
    dominant component in the mixture" (App. A.3), so louder than the `other` source. The code has no such target: with
    the options of its README it is S / (S + mix) (`ratio`), which stays near 0.5 where the source is alone, and with
    its yaml S > mix (`louder_than_mix`), which holds in far fewer bins than the source dominates.
    """
    if kind == "dominant":
        if other is None:
            raise ValueError("a mask of the dominant source needs the other source")
        return (source > other).to(source.dtype)
    power, mix_power = 10**source, 10**mix
    if kind == "louder_than_mix":
        return (power > mix_power).to(source.dtype)
    return (power / (power + mix_power + 1e-5)).clamp(0, 1)


def separation_loss(scores: Tensor, target: Tensor, mix: Tensor, *, is_weighted: bool = True) -> Tensor:
    """Binary cross-entropy of a mask, all [B, 128, 192]; loud bins of the mix count more.

    So App. A.3 and the code; Sec. 4.2 has the "mean squared error (MSE) loss between the separated audio and the ground
    truth audio".
    """
    weight = (10**mix).log1p().clamp(1e-3, 10) if is_weighted else None
    return F.binary_cross_entropy_with_logits(scores, target, weight)
