"""Augmentation on the device: every random choice is a function of the sample's seed, whatever the batch or rank.

What pre-training takes (`AugmentConfig`, `augment`); fine-tuning has mixup and SpecAugment beside it.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from training.methods.interface import Inputs
from training.methods.shared import streams
from training.methods.shared.masking import uniform

# B samples, F frames of each, S pixels a side, T fbank rows, M mel bins, W samples of sound.
_RATIO = 4 / 3  # the widest crop is so many times as wide as high, the narrowest as high as wide


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation in pre-training. None by default: CrossMAE names none."""

    crop: float = 1.0
    """The least share of a frame that a random crop takes, at any place and with sides of 3:4 to 4:3, the same for all
    frames of a sample; 1 for none. MAViL: 0.2, DeepAVFusion: 0.5."""
    flip: float = 0.0
    """Share of the samples whose frames are mirrored; 0.5 in MAViL and DeepAVFusion."""
    noise: float = 0.0
    """Uniform noise of up to a random share of this is added to the normalised fbank; 0.1 in CAV-MAE."""
    shift: int = 0
    """The fbank is rolled in time by up to so many rows, either way; 1024 in CAV-MAE's code."""
    gain: float = 0.0
    """The waveform is made louder or softer by up to so many dB; 6 in DeepAVFusion."""

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ValueError(f"--augment.crop is a share of the frame, above 0 to 1, got {self.crop}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"--augment.flip is a share of the samples, 0 to 1, got {self.flip}")
        for name in ("noise", "shift", "gain"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--augment.{name} must be a finite number, at least 0, got {getattr(self, name)}")


def augment(inputs: Inputs, config: AugmentConfig) -> Inputs:
    """The inputs as the model shall see them."""
    image, fbank, waveform, seeds = inputs.image, inputs.fbank, inputs.waveform, inputs.seeds
    if config.crop < 1 or config.flip:
        image = crop_and_flip(image, seeds, least=config.crop, flipped=config.flip)
    if config.noise:
        fbank = add_noise(fbank, seeds, config.noise)
    if config.shift:
        fbank = shift(fbank, seeds, config.shift)
    if waveform is not None and config.gain:
        waveform = change_gain(waveform, seeds, config.gain)
    return replace(inputs, image=image, fbank=fbank, waveform=waveform)


def crop_and_flip(image: Tensor, seeds: Tensor, *, least: float, flipped: float) -> Tensor:
    """Frames [B, F, 3, S, S] cropped, scaled back to S, and mirrored: the same for all frames of a sample.

    As torchvision's RandomResizedCrop: the area is uniform from `least` on, the logarithm of the ratio of the sides
    uniform, the place uniform; a side that would be longer than the frame's is cut to it.
    """
    draws = uniform(seeds, streams.CROP, 4)  # [B, 4]
    area = least + (1 - least) * draws[:, 0]
    ratio = torch.exp((2 * draws[:, 1] - 1) * math.log(_RATIO)) if least < 1 else torch.ones_like(area)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    across, down = ((1 - side) * (2 * draw - 1) for side, draw in ((width, draws[:, 2]), (height, draws[:, 3])))
    sign = torch.where(uniform(seeds, streams.FLIP, 1)[:, 0] < flipped, -1.0, 1.0)
    zero = torch.zeros_like(width)
    rows = torch.stack([torch.stack([sign * width, zero, across], 1), torch.stack([zero, height, down], 1)], 1)
    frames = image.flatten(1, 2)  # [B, F * 3, S, S]: one grid for all frames of a sample
    grid = F.affine_grid(rows.to(image.dtype), list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False).view_as(image)


def add_noise(fbank: Tensor, seeds: Tensor, level: float) -> Tensor:
    """Adds uniform noise in [0, r) to each fbank [B, T, M], r uniform in [0, level)."""
    size = fbank.shape[1] * fbank.shape[2]
    loudness = uniform(seeds, streams.LOUDNESS, 1).view(-1, 1, 1) * level
    return fbank + (loudness * uniform(seeds, streams.NOISE, size).view_as(fbank)).to(fbank.dtype)


def shift(fbank: Tensor, seeds: Tensor, most: int) -> Tensor:
    """Rolls each fbank [B, T, M] in time by -most to most - 1 rows."""
    length = fbank.shape[1]
    by = (uniform(seeds, streams.SHIFT, 1) * 2 * most).long() - most  # [B, 1]
    rows = (torch.arange(length, device=fbank.device) - by) % length  # [B, T]
    return fbank.gather(1, rows[:, :, None].expand_as(fbank))


def change_gain(waveform: Tensor, seeds: Tensor, most: float) -> Tensor:
    """Waveforms [B, W] in [-1, 1], louder by -most to most dB, and held to [-1, 1]."""
    decibels = (2 * uniform(seeds, streams.GAIN, 1) - 1) * most
    return (waveform * (10 ** (decibels / 20)).to(waveform.dtype)).clamp(-1, 1)
