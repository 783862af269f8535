"""Where every sample lies: dataset.json and the shard tables -> (shard, offset, length, crc32) of each payload.

Samples are numbered 0 .. n-1 through the datasets, their shards, and the samples of each in plan order; failed clips
have no number. A shard's table is read when its first sample is asked for, so a dataset of thousands of shards opens
at once; what a batch needs is read by several threads. What has been read takes about 70 bytes a sample (12 more for
each frame that may be asked for), in the main process alone: workers are told places, they hold no index.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shards_spec import storage
from shards_spec.dataset import DATASET_FILE, Dataset, ShardInfo, read_dataset
from shards_spec.errors import DamagedSampleError, UserError
from shards_spec.sample import AUDIO_MEMBER, FBANK_MEMBER, FRAME_MEMBER, extra_frame_member, member_column
from shards_spec.tables import column_names, read_table, shard_schema
from training.methods.interface import Reads
from training.stream.cache import make_cache
from training.stream.cache_folder import DEFAULT_SIZE, CacheFolder, default_folder, local_folder, parse_size
from training.stream.choice import MIDDLE, choose
from training.stream.fetch import fetch_dataset

_TABLE_READERS = 8  # threads: most of it is waiting where disks are far, and parquet is decoded without the GIL
_FIELDS = ("offset", "length", "crc32")  # of a member, in the order of Payload


class Payload(NamedTuple):
    """Where one member's bytes lie in the tar, and what they must be."""

    member: str
    offset: int
    length: int
    crc32: int


class SamplePlace(NamedTuple):
    """Where a sample lies, and what is to be read of it: all that a worker is told. Offsets in bytes of the tar."""

    shard: int  # number of the tar in DatasetIndex.tars
    key: str
    offset: int  # of the sample's first header
    frames: tuple[Payload, ...]  # in the order in which they are wanted
    fbank: Payload
    sound: Payload | None = None
    sound_at: float = 0.0  # where the wanted seconds begin: 0 as early, 1 as late as they fit into the clip


@dataclass(frozen=True, kw_only=True)
class _ShardRows:
    """The samples of one shard, in plan order."""

    keys: pa.StringArray
    label_ids: pa.ListArray
    offsets: npt.NDArray[np.int64]  # [samples], of the first header
    valid_frames: npt.NDArray[np.uint16]  # [samples], rows of the fbank before its padding
    payloads: dict[str, npt.NDArray[np.uint32]]  # [samples, 3] of each member; offsets are counted from the sample's

    def payload(self, member: str, row: int) -> Payload:
        """Where a member of a sample lies."""
        offset, length, crc32 = self.payloads[member][row].tolist()
        return Payload(member, int(self.offsets[row]) + offset, length, crc32)


