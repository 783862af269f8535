"""Where every sample of a dataset lies: dataset.json and the shard tables -> (shard, offset) of each payload.

Samples are numbered 0 .. n-1 in shard order, then plan order; failed clips have no number.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards_spec.dataset import Dataset, ShardInfo, read_dataset
from shards_spec.errors import UserError
from shards_spec.sample import FBANK_MEMBER, FRAME_MEMBER, member_column
from shards_spec.tables import read_table


@dataclass(frozen=True, kw_only=True)
class MemberPlaces:
    """Where one member of every sample lies: arrays of [n]."""

    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    crc32: npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """A complete dataset, ready to be read by sample number. Some 80 bytes a sample.

    Attributes:
        keys: the samples' keys, string [n].
        label_ids: indices into the class list, list<int32> [n].
        shard: number of each sample's shard in `dataset.shards`, [n].
        offset: first byte of each sample in its tar, [n].
        members: where the members lie, by member name.
    """

    folder: Path
    dataset: Dataset
    keys: pa.Array
    label_ids: pa.Array
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    members: dict[str, MemberPlaces]

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, number: int) -> str:
        """The key of a sample."""
        return str(self.keys[number].as_py())

    def shard_path(self, number: int) -> Path:
        """The tar that holds a sample."""
        return self.folder / self.dataset.shards[self.shard[number]].name

    def where(self, number: int) -> str:
        """Shard, key and offset of a sample, for messages."""
        return f"{self.shard_path(number)}: sample {self.key(number)} at byte {self.offset[number]}"


def open_index(folder: Path, members: tuple[str, ...] = (FRAME_MEMBER, FBANK_MEMBER)) -> DatasetIndex:
    """Opens a complete dataset for reading the given members.

    Raises:
        UserError: the folder is no complete dataset, or its files are not the ones dataset.json lists.
    """
    dataset = read_dataset(folder)
    tables = [_shard_table(folder, shard, members) for shard in dataset.shards]
    counts = [len(table) for table in tables]
    if not sum(counts):
        raise UserError(f"dataset {folder} holds no sample: all {dataset.failed} clips failed")
    table = pa.concat_tables(tables).combine_chunks()

    def column(name: str) -> npt.NDArray[Any]:
        return table[name].to_numpy()

    return DatasetIndex(
        folder=folder,
        dataset=dataset,
        keys=table["key"].combine_chunks(),
        label_ids=table["label_ids"].combine_chunks(),
        shard=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        offset=column("offset"),
        members={
            member: MemberPlaces(
                offset=column(member_column(member, "offset")),
                length=column(member_column(member, "length")),
                crc32=column(member_column(member, "crc32")),
            )
            for member in members
        },
    )


def _shard_table(folder: Path, shard: ShardInfo, members: tuple[str, ...]) -> pa.Table:
    """The rows of a shard's samples that are ok, after checking that the tar is the listed one by its size."""
    tar = folder / shard.name
    size = tar.stat().st_size if tar.is_file() else None
    if size != shard.bytes:
        found = "is missing" if size is None else f"has {size} bytes"
        raise UserError(
            f"{tar} {found}, dataset.json lists {shard.bytes} bytes: restore it or run the same make-shards again"
        )
    parquet = tar.with_suffix(".parquet")
    if not parquet.is_file():
        raise UserError(f"{parquet} is missing: restore it or run the same make-shards command again")
    table, _ = read_table(parquet)
    places = [member_column(m, field) for m in members for field in ("offset", "length", "crc32")]
    wanted = ["key", "label_ids", "offset", *places]
    absent = [name for name in wanted if name not in table.column_names]
    if absent:
        raise UserError(f"{parquet} has no column {absent[0]}: the dataset was made without that member")
    rows = table.filter(pa.compute.equal(table["status"], "ok")).select(wanted)
    if len(rows) != shard.samples:
        raise UserError(f"{parquet} lists {len(rows)} samples, dataset.json {shard.samples}: the dataset was changed")
    return rows.replace_schema_metadata(None)
