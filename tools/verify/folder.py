"""A dataset folder as a whole: the plan, dataset.json against the sums of all shards, files that do not belong."""

import itertools
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards_spec import storage
from shards_spec.atomic import TEMPORARY_SUFFIX
from shards_spec.dataset import DATASET_FILE, Dataset, fingerprint, read_dataset
from shards_spec.errors import UserError
from shards_spec.quiet import Quiet
from shards_spec.sample import FBANK_MELS, member_names
from shards_spec.storage import Place
from shards_spec.tables import PLAN_SCHEMA, plan_path, read_table, shard_stem
from tools.verify.damage import Findings
from tools.verify.shard import PLANNED, Checked, ShardTask

_SHARD_FILE = re.compile(r"shard-(\d{6,9})\.(tar|parquet)")
_YOUNGER = ("boxes", "name", "picture")  # columns that plans of earlier versions lack
_TOLERANCE = 1e-9  # relative, of mean and std


@dataclass(kw_only=True)
class Folder:
    """What a dataset folder holds, by the names of its files, its plan and its dataset.json.

    Attributes:
        sizes: bytes of each file, by name.
        dataset: dataset.json; None where it is not there or damaged.
        facts: recipe and classes by the plan; by dataset.json where there is no plan.
        plan: the table, in shard order; None where it is not there or damaged.
        shards: how many there should be.
        found: what is wrong with the plan, dataset.json, and names of files.
    """

    path: Place
    sizes: dict[str, int]
    dataset: Dataset | None
    facts: dict[str, Any]
    plan: pa.Table | None
    shards: int
    found: Findings

    @property
    def is_finished(self) -> bool:
        """Whether make-shards came to its end: dataset.json is there, whole or not."""
        return DATASET_FILE in self.sizes

    @property
    def to_come(self) -> list[int]:
        """Shards that are not there yet, in an unfinished dataset."""
        there = self.sizes.keys()
        numbers = [] if self.is_finished else range(self.shards)
        return [number for number in numbers if f"{shard_stem(number)}.parquet" not in there]

    def tasks(self) -> list[ShardTask]:
        """The shards to check."""
        infos = {} if self.dataset is None else {info.name: info for info in self.dataset.shards}
        recipe = self.facts["recipe"]
        members = member_names(
            recipe.get("frames", 1), recipe.get("keep_audio", False), recipe.get("audio_only", False)
        )
        to_come = set(self.to_come)
        return [
            ShardTask(
                folder=self.path,
                number=number,
                has_table=f"{shard_stem(number)}.parquet" in self.sizes,
                is_finished=self.is_finished,
                info=infos.get(f"{shard_stem(number)}.tar"),
                planned=planned,
                members=members,
            )
            for number, planned in enumerate(_by_shard(self.plan, self.shards))
            if number not in to_come
        ]


def read_folder(path: Place) -> Folder:
    """Reads the plan and dataset.json, and looks at the names of the files.

    Raises:
        UserError: there is no dataset.
    """
    if not storage.is_folder(path):
        raise UserError(f"dataset {path} does not exist: give the folder that make-shards wrote")
    sizes = storage.sizes(path)
    numbers = [int(match[1]) for name in sizes if (match := _SHARD_FILE.fullmatch(name))]
    if not numbers and not {DATASET_FILE, plan_path(path).name} & sizes.keys():
        raise UserError(f"{path} is no dataset: give the folder that make-shards wrote")
    found = Findings()
    dataset = _read_dataset(path, found) if DATASET_FILE in sizes else None
    plan = _read_plan(path, found) if plan_path(path).name in sizes else None
    if plan_path(path).name not in sizes:
        found.add(plan_path(path).name, "is missing: nobody can say what was asked for")
    if plan is not None:
        table, facts = plan
        shards = int(table["shard"][-1].as_py()) + 1
    elif dataset is not None:
        table, facts, shards = None, {"recipe": dataset.recipe, "classes": dataset.classes}, len(dataset.shards)
    else:
        table, facts, shards = None, {"recipe": {}, "classes": []}, max(numbers, default=-1) + 1
    folder = Folder(path=path, sizes=sizes, dataset=dataset, facts=facts, plan=table, shards=shards, found=found)
    _check_names(folder)
    return folder


def _read_dataset(path: Place, found: Findings) -> Dataset | None:
    try:
        return read_dataset(path)
    except OSError as error:
        found.refused(DATASET_FILE, error)
    except UserError as error:
        found.add(DATASET_FILE, str(error))
    return None


