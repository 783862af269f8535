"""The unit of work: one shard, with all that building it takes. Every executor runs `do`, wherever it runs it.

rows of the plan ─> the clips' files (remote ones are copied here) ─> decoder process ─> tar, then parquet
"""

import contextlib
import errno
import os
import platform
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.build_shard import Row, ShardSpec, build_shard
from pipeline.decoder_process import DecoderProcess, Failure, Job, Make, StoppedError, start_fork_server
from pipeline.encode_sample import Encoded, SampleOptions
from pipeline.renew_shard import renew_shard
from shards_spec import storage
from shards_spec.storage import Place

OnClip = Callable[[bool], None]


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard to build; may be sent to another process or machine that sees the same places.

    Attributes:
        roots: raw folders, as the plan counts them.
        make: makes one sample, in a child process; must be picklable.
        timeout: seconds that one clip may take.
        memory: bytes that the decoder process may take.
        retry: the shard is there, its failed clips get another try.
        renew: the shard is there, its samples get the labels and boxes of the plan, or are left out.
        options: of the samples.
    """

    spec: ShardSpec
    roots: tuple[Place, ...]
    make: Make
    timeout: float
    memory: int
    retry: bool
    renew: bool
    options: SampleOptions


def do(job: ShardJob, *, stop: threading.Event, on_clip: OnClip) -> None:
    """Builds or renews the shard. Afterwards its tar and its parquet are where they belong, or an error was raised.

    Args:
        stop: when set, the shard is given up.
        on_clip: is told of each clip that is decoded, or copied to be renewed, whether it gave a sample.

    Raises:
        StoppedError: `stop` was set.
        OSError: the shard cannot be written, a remote clip cannot be fetched, or a raw folder is not there.
        DecoderDefectError: the program has a mistake.
    """
    start_fork_server()
    with (
        tempfile.TemporaryDirectory(prefix="make-shards-") as scratch,
        DecoderProcess(job.make, timeout=job.timeout, memory=job.memory, stop=stop) as process,
    ):

        def copy(number: int, source: str) -> Path:
            return Path(scratch) / f"{number}{Path(source).suffix}"

        def files(rows: list[Row]) -> Iterator[Job]:
            for number, row in enumerate(rows):
                names = [row[name] for name in ("source", "picture") if row.get(name) is not None]
                paths = [copy(number, name) for name in names]
                for i, name in enumerate(names):
                    # Gone since the plan was made: the decoder process meets no file, and says so.
                    with contextlib.suppress(FileNotFoundError):
                        paths[i] = storage.fetch(job.roots[row["root"]] / name, paths[i])
                yield paths[0], row if len(paths) == 1 else row | {"picture_file": paths[1]}

        def decode(rows: list[Row]) -> Iterator[Encoded | Failure]:
            _check_roots(job, rows)
            for number, outcome in enumerate(process.outcomes(files(rows))):
                for name in ("source", "picture"):
                    if rows[number].get(name) is not None:
                        copy(number, rows[number][name]).unlink(missing_ok=True)
                on_clip(isinstance(outcome, Encoded))
                yield outcome

        def copied() -> None:
            if stop.is_set():
                raise StoppedError
            if job.renew:
                on_clip(True)

        if job.retry or job.renew:
            renewed = job.options if job.renew else None
            renew_shard(job.spec, decode, retry=job.retry, renewed=renewed, on_copy=copied)
        else:
            build_shard(job.spec, decode)


def _check_roots(job: ShardJob, rows: list[Row]) -> None:
    """A raw folder that this machine does not see would make all its clips `missing`: that is no clip's fault."""
    for number in {row["root"] for row in rows}:
        root = job.roots[number]
        if isinstance(root, Path):
            with os.scandir(root) as entries:
                if next(entries, None) is None:
                    told = f"the raw folder is empty on {platform.node()}: is it mounted?"
                    raise OSError(errno.ENOENT, told, str(root))
