"""Shards of remote datasets on the local disk, there before they are needed.

    what comes next (ahead.py) ──expect──> threads: room, download, sha256, rename ──> CACHE/ ──hold──> loader's workers

A shard is absent, on its way, or whole. Only a process that is alone with it (cache_folder.py) may fetch or evict it;
all that use it hold it. Of several processes that want a shard one fetches it, the others wait and see it move.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from shards_spec.dataset import ShardInfo
from shards_spec.messages import tell
from shards_spec.storage import Place, Remote
from training.stream.cache_folder import (
    PART_SUFFIX,
    CacheFolder,
    Entry,
    FetchError,
    RemoteShard,
    ShardLocks,
    alone_with,
    local_errors,
    shard_number,
    touch,
)
from training.stream.fetch import LARGEST_TABLE, Stopped, Transfers, check_table
from training.stream.waiting import POLL_SECONDS, Stopping, StopWaiting, never

_THREADS = 4  # shards on their way at the same time, for each process
_FRESH_SECONDS = 60.0  # what somebody used or expected so recently is not evicted for what is merely expected
_NO_ROOM_SECONDS = 5.0  # until what is merely expected looks for room again
_TELL_SECONDS = 30.0  # between lines about waiting
_JOIN_SECONDS = 5.0
_NO_ROOM, _NO_ANSWER = "no room", "no answer"


class _NoRoomError(Exception):
    """The cache is full of what others use or what is needed earlier."""


class ShardCache:
    """The remote shards of an index. Its threads run inside `with cache:` alone, so that workers can be forked before.

    Args:
        folder: the cache directory and its size.
        shards: the remote shards, by their number in the index.
        transfers: how long to wait for a server.
    """

    def __init__(
        self, folder: CacheFolder, shards: Mapping[int, RemoteShard], transfers: Transfers | None = None
    ) -> None:
        self.folder, self.shards = folder, shards
        self._transfers = transfers or Transfers()
        self._changed = threading.Condition()  # guards all below
        self._expected: dict[int, int] = {}  # shard -> its turn
        self._todo: dict[int, None] = {}  # those of them that are not there, the first first
        self._needed: list[int] = []  # what somebody waits for
        self._busy: set[int] = set()  # in the hands of a thread
        self._present: set[int] = set()  # whole when last looked at
        self._later: dict[int, float] = {}  # not to be tried again before, in time.monotonic() seconds
        self._waits: dict[int, str] = {}  # why
        self._failed: dict[int, FetchError] = {}
        self._done: set[int] = set()  # no more expected
        self._threads: list[threading.Thread] = []
        self._inside = 0
        self._touched = 0.0
        # Of the thread that asks alone.
        self._held: Counter[int] = Counter()
        self._locks: dict[Path, ShardLocks] = {}

    # ---------------------------------------------------------------- for the one who reads

    def __enter__(self) -> "ShardCache":
        self._inside += 1
        if self._inside == 1:
            self._transfers.stop.clear()
            for _ in range(_THREADS):
                self._threads.append(threading.Thread(target=self._work, name="cache", daemon=True))
                self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._inside -= 1
        if self._inside:
            return
        self._transfers.stop.set()
        with self._changed:
            self._expected, self._todo = {}, {}
            self._changed.notify_all()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(
                max(deadline - time.monotonic(), 0.0)
            )  # one whose server hangs is left behind; it ends with the process
        self._threads = []
        for locks in self._locks.values():
            locks.close()
        self._locks.clear()
        self._held.clear()

    def expect(self, shards: Sequence[int]) -> None:
        """Says which shards will be needed, the first first. All of them must fit into the cache together."""
        with self._changed:
            self._done |= self._expected.keys() - set(shards)
            self._done -= set(shards)
            self._expected = {shard: turn for turn, shard in enumerate(shards)}
            self._todo = {shard: None for shard in shards if shard not in self._present}
            for shard in [s for s in self._later if self._waits[s] == _NO_ROOM]:
                del self._later[shard]
            self._changed.notify_all()

    def try_hold(self, shards: Iterable[int]) -> bool:
        """Holds shards, if all are there: none of them can be evicted before `release`. Else holds none."""
        held: list[int] = []
        for shard in shards:
            if not self._hold(shard):
                self.release(held)
                return False
            held.append(shard)
        return True

    def hold(self, shards: Sequence[int], stopping: Stopping = never) -> None:
        """Holds shards; waits until they are there.

        Args:
            stopping: looked at while they are waited for.

        Raises:
            FetchError: a shard cannot be had; within the patience of the transfers after the last sign of life.
            StopWaiting: `stopping` said so.
        """
        missing = [shard for shard in shards if not self._hold(shard)]
        if not missing:
            return
        with self._changed:
            self._needed = list(shards)
            for shard in missing:  # what failed while nobody waited for it is tried again
                self._failed.pop(shard, None)
                self._later.pop(shard, None)
            self._changed.notify_all()
        try:
            self._wait(missing, stopping)
        except BaseException:
            self.release([shard for shard in shards if shard not in missing])
            raise
        finally:
            with self._changed:
                self._needed = []

    def release(self, shards: Iterable[int]) -> None:
        """Lets go of what `hold` or `try_hold` gave, once for each time."""
        for shard in shards:
            self._held[shard] -= 1
            if self._held[shard] > 0:
                continue
            del self._held[shard]
            remote = self.shards[shard]
            touch(remote.tar)
            self._locks[remote.tar.parent].release(remote.number)

    @contextlib.contextmanager
    def holding(self, shards: Sequence[int]) -> Iterator[None]:
        """Holds shards for the time of the block; waits until they are there, as `hold` does."""
        with self:
            self.hold(shards)
            try:
                yield
            finally:
                self.release(shards)

    def _hold(self, shard: int) -> bool:
        if self._held[shard]:
            self._held[shard] += 1
            return True
        remote = self.shards[shard]
        if not remote.is_whole():
            self._miss(shard)
            return False
        if remote.tar.parent not in self._locks:
            self._locks[remote.tar.parent] = ShardLocks(remote.tar.parent)
        locks = self._locks[remote.tar.parent]
        if not locks.shared(remote.number):
            return False
        if not remote.is_whole():  # it was evicted just now
            locks.release(remote.number)
            return False
        touch(remote.tar)
        self._held[shard] = 1
        return True

    def _miss(self, shard: int) -> None:
        """Notes that a shard is not there (any more)."""
        with self._changed:
            if shard in self._present:
                self._present.discard(shard)
                if shard in self._expected:
                    self._todo = {shard: None, **self._todo}
                self._changed.notify_all()

    def _wait(self, missing: list[int], stopping: Stopping) -> None:
        """Holds shards as they come, and takes them off the list."""
        limit = self._transfers.patience + 2 * self._transfers.timeout  # the threads give up before
        sign, since, told, in_all = self._sign(missing), time.monotonic(), time.monotonic(), len(missing)
        while missing:
            with self._changed:
                for shard in missing:
                    if shard in self._failed:
                        raise self._failed[shard]
                self._changed.wait(POLL_SECONDS)
            missing[:] = [shard for shard in missing if not self._hold(shard)]
            if missing and stopping():
                raise StopWaiting
            now = time.monotonic()
            if (latest := self._sign(missing)) != sign:
                sign, since = latest, now
            if missing and now - since > limit:
                raise self._stuck(missing, now - since)
            if missing and now - told > _TELL_SECONDS:
                told = now
                first = self.shards[missing[0]].source
                tell(f"waiting for {first}: {in_all - len(missing)} of {in_all} shards came")

    def _sign(self, missing: list[int]) -> object:
        """Something that changes as long as there is progress, here or in another process."""
        parts = []
        for shard in missing:
            with contextlib.suppress(FileNotFoundError):
                tar = self.shards[shard].tar
                parts.append((shard, tar.with_name(tar.name + PART_SUFFIX).stat().st_mtime_ns))
        return self._transfers.moved, len(missing), parts

    def _stuck(self, missing: list[int], seconds: float) -> FetchError:
        shard = missing[0]
        reason = self._waits.get(shard, _NO_ANSWER)
        if reason == _NO_ROOM:
            needed = sum(self.shards[s].bytes for s in chain(missing, self._held))
            reason = (
                f"{self.folder.path} is full of shards that other runs use: this one needs"
                f" {needed:,} bytes more than they do, --cache-size is {self.folder.size:,}"
            )
        return FetchError(f"{self.shards[shard].source} did not come in {seconds:.0f} s: {reason}")

    # ---------------------------------------------------------------- the threads

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            try:
                with local_errors(self.shards[shard].tar):  # what is left of them: servers' are told apart by `persist`
                    self._fetch(shard)
            except FetchError as error:
                self._put_off(shard, _FRESH_SECONDS, str(error))
                with self._changed:
                    self._failed[shard] = error
            except _NoRoomError:
                self._put_off(shard, 5 * POLL_SECONDS if shard in self._needed else _NO_ROOM_SECONDS, _NO_ROOM)
            except Stopped:
                pass
            finally:
                with self._changed:
                    self._busy.discard(shard)
                    self._changed.notify_all()

    def _next(self) -> int | None:
        """The next shard to fetch; waits for one. None at the end."""
        with self._changed:
            while not self._transfers.stop.is_set():
                self._keep_fresh()
                for shard in list(chain(self._needed, self._todo)):
                    if shard in self._present or shard in self._busy:
                        continue
                    if self._later.get(shard, 0.0) > time.monotonic():
                        if self._waits[shard] == _NO_ROOM:
                            break  # nor is there any for what is needed later
                        continue
                    if self.shards[shard].is_whole():
                        self._arrived(shard)
                        continue
                    self._busy.add(shard)
                    self._failed.pop(shard, None)
                    self._waits[shard] = _NO_ANSWER
                    return shard
                self._changed.wait(2 * POLL_SECONDS)
        return None

    def _keep_fresh(self) -> None:
        """Tells other processes now and then what is expected here, by the times of the files."""
        if time.monotonic() - self._touched < _FRESH_SECONDS / 3:
            return
        self._touched = time.monotonic()
        for shard in self._expected:
            if shard in self._present and not touch(self.shards[shard].tar):
                self._miss(shard)

    def _fetch(self, shard: int) -> None:
        """Fetches a shard and its table, unless they are there or on their way to another process."""
        remote = self.shards[shard]
        with local_errors(remote.tar.parent):
            remote.tar.parent.mkdir(exist_ok=True)
        with alone_with(remote.tar, remote.number) as alone:
            if not alone:
                return self._put_off(shard, POLL_SECONDS, "another process fetches it and gets no further")
            table = remote.tar.with_suffix(".parquet")
            if not table.is_file():
                self._transfers.persist(remote.source.with_suffix(".parquet"), lambda: self._fetch_table(shard))
            if not remote.is_whole():
                self._transfers.persist(remote.source, lambda: self._fetch_tar(shard))
        with self._changed:
            self._arrived(shard)

    def _arrived(self, shard: int) -> None:
        self._present.add(shard)
        self._todo.pop(shard, None)

    def _fetch_table(self, shard: int) -> None:
        remote = self.shards[shard]
        final = remote.tar.with_suffix(".parquet")
        part = final.with_name(final.name + PART_SUFFIX)
        content = bytearray()
        self._transfers.content(remote.source.with_suffix(".parquet"), content.extend, LARGEST_TABLE)
        self._reserve(shard, part, len(content))
        try:
            with local_errors(part):
                part.write_bytes(content)
            check_table(part, remote.info)
            self.folder.publish(part, final)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _fetch_tar(self, shard: int) -> None:
        remote = self.shards[shard]
        part = remote.tar.with_name(remote.tar.name + PART_SUFFIX)
        self._reserve(shard, part, remote.info.bytes)
        try:
            self._transfers.tar(remote.source, part, remote.info)
            self.folder.publish(part, remote.tar)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _reserve(self, shard: int, part: Path, size: int) -> None:
        if not self.folder.reserve(part, size, lambda entries: self._victims(shard, entries)):
            raise _NoRoomError

    def _victims(self, shard: int, entries: list[Entry]) -> list[Entry]:
        """What may go to make room for a shard: least recently used first; never what is needed before it here."""
        with self._changed:
            place = {self.shards[s].tar: turn for s, turn in self._expected.items()}
            urgent = {self.shards[s].tar for s in self._needed}
            done = {self.shards[s].tar for s in self._done}
        entries = sorted((e for e in entries if e.tar not in urgent), key=lambda entry: entry.used)
        strangers = [e for e in entries if e.tar not in place]
        if self.shards[shard].tar in urgent:
            ours = sorted((e for e in entries if e.tar in place), key=lambda entry: -place[entry.tar])
            return strangers + ours
        fresh = time.time() - _FRESH_SECONDS
        return [e for e in strangers if e.used < fresh or e.tar in done]

    def _put_off(self, shard: int, seconds: float, why: str) -> None:
        with self._changed:
            self._later[shard] = time.monotonic() + seconds
            self._waits[shard] = why


def make_cache(
    folder: CacheFolder, sources: Sequence[Place], tars: Sequence[Path], shards: Sequence[ShardInfo]
) -> ShardCache:
    """The cache for those shards of an index whose source is remote."""
    return ShardCache(
        folder,
        {
            i: RemoteShard(source=source, tar=tar, number=shard_number(shard.name), info=shard)
            for i, (source, tar, shard) in enumerate(zip(sources, tars, shards, strict=True))
            if isinstance(source, Remote)
        },
    )
