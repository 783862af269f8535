"""A finished shard again: its samples are copied, with what the plan says of them now; nothing is decoded twice.

--retry-failed gives its failed clips another try; a rerun with other labels, class list or boxes changes the JSON of
its samples; one with --min-seconds or --skip-silent leaves some of them out. The bytes are those of a shard built at
once with the same outcomes and options.
"""

import itertools
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.annotations import annotated_json
from pipeline.build_shard import Decode, Row, ShardReport, ShardSpec, build_shard
from pipeline.clip_error import ClipError
from pipeline.decoder_process import Failure
from pipeline.encode_sample import Encoded, SampleOptions, check_wanted
from shards_spec import storage
from shards_spec.errors import UserError
from shards_spec.quiet import loudest
from shards_spec.sample import FBANK_MEMBER, JSON_MEMBER, member_column
from shards_spec.tables import read_table

FINAL_REASONS = ("bad_segment", "duplicate")  # another try cannot change these


def clips_to_retry(spec: ShardSpec) -> list[Row]:
    """Rows of the plan that have a file, and failed when the shard was built."""
    old = _old_rows(spec)
    return [row for row in spec.rows if row["reason"] is None and old[row["key"]]["status"] == "failed"]


def may_change(spec: ShardSpec) -> bool:
    """Whether another try can give the shard other rows: a clip may succeed, or has lost its file."""
    return bool(clips_to_retry(spec)) or _plan_changed(spec)


def _plan_changed(spec: ShardSpec) -> bool:
    old = _old_rows(spec)
    planned = [row for row in spec.rows if row["reason"] is not None and row["reason"] not in FINAL_REASONS]
    return any(row["reason"] != old[row["key"]]["reason"] for row in planned)


def renew_shard(
    spec: ShardSpec, decode: Decode, *, retry: bool, renewed: SampleOptions | None, on_copy: Callable[[], None]
) -> ShardReport | None:
    """Builds the shard again if something in it is new.

    Args:
        decode: gives the outcome of each failed clip that is tried again, in order.
        retry: whether failed clips get another try.
        renewed: samples get the labels and boxes of the plan, and those that these options do not want are left out;
            None copies them as they are.
        on_copy: is called for each sample that is copied, before it is.

    Returns:
        The new report; None where nothing changed and the shard was left as it is.

    Raises:
        OSError: see build_shard.
        UserError: the old tar is damaged.
    """
    old = _old_rows(spec)
    again = clips_to_retry(spec) if retry else []
    fresh = decode(again) if again else iter(())
    changed = renewed is not None or _plan_changed(spec)
    tried: list[Encoded | Failure] = []
    while not changed and len(tried) < len(again):
        row, outcome = again[len(tried)], next(fresh)
        tried.append(outcome)
        before = old[row["key"]]
        changed = isinstance(outcome, Encoded) or (outcome.reason, row["source"]) != (
            before["reason"],
            before["source"],
        )
    if not changed:
        return None
    outcomes = itertools.chain(tried, fresh)
    with (
        tempfile.TemporaryDirectory(prefix="make-shards-") as scratch,
        storage.fetch(spec.tar, Path(scratch) / spec.tar.name).open("rb") as tar,
    ):

        def merged(rows: list[Row]) -> Iterator[Encoded | Failure]:
            for row in rows:
                before = old[row["key"]]
                if before["status"] == "ok":
                    on_copy()
                    copied = _copy(tar, spec, before)
                    yield copied if renewed is None else _renewed(copied, row, renewed)
                else:
                    yield next(outcomes) if retry else Failure(before["reason"], before["detail"])

        return build_shard(spec, merged)


def _old_rows(spec: ShardSpec) -> dict[str, Row]:
    """The shard's rows by key, without those that never had a file to decode."""
    table, _ = read_table(spec.tar.with_suffix(".parquet"))
    return {row["key"]: row for row in table.to_pylist() if row["reason"] not in FINAL_REASONS}


def _copy(tar: BinaryIO, spec: ShardSpec, row: Row) -> Encoded:
    payloads = {}
    for member in spec.members:
        tar.seek(row[member_column(member, "offset")])
        payloads[member] = tar.read(row[member_column(member, "length")])
        if zlib.crc32(payloads[member]) != row[member_column(member, "crc32")]:
            raise UserError(
                f"{spec.tar}: {member} of sample {row['key']} at byte {row['offset']} is damaged: "
                f"remove {spec.tar.with_suffix('.parquet').name} and run the same make-shards command again"
            )
    return Encoded(payloads, row["valid_frames"], row["fbank_sum"], row["fbank_sumsq"])


def _renewed(sample: Encoded, row: Row, options: SampleOptions) -> Encoded | Failure:
    try:
        check_wanted(sample.valid_frames, loudest(sample.payloads[FBANK_MEMBER], sample.valid_frames), options)
    except ClipError as error:
        return Failure(error.reason, error.detail)
    payloads = {**sample.payloads, JSON_MEMBER: annotated_json(sample.payloads[JSON_MEMBER], row)}  # the same order
    return sample._replace(payloads=payloads)
