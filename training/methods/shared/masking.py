"""Which tokens are hidden: a pure function of each sample's seed, whatever its batch, rank or device.

The noise is a counter-based hash (SplitMix64; Steele, Lea and Flood, OOPSLA 2014) in wrapping int64 arithmetic, so
equal seeds give equal masks on every device and no generator has a state to save. `is_masked` is True where hidden.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training.methods.shared.padding import share_of
from training.methods.shared.streams import AUDIO_FREQUENCY, AUDIO_MASK, AUDIO_TIME, IMAGE_MASK

AudioStrategy = Literal["random", "time", "frequency", "time-frequency"]


def _signed(constant: int) -> int:
    """The 64 bits of an unsigned constant as torch's int64 holds them."""
    return constant - 2**64 if constant >= 2**63 else constant


GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


@dataclass(frozen=True)
class Mask:
    """One modality's mask."""

    visible: Tensor  # [B, V] int64, the visible tokens, ascending
    is_masked: Tensor  # [B, N] bool, True = hidden
    is_valid: Tensor | None = None  # [B, N] bool, False = padding, which is to be left out


def kept_count(total: int, ratio: float) -> int:
    """`ratio` of `total`, rounded, halves up: 0.25 of 196 is 49, of 49 is 12."""
    return int(total * ratio + 0.5)


def splitmix64(state: Tensor) -> Tensor:
    """The output of a SplitMix64 generator in this state, int64 of any shape; its next state is state + GOLDEN."""
    z = state + GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def noise(seeds: Tensor, stream: int, count: int) -> Tensor:
    """Uniform int64 noise [B, count] of (seed, stream, index) for seeds [B]: each part is hashed into the last.

    The index joins by XOR, never as index * GOLDEN: torch.compile takes that for address arithmetic of its C++ loop,
    where an overflow is undefined and has been seen to make the loop run past its end.
    """
    key = splitmix64(splitmix64(seeds) ^ stream)
    index = torch.arange(count, device=seeds.device)
    return splitmix64(key[:, None] ^ index[None, :])


def uniform(seeds: Tensor, stream: int, count: int) -> Tensor:
    """Numbers in [0, 1), float64 [B, count], of (seed, stream, index) for seeds int64 [B]."""
    return (noise(seeds, stream, count) & (2**53 - 1)).double() * 2.0**-53


def mask_image(seeds: Tensor, tokens: int, ratio: float) -> Mask:
    """Random masking of an image's tokens (eq. 4)."""
    return keep_first(noise(seeds, IMAGE_MASK, tokens).argsort(dim=1, stable=True), kept_count(tokens, 1 - ratio))


def mask_audio(
    seeds: Tensor, grid: tuple[int, int], ratio: float, strategy: AudioStrategy, is_valid: Tensor | None = None
) -> Mask:
    """Masking of an fbank's tokens (eq. 3) by one of the strategies of the supplement's Fig. 2.

    Each strategy gives every token a place in an order, coarse first, random within equals, and the first tokens stay
    visible: always the same number, whether or not it is a multiple of a column or a row. `time` orders by random
    time steps, `frequency` by random bands. `time-frequency` grows a rectangle of both, so that a quarter visible is
    what lies on half of the steps and half of the bands. With is_valid [B, N] the ratio is one of the valid tokens: as
    many of those are hidden, and padding fills up the visible ones to the same number in each sample.
    """
    times, bands = grid
    tokens = times * bands
    if strategy == "random":  # all equals: one sort, where the others take seven
        order = noise(seeds, AUDIO_MASK, tokens).argsort(dim=1, stable=True)
    else:
        order = _coarse_order(seeds, grid, strategy)
    if is_valid is None:
        return keep_first(order, kept_count(tokens, 1 - ratio))
    return _keep_first_valid(order, kept_count(tokens, 1 - ratio), is_valid, 1 - ratio)


def _coarse_order(seeds: Tensor, grid: tuple[int, int], strategy: AudioStrategy) -> Tensor:
    """An fbank's tokens [B, N] by time steps, bands, or both."""
    times, bands = grid
    tokens = times * bands
    fine = _ranks(noise(seeds, AUDIO_MASK, tokens))  # [B, N]
    time = _ranks(noise(seeds, AUDIO_TIME, times)).repeat_interleave(bands, dim=1)  # [B, N], token t * bands + f
    band = _ranks(noise(seeds, AUDIO_FREQUENCY, bands)).repeat(1, times)  # [B, N]
    if strategy == "time":
        coarse = time
    elif strategy == "frequency":
        coarse = band
    else:
        coarse = torch.maximum((2 * time + 1) * bands, (2 * band + 1) * times)
    return (coarse * tokens + fine).argsort(dim=1)


def keep_first(order: Tensor, count: int) -> Mask:
    """The mask that leaves the first `count` tokens of an order [B, N] visible."""
    visible = order[:, :count].sort(dim=1).values
    is_masked = torch.ones_like(order, dtype=torch.bool).scatter(1, visible, False)
    return Mask(visible=visible, is_masked=is_masked)


def _keep_first_valid(order: Tensor, count: int, is_valid: Tensor, share: float) -> Mask:
    """The mask that leaves the first `share` of an order's valid tokens visible, and padding up to `count`; [B, N]."""
    in_order = is_valid.gather(1, order)
    sound = share_of(is_valid.sum(dim=1), share)[:, None]
    is_sound = in_order & (in_order.cumsum(dim=1) <= sound)
    is_filler = ~in_order & ((~in_order).cumsum(dim=1) <= count - sound)
    chosen_first = (~(is_sound | is_filler)).long().argsort(dim=1, stable=True)
    mask = keep_first(order.gather(1, chosen_first), count)
    return Mask(visible=mask.visible, is_masked=mask.is_masked, is_valid=is_valid)


def _ranks(values: Tensor) -> Tensor:
    """The place of each value [B, M] in its row, from 0."""
    return values.argsort(dim=1, stable=True).argsort(dim=1)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's >> on int64 drags the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
