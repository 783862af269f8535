"""Where every sample lies: dataset.json and the shard tables -> (shard, offset, crc32) of each payload.

Samples are numbered 0 .. n-1 through the datasets, their shards, and the samples of each in plan order; failed clips
have no number. A shard's table is read when its first sample is asked for, so a dataset of thousands of shards opens
at once. What has been read takes about 75 bytes a sample, in the main process alone: workers are told places, they
hold no index.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards_spec.dataset import Dataset, ShardInfo, read_dataset
from shards_spec.errors import DamagedSampleError, UserError
from shards_spec.sample import FBANK_MEMBER, FRAME_MEMBER, member_column
from shards_spec.tables import read_table

_FIELDS = ("offset", "length", "crc32")


class SamplePlace(NamedTuple):
    """Where a sample lies, and what its bytes must be: all that a worker is told. Offsets in bytes of the tar."""

    shard: int  # number of the tar in DatasetIndex.tars
    key: str
    offset: int  # of the sample's first header
    frame_offset: int
    frame_length: int
    frame_crc32: int
    fbank_offset: int
    fbank_crc32: int


@dataclass(frozen=True, kw_only=True)
class _ShardRows:
    """The samples of one shard, in plan order."""

    keys: pa.ChunkedArray
    label_ids: pa.ChunkedArray
    offset: npt.NDArray[np.int64]
    frame_offset: npt.NDArray[np.int64]
    frame_length: npt.NDArray[np.int64]
    frame_crc32: npt.NDArray[np.uint32]
    fbank_offset: npt.NDArray[np.int64]
    fbank_crc32: npt.NDArray[np.uint32]


class DatasetIndex:
    """One complete dataset or several, ready to be read by sample number.

    Attributes:
        datasets: what each dataset.json says.
        tars: paths of all shards.
        counts: samples of each shard, for each dataset.
        fingerprint: of the bytes; of several datasets, sha256 over theirs.
        mean, std: of the valid fbank rows; of several datasets, pooled by their samples.
    """

    def __init__(self, folders: Sequence[Path], datasets: Sequence[Dataset]) -> None:
        self.folders = list(folders)
        self.datasets = list(datasets)
        self.shards = [shard for dataset in datasets for shard in dataset.shards]
        self.tars = [f / shard.name for f, dataset in zip(folders, datasets, strict=True) for shard in dataset.shards]
        self.counts = [[shard.samples for shard in dataset.shards] for dataset in datasets]
        self._firsts = np.concatenate([[0], np.cumsum([shard.samples for shard in self.shards])])
        self._rows: dict[int, _ShardRows] = {}
        self.fingerprint, self.mean, self.std = _together(datasets)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def classes(self) -> list[dict[str, Any]]:
        """The class list: index, mid, name."""
        return self.datasets[0].classes

    def locate(self, number: int) -> tuple[int, int]:
        """The shard of a sample, and its row among the samples there."""
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return shard, number - int(self._firsts[shard])

    def place(self, number: int) -> SamplePlace:
        """Where a sample lies.

        Raises:
            DamagedSampleError: the table of its shard is gone or another one than when the index was opened.
        """
        shard, row = self.locate(number)
        rows = self.rows(shard)
        return SamplePlace(
            shard=shard,
            key=rows.keys[row].as_py(),
            offset=int(rows.offset[row]),
            frame_offset=int(rows.frame_offset[row]),
            frame_length=int(rows.frame_length[row]),
            frame_crc32=int(rows.frame_crc32[row]),
            fbank_offset=int(rows.fbank_offset[row]),
            fbank_crc32=int(rows.fbank_crc32[row]),
        )

    def key(self, number: int) -> str:
        """The key of a sample."""
        shard, row = self.locate(number)
        return str(self.rows(shard).keys[row].as_py())

    def label_ids(self, number: int) -> list[int]:
        """The class indices of a sample."""
        shard, row = self.locate(number)
        return self.rows(shard).label_ids[row].as_py() or []

    def rows(self, shard: int) -> _ShardRows:
        """The samples of a shard; its table is read at the first call."""
        if shard not in self._rows:
            self._rows[shard] = self._read_rows(shard)
        return self._rows[shard]

    def _read_rows(self, shard: int) -> _ShardRows:
        parquet, info = self.tars[shard].with_suffix(".parquet"), self.shards[shard]
        members = [member_column(m, field) for m in (FRAME_MEMBER, FBANK_MEMBER) for field in _FIELDS]
        columns = ["key", "label_ids", "offset", *members]
        try:
            table, facts = read_table(parquet, [*columns, "status"])
        except UserError as error:
            raise DamagedSampleError(str(error)) from error
        table = table.filter(pa.compute.equal(table["status"], "ok")).select(columns)
        if facts.get("sha256") != info.sha256 or len(table) != info.samples:
            raise DamagedSampleError(f"{parquet} is not the table that dataset.json lists: the dataset was changed")

        def array(name: str) -> npt.NDArray[Any]:
            return table[name].to_numpy()

        return _ShardRows(
            keys=table["key"].combine_chunks(),
            label_ids=table["label_ids"].combine_chunks(),
            offset=array("offset"),
            frame_offset=array(member_column(FRAME_MEMBER, "offset")),
            frame_length=array(member_column(FRAME_MEMBER, "length")),
            frame_crc32=array(member_column(FRAME_MEMBER, "crc32")),
            fbank_offset=array(member_column(FBANK_MEMBER, "offset")),
            fbank_crc32=array(member_column(FBANK_MEMBER, "crc32")),
        )


def _together(datasets: Sequence[Dataset]) -> tuple[str, float, float]:
    """Fingerprint, mean and std of all datasets."""
    if len(datasets) == 1:
        return datasets[0].fingerprint, datasets[0].mean, datasets[0].std
    fingerprint = hashlib.sha256("\n".join(d.fingerprint for d in datasets).encode()).hexdigest()
    n = sum(d.samples for d in datasets)
    mean = sum(d.samples * d.mean for d in datasets) / n
    square = sum(d.samples * (d.std**2 + d.mean**2) for d in datasets) / n
    return fingerprint, mean, math.sqrt(square - mean**2)


def open_index(*folders: Path) -> DatasetIndex:
    """Opens complete datasets for reading.

    Raises:
        UserError: a folder is no complete dataset, its files are not the ones dataset.json lists, or the datasets
            have different class lists.
    """
    datasets = [read_dataset(folder) for folder in folders]
    for folder, dataset in zip(folders, datasets, strict=True):
        if not dataset.samples:
            raise UserError(f"dataset {folder} holds no sample: all {dataset.failed} clips failed")
        if dataset.classes != datasets[0].classes:
            raise UserError(f"{folder} has another class list than {folders[0]}: use the same --class-labels for both")
        for shard in dataset.shards:
            _check_size(folder / shard.name, shard)
    return DatasetIndex(folders, datasets)


def _check_size(tar: Path, shard: ShardInfo) -> None:
    """Raises UserError where a tar, by its size, is not the listed one, or its table is missing."""
    size = tar.stat().st_size if tar.is_file() else None
    if size != shard.bytes:
        found = "is missing" if size is None else f"has {size} bytes"
        raise UserError(
            f"{tar} {found}, dataset.json lists {shard.bytes} bytes: restore it or run the same make-shards again"
        )
    parquet = tar.with_suffix(".parquet")
    if not parquet.is_file():
        raise UserError(f"{parquet} is missing: restore it or run the same make-shards command again")
