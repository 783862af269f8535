"""A view ahead of the reader: which remote shards the next batches need, said to the cache early enough.

shares ──looked at ahead──> expect ──> shares, each when its shards are held ──> the ring ──> done: let go
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from shards_spec.errors import UserError
from training.stream.cache import ShardCache
from training.stream.index import DatasetIndex
from training.stream.order import Numbers, Place, SampleStream
from training.stream.shares import Share
from training.stream.waiting import Stopping, never

_SHARES_AHEAD = 4096  # looked at before they are read, at most


@dataclass(frozen=True)
class _Step:
    """A share, and what it needs."""

    share: Share
    own: list[int]  # remote shards of its samples
    together: list[int]  # ... and of the samples that all ranks take at the same time


class Ahead:
    """The shares of a run over remote datasets, each given when the shards of its samples are in the cache.

    What is held, waits or is on its way fits into the cache, that of the other ranks included: they need the same
    shards at about the same time, so no rank takes the room without which another one cannot go on.

    Args:
        index: of datasets at least one of which is remote.
        stopping: looked at while shards are waited for.
    """

    def __init__(self, index: DatasetIndex, shares: Iterable[Share], stopping: Stopping = never) -> None:
        assert index.cache is not None
        self._index, self._cache = index, index.cache
        self._stopping = stopping
        self._shares = iter(shares)
        self._following: _Step | None = None  # looked at, and too much for now
        self._queue: deque[_Step] = deque()
        self._head_is_held = False
        self._in_work: deque[tuple[_Step, list[int]]] = deque()  # with the shards of samples that stand in
        self._wanted: Counter[int] = Counter()  # steps in work or queue that need a shard; the first needed first
        self._bytes = 0  # of all of them
        self._told: list[int] = []

    def __enter__(self) -> "Ahead":
        self._cache.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for step, others in self._in_work:
            self._cache.release([*step.own, *others])
        if self._head_is_held:
            self._cache.release(self._queue[0].own)
        self._in_work.clear()
        self._queue.clear()
        self._head_is_held = False
        self._cache.__exit__()

    def __iter__(self) -> Iterator[Share]:
        """The shares. Waits for the shards of each.

        Raises:
            FetchError: a shard cannot be had.
            UserError: the cache is too small for one step.
            StopWaiting: `stopping` said so.
        """
        while True:
            self._look()
            if not self._queue:
                return
            if not self._head_is_held:
                self._cache.hold(self._queue[0].own, self._stopping)
            self._head_is_held = False
            step = self._queue.popleft()
            self._in_work.append((step, []))
            yield step.share

    def ready(self) -> bool:
        """Whether the next share, or the end, comes without waiting."""
        self._look()
        if not self._queue:
            return self._following is None
        self._head_is_held = self._head_is_held or self._cache.try_hold(self._queue[0].own)
        return self._head_is_held

    def done(self) -> None:
        """The oldest share in work needs its shards no more."""
        step, others = self._in_work.popleft()
        self._cache.release([*step.own, *others])
        for shard in step.together:
            self._wanted[shard] -= 1
            if not self._wanted[shard]:
                del self._wanted[shard]
                self._bytes -= self._cache.shards[shard].bytes

    def stand_in(self, number: int) -> None:
        """Holds the shard of a sample that stands in for a damaged one of the oldest share in work."""
        shard = self._index.locate(number)[0]
        if shard in self._cache.shards:
            self._cache.hold([shard], self._stopping)
            self._in_work[0][1].append(shard)

    def _look(self) -> None:
        """Looks further ahead, as far as the cache has room, and tells the cache."""
        while len(self._queue) < _SHARES_AHEAD and (not self._queue or len(self._wanted) < len(self._cache.shards)):
            step = self._following or self._see(next(self._shares, None))
            self._following = step
            if step is None:
                break
            new = [shard for shard in step.together if shard not in self._wanted]
            size = sum(self._cache.shards[shard].bytes for shard in new)
            if self._wanted and self._bytes + size > self._cache.folder.size:
                break
            check_room(self._cache, step.together)
            self._following = None
            self._queue.append(step)
            self._wanted.update(step.together)
            self._bytes += size
        if (wanted := list(self._wanted)) != self._told:
            self._told = wanted
            self._cache.expect(wanted)

    def _see(self, share: Share | None) -> _Step | None:
        if share is None:
            return None
        own = remote_shards(self._index, share.numbers)
        return _Step(share, own, own if share.together is None else remote_shards(self._index, share.together))


def remote_shards(index: DatasetIndex, numbers: Numbers) -> list[int]:
    """The remote shards of samples, in ascending order."""
    assert index.cache is not None
    return [shard for shard in np.unique(index.shards_of(numbers)).tolist() if shard in index.cache.shards]


def check_room(cache: ShardCache, together: list[int]) -> None:
    """Checks that the shards of one step fit into the cache.

    Raises:
        UserError: they do not; names the size that is needed.
    """
    needed = sum(cache.shards[shard].bytes for shard in together)
    if needed > cache.folder.size:
        raise UserError(
            f"--cache-size {cache.folder.size / 1e9:.4g}GB is too small: one step needs {len(together)} shards at the"
            f" same time, {_gigabytes(needed)}; give three times that, or a smaller --batch-size (or --window)"
        )


def check_cache(index: DatasetIndex, stream: SampleStream, place: Place, batch_size: int) -> None:
    """Checks, before any work, that the cache can hold what an epoch's steps from `place` on need at once.

    Raises:
        UserError: it cannot; names the size that is needed.
    """
    if index.cache is None:
        return
    total = sum(shard.bytes for shard in index.cache.shards.values())
    size = index.cache.folder.size
    if total <= size:
        return
    if stream.is_global:
        raise UserError(
            f"--cache-size {size / 1e9:.4g}GB is too small: --shuffle global needs all {len(index.cache.shards)} remote"
            f" shards all the time, {_gigabytes(total)}; use --shuffle block, or give that size"
        )
    for _ in range(-(-stream.n // batch_size)):
        check_room(index.cache, remote_shards(index, stream.take(place, batch_size)[0]))
        place = place.advance(batch_size, stream.n)


def _gigabytes(size: int) -> str:
    """As --cache-size takes it, rounded up."""
    return f"{-(-size // 10**6) / 1000:.3f}GB"
