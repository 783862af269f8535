"""What the system refuses is told as that: never as damage, never with the advice to remove a file, and in one line."""

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from pipeline.make_shards import main as make_shards
from shards_spec.command_line import one_line_errors
from shards_spec.dataset import dataset_from_json
from shards_spec.errors import DamagedSampleError, UserError, reason, refusal
from shards_spec.tables import read_table
from tests.datasets import make_dataset
from tests.refusals import forbidden, open_files
from tools import make_world
from tools.verify_shards import main as verify_shards
from training.checkpoint import read_json
from training.evaluation.metadata import read_metadata
from training.stream import index as index_module
from training.stream.cache_folder import FetchError, ShardLocks
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.order import SampleStream
from training.stream.reader import SampleReader
from training.stream.shares import all_shares
from training.tensor_files import read_safetensors, read_torch

NOT_DAMAGE = (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE)
SIZES = (5, 4, 3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "d", SIZES)


def refusing(number, times=10**9):
    """A function of the system that says `number`, the first `times` times, and then what it is to do."""
    left = [times]

    def instead_of(real):
        def call(*arguments, **options):
            if left[0] > 0:
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        return call

    return instead_of


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", NOT_DAMAGE)
def test_a_sample_that_the_system_does_not_give_is_not_replaced(dataset, monkeypatch, number, workers):
    index = open_index(str(dataset))
    monkeypatch.setattr(os, "preadv", refusing(number)(os.preadv))
    shares, stream = all_shares(len(index), 3), SampleStream(index.counts, seed=0)
    with pytest.raises(OSError, match=os.strerror(number)) as refused:
        list(load(index, shares, seed=0, batch_size=3, workers=workers, skip_bad_in=stream))
    assert refused.value.errno == number
    assert refusal(refused.value).startswith(f"{dataset / 'shard-000000.tar'}: sample clip0000000_0 at byte 0: ")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ESTALE])
def test_what_may_pass_when_shards_are_opened_anew_passes(dataset, monkeypatch, number):
    index = open_index(str(dataset))
    reader = SampleReader(index.tars)
    image, fbank = np.empty((1, 224, 224, 3), np.uint8), np.empty((1024, 128), np.float16)
    reader.read_into(index.place(0), image, fbank)
    monkeypatch.setattr(os, "preadv", refusing(number, times=1)(os.preadv))
    reader.read_into(index.place(1), image, fbank)
    reader.close()


def test_a_reader_lives_on_as_many_files_as_it_may_open(tmp_path):
    index = open_index(str(make_dataset(tmp_path / "d", (1,) * 6, failed=0)))
    places = index.places(np.arange(6))
    reader = SampleReader(index.tars)
    image, fbank = np.empty((1, 224, 224, 3), np.uint8), np.empty((1024, 128), np.float16)
    with open_files(2):
        for place in places:
            reader.read_into(place, image, fbank)
    reader.close()


def test_a_table_that_the_system_does_not_give_is_not_damaged(dataset, monkeypatch):
    table = dataset / "shard-000001.parquet"
    with forbidden(table), pytest.raises(PermissionError) as refused:
        read_table(table)
    assert refusal(refused.value) == f"{table}: Permission denied: give this user the right to it"
    with open_files(0), pytest.raises(OSError, match="Too many open files") as refused:
        read_table(table)
    assert refused.value.errno == errno.EMFILE

    index = open_index(str(dataset))
    with forbidden(table), pytest.raises(PermissionError):
        index.place(6)
    monkeypatch.setattr(index_module, "read_table", refusing(errno.ENOENT)(read_table))
    with pytest.raises(DamagedSampleError, match=r"shard-000001\.parquet is gone"):
        index.place(6)


def test_metadata_that_the_system_does_not_give(dataset):
    index = open_index(str(dataset))
    index.places(np.arange(12))
    with forbidden(index.tars[0]), pytest.raises(PermissionError):
        list(read_metadata(index, np.arange(2)))


