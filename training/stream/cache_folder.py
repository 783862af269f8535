"""The cache directory: how much room there is, who uses which shard, what goes first. Any number of processes share it.

    CACHE/
      room.lock                    held for moments, while room is counted and made
      3f9a.../                     one folder a dataset, named by its fingerprint
        locks                      byte k: shard k is in use (shared lock), or is fetched or evicted (exclusive lock)
        shard-000000.tar           whole and checked; its mtime is when it was last used
        shard-000000.parquet
        shard-000001.tar.part      on its way, as long as it will be, so that it counts as what it will take

Locks are of the kernel (open file description locks of fcntl, and flock): they end with the process that holds them,
however it ends. Nothing here waits for the lock of a shard, so that no two processes can wait for each other.
"""

import contextlib
import fcntl
import os
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards_spec.dataset import ShardInfo
from shards_spec.errors import UserError, reason
from shards_spec.storage import Place, Remote

DEFAULT_SIZE = "200GB"
PART_SUFFIX = ".part"
_TABLE_ALLOWANCE = (1 << 16, 400)  # bytes of a shard's table at most: for each shard, and for each of its clips
_ROOM_SECONDS = 60.0  # room is counted in milliseconds: whoever holds its lock for longer is stopped or dead
_DATASET = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"(shard-(\d{6,9}))\.(tar|parquet)(\.part)?")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


class FetchError(UserError):
    """A shard cannot be had: the server, the disk or --cache-size stands in the way. One line, with the URL or path."""


def parse_size(text: str) -> int:
    """Bytes in `200GB`, `1.5T`, `64MiB` or `1000`: K, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of 1024.

    Raises:
        ValueError: the text is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"--cache-size is a number with K, M, G or T, as 200GB, got {text!r}")
    power = 1024 ** " KMGT".index(match[2].upper()) if match[3] else _UNITS[match[2].upper()]
    return int(float(match[1]) * power)


def default_folder() -> Path:
    """`~/.cache/crossmae`, or where XDG_CACHE_HOME says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossmae"


def shard_number(name: str) -> int:
    """12 of `shard-000012.tar`.

    Raises:
        ValueError: it is no such name.
    """
    match = _FILE.fullmatch(name)
    if match is None or match[3] != "tar" or match[4]:
        raise ValueError(f"{name!r} is no shard-000000.tar or the like")
    return int(match[2])


@dataclass(frozen=True, kw_only=True)
class RemoteShard:
    """A shard, where it comes from and where it goes."""

    source: Remote  # the tar; its table lies beside it
    tar: Path  # in the cache
    number: int  # in its name
    info: ShardInfo

    @property
    def bytes(self) -> int:
        """What it takes in the cache at most, with its table."""
        return self.info.bytes + _TABLE_ALLOWANCE[0] + _TABLE_ALLOWANCE[1] * (self.info.samples + self.info.failed)

    def is_whole(self) -> bool:
        """Whether it is in the cache. Where the system refuses to say so, fetching it meets the reason and tells it."""
        try:
            return self.tar.stat().st_size == self.info.bytes and self.tar.with_suffix(".parquet").is_file()
        except OSError:
            return False


@dataclass(frozen=True)
class Entry:
    """A shard in the cache, whole or not."""

    tar: Path
    number: int
    bytes: int  # of all its files
    used: float  # when it was last used, seconds since 1970; 0 for what a killed download left


@contextlib.contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """Tells a failing disk from a failing server.

    Raises:
        FetchError: in place of any OSError of the block.
    """
    try:
        yield
    except OSError as error:
        raise FetchError(f"{path} cannot be used ({reason(error)}): mend this, or give another --cache-dir") from error


