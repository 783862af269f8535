"""What is known of samples beside frame and sound: keys, labels, and the JSON member of each."""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from shards_spec.errors import DamagedSampleError
from shards_spec.sample import JSON_MEMBER, member_column
from shards_spec.tables import read_table
from training.stream.index import DatasetIndex
from training.stream.order import Numbers

_COLUMNS = [member_column(JSON_MEMBER, field) for field in ("offset", "length", "crc32")]


def all_numbers(index: DatasetIndex) -> Numbers:
    """The numbers of all samples, in the dataset's order."""
    return np.arange(len(index), dtype=np.int64)


def sample_keys(index: DatasetIndex, numbers: Numbers) -> list[str]:
    """The key of each sample."""
    return [place.key for place in index.places(numbers)]


def label_ids(index: DatasetIndex, numbers: Numbers) -> list[list[int]]:
    """The class indices of each sample, in the CSV's order; [] where there are none."""
    index.places(numbers)  # reads all tables that are missing at once
    return [index.label_ids(int(number)) for number in numbers]


def read_metadata(index: DatasetIndex, numbers: Numbers) -> Iterator[dict[str, Any]]:
    """The JSON member of each sample, in the order of `numbers`; a shard is opened once a run of its samples.

    Raises:
        DamagedSampleError: a sample's JSON is not what was written; names shard, key and offset.
        FetchError: a remote shard cannot be had.
    """
    shards = index.shards_of(numbers)
    breaks = np.flatnonzero(np.diff(shards)) + 1
    for group in np.split(numbers, breaks):
        if len(group):
            yield from _of_one_shard(index, int(index.shards_of(group[:1])[0]), group)


def _of_one_shard(index: DatasetIndex, shard: int, numbers: Numbers) -> list[dict[str, Any]]:
    index.rows(shard)  # fetches and checks the table
    is_remote = index.cache is not None and shard in index.cache.shards
    with index.cache.holding([shard]) if is_remote and index.cache is not None else nullcontext():
        table, _ = read_table(index.tars[shard].with_suffix(".parquet"), ["key", "status", *_COLUMNS])
        places = table.filter(pa.compute.equal(table["status"], "ok")).to_pylist()
        with open_shard(index.tars[shard]) as tar:
            rows = [places[index.locate(int(number))[1]] for number in numbers]
            return [_read(tar, index.tars[shard], row) for row in rows]


@contextmanager
def open_shard(tar: Path) -> Iterator[BinaryIO]:
    """A shard, to be read inside the block.

    Raises:
        DamagedSampleError: it is gone.
        OSError: the system does not give its bytes; `filename` is the tar.
    """
    try:
        with tar.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise DamagedSampleError(f"{tar}: the shard is gone") from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(tar)) from error


def _read(tar: BinaryIO, path: Path, row: dict[str, Any]) -> dict[str, Any]:
    offset, length, crc32 = (row[column] for column in _COLUMNS)
    tar.seek(offset)
    payload = tar.read(length)
    where = f"{path}: sample {row['key']}: its JSON at byte {offset}"
    if zlib.crc32(payload) != crc32:
        raise DamagedSampleError(f"{where} has the crc32 {zlib.crc32(payload):08x}, on record is {crc32:08x}")
    try:
        metadata = json.loads(payload)
    except ValueError as error:
        raise DamagedSampleError(f"{where} is no JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise DamagedSampleError(f"{where} is no JSON object")
    return metadata
