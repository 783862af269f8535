"""One shard: planned rows + what came of their clips -> shard-N.tar, then shard-N.parquet (its commit marker)."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.decoder_process import Failure
from pipeline.encode_sample import Encoded
from shards_spec import storage
from shards_spec.errors import UserError
from shards_spec.sample import member_column
from shards_spec.storage import Place
from shards_spec.tables import read_tables, shard_schema, shard_stem, write_table
from shards_spec.tar import TarWriter

Row = dict[str, Any]
Decode = Callable[[list[Row]], Iterator[Encoded | Failure]]

_CLIP_COLUMNS = ("key", "source", "start", "end", "labels", "label_ids", "shard")


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """What goes into one shard: `rows` of the plan, in order, and the members of each sample."""

    folder: Place
    number: int
    rows: list[Row]
    members: tuple[str, ...]

    @property
    def tar(self) -> Place:
        """The tar; its parquet lies beside it."""
        return self.folder / f"{shard_stem(self.number)}.tar"


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What a finished shard holds; the facts in its parquet."""

    number: int
    samples: int
    failed: int
    bytes: int
    sha256: str


def build_shard(spec: ShardSpec, decode: Decode) -> ShardReport:
    """Writes one shard; a shard of that number is replaced.

    Args:
        decode: gives the outcome of each row that is not already known to fail, in order.

    Raises:
        OSError: the disk is full, or the folder cannot be written; `filename` names the file.
    """
    outcomes = decode([row for row in spec.rows if row["reason"] is None])
    rows: list[Row] = []
    parquet = spec.tar.with_suffix(".parquet")
    with _names(spec.tar), storage.writing(spec.tar) as temporary, temporary.open("wb") as file:
        writer = TarWriter(file)
        for row in spec.rows:
            outcome = next(outcomes) if row["reason"] is None else Failure(row["reason"], row["detail"])
            rows.append({name: row[name] for name in _CLIP_COLUMNS} | _outcome_columns(writer, row["key"], outcome))
        sha256 = writer.finish()
        os.fsync(file.fileno())
    samples = sum(row["status"] == "ok" for row in rows)
    facts = {"samples": samples, "failed": len(rows) - samples, "bytes": writer.size, "sha256": sha256}
    with _names(parquet):
        write_table(parquet, rows, shard_schema(spec.members), facts)
    return ShardReport(number=spec.number, **facts)


def _outcome_columns(writer: TarWriter, key: str, outcome: Encoded | Failure) -> Row:
    if isinstance(outcome, Failure):
        return {"status": "failed", "reason": outcome.reason, "detail": outcome.detail}
    span = writer.add(key, outcome.payloads)
    columns: Row = {
        "status": "ok",
        "offset": span.offset,
        "length": span.length,
        "valid_frames": outcome.valid_frames,
        "fbank_sum": outcome.fbank_sum,
        "fbank_sumsq": outcome.fbank_sumsq,
    }
    for name, member in span.members.items():
        columns[member_column(name, "offset")] = member.offset
        columns[member_column(name, "length")] = member.length
        columns[member_column(name, "crc32")] = member.crc32
    return columns


@contextlib.contextmanager
def _names(path: Place) -> Iterator[None]:
    """OSErrors of writing say which file: the system's own do not when the disk is full. Others name a raw file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def finished_shards(folder: Place, numbers: Iterable[int]) -> dict[int, ShardReport]:
    """The reports of those shards whose parquet is written and whose tar has the size on record.

    Raises:
        UserError: a parquet is damaged.
    """
    there = storage.sizes(folder)
    stems = {n: shard_stem(n) for n in numbers}
    written = [n for n, stem in stems.items() if there.keys() >= {f"{stem}.tar", f"{stem}.parquet"}]
    parquets = [folder / f"{stems[n]}.parquet" for n in written]
    finished = {}
    for number, parquet, (table, facts) in zip(written, parquets, read_tables(parquets), strict=True):
        report = _report(number, parquet, len(table), facts)
        if there[f"{stems[number]}.tar"] == report.bytes:
            finished[number] = report
    return finished


def _report(number: int, parquet: Place, rows: int, facts: dict[str, Any]) -> ShardReport:
    names = ("samples", "failed", "bytes", "sha256")
    if missing := [name for name in names if name not in facts]:
        raise UserError(f"{parquet} lacks {missing[0]}: remove it and run the same make-shards command again")
    if facts["samples"] + facts["failed"] != rows:
        raise UserError(f"{parquet} is damaged: remove it and run the same make-shards command again")
    return ShardReport(number=number, **{name: facts[name] for name in names})
