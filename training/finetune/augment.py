"""Augmentation on the device: every random choice is a function of the sample's seed, whatever the batch or rank.

mixup, then SpecAugment, then noise and a roll in time: the order of CAV-MAE's dataloader.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.augment import add_noise, shift
from training.methods.shared import streams
from training.methods.shared.masking import uniform

# B samples, T fbank rows, M mel bins, C classes.


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """None by default: the paper fine-tunes with "no augmentation" (supplement, section F)."""

    mixup: float = 0.0
    """Share of the samples that are mixed with another one of the piece of the batch that a process takes at once."""
    mixup_alpha: int = 10
    """The share of the sample itself is drawn from Beta(alpha, alpha): 10 in the code of AST, CAV-MAE and AudioMAE."""
    spec_frequency: int = 0
    """SpecAugment (Park et al. 2019): the widest band of mel bins that is blanked; 48 in AST, CAV-MAE and MAViL."""
    spec_time: int = 0
    """... and the longest run of fbank rows; 192 there."""
    noise: float = 0.0
    """Uniform noise of up to a random share of this is added to the normalised fbank; 0.1 in CAV-MAE."""
    shift: int = 0
    """The fbank is rolled in time by up to so many rows, either way; 1024 in CAV-MAE's code, MAViL's "R"."""

    def __post_init__(self) -> None:
        if not 0 <= self.mixup <= 1:
            raise ValueError(f"--augment.mixup is a share, 0 to 1, got {self.mixup}")
        for name in ("spec_frequency", "spec_time", "noise", "shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"--augment.{name.replace('_', '-')} must be a finite number, at least 0, got {getattr(self, name)}"
                )
        if not 1 <= self.mixup_alpha < math.inf:
            raise ValueError(f"--augment.mixup-alpha must be a finite number, at least 1, got {self.mixup_alpha}")


@dataclass(frozen=True)
class Mix:
    """Which samples of a piece are mixed with which."""

    share: Tensor  # float32 [B], of the sample itself; 1 where it is left alone
    partner: Tensor  # int64 [B], row in the piece


def draw_mix(seeds: Tensor, config: AugmentConfig) -> Mix:
    """Who is mixed with whom, from the seeds int64 [B] of a piece.

    The share is the median of 2 alpha - 1 uniform numbers, which is distributed as Beta(alpha, alpha).
    """
    size = len(seeds)
    is_mixed = uniform(seeds, streams.IS_MIXED, 1)[:, 0] < config.mixup
    share = (
        uniform(seeds, streams.MIXED_SHARE, 2 * config.mixup_alpha - 1).sort(dim=1).values[:, config.mixup_alpha - 1]
    )
    partner = (uniform(seeds, streams.PARTNER, 1)[:, 0] * size).long()
    return Mix(torch.where(is_mixed, share, 1.0).float(), partner)


def mix_linear(x: Tensor, mix: Mix) -> Tensor:
    """Images or targets [B, ...] mixed (Zhang et al. 2018)."""
    share = mix.share.view(-1, *[1] * (x.ndim - 1))
    return share * x + (1 - share) * x[mix.partner]


def mix_fbanks(fbank: Tensor, mix: Mix, *, mean: float, std: float) -> Tensor:
    """Normalised fbanks [B, T, M] mixed as if their waveforms had been, which is what the peers mix.

    The waveform share * x + (1 - share) * y of two sounds that have nothing to do with each other has the power
    share^2 |x|^2 + (1 - share)^2 |y|^2, and an fbank holds the logarithm of the power. Rows of padding are silence.

    Args:
        mean, std: what the fbanks were normalised with.
    """
    padding = (0.0 - mean) / std  # a number: to make a tensor of it on a GPU would wait for the GPU
    is_padding = ((fbank - padding).abs() < 1e-6).all(dim=2, keepdim=True)  # [B, T, 1]
    power = torch.where(is_padding, 0.0, (fbank * std + mean).exp())
    share = mix.share.view(-1, 1, 1)
    mixed = share**2 * power + (1 - share) ** 2 * power[mix.partner]
    result = (mixed.clamp_min(1e-30).log() - mean) / std
    result = torch.where(is_padding & is_padding[mix.partner], padding, result)
    return torch.where(share == 1, fbank, result)


def mixed_frames(valid_frames: Tensor, seeds: Tensor, config: AugmentConfig) -> Tensor:
    """Rows before the padding of each fbank [B] of a piece once `augment` has mixed it: of two sounds the longer's."""
    if not config.mixup:
        return valid_frames
    mix = draw_mix(seeds, config)
    return torch.where(mix.share == 1, valid_frames, torch.maximum(valid_frames, valid_frames[mix.partner]))


def spec_augment(fbank: Tensor, seeds: Tensor, config: AugmentConfig, *, fill: float) -> Tensor:
    """Blanks a band of mel bins and a run of rows of each fbank [B, T, M]; widths are uniform from 0 to the widest.

    Args:
        fill: the blank's value: that of padding, which is where AST and CAV-MAE put their zeros.
    """
    for stream, widest, axis in (
        (streams.SPEC_BANDS, config.spec_frequency, 2),
        (streams.SPEC_ROWS, config.spec_time, 1),
    ):
        if widest:
            length = fbank.shape[axis]
            draws = uniform(seeds, stream, 2)
            width = (draws[:, 0] * min(widest, length)).long()
            start = (draws[:, 1] * (length - width)).long()
            cells = torch.arange(length, device=fbank.device)
            is_blank = (cells >= start[:, None]) & (cells < (start + width)[:, None])  # [B, length]
            fbank = torch.where(is_blank[:, None, :] if axis == 2 else is_blank[:, :, None], fill, fbank)
    return fbank


def augment(
    image: Tensor, fbank: Tensor, targets: Tensor, seeds: Tensor, config: AugmentConfig, *, mean: float, std: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A piece of the batch as the model shall see it: images [B, 3, S, S], fbanks [B, T, M], targets [B, C].

    Args:
        seeds: int64 [B]. Each sample's choices depend on its own seed; its mixing partner is a row of this piece.
        mean, std: what the fbanks were normalised with.
    """
    if config.mixup:
        mix = draw_mix(seeds, config)
        image, targets = mix_linear(image, mix), mix_linear(targets, mix)
        fbank = mix_fbanks(fbank, mix, mean=mean, std=std)
    fbank = spec_augment(fbank, seeds, config, fill=(0.0 - mean) / std)
    if config.noise:
        fbank = add_noise(fbank, seeds, config.noise)
    if config.shift:
        fbank = shift(fbank, seeds, config.shift)
    return image, fbank, targets
