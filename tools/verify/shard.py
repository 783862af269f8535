"""One shard: its table against the plan and dataset.json, then its tar against its table."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards_spec.dataset import DATASET_FILE, ShardInfo
from shards_spec.errors import UserError
from shards_spec.quiet import Quiet, count_quiet
from shards_spec.sample import member_column
from shards_spec.storage import Place
from shards_spec.tables import LATER_COLUMNS, REASONS, read_table, shard_schema, shard_stem
from tools.verify.damage import Findings
from tools.verify.tar import Count, Tar, check_tar

Row = dict[str, Any]

PLANNED = (
    "key",
    "start",
    "end",
    "labels",
    "label_ids",
    "shard",
    "boxes",
)  # columns that a shard table takes from the plan
_FACTS = {"samples": int, "failed": int, "bytes": int, "sha256": str}  # in a table's metadata


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A shard to check.

    Attributes:
        has_table: whether its parquet is there.
        is_finished: whether the dataset is.
        info: its entry in dataset.json, if there is one.
        planned: its rows of the plan, None where there is no plan.
        members: of each sample, in tar order.
    """

    folder: Place
    number: int
    has_table: bool
    is_finished: bool
    info: ShardInfo | None
    planned: pa.Table | None
    members: tuple[str, ...]

    @property
    def parquet(self) -> Place:
        """Its table."""
        return self.folder / f"{shard_stem(self.number)}.parquet"

    @property
    def tar(self) -> Place:
        """Its tar."""
        return self.folder / f"{shard_stem(self.number)}.tar"


@dataclass(kw_only=True)
class Checked:
    """What came of a shard; sums as its table has them. `has_sums` is False where the table could not be read."""

    found: Findings = field(default_factory=Findings)
    has_sums: bool = False
    bytes: int = 0
    samples: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    valid_frames: int = 0
    fbank_sum: float = 0.0
    fbank_sumsq: float = 0.0
    quiet: Quiet = field(default_factory=Quiet)


def check_shard(task: ShardTask, count: Count) -> Checked:
    """Checks one shard; `count` is told of the bytes of the tar as they are checked."""
    checked = Checked()
    read = _read(task, checked.found)
    if read is None:
        if task.info is not None:  # the tar can still be compared with dataset.json
            checked.found.extend(check_tar(_tar(task, task.info, None), count))
        return checked
    table, stated = read
    rows = table.to_pylist()
    ok = [row for row in rows if row["status"] == "ok"]
    _check_facts(task, stated, len(ok), len(rows) - len(ok), checked.found)
    for row in rows:
        _check_status(task, row, checked.found)
    if task.planned is not None:
        _check_planned(task, rows, task.planned.to_pylist(), checked.found)
    usable = _usable(task, ok, stated.bytes, checked.found)
    checked.found.extend(check_tar(_tar(task, stated, usable), count))
    checked.has_sums = True
    checked.bytes = stated.bytes
    checked.samples = len(ok)
    checked.failures.update(str(row["reason"]) for row in rows if row["status"] != "ok")
    checked.valid_frames = sum(row["valid_frames"] or 0 for row in ok)
    checked.fbank_sum = math.fsum(row["fbank_sum"] or 0 for row in ok)
    checked.fbank_sumsq = math.fsum(row["fbank_sumsq"] or 0 for row in ok)
    checked.quiet = count_quiet(table.filter(pc.equal(table["status"], "ok")))
    return checked


def _tar(task: ShardTask, info: ShardInfo, rows: list[Row] | None) -> Tar:
    return Tar(path=task.tar, bytes=info.bytes, sha256=info.sha256, rows=rows, members=task.members)


