"""MAViL's masks: pure functions of each sample's seed.

B samples, N tokens, V of them visible; audio tokens run time-major, t * 8 + f on the grid of 64 x 8.
"""

import torch
from torch import Tensor

from training.methods.mavil.config import SecondView, kept_count
from training.methods.shared.masking import Mask, keep_first, noise
from training.methods.shared.streams import AUDIO_FREQUENCY, AUDIO_TIME, IMAGE_MASK


def two_views(
    seeds: Tensor, tokens: int, count: int, *, streams: tuple[int, int], second: SecondView
) -> tuple[Mask, Mask]:
    """Two random views of `count` visible tokens each, for seeds [B].

    Args:
        streams: of the random numbers of both views.
        second: `disjoint` takes the second view from what the first one hides.
    """
    order = _order(seeds, streams[0], tokens)
    if second == "disjoint":
        return keep_first(order, count), keep_first(order.roll(-count, dims=1), count)
    return keep_first(order, count), keep_first(_order(seeds, streams[1], tokens), count)


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
