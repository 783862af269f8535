"""The order of samples, and a place in it. Nothing here knows of ranks, workers or buffers.

    Order          one dataset's (or several datasets') permutation for each epoch, global or in blocks of shards
    Place          epoch and cursor in the endless run of epochs
    SampleStream   the run itself: the next samples from a place on; several datasets by weight, if asked
    sample_seeds   the seed of every random choice made for a sample

The permutation is ours and versioned: ORDER_VERSION changes when, and only when, an order changes. It sorts the
numbers 0 .. n-1 by a hash (splitmix64, Steele et al. 2014) of (seed, epoch, number); the low bits of the sort key
hold the number itself, so the sort is of plain unsigned integers, in place, and ties cannot arise.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

ORDER_VERSION = 1

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
# Purposes of hashes beside the order of samples.
_SHARDS, _WEIGHTS = 1, 2
_CHUNK = 1 << 15  # numbers hashed at a time: temporaries stay in the cache

Numbers = npt.NDArray[np.int64]


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


def epoch_order(seed: int, epoch: int, n: int) -> Numbers:
    """The order in which an epoch visits n samples: a permutation of 0 .. n-1, int64 [n].

    Takes 8 bytes a sample, and sorts in place.
    """
    keys = np.arange(n, dtype=np.uint64)
    _sort_by_hash(keys, _mix(seed, epoch), max(n - 1, 1).bit_length())
    return keys.view(np.int64)


def _sort_by_hash(numbers: npt.NDArray[np.uint64], salt: int, bits: int) -> None:
    """Sorts numbers below 2**bits, in place, by their hash."""
    low = np.uint64((1 << bits) - 1)
    for first in range(0, len(numbers), _CHUNK):
        chunk = numbers[first : first + _CHUNK]
        chunk |= splitmix64(chunk ^ np.uint64(salt)) & ~low
    numbers.sort()
    numbers &= low


def block_order(seed: int, epoch: int, counts: Sequence[int], window: int) -> Numbers:
    """The order of an epoch that reads shards in blocks: shards are permuted, and samples within `window` of them.

    Args:
        counts: samples of each shard; numbers run through the shards in order.
        window: shards mixed at a time.

    Returns:
        A permutation of 0 .. sum(counts)-1, int64.
    """
    firsts = np.concatenate([[0], np.cumsum(counts)])
    shards = epoch_order(_mix(seed, _SHARDS), epoch, len(counts))
    n = int(firsts[-1])
    salt, bits = _mix(seed, epoch), max(n - 1, 1).bit_length()
    order = np.empty(n, np.int64)
    filled = 0
    for start in range(0, len(shards), window):
        block = np.concatenate(
            [np.arange(firsts[s], firsts[s + 1], dtype=np.uint64) for s in shards[start : start + window]]
        )
        _sort_by_hash(block, salt, bits)
        order[filled : filled + len(block)] = block.view(np.int64)
        filled += len(block)
    return order


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place in the endless run of epochs: `cursor` samples of `epoch` are done."""

    epoch: int = 0
    cursor: int = 0

    def advance(self, count: int, n: int) -> "Place":
        """The place `count` samples further on, where an epoch has `n`. Epochs follow without padding."""
        done = self.cursor + count
        return Place(epoch=self.epoch + done // n, cursor=done % n)

    def samples_done(self, n: int) -> int:
        """Samples taken since the start of the run."""
        return self.epoch * n + self.cursor


@dataclass(kw_only=True)
class Order:
    """The permutations of one dataset, numbers 0 .. n-1.

    Attributes:
        counts: samples of each shard.
        window: shards mixed at a time; None for a global shuffle.
    """

    seed: int
    counts: Sequence[int]
    window: int | None = None
    _recent: dict[int, Numbers] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.n = sum(self.counts)

    def of_epoch(self, epoch: int) -> Numbers:
        """The order of an epoch, int64 [n]. The last two are kept: a batch may span epochs."""
        if epoch not in self._recent:
            if len(self._recent) > 1:
                del self._recent[min(self._recent)]
            self._recent[epoch] = (
                epoch_order(self.seed, epoch, self.n)
                if self.window is None
                else block_order(self.seed, epoch, self.counts, self.window)
            )
        return self._recent[epoch]

    def take(self, done: int, count: int) -> tuple[Numbers, Numbers]:
        """The next `count` samples after the first `done` of the endless run: numbers and epochs, int64 [count]."""
        numbers, epochs = np.empty(count, np.int64), np.empty(count, np.int64)
        filled = 0
        while filled < count:
            epoch, cursor = divmod(done + filled, self.n)
            chunk = min(count - filled, self.n - cursor)
            numbers[filled : filled + chunk] = self.of_epoch(epoch)[cursor : cursor + chunk]
            epochs[filled : filled + chunk] = epoch
            filled += chunk
        return numbers, epochs


class SampleStream:
    """The endless run of samples of one dataset, or of several.

    Without weights several datasets are one: every sample of each once an epoch. With weights (3, 1) every four
    consecutive samples hold three of the first dataset and one of the second, in hashed order; each dataset goes
    through its own epochs, every sample once in each, and an epoch of the stream is as many samples as all have.
    """

    def __init__(
        self,
        datasets: Sequence[Sequence[int]],
        *,
        seed: int,
        window: int | None = None,
        weights: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            datasets: samples of each shard, for each dataset. Sample numbers run through all of them.
            window: shards mixed at a time; None for a global shuffle.
        """
        self.seed = seed
        self.n = sum(map(sum, datasets))
        if weights is None:
            datasets = [[count for counts in datasets for count in counts]]
            weights = [1]
        seeds = [seed] if len(datasets) == 1 else [_mix(seed, _WEIGHTS, i) for i in range(len(datasets))]
        self.orders = [Order(seed=s, counts=counts, window=window) for s, counts in zip(seeds, datasets, strict=True)]
        self._firsts = np.concatenate([[0], np.cumsum([order.n for order in self.orders])])
        self._turns = np.repeat(np.arange(len(weights)), weights)  # whose sample comes, before hashing

    @property
    def is_global(self) -> bool:
        """Whether any sample of a dataset may follow any other one."""
        return any(order.window is None for order in self.orders)

    def take(self, place: Place, count: int) -> tuple[Numbers, Numbers]:
        """The next `count` samples from `place` on: numbers, and the epochs of their datasets, int64 [count] each."""
        done = place.samples_done(self.n)
        if len(self.orders) == 1:
            return self.orders[0].take(done, count)
        numbers, epochs = np.empty(count, np.int64), np.empty(count, np.int64)
        whose, before = self._whose(done, count)
        for i, order in enumerate(self.orders):
            mine = whose == i
            of_order, epochs[mine] = order.take(int(before[i]), int(mine.sum()))
            numbers[mine] = of_order + self._firsts[i]
        return numbers, epochs

    def _whose(self, done: int, count: int) -> tuple[Numbers, Numbers]:
        """The dataset of each of `count` samples after `done`, and how many each dataset gave before them."""
        size = len(self._turns)
        first, last = done // size, -(-(done + count) // size)
        cells = np.arange(first * size, last * size, dtype=np.uint64)
        hashes = splitmix64(cells ^ np.uint64(_mix(self.seed, _WEIGHTS))).reshape(-1, size)
        turns = self._turns[np.argsort(hashes, axis=1, kind="stable")].reshape(-1)
        skipped = done - first * size
        kinds = len(self.orders)
        before = first * np.bincount(self._turns, minlength=kinds) + np.bincount(turns[:skipped], minlength=kinds)
        return turns[skipped : skipped + count], before


def rank_slice(count: int, rank: int, world: int) -> slice:
    """Which of a step's `count` samples are this rank's: consecutive ones, equally many for every rank."""
    share = count // world
    return slice(rank * share, (rank + 1) * share)


def sample_seeds(seed: int, epochs: Numbers, keys: Sequence[str]) -> Numbers:
    """The seed of every random choice for each sample, from (seed, epoch, key) alone, int64 [len(keys)]."""
    hashed = [int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") for key in keys]
    of_epoch = splitmix64(epochs.view(np.uint64) ^ np.uint64(_mix(seed)))
    return splitmix64(of_epoch ^ np.array(hashed, np.uint64)).view(np.int64)