def test_an_unreadable_plan_is_left_where_it_is(tmp_path, monkeypatch, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    out.mkdir()
    (out / "plan.parquet").write_bytes(b"not looked at")
    monkeypatch.setattr("shards_spec.tables.pq.ParquetFile", refusing(errno.EACCES)(None))
    assert make_shards([str(raw), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "Permission denied" in said and "remove" not in said and said.count("\n") == 1


def test_verify_shards_tells_what_it_could_not_check_from_damage(dataset, monkeypatch, capsys):
    real = os.pread

    def failing_disk(descriptor, count, offset):
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "shard-000001.tar":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, count, offset)

    def status():
        return verify_shards([str(dataset), "--workers=1"]), capsys.readouterr().out

    _, whole = status()  # these datasets have no plan, and what goes with it
    monkeypatch.setattr(os, "pread", failing_disk)
    _, found = status()
    new = [line for line in found.splitlines() if line not in whole.splitlines()]
    told = "cannot be read (Input/output error: see whether its disk or server is well)"
    assert new[0] == f"shard-000001.tar, byte 0: {told}"
    assert new[-1].endswith("NOT CHECKED, because the system does not give them: shard-000001.tar; check again then")
    assert not any("damaged" in line for line in new) and "shard-000001.tar" not in _line(found, "DAMAGED")


def _line(printed, word):
    return next(line for line in printed.splitlines() if word in line)


def test_weights_and_json_that_the_system_does_not_give(tmp_path):
    for name, read in (
        ("w.safetensors", lambda path: read_safetensors(path, "-")),
        ("o.pt", lambda path: read_torch(path, "-")),
        ("s.json", read_json),
    ):
        path = tmp_path / name
        path.write_bytes(b"not looked at")
        told = rf"{name} cannot be read \(Permission denied: give this user the right to it\)$"
        with forbidden(path), pytest.raises(UserError, match=told):
            read(path)


def test_a_cache_without_locks_says_so(server, tmp_path, monkeypatch):
    index = open_index(server.url, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(ShardLocks, "_set", refusing(errno.ENOLCK)(ShardLocks._set))
    with pytest.raises(FetchError, match=r"cannot be used \(No locks available"), index.cache:
        index.cache.hold([0])


def test_every_command_tells_what_the_system_refuses_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors("command"):
        (tmp_path / "absent" / "file").write_text("")
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"command: error: {tmp_path}/absent/file: No such file or directory\n"
    with pytest.raises(SystemExit) as ended, one_line_errors("command"):
        raise UserError("two\nlines")
    assert ended.value.code == 2 and capsys.readouterr().err == "command: error: two lines\n"
    with pytest.raises(SystemExit) as ended, one_line_errors("command"):
        signal.raise_signal(signal.SIGINT)
    assert ended.value.code == 130 and capsys.readouterr().err == "command: stopped by SIGINT\n"


def test_reasons_are_the_systems_own_words():
    arrow = OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    assert reason(arrow) == "No space left on device: make room there"
    assert reason(OSError("cannot identify\nimage file")) == "cannot identify image file"
    assert (
        refusal(OSError(24, "Too many open files", "a.tar")) == "a.tar: Too many open files: raise the limit, ulimit -n"
    )


@pytest.mark.parametrize("value", [None, "x", -1, 1.5, True, [5], {"a": "b"}], ids=repr)
def test_a_dataset_json_of_other_types_is_damaged(dataset, value):
    path = dataset / "dataset.json"
    whole = json.loads(path.read_bytes())
    for name in ("samples", "failed", "failures", "shards", "classes", "mean", "fingerprint", "recipe", "versions"):
        if (name, value) in (("mean", -1), ("mean", 1.5), ("fingerprint", "x")) or (
            value == {"a": "b"} and name in ("recipe", "versions")
        ):
            continue
        with pytest.raises(UserError, match=r"dataset\.json is damaged"):
            dataset_from_json(json.dumps(whole | {name: value}).encode(), path)
    for name in ("samples", "failed", "bytes", "sha256"):
        if (name, value) != ("sha256", "x"):
            shards = [whole["shards"][0] | {name: value}]
            with pytest.raises(UserError, match=r"dataset\.json is damaged"):
                dataset_from_json(json.dumps(whole | {"shards": shards}).encode(), path)
    with pytest.raises(UserError, match=r"dataset\.json is damaged"):
        dataset_from_json(b"[" * 100_000, path)


def test_a_world_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_world, "_write_files", refusing(errno.EMFILE)(make_world._write_files))
    assert make_world.main([str(tmp_path / "world"), "--clips", "8"]) == 1
    assert "Too many open files: raise the limit, ulimit -n; mend this and run it again" in capsys.readouterr().err
