"""CAV-MAE's masks: a pure function of each sample's seed, by the counts of the authors' code.

B samples, N tokens, V of them visible; audio tokens run time-major, t * 8 + f on the grid of 64 x 8.
"""

from torch import Tensor

from training.methods.cav_mae.config import AudioMasking, kept_count
from training.methods.shared.masking import Mask, keep_first, noise
from training.methods.shared.streams import AUDIO_FREQUENCY, AUDIO_MASK, AUDIO_TIME, IMAGE_MASK


def mask_image(seeds: Tensor, tokens: int, ratio: float) -> Mask:
    """Uniform masking of the tokens of images, for seeds [B]."""
    return keep_first(noise(seeds, IMAGE_MASK, tokens).argsort(dim=1, stable=True), kept_count(tokens, ratio))


def mask_audio(seeds: Tensor, grid: tuple[int, int], ratio: float, strategy: AudioMasking) -> Mask:
    """Masking of the tokens of fbanks, times x bands of them, for seeds [B].

    `time` hides floor(r times), `frequency` floor(r bands), `time-frequency` floor(0.7 r times) and floor(0.7 r bands).
    The number of visible tokens is always that of uniform masking: where what is named leaves fewer, hidden tokens are
    shown at random (at 0.75, 33 times and 4 bands leave 124 of 128), where it leaves more, random ones are hidden too.
    """
    times, bands = grid
    order = noise(seeds, AUDIO_MASK, times * bands).argsort(dim=1, stable=True)
    if strategy != "uniform":
        share = 0.7 * ratio if strategy == "time-frequency" else ratio
        columns = 0 if strategy == "frequency" else int(share * times)
        rows = 0 if strategy == "time" else int(share * bands)
        time = _first(noise(seeds, AUDIO_TIME, times), columns).repeat_interleave(bands, dim=1)
        band = _first(noise(seeds, AUDIO_FREQUENCY, bands), rows).repeat(1, times)
        hidden = (time | band).gather(1, order)  # [B, N], in the random order
        order = order.gather(1, hidden.byte().argsort(dim=1, stable=True))
    return keep_first(order, kept_count(times * bands, ratio))


def _first(values: Tensor, count: int) -> Tensor:
    """Whether each of values [B, M] is among the `count` smallest of its row, bool [B, M]."""
    return values.argsort(dim=1, stable=True).argsort(dim=1) < count
