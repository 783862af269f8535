"""Media files -> samples, by the code of make-shards: to the bit what a dataset made of the same files would hold.

clip.mp4 ──pipeline.make_sample──> JSON, JPEG, fbank bytes ──as training/stream/reader.py──> uint8, float16
"""

import functools
import threading
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from pipeline.clip_error import ClipError
from pipeline.decoder_process import DecoderProcess, Failure, start_fork_server
from pipeline.encode_sample import Encoded, SampleOptions, make_sample
from pipeline.raw_files import shown_path
from shards_spec.sample import (
    CLIP_SECONDS,
    FBANK_MEMBER,
    FRAME_MEMBER,
    decode_fbank,
    distinct_key,
    file_key,
    shared_keys,
)

_SECONDS = 60.0  # that a file may take
_MEMORY = 2_000_000_000  # bytes that the decoder may take


@dataclass(frozen=True, kw_only=True)
class FileSample:
    """A file's sample, as a loader gives it."""

    path: str
    key: str
    frame: npt.NDArray[np.uint8]  # [S, S, 3]
    fbank: npt.NDArray[np.float16]  # [T, M]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A file without a sample. `reason` is one of make-shards' (`shards_spec.tables.Reason`)."""

    path: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}: {self.detail}"


def plan_row(path: Path, start: float | None, shared: Container[str] = ()) -> dict[str, Any]:
    """The row that make-shards without a CSV plans for a file: its first 10 s, or 10 s from `start` (seconds) on.

    Args:
        shared: keys that files of other names have too; a file whose name is not its own key has another one then.
    """
    begin = 0.0 if start is None else start
    name = _name(path, start)
    key = file_key(name)
    return {
        "key": distinct_key(key, name) if key in shared and key != name else key,
        "ytid": None,
        "source": shown_path(path.name),
        "start": begin,
        "end": begin + CLIP_SECONDS,
        "named_start": 0.0,  # the file is the whole video
        "labels": [],
        "label_ids": [],
    }


def _name(path: Path, start: float | None) -> str:
    """What the key of a file's clip is made of."""
    return path.stem if start is None else f"{path.stem}_{round(1000 * start)}"


def read_files(
    files: Sequence[Path], *, start: float | None, options: SampleOptions, isolate: bool
) -> Iterator[FileSample | Failed]:
    """The sample of each file, or why there is none, in order.

    Args:
        start: where the 10 s begin in each file, seconds; None for its first.
        isolate: decode in a process of its own, so that a file on which a decoder crashes or hangs costs that file
            alone (reasons `crashed` and `timeout`).
    """
    shared = shared_keys((file_key(_name(path, start)), _name(path, start)) for path in files)
    rows = [plan_row(path, start, shared) for path in files]
    outcomes = _isolated(files, rows, options) if isolate else _here(files, rows, options)
    for path, row, outcome in zip(files, rows, outcomes, strict=True):
        if isinstance(outcome, Failure):
            yield Failed(path=str(path), reason=outcome.reason, detail=outcome.detail)
        else:
            yield _decoded(path, row["key"], outcome)


def _here(files: Sequence[Path], rows: Sequence[dict[str, Any]], options: SampleOptions) -> Iterator[Encoded | Failure]:
    for path, row in zip(files, rows, strict=True):
        try:
            _check_file(path)
            yield make_sample(path, row, options=options)
        except ClipError as error:
            yield Failure(error.reason, error.detail)


def _isolated(
    files: Sequence[Path], rows: Sequence[dict[str, Any]], options: SampleOptions
) -> Iterator[Encoded | Failure]:
    start_fork_server()
    make = functools.partial(_make, options=options)
    with DecoderProcess(make, timeout=_SECONDS, memory=_MEMORY, stop=threading.Event()) as process:
        yield from process.outcomes(zip(files, rows, strict=True))


def _make(path: Path, row: dict[str, Any], *, options: SampleOptions) -> Encoded:
    """`make_sample`, in the child process."""
    _check_file(path)
    return make_sample(path, row, options=options)


def _check_file(path: Path) -> None:
    """Says what a path is that is no file: make-shards, which lists folders itself, meets none."""
    if path.is_dir():
        raise ClipError("unreadable", "is a folder: give files")
    if not path.exists():
        raise ClipError("missing", "there is no such file")


def _decoded(path: Path, key: str, encoded: Encoded) -> FileSample:
    frame = simplejpeg.decode_jpeg(encoded.payloads[FRAME_MEMBER], "RGB", strict=True)
    return FileSample(path=str(path), key=key, frame=frame, fbank=decode_fbank(encoded.payloads[FBANK_MEMBER]))
