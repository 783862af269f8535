"""The order of samples, and a place in it. Nothing here knows of ranks' shards, workers or buffers.

    epoch_order(seed, epoch, n)   a permutation of 0 .. n-1: the order of one epoch
    Place                         epoch and cursor in the endless run of epochs
    take(place, count)            the next samples of that run
    sample_seeds(...)             the seed of every random choice made for a sample

The permutation is ours and versioned: ORDER_VERSION changes when, and only when, an order changes. It sorts the
numbers 0 .. n-1 by a hash (splitmix64, Steele et al. 2014) of (seed, epoch, number); the low bits of the sort key
hold the number itself, so the sort is of plain unsigned integers, in place, and ties cannot arise.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

ORDER_VERSION = 1

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The splitmix64 output function of each value, uint64 -> uint64."""
    z = values + np.uint64(_GOLDEN)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _mix(*numbers: int) -> int:
    """One 64-bit number out of several: a splitmix64 step after each."""
    state = 0
    for number in numbers:
        value = np.array([(state ^ number) & _MASK], np.uint64)
        state = int(splitmix64(value)[0])
    return state


def epoch_order(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch visits the samples: a permutation of 0 .. n-1, int64 [n].

    Takes 16 bytes a sample while it sorts and 8 afterwards.
    """
    bits = max(n - 1, 1).bit_length()
    keys = np.arange(n, dtype=np.uint64)
    hashes = splitmix64(keys ^ np.uint64(_mix(seed, epoch)))
    hashes &= np.uint64(_MASK ^ ((1 << bits) - 1))
    keys |= hashes
    del hashes
    keys.sort()
    keys &= np.uint64((1 << bits) - 1)
    return keys.view(np.int64)


_cached_order = lru_cache(maxsize=2)(epoch_order)  # a batch may span two epochs


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place in the endless run of epochs: `cursor` samples of `epoch` are done."""

    epoch: int = 0
    cursor: int = 0

    def advance(self, count: int, n: int) -> "Place":
        """The place `count` samples further on, in a dataset of `n`. Epochs follow each other without padding."""
        done = self.cursor + count
        return Place(epoch=self.epoch + done // n, cursor=done % n)

    def samples_done(self, n: int) -> int:
        """Samples taken since the start of the run."""
        return self.epoch * n + self.cursor


def take(place: Place, count: int, *, seed: int, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The next `count` samples from `place` on: their numbers and their epochs, int64 [count] each."""
    numbers = np.empty(count, np.int64)
    epochs = np.empty(count, np.int64)
    filled = 0
    while filled < count:
        chunk = min(count - filled, n - place.cursor)
        order = _cached_order(seed, place.epoch, n)
        numbers[filled : filled + chunk] = order[place.cursor : place.cursor + chunk]
        epochs[filled : filled + chunk] = place.epoch
        filled += chunk
        place = place.advance(chunk, n)
    return numbers, epochs


def rank_slice(count: int, rank: int, world: int) -> slice:
    """Which of a step's `count` samples are this rank's: consecutive ones, equally many for every rank."""
    share = count // world
    return slice(rank * share, (rank + 1) * share)


def sample_seeds(seed: int, epochs: npt.NDArray[np.int64], keys: Sequence[str]) -> npt.NDArray[np.int64]:
    """The seed of every random choice for each sample, from (seed, epoch, key) alone, int64 [len(keys)]."""
    hashed = [int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") for key in keys]
    of_epoch = splitmix64(epochs.view(np.uint64) ^ np.uint64(_mix(seed)))
    return splitmix64(of_epoch ^ np.array(hashed, np.uint64)).view(np.int64)