def _read(task: ShardTask, found: Findings) -> tuple[pa.Table, ShardInfo] | None:
    """The shard's table, and what its metadata says of the tar; None where it is not there or damaged."""
    name = task.parquet.name
    if not task.has_table:
        found.add(name, "is missing")
        return None
    try:
        table, facts = read_table(task.parquet)
        table.validate(full=True)
    except OSError as error:
        found.refused(name, error)
        return None
    except (UserError, pa.ArrowInvalid) as error:
        found.add(name, str(error))
        return None
    there, needed = ({f.name: f.type for f in schema} for schema in (table.schema, shard_schema(task.members)))
    needed = {name: kind for name, kind in needed.items() if name in there or name not in LATER_COLUMNS}
    if there != needed:
        wrong = sorted(name for name in there | needed if there.get(name) != needed.get(name))
        found.add(name, f"has other columns than expected: {', '.join(wrong)[:200]}")
        return None
    for key, kind in _FACTS.items():
        if not isinstance(facts.get(key), kind):
            found.add(name, f"lacks {key} in its metadata")
            return None
    return table, ShardInfo(name=task.tar.name, **{key: facts[key] for key in _FACTS})


def _check_facts(task: ShardTask, stated: ShardInfo, ok: int, failed: int, found: Findings) -> None:
    if (stated.samples, stated.failed) != (ok, failed):
        what = f"says it has {stated.samples} samples and {stated.failed} failed clips, and has {ok} and {failed}"
        found.add(task.parquet.name, what)
    if task.info is not None and task.info != stated:
        names = [key for key in _FACTS if getattr(stated, key) != getattr(task.info, key)]
        pairs = ", ".join(f"{key} {getattr(stated, key)}, there {getattr(task.info, key)}" for key in names)
        found.add(task.parquet.name, f"differs from {DATASET_FILE}: {pairs}")


def _check_status(task: ShardTask, row: Row, found: Findings) -> None:
    name, key, reason = task.parquet.name, row["key"], row["reason"]
    if row["status"] == "failed":
        if reason not in REASONS:
            found.add(name, f"reason {reason!r} is none of {', '.join(REASONS)}", key=key)
    elif row["status"] != "ok" or reason is not None:
        found.add(name, f"status {row['status']!r} with reason {reason!r}", key=key)


def _check_planned(task: ShardTask, rows: list[Row], planned: list[Row], found: Findings) -> None:
    name = task.parquet.name
    if len(rows) != len(planned):
        found.add(name, f"has {len(rows)} clips, the plan has {len(planned)} of this shard")
        return
    for row, plan in zip(rows, planned, strict=True):
        # A --retry-failed that has not come to its end has written its plan already: failed clips have moved there.
        columns = (*PLANNED, "source") if row["status"] == "ok" or task.is_finished else PLANNED
        for column in columns:
            if column in row and row[column] != plan[column]:
                what = f"{column} is {str(row[column])[:80]!r}, the plan says {str(plan[column])[:80]!r}"
                found.add(name, what, key=row["key"])
        if task.is_finished and plan["reason"] not in (None, row["reason"]):
            what = f"came out as {row['reason'] or 'ok'}, the plan knew it to be {plan['reason']}"
            found.add(name, what, key=row["key"])


def _usable(task: ShardTask, ok: list[Row], size: int, found: Findings) -> list[Row]:
    """Rows whose places in the tar make sense: one behind the other from 0, every member inside its sample."""
    usable, end = [], 0
    columns = [member_column(member, column) for member in task.members for column in ("offset", "length", "crc32")]
    for row in ok:
        if any(row[column] is None for column in ("key", "offset", "length", *columns)):
            found.add(task.parquet.name, "has no place in the tar", key=str(row["key"]))
            continue
        spans = [tuple(row[member_column(m, column)] for column in ("offset", "length")) for m in task.members]
        last = row["offset"] + row["length"]
        inside = all(row["offset"] < first and length >= 0 and first + length <= last for first, length in spans)
        if row["offset"] != end or not inside or last > size:
            what = f"lies from byte {row['offset']} to {last} of the tar, expected from {end} to at most {size}"
            found.add(task.parquet.name, what, key=row["key"])
        else:
            usable.append(row)
        end = last
    return usable
