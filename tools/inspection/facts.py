"""What a dataset folder holds, added up: failures, labels, levels, and what the files of its clips are like.

Counts are over all shard tables. What stands in the samples' JSON alone (durations, frame rates, ...) is taken from
evenly spaced samples, a few thousand at most.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from isal import isal_zlib

from shards_spec.dataset import DATASET_FILE, read_dataset
from shards_spec.errors import UserError
from shards_spec.quiet import SHORT_SECONDS, Quiet, count_quiet, is_quiet, kind_of, loudest, rows_of
from shards_spec.sample import FBANK_MELS, FBANK_MEMBER, FBANK_SHIFT_MS, FRAME_MEMBER, JSON_MEMBER, member_column
from shards_spec.tables import plan_path, read_table, shard_stem
from tools.verify.undecoded import looks_undecoded

Row = dict[str, Any]

MOST_METADATA = 4096  # samples whose JSON is read
_EXAMPLES = 3  # clips named for each reason


@dataclass(frozen=True)
class Failure:
    """Clips that failed for one reason; `examples` are `source: detail` of the first."""

    count: int
    examples: list[str]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A quantity of samples: its known values, and for how many it is not known."""

    name: str
    unit: str
    values: npt.NDArray[np.float64]
    unknown: int = 0


@dataclass(kw_only=True)
class DatasetFacts:
    """A dataset, or what is there of an unfinished one.

    Attributes:
        planned: shards that there will be; `shards` of them are there.
        samples_by_shard: of each shard that is there, by its number.
        failures: by reason, the most frequent first.
        labels: samples by label, as in the CSV; samples without any are `unlabelled`.
        names: what labels are called, by label.
        classes: number of classes in the class list, 0 without one; `empty` of them have no sample.
        seconds: of sound in each sample; levels: mean of each sample's valid fbank.
        quiet: samples with next to no sound. Tables of earlier versions do not say which are near-silent: then these
            are counted among the samples of `metadata`.
        near_silent_of: among how many samples the near-silent ones were counted.
        metadata: JSON of evenly spaced samples.
    """

    folder: Path
    is_finished: bool
    planned: int
    recipe: dict[str, Any]
    names: dict[str, str]
    classes: int
    bytes: int = 0
    samples_by_shard: dict[int, int] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    empty: int = 0
    seconds: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    levels: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    quiet: Quiet = field(default_factory=Quiet)
    near_silent_of: int = 0
    metadata: list[dict[str, Any]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Clips that gave a sample."""
        return sum(self.samples_by_shard.values())

    @property
    def failed(self) -> int:
        """Clips that gave none."""
        return sum(failure.count for failure in self.failures.values())

    @property
    def next_to_no_sound(self) -> str:
        """`3 silent, 2 near-silent`; empty where every sample has sound."""
        of = f" (near-silent: of {self.near_silent_of:,} looked at)" if self.near_silent_of < self.samples else ""
        parts = self.quiet.parts()
        return ", ".join(parts) + of if parts else ""

    def measures(self) -> list[Measure]:
        """Numbers whose distribution tells what the dataset is like; those without any known value are left out."""
        found = [
            Measure(name="Sound", unit="s", values=self.seconds),
            Measure(name="Mean log-mel level", unit="", values=self.levels),
        ]
        for name, unit, key in (("Length of the file", "s", "duration"), ("Frame rate", "fps", "fps")):
            values = np.array([float(m[key]) for m in self.metadata if m.get(key)])
            found.append(Measure(name=name, unit=unit, values=values, unknown=len(self.metadata) - len(values)))
        return [measure for measure in found if len(measure.values)]

    def categories(self) -> dict[str, Counter[str]]:
        """Samples by what their files are like."""
        found: dict[str, Counter[str]] = {
            name: Counter() for name in ("Frame size", "Decoder", "Sample rate", "Channels")
        }
        for m in self.metadata:
            if not self.is_sound_alone:
                found["Frame size"][f"{m.get('width')}×{m.get('height')}"] += 1
            found["Decoder"][str(m.get("decoder"))] += 1
            found["Sample rate"][f"{m.get('sample_rate')} Hz"] += 1
            found["Channels"][str(m.get("channels"))] += 1
        return {name: kinds for name, kinds in found.items() if kinds}

    @property
    def is_sound_alone(self) -> bool:
        """Whether samples have no frame."""
        return bool(self.recipe.get("audio_only"))

    def name(self, label: str) -> str:
        """What a label is called."""
        return self.names.get(label, label)


def gather(folder: Path) -> DatasetFacts:
    """Reads the tables of a dataset folder, finished or not, and some samples' metadata.

    Raises:
        UserError: there is no dataset, a table or a sample is damaged, or no sample is there yet.
    """
    found = _begin(folder)
    facts_of: dict[str, list[npt.NDArray[np.float64]]] = {"seconds": [], "levels": []}
    present: set[int] = set()  # indices of classes
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for number in _shards(folder):
        table, facts = read_table(folder / f"{shard_stem(number)}.parquet")
        ok = table.filter(pc.equal(table["status"], "ok"))
        found.samples_by_shard[number] = len(ok)
        found.bytes += facts.get("bytes", 0)
        found.quiet += count_quiet(ok)
        _count_labels(found, ok["labels"])
        present.update(pc.unique(pc.list_flatten(ok["label_ids"])).to_pylist())
        valid = ok["valid_frames"].to_numpy().astype(np.float64)
        facts_of["seconds"].append(valid * FBANK_SHIFT_MS / 1000)
        facts_of["levels"].append(ok["fbank_sum"].to_numpy() / (valid * FBANK_MELS))
        for row in table.filter(pc.equal(table["status"], "failed")).to_pylist():
            counts[row["reason"]] += 1
            named = examples.setdefault(row["reason"], [])
            if len(named) < _EXAMPLES:
                named.append(f"{row['source'] or row['key']}: {row['detail'] or row['reason']}")
    if not found.samples:
        raise UserError(f"{folder} holds no sample yet: let make-shards finish a shard")
    found.seconds, found.levels = (np.concatenate(facts_of[name]) for name in ("seconds", "levels"))
    found.failures = {reason: Failure(count, examples[reason]) for reason, count in counts.most_common()}
    found.empty = max(0, found.classes - len(present))
    looked_at = list(samples(found, MOST_METADATA))
    found.metadata = [metadata for _, metadata in looked_at]
    found.near_silent_of = found.samples
    if found.quiet.near_silent is None:
        kinds = [kind_of(_loudest(folder, row)) for row, _ in looked_at]
        found.quiet = replace(found.quiet, near_silent=kinds.count("near-silent"))
        found.near_silent_of = len(kinds)
    return found


def _loudest(folder: Path, row: Row) -> float:
    """The greatest fbank value of a sample, by its table or, where that is too old, by its fbank."""
    stated = row.get("fbank_max")
    return loudest(payload(folder, row, FBANK_MEMBER), row["valid_frames"]) if stated is None else float(stated)


def sound_kinds(folder: Path, row: Row) -> list[str]:
    """What is little in a sample's sound: `silent` or `near-silent`, `short`; nothing for most."""
    kind = kind_of(_loudest(folder, row))
    is_short = row["valid_frames"] < rows_of(SHORT_SECONDS)
    return [*([kind] if kind else []), *(["short"] if is_short else [])]


def _begin(folder: Path) -> DatasetFacts:
    """Folder, recipe and classes, from dataset.json or, where it is not written yet, from the plan."""
    if not folder.is_dir():
        raise UserError(f"dataset {folder} does not exist: give the folder that make-shards wrote")
    is_finished = (folder / DATASET_FILE).is_file()
    if not is_finished and plan_path(folder).is_file():
        table, facts = read_table(plan_path(folder), ["shard"])
        planned, recipe, classes = pc.max(table["shard"]).as_py() + 1, facts["recipe"], facts["classes"]
    else:
        dataset = read_dataset(folder)
        planned, recipe, classes = len(dataset.shards), dataset.recipe, dataset.classes
    names = {str(c["mid"] or c["name"]): str(c["name"]) for c in classes}
    return DatasetFacts(
        folder=folder, is_finished=is_finished, planned=planned, recipe=recipe, names=names, classes=len(classes)
    )


def _shards(folder: Path) -> list[int]:
    """Numbers of the shards that are there."""
    return sorted(int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.parquet"))


def _count_labels(found: DatasetFacts, labels: pa.ChunkedArray) -> None:
    for item in pc.value_counts(pc.list_flatten(labels)).to_pylist():
        found.labels[item["values"]] += item["counts"]
    lengths = pc.fill_null(pc.list_value_length(labels), 0)
    found.unlabelled += len(labels) - int(pc.sum(pc.greater(lengths, 0)).as_py() or 0)


def samples(found: DatasetFacts, count: int) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Rows of the shard tables and metadata of `count` samples, evenly spaced over the dataset, or of all.

    Raises:
        UserError: a sample is damaged; names shard, key and offset.
    """
    wanted = np.unique(np.linspace(0, found.samples - 1, min(count, found.samples)).round().astype(int))
    first = 0
    for number, size in found.samples_by_shard.items():
        here = wanted[(wanted >= first) & (wanted < first + size)] - first
        first += size
        if len(here):
            for row in _ok_rows(found, number).take(pa.array(here)).to_pylist():
                yield row, json.loads(payload(found.folder, row, JSON_MEMBER))


def quiet_samples(found: DatasetFacts, count: int) -> Iterator[tuple[Row, dict[str, Any]]]:
    """`samples`, of those with next to no sound by their tables: the first `count` of each kind."""
    quiet = found.quiet
    left = {"silent": quiet.silent, "near-silent": quiet.near_silent or 0, "short": quiet.short}
    left = {kind: min(count, there) for kind, there in left.items()}
    for number in found.samples_by_shard:
        if not any(left.values()):
            return
        ok = _ok_rows(found, number)
        for row in ok.filter(pa.array(is_quiet(ok))).to_pylist():
            kinds = sound_kinds(found.folder, row)
            if any(left[kind] for kind in kinds):
                left |= {kind: max(0, left[kind] - 1) for kind in kinds}
                yield row, json.loads(payload(found.folder, row, JSON_MEMBER))


def _ok_rows(found: DatasetFacts, shard: int) -> pa.Table:
    table, _ = read_table(found.folder / f"{shard_stem(shard)}.parquet")
    return table.filter(pc.equal(table["status"], "ok"))


def undecoded(found: DatasetFacts) -> list[str]:
    """Keys of those among MOST_METADATA evenly spaced samples whose frame looks as if it had not been decoded.

    Raises:
        UserError: a sample is damaged; names shard, key and offset.
    """
    looked_at = () if found.is_sound_alone else (row for row, _ in samples(found, MOST_METADATA))
    return [row["key"] for row in looked_at if looks_undecoded(payload(found.folder, row, FRAME_MEMBER))]


def payload(folder: Path, row: Row, member: str) -> bytes:
    """A member of a sample.

    Raises:
        UserError: its bytes are not those that were written.
    """
    tar = folder / f"{shard_stem(row['shard'])}.tar"
    offset, length, crc32 = (row[member_column(member, column)] for column in ("offset", "length", "crc32"))
    try:
        with tar.open("rb") as file:
            file.seek(offset)
            content = file.read(length)
    except OSError as error:
        raise UserError(f"{tar} cannot be read ({error.strerror}): see tools.verify_shards") from error
    if isal_zlib.crc32(content) != crc32:
        raise UserError(f"{tar}: {member} of sample {row['key']} at byte {offset} is damaged: see tools.verify_shards")
    return content
