"""MAViL's masks: pure functions of each sample's seed.

B samples, N tokens, V of them visible; audio tokens run time-major, t * 8 + f on the grid of 64 x 8.
"""

import math

import torch
from torch import Tensor

from training.methods.mavil.config import SecondView, Strategy, kept_count
from training.methods.shared.masking import Mask, keep_first, noise
from training.methods.shared.streams import (
    AUDIO_FREQUENCY,
    AUDIO_FREQUENCY_2,
    AUDIO_MASK,
    AUDIO_MASK_2,
    AUDIO_TIME,
    AUDIO_TIME_2,
    IMAGE_MASK,
    IMAGE_MASK_2,
    IMAGE_SPACE,
    IMAGE_SPACE_2,
    IMAGE_TIME,
    IMAGE_TIME_2,
)

Streams = tuple[int, int, int]  # of a view's random numbers: tokens, times, bands or places
AUDIO_STREAMS: tuple[Streams, Streams] = (
    (AUDIO_MASK, AUDIO_TIME, AUDIO_FREQUENCY),
    (AUDIO_MASK_2, AUDIO_TIME_2, AUDIO_FREQUENCY_2),
)
VIDEO_STREAMS: tuple[Streams, Streams] = (
    (IMAGE_MASK, IMAGE_TIME, IMAGE_SPACE),
    (IMAGE_MASK_2, IMAGE_TIME_2, IMAGE_SPACE_2),
)


def two_views(
    seeds: Tensor,
    grid: tuple[int, int],
    ratio: float,
    count: int,
    *,
    strategy: Strategy,
    second: SecondView,
    streams: tuple[Streams, Streams],
) -> tuple[Mask, Mask]:
    """Two views of `count` visible tokens each, for seeds [B].

    Args:
        grid: times, and bands or places in a frame.
        second: `disjoint` takes the second view from what the first one hides.
    """
    first, other = (_masking_order(seeds, grid, ratio, strategy, own) for own in streams)
    if second == "disjoint":
        other = first.roll(-count, dims=1)
    return keep_first(first, count), keep_first(other, count)


def _masking_order(seeds: Tensor, grid: tuple[int, int], ratio: float, strategy: Strategy, streams: Streams) -> Tensor:
    """Tokens [B, N], the first of which stay visible: at random, or those last that lie in a hidden time or place.

    With s of the times and 2 s of the places hidden, (1 - s) (1 - 2 s) = 1 - ratio.
    """
    times, places = grid
    order = _order(seeds, streams[0], times * places)
    if strategy == "random":
        return order
    share = (3 - math.sqrt(9 - 8 * ratio)) / 4
    time = _chosen(seeds, streams[1], times, share).repeat_interleave(places, dim=1)
    place = _chosen(seeds, streams[2], places, 2 * share).repeat(1, times)
    return order.gather(1, (time | place).gather(1, order).byte().argsort(dim=1, stable=True))


def _chosen(seeds: Tensor, stream: int, count: int, share: float) -> Tensor:
    """A share of `count`, rounded, chosen at random: bool [B, count]."""
    return _order(seeds, stream, count).argsort(dim=1) < int(share * count + 0.5)


def finetune_video_mask(seeds: Tensor, tokens: int, ratio: float) -> Mask:
    """Fine-tuning hides "20% for space and time in video clips" (B.3): of all tokens, 627 of 784 stay."""
    return keep_first(_order(seeds, IMAGE_MASK, tokens), kept_count(tokens, ratio))


def finetune_audio_mask(seeds: Tensor, grid: tuple[int, int], ratio: float) -> Mask:
    """ "A 20% random masking rate for time and frequency in audio spectrograms" (B.3): 51 of 64 times and 6 of 8 bands
    stay, 306 tokens.
    """
    times, bands = grid
    time = _order(seeds, AUDIO_TIME, times)[:, : kept_count(times, ratio)].sort(dim=1).values
    band = _order(seeds, AUDIO_FREQUENCY, bands)[:, : kept_count(bands, ratio)].sort(dim=1).values
    visible = (time[:, :, None] * bands + band[:, None, :]).flatten(1)
    is_masked = torch.ones(len(seeds), times * bands, dtype=torch.bool, device=seeds.device)
    return Mask(visible=visible, is_masked=is_masked.scatter(1, visible, False))


def _order(seeds: Tensor, stream: int, count: int) -> Tensor:
    """A random order [B, count]."""
    return noise(seeds, stream, count).argsort(dim=1, stable=True)
