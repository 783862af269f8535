"""make-shards with its input and output behind URLs, and the leases that keep runs apart there."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import lease, make_shards
from pipeline.make_shards import MakeShardsConfig, main, run
from shards_spec import storage
from shards_spec.dataset import Dataset, read_dataset
from shards_spec.errors import UserError
from shards_spec.storage import Place, Remote
from tests.fake_samples import fake_sample, fake_sample_with_options, hashes, make, thirty_files, ytid


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thirty_files(tmp_path_factory.mktemp("remote") / "raw")


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The dataset of local folders."""
    return make(raw, tmp_path_factory.mktemp("expected") / "out", workers=1)


def config(raw: Place, out: Place, **options: Any) -> MakeShardsConfig:
    return MakeShardsConfig(raw=(raw,), out=out, **{"shard_size": 4, "workers": 1} | options)


# Leases.


def test_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "PATIENCE", 0.6)
    at = tmp_path / "lease"
    with lease.lease(at) as first, lease.lease(at) as second:
        assert (first, second) == (True, False)
    assert not at.exists()
    at.write_text("elsewhere\n1\n0\nbeat 0\n")  # has stopped
    with lease.lease(at) as ours:
        assert ours
    own = lease._holder()
    at.write_text(own.replace(f"\n{os.getpid()}\n", "\n4194304\n"))  # a process of this machine that is gone
    begun = time.monotonic()
    with lease.lease(at) as ours:
        assert ours
    assert time.monotonic() - begun < 0.5
    at.write_text("elsewhere\n1\n0\nbeat 0\n")
    beating = threading.Timer(0.3, lambda: at.write_text("elsewhere\n1\n0\nbeat 1\n"))
    beating.start()
    with lease.lease(at) as ours:
        assert not ours
    beating.join()


@pytest.mark.parametrize("kind", ["folder", "no hard links", "memory"])
def test_one_of_several_creates_a_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at: Place = Remote(f"memory://{tmp_path}/file") if kind == "memory" else tmp_path / "file"
    if kind == "no hard links":

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda i: storage.create(at, b"%d" % i), range(8)))
    assert sum(told) == 1
    assert storage.read_bytes(at) == b"%d" % told.index(True)
    storage.remove(at)
    storage.remove(at)
    assert not storage.is_file(at)


# Places that are no local folders.


def check_remote(out: Remote, expected: Dataset, tmp_path: Path) -> None:
    """What lies behind a URL is the dataset, byte for byte, and nothing else."""
    assert read_dataset(out) == expected
    there = storage.sizes(out)
    stems = [shard.name.removesuffix(".tar") for shard in expected.shards]
    tables = {f"{stem}.{suffix}" for stem in stems for suffix in ("tar", "parquet")}
    assert there.keys() == tables | {"plan.parquet", "dataset.json"}
    (tmp_path / "copy").mkdir()
    for name in there:
        storage.fetch(out / name, tmp_path / "copy" / name)
    assert hashes(tmp_path / "copy") == [shard.sha256 for shard in expected.shards]


def upload(raw: Path, to: Remote) -> None:
    for path in raw.rglob("*"):
        if path.is_file():
            storage.write_bytes(to / str(path.relative_to(raw)), path.read_bytes())


def remote_runs(base: Remote, tmp_path: Path, raw: Path, expected: Dataset) -> None:
    """An array's task, its --finalize, a whole run, a lost shard, a retry, all with input and output behind URLs."""
    upload(raw, base / "raw")
    local_out, out = tmp_path / "local", base / "out"
    assert run(config(base / "raw", local_out, max_failed=1.0), make=fake_sample) == 0
    assert read_dataset(local_out) == expected
    assert run(config(base / "raw", out, task_index=1, task_count=2), make=fake_sample) == 0
    assert run(config(base / "raw", out, finalize=True)) == 1
    assert run(config(base / "raw", out, workers=2), make=fake_sample) == 0
    check_remote(out, expected, tmp_path)
    storage.remove(out / "shard-000002.parquet")
    storage.write_bytes(out / "shard-000003.tar", b"cut")
    assert run(config(base / "raw", out), make=fake_sample) == 0
    assert read_dataset(out) == expected
    failing = base / "raw" / f"{ytid(98)}_30.mp4"
    storage.write_bytes(failing, b"good now")
    assert run(config(base / "raw", out, retry_failed=True), make=fake_sample) == 0
    assert read_dataset(out).failures == {"crashed": 1}
    with lease.lease(out / ".make-shards.lock") as ours:
        assert ours
        with pytest.raises(UserError, match="another make-shards is writing"):
            run(config(base / "raw", out), make=fake_sample)


def test_memory(tmp_path: Path, raw: Path, expected: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    remote_runs(Remote(f"memory://{tmp_path}"), tmp_path, raw, expected)
    left = [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith("make-shards")]
    assert not left


def test_a_clip_that_goes_away(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Remote(f"memory://{tmp_path}")
    upload(raw, base / "raw")
    fetch = storage.fetch

    def fetch_all_but_one(where: Place, copy: Path) -> Path:
        if f"{ytid(3)}_" in str(where):
            raise FileNotFoundError(2, "No such file", str(where))
        return fetch(where, copy)

    monkeypatch.setattr(storage, "fetch", fetch_all_but_one)
    assert run(config(base / "raw", tmp_path / "out", workers=1), make=fake_sample) == 0
    assert sum(read_dataset(tmp_path / "out").failures.values()) == 3


def test_a_store_that_fails_is_one_line(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def fail(*_: object, **__: object) -> None:
        raise KeyError("Unable to locate credentials")

    monkeypatch.setattr(MemoryFileSystem, "put_file", fail)
    monkeypatch.setattr(make_shards, "make_sample", fake_sample_with_options)
    assert main([str(raw), "--out", f"memory://{tmp_path}/out", "--workers", "1"]) == 1
    assert "plan.parquet: KeyError: 'Unable to locate credentials'; finished shards are kept" in capsys.readouterr().err


def test_a_full_local_disk_is_not_told_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    at, copy = Remote(f"memory://{tmp_path}/file"), tmp_path / "copy"
    with pytest.raises(OSError, match="No space left") as caught, storage.writing(at) as temporary:
        full()
    assert caught.value.filename == str(temporary)
    monkeypatch.setattr(MemoryFileSystem, "get_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        storage.fetch(at, copy)
    assert caught.value.filename == str(copy)
    with pytest.raises(OSError, match="No space left") as caught, storage.writing(tmp_path / "local"):
        full()
    assert caught.value.filename == str(tmp_path / "local")


def test_s3(tmp_path: Path, raw: Path, expected: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed").ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host.replace('0.0.0.0', '127.0.0.1')}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir("bucket")
        remote_runs(Remote("s3://bucket/some folder"), tmp_path, raw, expected)
        assert storage.create(Remote("s3://bucket/once"), b"1")
        assert not storage.create(Remote("s3://bucket/once"), b"2")
    finally:
        server.stop()
