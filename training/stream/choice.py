"""Which of its frames, and which seconds of its sound, a sample gives: functions of its seed alone.

The sound's place is drawn first, then the frames, which lie within it. With the middle frame comes the middle of the
sound.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards_spec.sample import FBANK_SHIFT_MS, FBANK_WINDOW_MS
from training.methods.interface import Reads
from training.methods.shared.streams import FRAMES, SOUND
from training.stream.order import Numbers, splitmix64

# n samples, F frames of each, M frames stored of each.
MIDDLE = -1  # the frame that every dataset stores


@dataclass(frozen=True)
class Choice:
    """What to read of n samples."""

    frames: npt.NDArray[np.int64]  # [n, F], numbers of the stored frames, ascending; MIDDLE
    sound: npt.NDArray[np.float64]  # [n], where the sound begins: 0 as early, 1 as late as it fits into the clip


def choose(reads: Reads, seeds: Numbers, stored: Numbers, valid_frames: Numbers) -> Choice:
    """What the samples with these seeds give.

    Args:
        seeds: int64 [n], of every random choice for each sample.
        stored: int64 [n], how many evenly spaced frames the dataset of each stores, at least `reads.frames`.
        valid_frames: int64 [n], rows of each fbank before its padding: how long the clip is.
    """
    if reads.choose == "middle":
        return Choice(np.full((len(seeds), reads.frames), MIDDLE), np.full(len(seeds), 0.5))
    sound = uniform(seeds, SOUND, 1)[:, 0]
    draws = uniform(seeds, FRAMES, int(stored.max()))
    frames = np.empty((len(seeds), reads.frames), np.int64)
    for row, count in enumerate(stored.tolist()):
        allowed = np.arange(count)
        if reads.waveform_seconds:
            allowed = _within(reads, count, _seconds(int(valid_frames[row])), float(sound[row]))
        if reads.choose == "window":
            starts = max(len(allowed) - reads.frames + 1, 1)
            first = int(allowed[0]) + int(draws[row, 0] * starts)
            frames[row] = np.arange(first, first + reads.frames)
        else:
            frames[row] = np.sort(allowed[np.argsort(draws[row, : len(allowed)], kind="stable")[: reads.frames]])
    return Choice(frames, sound)


def _within(reads: Reads, count: int, seconds: float, sound: float) -> npt.NDArray[np.int64]:
    """The stored frames that lie in the sound, or as many as are read that lie nearest to its middle."""
    first = sound * max(seconds - reads.waveform_seconds, 0.0)
    middle = first + min(reads.waveform_seconds, seconds) / 2
    times = (np.arange(count) + 0.5) / count * seconds
    distance = np.abs(times - middle)
    inside = np.flatnonzero(distance <= reads.waveform_seconds / 2)
    if len(inside) >= reads.frames:
        return inside
    return np.sort(np.argsort(distance, kind="stable")[: reads.frames])


def _seconds(valid_frames: int) -> float:
    return (max(valid_frames - 1, 0) * FBANK_SHIFT_MS + FBANK_WINDOW_MS) / 1000


def uniform(seeds: Numbers, stream: int, count: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), [n, count], of (seed, stream, index): what `noise` of the masks gives, in numpy."""
    key = splitmix64(splitmix64(seeds.view(np.uint64)) ^ np.uint64(stream))
    bits = splitmix64(key[:, None] ^ np.arange(count, dtype=np.uint64)[None, :])
    return (bits & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
