"""The contract itself: bytes, places, and files that appear whole or not at all."""

import errno
import hashlib
import io
import os
import stat
import sys
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards_spec.atomic import atomic_path, sync_folder
from shards_spec.command_line import parse
from shards_spec.dataset import Dataset, ShardInfo, fingerprint, read_dataset, write_dataset
from shards_spec.errors import UserError
from shards_spec.sample import (
    FBANK_BYTES,
    FBANK_SHAPE,
    audioset_key,
    decode_fbank,
    encode_fbank,
    encode_json,
    file_key,
    member_column,
    member_names,
)
from shards_spec.tables import PLAN_SCHEMA, plan_path, read_table, shard_schema, shard_stem, write_table
from shards_spec.tar import TarWriter

SAMPLES = {
    "-_abc": {"json": b"{}", "jpg": b"\xff" * 511, "fbank.npy": b"x" * 512},
    "k" * 150: {"json": b"", "jpg": b"y" * 513, "fbank.npy": b"z" * 20_000},
}


def write_tar() -> tuple[bytes, dict[str, tuple[int, int, dict[str, tuple[int, int, int]]]], str]:
    file = io.BytesIO()
    writer = TarWriter(file)
    spans = {key: writer.add(key, payloads) for key, payloads in SAMPLES.items()}
    sha256 = writer.finish()
    assert writer.size == len(file.getvalue())
    places = {
        key: (span.offset, span.length, {n: (m.offset, m.length, m.crc32) for n, m in span.members.items()})
        for key, span in spans.items()
    }
    return file.getvalue(), places, sha256


def test_a_tar_is_what_tarfile_reads() -> None:
    data, _, sha256 = write_tar()
    assert hashlib.sha256(data).hexdigest() == sha256
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        found = {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    assert found == {f"{k}.{n}": payload for k, payloads in SAMPLES.items() for n, payload in payloads.items()}
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert len(data) % tarfile.RECORDSIZE == 0


def test_every_place_in_a_tar_is_known() -> None:
    data, places, _ = write_tar()
    end = 0
    for key, (offset, length, members) in places.items():
        assert offset == end  # samples are contiguous
        end = offset + length
        for name, (at, size, crc32) in members.items():
            assert offset < at < at + size <= end or size == 0
            assert data[at : at + size] == SAMPLES[key][name]
            assert zlib.crc32(data[at : at + size]) == crc32
    assert write_tar()[0] == data


def test_fbank_is_plain_npy() -> None:
    values = np.random.default_rng(0).normal(size=FBANK_SHAPE).astype(np.float16)
    payload = encode_fbank(values)
    assert len(payload) == FBANK_BYTES == 262_272
    assert np.array_equal(np.load(io.BytesIO(payload)), values)
    assert np.array_equal(decode_fbank(memoryview(payload)), values)


@pytest.mark.parametrize("wrong", [np.zeros((998, 128), np.float16), np.zeros(FBANK_SHAPE, np.float32)])
def test_other_fbanks_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="fbank must be float16"):
        encode_fbank(wrong)
    buffer = io.BytesIO()
    np.save(buffer, wrong)
    with pytest.raises(ValueError, match=r"not an \.npy file of float16"):
        decode_fbank(buffer.getvalue())


def test_keys_and_members() -> None:
    assert audioset_key("--PJHxphWEs", 30.0) == "--PJHxphWEs_30000"
    assert audioset_key("--PJHxphWEs", 0.1 + 0.2) == "--PJHxphWEs_300"
    assert file_key("a.b/../c d'\"é") == "a_b____c_d___"
    assert encode_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert member_names() == ("json", "jpg", "fbank.npy")
    assert member_names(2, True) == ("json", "jpg", "fbank.npy", "frame00.jpg", "frame01.jpg", "flac")
    columns = [member_column(name, "offset") for name in member_names(12, True)]
    assert len(set(columns)) == len(columns)


def test_tables_round_trip(tmp_path: Path) -> None:
    rows = [{"key": "a", "label_ids": [1, 2], "labels": [], "offset": 5, "json_crc32": 2**32 - 1}, {"key": "b"}]
    path = tmp_path / "t.parquet"
    write_table(path, rows, shard_schema(member_names()), {"recipe": {"b": [1], "a": None}})
    table, facts = read_table(path)
    assert facts == {"spec_version": 1, "recipe": {"a": None, "b": [1]}}
    first, second = table.to_pylist()
    assert {k: first[k] for k in rows[0]} == rows[0]
    assert second["start"] is second["labels"] is None
    before = path.read_bytes()
    write_table(path, table.replace_schema_metadata(None), shard_schema(member_names()), {"recipe": facts["recipe"]})
    assert path.read_bytes() == before


def test_damaged_and_foreign_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"t\.parquet cannot be read as parquet .*: remove it"):
        read_table(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="has spec_version None, this program reads 1"):
        read_table(path)


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert path.read_text() == "old"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def dataset() -> Dataset:
    shards = [ShardInfo(name=f"{shard_stem(i)}.tar", samples=1, failed=0, bytes=1, sha256=f"{i:064}") for i in (0, 1)]
    facts = {"recipe": {"a": 1}, "samples": 2, "failed": 0, "failures": {}, "shards": shards, "classes": []}
    return Dataset(**facts, mean=-4.0, std=4.5, fingerprint=fingerprint(shards), versions={})  # type: ignore[arg-type]


def test_dataset_round_trip_and_fingerprint(tmp_path: Path) -> None:
    write_dataset(tmp_path, dataset())
    assert read_dataset(tmp_path) == dataset()
    assert fingerprint(dataset().shards) != fingerprint(dataset().shards[::-1])


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone does not exist"):
        read_dataset(tmp_path / "gone")
    with pytest.raises(UserError, match="is no dataset"):
        read_dataset(tmp_path)
    write_table(plan_path(tmp_path), [], PLAN_SCHEMA, {})
    with pytest.raises(UserError, match=r"is unfinished .*: run the same make-shards command again"):
        read_dataset(tmp_path)
    write_dataset(tmp_path, dataset())
    path = tmp_path / "dataset.json"
    whole = path.read_text()
    path.write_text(whole[:100])
    with pytest.raises(UserError, match=r"dataset\.json is damaged"):
        read_dataset(tmp_path)
    path.write_text(whole.replace('"spec_version": 1', '"spec_version": 2'))
    with pytest.raises(UserError, match="has spec_version 2, this program reads 1"):
        read_dataset(tmp_path)


@dataclass(frozen=True)
class Nothing:
    """A command without options."""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("length", [3, 70, 90, 300])
def test_a_mistake_is_one_line_in_which_no_word_is_broken(monkeypatch, encoding, length):
    """tyro's frame is 80 wide, of lines or of dashes."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    path = "/" + "a" * length
    with pytest.raises(UserError) as found:
        parse(Nothing, ["--no", path, "b", path], prog="program")
    assert str(found.value) == f"Unrecognized options: --no, {path}, b, {path} (see program --help)"


def test_a_folder_that_cannot_be_synced_is_passed_over(tmp_path, monkeypatch):
    """SMB, vboxsf, many FUSE file systems; a disk that fails is none of them."""
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for number in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text(str(number))
        assert (tmp_path / "file").read_text() == str(number)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)
