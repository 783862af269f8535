"""The two tables of a dataset: plan.parquet (what was asked for) and shard-*.parquet (what came of it)."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args, overload

import pyarrow as pa
import pyarrow.parquet as pq

from shards_spec.errors import UserError, is_refusal
from shards_spec.sample import SPEC_VERSION, member_column
from shards_spec.storage import Place, readable, writing

_READERS = 8  # tables read at the same time
_BATCH = 64  # tables in memory

Reason = Literal[
    "missing",  # no file for the clip
    "empty_file",  # zero bytes
    "unreadable",  # no media container, or one that this user may not read
    "no_audio",
    "no_video",
    "too_short",  # less audio than one fbank window, or no frame
    "decode_error",
    "timeout",  # took longer than --clip-timeout
    "crashed",  # took its process with it
    "bad_segment",  # the CSV row is damaged
    "duplicate",  # its key is taken
]
REASONS: tuple[str, ...] = get_args(Reason)

_CLIP_FIELDS = [
    pa.field("key", pa.string()),
    pa.field("source", pa.string()),  # path below the raw root, null where there is none
    pa.field("start", pa.float64()),  # segment in the original video, seconds
    pa.field("end", pa.float64()),
    pa.field("labels", pa.list_(pa.string())),
    pa.field("label_ids", pa.list_(pa.int32())),
    pa.field("shard", pa.int32()),
]

PLAN_SCHEMA = pa.schema(
    [
        *_CLIP_FIELDS,
        pa.field("ytid", pa.string()),  # null for clips known by file alone
        pa.field("root", pa.int32()),  # which of the raw roots `source` is below
        pa.field("named_start", pa.float64()),  # start second that the file name states, null where it states none
        pa.field("reason", pa.string()),  # known to fail before any decoding (missing, bad_segment, duplicate)
        pa.field("detail", pa.string()),
        pa.field("boxes", pa.list_(pa.list_(pa.float64()))),  # normalised x0, y0, x1, y1; null where none are given
        pa.field("name", pa.string()),  # what the key of a clip that is known by its file is made of, else null
        pa.field("picture", pa.string()),  # with --pairs: below the same root as `source`, the sound; else null
    ]
)


_LATER_FIELDS = [
    pa.field("fbank_max", pa.float32()),  # over the valid rows: quiet.py tells silent samples by it
    pa.field("boxes", pa.list_(pa.list_(pa.float64()))),  # as planned
]
LATER_COLUMNS = tuple(field.name for field in _LATER_FIELDS)  # of shard tables; those of earlier versions lack them


def shard_schema(members: tuple[str, ...]) -> pa.Schema:
    """Schema of a shard parquet for samples of these members (`sample.member_names`)."""
    fields = [
        *_CLIP_FIELDS,
        pa.field("status", pa.string()),  # ok | failed
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("offset", pa.int64()),  # first byte of the sample in the tar, its first header
        pa.field("length", pa.int64()),  # bytes of the whole sample, headers and padding included
        pa.field("valid_frames", pa.int32()),  # fbank rows before padding
        pa.field("fbank_sum", pa.float64()),  # over the valid rows as stored: dataset statistics add up exactly
        pa.field("fbank_sumsq", pa.float64()),
        *_LATER_FIELDS,
    ]
    for member in members:
        fields += [
            pa.field(member_column(member, "offset"), pa.int64()),  # of the payload in the tar
            pa.field(member_column(member, "length"), pa.int64()),
            pa.field(member_column(member, "crc32"), pa.uint32()),
        ]
    return pa.schema(fields)


def write_table(path: Place, rows: list[dict[str, Any]] | pa.Table, schema: pa.Schema, facts: dict[str, Any]) -> None:
    """Writes `rows` to a parquet file, atomically; `facts` (JSON values) travel in its metadata.

    Equal rows and facts give equal bytes. Keys that a row lacks are null. A table must have the schema's columns.
    """
    metadata = {
        "spec_version": json.dumps(SPEC_VERSION),
        **{k: json.dumps(v, sort_keys=True) for k, v in facts.items()},
    }
    schema = schema.with_metadata(metadata)
    table = rows.cast(schema) if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema)
    # A file, not its name: pyarrow takes a path that begins with `exp:1` for a URL.
    with writing(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_table(path: Place, columns: list[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """Reads what `write_table` wrote: the table (or some columns of it) and its facts.

    Raises:
        UserError: the file is damaged, or was written by another version of the format.
        OSError: the system or, of a remote file, its server does not give it. FileNotFoundError: it is not there.
    """
    source = readable(path)
    try:
        with source.open("rb") if isinstance(source, Path) else source as file:  # as in write_table
            # Not pq.read_table: it takes twice the time for a shard's table, and makes columns of folders named a=b.
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            table = parquet.read(columns, use_threads=columns is None)  # threads pay for large and whole tables alone
        if lacking := sorted(set(columns or ()) - set(table.column_names)):  # decodes the names
            raise pa.ArrowKeyError(f"it has no column {', '.join(lacking)}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: names of columns
        raise _of_table(path, error) from error
    try:
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        version = metadata.get("spec_version")
        if version != json.dumps(SPEC_VERSION):
            raise UserError(f"{path} has spec_version {version}, this program reads {SPEC_VERSION}")
        return table, {k: json.loads(v) for k, v in metadata.items() if k != "ARROW:schema"}
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} has damaged metadata ({error}): remove it and run make-shards again") from error


def column_names(path: Place) -> list[str]:
    """The columns of what `write_table` wrote.

    Raises:
        UserError, OSError: as `read_table`.
    """
    try:
        names: list[str] = pq.ParquetFile(readable(path)).schema_arrow.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _of_table(path, error) from error
    return names


def _of_table(path: Place, error: Exception) -> UserError | OSError:
    """What reading a table failed of: the system, or damage."""
    if isinstance(error, OSError) and error.errno is not None and is_refusal(error):
        return OSError(error.errno, os.strerror(error.errno), str(path))
    said = " ".join(str(error).split())
    return UserError(f"{path} cannot be read as parquet ({said}): remove it and run make-shards again")


def read_tables(paths: Sequence[Place]) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
    """`read_table` of each, in order; several at a time, because on far disks most of it is waiting."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="table") as pool:
        for first in range(0, len(paths), _BATCH):
            yield from pool.map(read_table, paths[first : first + _BATCH])


@overload
def plan_path(dataset: Path) -> Path: ...
@overload
def plan_path(dataset: Place) -> Place: ...
def plan_path(dataset: Place) -> Place:
    """The plan of a dataset folder."""
    return dataset / "plan.parquet"


def shard_stem(shard: int) -> str:
    """`shard-000012`, the name of a shard's tar and parquet without suffix."""
    return f"shard-{shard:06d}"