class DatasetIndex:
    """One complete dataset or several, ready to be read by sample number.

    Attributes:
        datasets: what each dataset.json says.
        folders: where the datasets lie, as the user said.
        tars: local paths of all shards; of remote ones those in the cache, where they may not be yet.
        cache: of the remote shards; None where all datasets are local.
        counts: samples of each shard, for each dataset.
        fingerprint: of the bytes; of several datasets, sha256 over theirs.
        mean, std: of the valid fbank rows; of several datasets, pooled by their samples.
        reads: what of each sample is placed; see `places`.
    """

    def __init__(
        self,
        folders: Sequence[storage.Place],
        datasets: Sequence[Dataset],
        cache: CacheFolder | None = None,
        *,
        reads: Reads = Reads(),  # noqa: B008 (frozen)
        looks: bool = True,
    ) -> None:
        """
        Args:
            looks: as of `open_index`.

        Raises:
            UserError: a dataset does not store what `reads` asks for; names the options of make-shards that do.
        """
        if not looks and any(map(_is_sound_alone, datasets)):
            reads = replace(reads, frames=0, choose="middle")
        self.reads = reads
        _check_frames(folders, datasets, reads)
        self.folders = list(folders)
        self.datasets = list(datasets)
        self.shards = [shard for dataset in datasets for shard in dataset.shards]
        self.tars = [
            local_folder(f, dataset.fingerprint, cache) / shard.name
            for f, dataset in zip(folders, datasets, strict=True)
            for shard in dataset.shards
        ]
        self.cache = None
        if cache is not None:
            sources = [f / shard.name for f, dataset in zip(folders, datasets, strict=True) for shard in dataset.shards]
            self.cache = make_cache(cache, sources, self.tars, self.shards)
        self.counts = [[shard.samples for shard in dataset.shards] for dataset in datasets]
        self._firsts = np.concatenate([[0], np.cumsum([shard.samples for shard in self.shards])])
        self._rows: dict[int, _ShardRows] = {}
        self._of_dataset = np.repeat(np.arange(len(datasets)), [len(dataset.shards) for dataset in datasets])  # shards
        self._stored = self._stored_frames()  # evenly spaced frames a sample of each dataset; 0 where none is wanted
        self.fingerprint, self.mean, self.std = _together(datasets)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def classes(self) -> list[dict[str, Any]]:
        """The class list: index, mid, name."""
        return self.datasets[0].classes

    def quiet_warnings(self) -> list[str]:
        """A line for each dataset many of whose samples have next to no sound, as far as its dataset.json says."""
        told = [(f, d.quiet.warning(d.samples)) for f, d in zip(self.folders, self.datasets, strict=True) if d.quiet]
        return [f"{folder}: {line}" for folder, line in told if line]

    def locate(self, number: int) -> tuple[int, int]:
        """The shard of a sample, and its row among the samples there."""
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return shard, number - int(self._firsts[shard])

    def shards_of(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The shard of each sample, int64 [len(numbers)]."""
        return np.searchsorted(self._firsts, numbers, side="right") - 1

    def is_at_hand(self, shard: int) -> bool:
        """Whether samples of a shard can be placed without fetching anything."""
        return shard in self._rows or self.cache is None or shard not in self.cache.shards

    def place(self, number: int, seed: int = 0) -> SamplePlace:
        """Where a sample lies; see `places`."""
        return self.places(np.array([number]), np.array([seed]))[0]

    def places(self, numbers: npt.NDArray[np.int64], seeds: npt.NDArray[np.int64] | None = None) -> list[SamplePlace]:
        """Where each sample lies, and which of its frames and seconds are read.

        Args:
            seeds: int64 [len(numbers)], of the random choices for each sample; 0 where None.

        Raises:
            DamagedSampleError: the table of a shard is gone, or another one than when the index was opened.
            OSError: the system does not give it.
            FetchError: a shard is remote and cannot be had.
        """
        shards = self.shards_of(numbers)
        rows = numbers - self._firsts[shards]
        self._read_missing(set(shards.tolist()))
        found = [(shard, self._rows[shard], row) for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]
        if self.reads == Reads():  # as nearly always: nothing is to be drawn
            return [_place(shard, of_shard, row, (FRAME_MEMBER,)) for shard, of_shard, row in found]
        choice = choose(
            self.reads,
            np.zeros(len(numbers), np.int64) if seeds is None else seeds,
            self._stored[self._of_dataset[shards]],
            np.array([of_shard.valid_frames[row] for _, of_shard, row in found], np.int64),
        )
        names = [tuple(map(_frame_member, frames)) for frames in choice.frames.tolist()]
        with_sound = self.reads.waveform_seconds > 0
        return [
            _place(*sample, frames, with_sound, at)
            for sample, frames, at in zip(found, names, choice.sound.tolist(), strict=True)
        ]

    def keys(self, numbers: npt.NDArray[np.int64]) -> list[str]:
        """The keys of samples; raises as `places` does."""
        shards = self.shards_of(numbers)
        self._read_missing(set(shards.tolist()))
        rows = numbers - self._firsts[shards]
        return [self._rows[s].keys[row].as_py() for s, row in zip(shards.tolist(), rows.tolist(), strict=True)]

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
        self._read_missing([shard])
        return self._rows[shard]

    def _read_missing(self, shards: Iterable[int]) -> None:
        missing = [shard for shard in shards if shard not in self._rows]
        if self.cache is not None and (remote := [shard for shard in missing if shard in self.cache.shards]):
            with self.cache.holding(remote):
                self._read(missing)
        else:
            self._read(missing)

    def _read(self, missing: list[int]) -> None:
        if len(missing) == 1:
            self._rows[missing[0]] = self._read_rows(missing[0])
        elif missing:
            with ThreadPoolExecutor(_TABLE_READERS) as pool:
                self._rows.update(zip(missing, pool.map(self._read_rows, missing), strict=True))

    def _read_rows(self, shard: int) -> _ShardRows:
        parquet, info = self.tars[shard].with_suffix(".parquet"), self.shards[shard]
        members = self._members(shard)
        columns = [member_column(member, field) for member in members for field in _FIELDS]
        try:
            some_failed = ["status"] if info.failed else []
            table, facts = read_table(parquet, ["key", "label_ids", "offset", "valid_frames", *columns, *some_failed])
        except FileNotFoundError as error:
            raise DamagedSampleError(f"{parquet} is gone: the dataset was changed") from error
        except UserError as error:
            raise DamagedSampleError(str(error)) from error
        if info.failed:
            table = table.filter(pc.equal(table["status"], "ok"))
        if facts.get("sha256") != info.sha256 or len(table) != info.samples or not _is_usable(table, members):
            raise DamagedSampleError(f"{parquet} is not the table that dataset.json lists: the dataset was changed")

        offsets = table["offset"].to_numpy()
        payloads = {member: np.empty((len(table), len(_FIELDS)), np.uint32) for member in members}
        for member, places in payloads.items():
            for column, field in enumerate(_FIELDS):
                values = table[member_column(member, field)].to_numpy()
                places[:, column] = values - offsets if field == "offset" else values
        return _ShardRows(
            keys=table["key"].combine_chunks(),
            label_ids=table["label_ids"].combine_chunks(),
            offsets=offsets,
            valid_frames=table["valid_frames"].to_numpy().astype(np.uint16),
            payloads=payloads,
        )

    def _members(self, shard: int) -> list[str]:
        """The members of a shard's samples that may be read."""
        stored = int(self._stored[self._of_dataset[shard]])
        frames = [extra_frame_member(i) for i in range(stored)] if stored else [FRAME_MEMBER] * self.reads.frames
        return [*frames, FBANK_MEMBER, *([AUDIO_MEMBER] if self.reads.waveform_seconds else [])]

    def _stored_frames(self) -> npt.NDArray[np.int64]:
        """How many evenly spaced frames each dataset stores, where the middle frame is not what is read; else 0."""
        stored = np.zeros(len(self.datasets), np.int64)
        if self.reads == Reads():
            return stored
        first = 0
        for number, (folder, dataset) in enumerate(zip(self.folders, self.datasets, strict=True)):
            with self._held(first):
                names = set(column_names(self.tars[first].with_suffix(".parquet")))
            first += len(dataset.shards)
            count = next(
                i for i in range(len(names) + 1) if member_column(extra_frame_member(i), "offset") not in names
            )
            has_sound = member_column(AUDIO_MEMBER, "offset") in names
            _check_stored(folder, self.reads, count, has_sound)
            stored[number] = 0 if self.reads.choose == "middle" else count
        return stored

    def _held(self, shard: int) -> AbstractContextManager[object]:
        return self.cache.holding([shard]) if self.cache is not None and shard in self.cache.shards else nullcontext()


def _place(
    shard: int, rows: _ShardRows, row: int, frames: tuple[str, ...], with_sound: bool = False, sound_at: float = 0.0
) -> SamplePlace:
    """Where a sample lies: `row` of shard number `shard`."""
    return SamplePlace(
        shard,
        rows.keys[row].as_py(),
        int(rows.offsets[row]),
        tuple(rows.payload(member, row) for member in frames),
        rows.payload(FBANK_MEMBER, row),
        rows.payload(AUDIO_MEMBER, row) if with_sound else None,
        sound_at,
    )


def _frame_member(number: int) -> str:
    return FRAME_MEMBER if number == MIDDLE else extra_frame_member(number)


def _is_sound_alone(dataset: Dataset) -> bool:
    return bool(dataset.recipe.get("audio_only"))


def _check_frames(folders: Sequence[storage.Place], datasets: Sequence[Dataset], reads: Reads) -> None:
    """Raises UserError where frames are to be read of samples that are sound alone."""
    for folder, dataset in zip(folders, datasets, strict=True):
        if reads.frames and _is_sound_alone(dataset):
            raise UserError(
                f"{folder} holds sound alone (make-shards --audio-only), and frames are read of it: make it without "
                "--audio-only, or give --inputs a where a command has that option"
            )


def _check_stored(folder: storage.Place, reads: Reads, frames: int, has_sound: bool) -> None:
    """Raises UserError where samples do not hold what is to be read of them."""
    lacking = []
    if reads.choose != "middle" and frames < max(reads.frames, 2):
        wanted = 10 if reads.choose == "random" else 20
        got = f"{frames} evenly spaced frames" if frames else "the middle frame alone"
        lacking.append(
            (f"{reads.frames} {reads.choose} of several frames of each clip, it holds {got}", f"--frames {wanted}")
        )
    if reads.waveform_seconds and not has_sound:
        lacking.append((f"{reads.waveform_seconds:g} s of sound, it holds no waveform", "--keep-audio"))
    if lacking:
        what, options = (" and ".join(words) for words in zip(*lacking, strict=True))
        options = options.replace(" and ", " ")
        raise UserError(f"{folder} does not hold what is read of it: {what}; make it with make-shards {options}")


def _is_usable(table: pa.Table, members: Sequence[str]) -> bool:
    """Whether the columns are of their types, and every sample has its key and the place of each member."""
    types = {field.name: field.type for field in shard_schema(tuple(members))}
    places = [member_column(member, field) for member in members for field in _FIELDS]
    typed = all(table.schema.field(name).type == types[name] for name in table.column_names)
    return typed and not any(table[name].null_count for name in ("key", "offset", "valid_frames", *places))


def _together(datasets: Sequence[Dataset]) -> tuple[str, float, float]:
    """Fingerprint, mean and std of all datasets."""
    if len(datasets) == 1:
        return datasets[0].fingerprint, datasets[0].mean, datasets[0].std
    fingerprint = hashlib.sha256("\n".join(d.fingerprint for d in datasets).encode()).hexdigest()
    n = sum(d.samples for d in datasets)
    mean = sum(d.samples * d.mean for d in datasets) / n
    square = sum(d.samples * (d.std**2 + d.mean**2) for d in datasets) / n
    return fingerprint, mean, math.sqrt(square - mean**2)


def open_index(
    *data: str | Path,
    cache_dir: Path | None = None,
    cache_size: str = DEFAULT_SIZE,
    reads: Reads = Reads(),  # noqa: B008 (frozen)
    looks: bool = True,
) -> DatasetIndex:
    """Opens complete datasets for reading.

    Args:
        data: folders, or URLs that fsspec understands.
        cache_dir: where shards of remote datasets are kept; None for `~/.cache/crossmae`. Not looked at without URLs.
        cache_size: the most that it holds, as 200GB.
        reads: what is to be read of each sample.
        looks: whether frames are looked at. Where not, datasets of sound alone are taken too; with one, no frame of any
            is read.

    Raises:
        UserError: a folder is no complete dataset, its files are not the ones dataset.json lists, it does not store
            what is to be read, or the datasets have different class lists.
        FetchError: a remote dataset.json cannot be had.
    """
    if not data:
        raise UserError("no dataset is named: give the folder that make-shards wrote")
    folders = [storage.place(d) if isinstance(d, str) else d for d in data]
    for folder in folders:
        storage.check_place(folder, to_read=True)
    datasets = [read_dataset(f) if isinstance(f, Path) else fetch_dataset(f) for f in folders]
    for folder, dataset in zip(folders, datasets, strict=True):
        if dataset.samples != (listed := sum(shard.samples for shard in dataset.shards)):
            raise UserError(
                f"{folder / DATASET_FILE} is damaged: it says {dataset.samples} samples, and its shards have {listed}:"
                " remove it and run the same make-shards command again"
            )
        if not dataset.samples:
            raise UserError(f"dataset {folder} holds no sample: all {dataset.failed} clips failed")
        if dataset.classes != datasets[0].classes:
            raise UserError(f"{folder} has another class list than {folders[0]}: use the same --class-labels for both")
        if isinstance(folder, Path):
            _check_files(folder, dataset.shards)
    cache = None
    if any(isinstance(folder, storage.Remote) for folder in folders):
        cache = CacheFolder(default_folder() if cache_dir is None else cache_dir, parse_size(cache_size))
    return DatasetIndex(folders, datasets, cache, reads=reads, looks=looks)


def open_config(config: dict[str, Any], *, looks: bool = True) -> DatasetIndex:
    """Opens the datasets of a run, as its config.json names them; `looks` and errors as of `open_index`."""
    cache_dir = config.get("cache_dir")
    return open_index(
        *map(str, config.get("data", [])),
        cache_dir=None if cache_dir is None else Path(cache_dir),
        cache_size=config.get("cache_size", DEFAULT_SIZE),
        looks=looks,
    )


def _check_files(folder: Path, shards: Sequence[ShardInfo]) -> None:
    """Raises UserError where a tar, by its size, is not the listed one, or its table is missing."""
    with os.scandir(folder) as listing:  # one listing: thousands of shards are checked in milliseconds
        found = {entry.name: entry for entry in listing}
    for shard in shards:
        size = found[shard.name].stat().st_size if shard.name in found else None
        if size != shard.bytes:
            what = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{folder / shard.name} {what}, dataset.json lists {shard.bytes} bytes: restore it or run the same"
                " make-shards again"
            )
        table = f"{shard.name.removesuffix('.tar')}.parquet"
        if table not in found:
            raise UserError(f"{folder / table} is missing: restore it or run the same make-shards command again")