def _read_plan(path: Place, found: Findings) -> tuple[pa.Table, dict[str, Any]] | None:
    """The plan and its facts; None where it is damaged."""
    name = plan_path(path).name
    try:
        table, facts = read_table(plan_path(path))
        table.validate(full=True)
    except OSError as error:
        found.refused(name, error)
        return None
    except (UserError, pa.ArrowInvalid) as error:
        found.add(name, str(error))
        return None
    if "boxes" not in table.column_names:  # plans of earlier versions
        table = table.append_column("boxes", pa.nulls(len(table), PLAN_SCHEMA.field("boxes").type))
    columns = {f.name: f.type for f in table.schema}
    needed = {f.name: f.type for f in PLAN_SCHEMA if f.name in columns or f.name not in _YOUNGER}
    has_facts = isinstance(facts.get("recipe"), dict) and isinstance(facts.get("classes"), list)
    if columns != needed or not has_facts or not len(table):
        found.add(name, f"is no plan of make-shards: {len(table)} rows of {', '.join(columns)[:200]}")
        return None
    shards = table["shard"].to_numpy()
    if table["shard"].null_count or shards[0] != 0 or not np.isin(np.diff(shards), (0, 1)).all():
        found.add(name, "does not number its shards 0, 1, 2, ... in order")
        return None
    counts = pc.value_counts(table.filter(pc.is_null(table["reason"]))["key"])
    for twice in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist():
        found.add(name, f"plans this clip {twice['counts']} times", key=twice["values"])
    return table, facts


def _by_shard(plan: pa.Table | None, shards: int) -> list[pa.Table | None]:
    """The rows of each shard, each in memory of its own: they travel to other processes."""
    if plan is None:
        return [None] * shards
    firsts = np.searchsorted(plan["shard"].to_numpy(), np.arange(shards + 1))
    columns = plan.select([*PLANNED, "source", "reason"])
    return [columns.take(pa.array(np.arange(a, b))) for a, b in itertools.pairwise(firsts)]


def _check_names(folder: Folder) -> None:
    """Files that do not belong there. Hidden ones may: make-shards' own, and what file systems put there."""
    for name in sorted(folder.sizes):
        match = _SHARD_FILE.fullmatch(name)
        if name.startswith(".") or name in (DATASET_FILE, plan_path(folder.path).name):
            continue
        if match and int(match[1]) < folder.shards and name == f"{shard_stem(int(match[1]))}.{match[2]}":
            continue
        if name.endswith(TEMPORARY_SUFFIX):
            if folder.is_finished:
                folder.found.add(name, "was left over by a run that was killed: remove it")
        elif match:
            folder.found.add(name, f"belongs to none of the {folder.shards} shards")
        else:
            folder.found.add(name, "is no file of a dataset: move it elsewhere")


def check_dataset(folder: Folder, checked: list[Checked]) -> Findings:
    """What dataset.json says that the plan or the shards, all added up, do not."""
    found = Findings()
    dataset = folder.dataset
    if dataset is None:
        return found

    def expect(what: str, stated: object, there: object, source: str = "the shards") -> None:
        if stated != there:
            found.add(DATASET_FILE, f"says {what} {str(stated)[:200]}, {source} {str(there)[:200]}")

    expect("shards", [s.name for s in dataset.shards], [f"{shard_stem(i)}.tar" for i in range(folder.shards)])
    expect("fingerprint", dataset.fingerprint, fingerprint(dataset.shards), "its own list of shards gives")
    if folder.plan is not None:
        name, recipe = plan_path(folder.path).name, folder.facts["recipe"]
        for key in sorted(dataset.recipe.keys() | recipe.keys()):
            expect(f"recipe {key}", dataset.recipe.get(key), recipe.get(key), name)
        expect("classes", dataset.classes, folder.facts["classes"], name)
    if len(checked) != folder.shards or not all(shard.has_sums for shard in checked):
        return found  # sums would only repeat that tables are missing
    failures = sum((shard.failures for shard in checked), Counter[str]())
    expect("samples", dataset.samples, sum(shard.samples for shard in checked))
    expect("failed", dataset.failed, failures.total())
    expect("failures", dict(sorted(dataset.failures.items())), dict(sorted(failures.items())))
    if dataset.quiet is not None:
        expect("quiet", asdict(dataset.quiet), asdict(sum((shard.quiet for shard in checked), Quiet())))
    values = sum(shard.valid_frames for shard in checked) * FBANK_MELS
    if values:
        mean = math.fsum(shard.fbank_sum for shard in checked) / values
        std = math.sqrt(max(0.0, math.fsum(shard.fbank_sumsq for shard in checked) / values - mean**2))
        for name, stated, there in (("mean", dataset.mean, mean), ("std", dataset.std, std)):
            if not math.isclose(stated, there, rel_tol=_TOLERANCE, abs_tol=1e-9):
                expect(name, stated, there)
    return found
