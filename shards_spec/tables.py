"""The two tables of a dataset: plan.parquet (what was asked for) and shard-*.parquet (what came of it)."""

import json
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from shards_spec.atomic import atomic_path
from shards_spec.errors import UserError
from shards_spec.sample import SPEC_VERSION, member_column

Reason = Literal[
    "missing",  # no file for the clip
    "empty_file",  # zero bytes
    "unreadable",  # no media container
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
    ]
)


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
    ]
    for member in members:
        fields += [
            pa.field(member_column(member, "offset"), pa.int64()),  # of the payload in the tar
            pa.field(member_column(member, "length"), pa.int64()),
            pa.field(member_column(member, "crc32"), pa.uint32()),
        ]
    return pa.schema(fields)


def write_table(path: Path, rows: list[dict[str, Any]] | pa.Table, schema: pa.Schema, facts: dict[str, Any]) -> None:
    """Writes `rows` to a parquet file, atomically; `facts` (JSON values) travel in its metadata.

    Equal rows and facts give equal bytes. Keys that a row lacks are null. A table must have the schema's columns.
    """
    metadata = {
        "spec_version": json.dumps(SPEC_VERSION),
        **{k: json.dumps(v, sort_keys=True) for k, v in facts.items()},
    }
    schema = schema.with_metadata(metadata)
    table = rows.cast(schema) if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Reads what `write_table` wrote: the table and its facts.

    Raises:
        UserError: the file is damaged, or was written by another version of the format.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet ({error}): remove it and run make-shards again") from error
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    version = metadata.get("spec_version")
    if version != json.dumps(SPEC_VERSION):
        raise UserError(f"{path} has spec_version {version}, this program reads {SPEC_VERSION}")
    return table, {k: json.loads(v) for k, v in metadata.items() if k != "ARROW:schema"}


def plan_path(dataset: Path) -> Path:
    """The plan of a dataset folder."""
    return dataset / "plan.parquet"


def shard_stem(shard: int) -> str:
    """`shard-000012`, the name of a shard's tar and parquet without suffix."""
    return f"shard-{shard:06d}"
