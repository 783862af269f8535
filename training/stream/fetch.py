"""One file from a server, whole and checked, or one line that says why not."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from shards_spec.dataset import DATASET_FILE, Dataset, ShardInfo, dataset_from_json, fingerprint
from shards_spec.errors import UserError
from shards_spec.storage import Remote, pieces
from shards_spec.tables import read_table
from training.stream.cache_folder import FetchError, local_errors, shard_number

TIMEOUT_SECONDS = 30.0  # of silence on a connection
PATIENCE_SECONDS = 120.0  # of silence in all, over any number of new connections
_OPENING_PATIENCE = 20.0  # at the start of a command somebody waits for the first word
_BROKEN_TRIES = 5  # transfers that began and came to nothing
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)  # before trying again; the last one from then on
_BUSY = (408, 425, 429)  # HTTP statuses of a client's fault that pass
LARGEST_TABLE = 1 << 28  # bytes; of dataset.json too

Result = TypeVar("Result")


class Stopped(Exception):
    """Nobody wants the file any more."""


class WrongContentError(Exception):
    """What came is not what dataset.json lists."""


@dataclass
class Transfers:
    """How transfers go on: shared by the threads of a process, so that one can see whether others still move.

    Attributes:
        moved: when the last byte arrived, of any file, in time.monotonic() seconds.
        stop: set when nothing more is wanted.
    """

    timeout: float = TIMEOUT_SECONDS
    patience: float = PATIENCE_SECONDS

    def __post_init__(self) -> None:
        self.moved = time.monotonic()
        self.stop = threading.Event()
        self._mine = threading.local()  # .moved: as `moved`, of this thread

    def content(self, source: Remote, sink: Callable[[bytes], object], limit: int) -> int:
        """Passes the bytes of a file on to `sink`, as they arrive. Returns how many.

        Raises:
            OSError: the server does not give them.
            WrongContentError: there are more than `limit`.
            Stopped: nobody wants them any more.
        """
        got = 0
        with closing(pieces(source, self.timeout)) as arriving:
            for piece in arriving:
                if self.stop.is_set():
                    raise Stopped
                self.moved = self._mine.moved = time.monotonic()
                got += len(piece)
                if got > limit:
                    raise WrongContentError(f"it is longer than the {limit:,} bytes expected")
                sink(piece)
        return got

    def persist(self, source: Remote, attempt: Callable[[], Result]) -> Result:
        """The result of `attempt`, which fetches `source`, tried again while there is hope.

        Raises:
            FetchError: names the URL and what was wrong the last time.
            Stopped: nobody wants it any more.
        """
        silent_since, broken = time.monotonic(), 0
        pauses = iter(_PAUSES)
        pause = _PAUSES[-1]
        while True:
            began = time.monotonic()
            try:
                return attempt()
            except (OSError, WrongContentError) as error:
                reason = _reason(error)
                if _is_final(error):
                    raise FetchError(f"{source} cannot be fetched: {reason}") from error
            if getattr(self._mine, "moved", 0.0) >= began:
                silent_since, broken = time.monotonic(), broken + 1
            if broken >= _BROKEN_TRIES or time.monotonic() - silent_since > self.patience:
                how = f"{broken} times" if broken >= _BROKEN_TRIES else f"for {self.patience:g} s"
                raise FetchError(f"{source} cannot be fetched, tried {how}: {reason}")
            pause = next(pauses, pause)
            if self.stop.wait(min(pause, self.patience / 4)):
                raise Stopped

    def tar(self, source: Remote, part: Path, info: ShardInfo) -> None:
        """Fetches a shard into `part`, a file that is there, and syncs it.

        Raises:
            OSError, WrongContentError, Stopped: as `content`, or its bytes are not the listed ones.
            FetchError: the disk does not take it.
        """
        digest = hashlib.sha256()
        with local_errors(part):
            file = part.open("r+b", buffering=0)
        with file:

            def keep(piece: bytes) -> None:
                digest.update(piece)
                with local_errors(part):
                    _write(file, piece)

            got = self.content(source, keep, info.bytes)
            if got != info.bytes:
                raise WrongContentError(f"it ended at byte {got:,} of {info.bytes:,}")
            if digest.hexdigest() != info.sha256:
                raise WrongContentError(f"its sha256 is {digest.hexdigest()}, dataset.json lists {info.sha256}")
            with local_errors(part):
                os.fsync(file.fileno())


def check_table(path: Path, info: ShardInfo) -> None:
    """Checks that a file is the table of a shard.

    Raises:
        WrongContentError: it is not.
        FetchError: the disk does not give it.
    """
    try:
        with local_errors(path):
            _, facts = read_table(path)
    except FetchError:
        raise
    except UserError as error:
        raise WrongContentError("it is cut or damaged") from error
    if facts.get("sha256") != info.sha256:
        raise WrongContentError("it is not the table of the shard that dataset.json lists: the dataset was changed")


def fetch_dataset(folder: Remote) -> Dataset:
    """Fetches dataset.json of a remote dataset and checks what it says of itself.

    Raises:
        FetchError: there is none, or the server does not give it.
        UserError: it is damaged, or names files that no dataset has.
    """
    transfers = Transfers(patience=_OPENING_PATIENCE, timeout=_OPENING_PATIENCE)
    path = folder / DATASET_FILE
    content = bytearray()

    def attempt() -> None:
        content.clear()
        transfers.content(path, content.extend, LARGEST_TABLE)

    transfers.persist(path, attempt)
    dataset = dataset_from_json(bytes(content), path)
    if fingerprint(dataset.shards) != dataset.fingerprint:
        raise UserError(f"{path} is damaged: its fingerprint is not that of the shards it lists")
    for shard in dataset.shards:
        try:
            shard_number(shard.name)
        except ValueError as error:  # such a name could lead anywhere
            raise UserError(f"{path} is damaged: {error}") from None
    return dataset


def _write(file: BinaryIO, piece: bytes) -> None:
    """All of a piece: an unbuffered file may take less at once."""
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


def _reason(error: Exception) -> str:
    """What was wrong, in one line."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    told = error.strerror if isinstance(error, OSError) else None
    return " ".join((told or " ".join(map(str, error.args)) or type(error).__name__).split())


def _is_final(error: Exception) -> bool:
    """Whether trying again is of no use: no such file, or not for us."""
    status = getattr(error.__cause__, "status", 0)  # of aiohttp
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _BUSY
    return isinstance(error, FileNotFoundError | PermissionError) or refused