class ShardLocks:
    """The locks of one dataset's shards, of this opening of the file: other openings are strangers to it."""

    def __init__(self, folder: Path) -> None:
        with local_errors(folder):
            self._file = os.open(folder / "locks", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def shared(self, number: int) -> bool:
        """Whether shard `number` is now in use by us too; False while somebody fetches or evicts it."""
        return self._set(fcntl.F_RDLCK, number)

    def exclusive(self, number: int) -> bool:
        """Whether shard `number` is now ours alone; False while anybody has it."""
        return self._set(fcntl.F_WRLCK, number)

    def release(self, number: int) -> None:
        """Gives a shard back."""
        self._set(fcntl.F_UNLCK, number)

    def close(self) -> None:
        """Gives all back."""
        os.close(self._file)

    def _set(self, kind: int, number: int) -> bool:
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, number, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True


@contextlib.contextmanager
def alone_with(tar: Path, number: int) -> Iterator[bool]:
    """Whether a shard is ours alone for the time of the block: nobody uses, fetches or evicts it."""
    locks = ShardLocks(tar.parent)
    try:
        yield locks.exclusive(number)
    finally:
        locks.close()


class CacheFolder:
    """A directory that never holds more than `size` bytes of shards, whoever writes to it."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        with local_errors(path):
            path.mkdir(parents=True, exist_ok=True)

    def entries(self) -> list[Entry]:
        """The shards of all datasets in the cache. Files that are not ours are not looked at."""
        found = []
        with os.scandir(self.path) as folders:
            names = [f.name for f in folders if _DATASET.fullmatch(f.name) and f.is_dir(follow_symlinks=False)]
        for name in names:
            sizes: dict[tuple[str, int], int] = {}
            used: dict[tuple[str, int], float] = {}
            with os.scandir(self.path / name) as files:
                for file in files:
                    if (match := _FILE.fullmatch(file.name)) is None:
                        continue
                    with contextlib.suppress(FileNotFoundError):  # its owner took it away
                        facts = file.stat()
                        shard = (match[1], int(match[2]))
                        sizes[shard] = sizes.get(shard, 0) + facts.st_size
                        if match[3] == "tar" and not match[4]:
                            used[shard] = facts.st_mtime
            found += [
                Entry(self.path / name / f"{stem}.tar", number, size, used.get((stem, number), 0.0))
                for (stem, number), size in sizes.items()
            ]
        return found

    def reserve(self, part: Path, size: int, victims: Callable[[list[Entry]], Iterable[Entry]]) -> bool:
        """Makes room for a file of `size` bytes, and the file, `part`, of that size and empty. False: there is none.

        The caller must be alone with the shard. What it finds under that name is removed.

        Args:
            victims: which shards may be evicted, the first first. Those in use stay, whatever it says.
        """
        with self._room(), local_errors(part):
            part.unlink(missing_ok=True)
            entries = self.entries()
            free = self.size - sum(entry.bytes for entry in entries)
            candidates = list(victims(entries)) if free < size else []
            if free + sum(entry.bytes for entry in candidates) < size:
                return False
            for entry in candidates:
                if free >= size:
                    break
                free += _evict(entry)
            if free < size:
                return False
            with part.open("wb") as file:
                file.truncate(size)
            return True

    def publish(self, part: Path, final: Path) -> None:
        """Gives a finished file its name. Not while others count: a file that is renamed may be seen twice or never."""
        with self._room(), local_errors(final):
            part.replace(final)

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        path = self.path / "room.lock"
        with local_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            deadline = time.monotonic() + _ROOM_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise FetchError(
                            f"{path} has been locked for {_ROOM_SECONDS:g} s: is a process that uses it stopped?"
                        ) from None
                    time.sleep(0.005)
            yield
        finally:
            os.close(descriptor)


def touch(tar: Path) -> bool:
    """Notes that a shard is in use. False where it is gone."""
    try:
        os.utime(tar)
    except FileNotFoundError:
        return False
    except PermissionError:  # somebody else's file: only its place in the queue of eviction suffers
        pass
    return True


def local_folder(folder: Place, fingerprint: str, cache: CacheFolder | None) -> Path:
    """Where the files of a dataset are read: in its own folder, or in the cache."""
    if isinstance(folder, Path):
        return folder
    assert cache is not None
    return cache.path / fingerprint[:32]


def _evict(entry: Entry) -> int:
    """Removes a shard, unless somebody uses or fetches it. Returns the bytes that are free now."""
    with alone_with(entry.tar, entry.number) as alone:
        if not alone:
            return 0
        table = entry.tar.with_suffix(".parquet")
        for path in (entry.tar, table):
            path.unlink(missing_ok=True)
            path.with_name(path.name + PART_SUFFIX).unlink(missing_ok=True)
        return entry.bytes
