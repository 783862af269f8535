"""Remote datasets when something fails: servers, disks, and processes that are killed or share a cache."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from shards_spec.dataset import DATASET_FILE
from shards_spec.errors import DamagedSampleError, UserError
from tests.remote_index import assert_same, block_shares, eventually, facts, need, open_remote, read
from tests.runs import ROOT
from training.processes import StopRequest, signals_given_back
from training.stream import cache as cache_module
from training.stream import fetch
from training.stream.cache_folder import CacheFolder, FetchError
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.order import Place, SampleStream
from training.stream.shares import rank_shares
from training.stream.waiting import StopWaiting

_IN_TIME = 60.0  # seconds: less than any limit that is not set in the test, and enough under load

# -------------------------------------------------------------------- servers


@pytest.mark.parametrize("fault", ["cut", "short", "garbage", 503])
@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_bad_transfer_is_repeated(served, server, tmp_path, fault, suffix):
    local, remote = open_index(served), open_remote(server, tmp_path / "cache")
    server.faults = {f"shard-000003.{suffix}": [fault, fault], DATASET_FILE: [503]}
    assert_same(read(remote, block_shares(remote)), read(local, block_shares(local)))
    assert server.asked[f"shard-000003.{suffix}"] == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("garbage", r"shard-000003\.tar cannot be fetched, tried 5 times: its sha256 is \w+, dataset\.json lists \w+$"),
        ("short", r"shard-000003\.tar cannot be fetched, tried 5 times: it ended at byte [\d,]+ of [\d,]+$"),
        ("cut", r"shard-000003\.tar cannot be fetched, tried 5 times: .*Not enough data"),
        (403, r"shard-000003\.tar cannot be fetched: .*403"),
        (404, r"shard-000003\.tar cannot be fetched: there is no such file"),
    ],
)
def test_what_stays_bad_is_named(server, tmp_path, fault, message):
    remote = open_remote(server, tmp_path / "cache")
    server.faults["shard-000003.tar"] = [fault] * 99
    with pytest.raises(FetchError, match=message) as raised:
        list(read(remote, block_shares(remote)))
    assert str(raised.value).startswith(server.url) and "\n" not in str(raised.value)
    assert not list((tmp_path / "cache").rglob("*000003.tar*"))


def test_a_server_that_stops_and_comes_back(served, server, tmp_path):
    local, remote = open_index(served), open_remote(server, tmp_path / "cache", patience=20.0)
    server.rate = 10e6
    batches = load(remote, block_shares(remote, window=1), seed=1, batch_size=4, workers=0)
    got = [facts(next(batches))]
    server.stop()
    threading.Timer(1.0, server.start).start()
    got += map(facts, batches)
    assert_same(got, read(local, block_shares(local, window=1)))


def test_a_server_that_is_gone_is_one_error_in_time(server, tmp_path, monkeypatch):
    remote = open_remote(server, tmp_path / "cache", timeout=0.5, patience=1.0)
    monkeypatch.setattr(fetch, "_OPENING_PATIENCE", 1.0)
    server.stop()
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"^http.*shard-00000\d\.\w+ cannot be fetched, tried for 1 s: .*onnect"):
        list(read(remote, block_shares(remote)))
    assert time.monotonic() - began < _IN_TIME
    with pytest.raises(FetchError, match=r"dataset\.json cannot be fetched, tried for 1 s"):
        open_index(server.url, cache_dir=tmp_path / "cache")


def test_a_server_that_hangs_is_one_error_in_time(server, tmp_path):
    remote = open_remote(server, tmp_path / "cache", timeout=0.3, patience=3.0)
    server.hangs = True
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"shard-00000\d\.\w+ cannot be fetched, tried (for 3 s|5 times): .*imeout"):
        list(read(remote, block_shares(remote)))
    assert time.monotonic() - began < _IN_TIME


def test_a_wait_for_a_server_that_hangs_can_be_broken_off(server, tmp_path, monkeypatch):
    """As SIGTERM does: nothing waits for the server's time to be up, what comes next works."""
    monkeypatch.setattr(cache_module, "_JOIN_SECONDS", 0.1)
    remote = open_remote(server, tmp_path / "cache", timeout=100.0, patience=1000.0)
    server.hangs = True
    began, stop = time.monotonic(), threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    with pytest.raises(StopWaiting):
        list(load(remote, block_shares(remote), seed=1, batch_size=4, workers=1, stopping=stop.is_set))
    assert stop.is_set() and time.monotonic() - began < _IN_TIME
    timer.join()


def test_sigterm_breaks_off_a_wait_in_a_run_of_one_process(server, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_JOIN_SECONDS", 0.1)
    remote = open_remote(server, tmp_path / "cache", timeout=100.0, patience=1000.0)
    server.hangs = True
    with signals_given_back():
        request = StopRequest()
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(StopWaiting):
            list(load(remote, block_shares(remote), seed=1, batch_size=4, workers=0, stopping=request.interrupts))
        assert request.signal == signal.SIGTERM and request.agreed()
        timer.join()
        request._group = object()  # several processes: others may be in the step that waits for this batch
        assert not request.interrupts()


def test_a_client_without_limits_of_its_own_is_given_up(server, tmp_path, monkeypatch):
    """gs:// and others: nothing of theirs ends a silence, so the one who waits does."""
    remote = open_remote(server, tmp_path / "cache", timeout=0.2, patience=0.5)
    monkeypatch.setattr(cache_module, "_JOIN_SECONDS", 0.2)
    never = threading.Event()

    def silent(source, timeout):
        never.wait(30)
        yield b""

    monkeypatch.setattr(fetch, "pieces", silent)
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"\.tar did not come in \d+ s: no answer"):
        list(read(remote, block_shares(remote)))
    assert time.monotonic() - began < _IN_TIME
    never.set()


def test_no_dataset_at_a_url(server, tmp_path):
    with pytest.raises(UserError, match=r"nothing/dataset\.json cannot be fetched: there is no such file"):
        server_url = server.url.replace("shards", "nothing")
        server.faults[DATASET_FILE] = [404]
        open_index(server_url, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="is unknown"):
        open_index("gopher://host/shards", cache_dir=tmp_path / "cache")


def test_a_dataset_json_that_leads_elsewhere_is_refused(served, server, tmp_path):
    server.folder = tmp_path / "shards"
    server.folder.mkdir()
    listed = json.loads((served / DATASET_FILE).read_text())
    listed["shards"][0]["name"] = "../shard-000000.tar"
    (server.folder / DATASET_FILE).write_text(json.dumps(listed))
    with pytest.raises(UserError, match=r"'\.\./shard-000000\.tar' is no shard"):
        open_index(server.url, cache_dir=tmp_path / "cache")
    listed["shards"][0] |= {"name": "shard-000000.tar", "sha256": "../.."}
    (server.folder / DATASET_FILE).write_text(json.dumps(listed))
    with pytest.raises(UserError, match="its fingerprint is not that of the shards"):
        open_index(server.url, cache_dir=tmp_path / "cache")


def test_a_damaged_sample_in_the_cache_is_named_or_replaced(server, tmp_path):
    remote = open_remote(server, tmp_path / "cache")
    stream = SampleStream(remote.counts, seed=1, window=1)
    numbers = stream.take(Place(), 20)[0].tolist()
    last = max(i for i in range(4) if remote.locate(numbers[i])[0] == remote.locate(numbers[0])[0])
    place = remote.place(numbers[last])  # the next good one lies in another shard
    with remote.tars[place.shard].open("r+b") as file:
        file.seek(place.frames[0].offset + 40)
        file.write(b"\x00\x01\x02")

    def shares():
        return rank_shares(stream, Place(), steps=5, batch_size=last + 1)

    with pytest.raises(DamagedSampleError, match="crc32"):
        list(load(remote, shares(), seed=1, batch_size=4, workers=0))
    batches = list(load(remote, shares(), seed=1, batch_size=4, workers=0, skip_bad_in=stream))
    assert batches[0].keys[last] == remote.key(numbers[last + 1]) and len(batches[0].replaced) == 1


# -------------------------------------------------------------------- processes

_READS = """
import json, sys
from pathlib import Path
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.shares import rank_shares
from training.stream.order import Place, SampleStream
url, cache, size, rank = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
index = open_index(url, cache_dir=cache, cache_size=size)
shares = rank_shares(SampleStream(index.counts, seed=1, window=2), Place(), steps=10, batch_size=8, rank=rank, world=2)
print(json.dumps([b.keys for b in load(index, shares, seed=1, batch_size=4, workers=1)]))
"""


def start_reader(server, cache, rank=0, size="1GB"):
    command = [sys.executable, "-c", _READS, server.url, str(cache), size, str(rank)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def test_two_processes_fetch_each_shard_once(served, server, tmp_path):
    server.rate = 4e6
    processes = [start_reader(server, tmp_path / "cache", rank) for rank in (0, 1)]
    keys = [finish(process) for process in processes]
    local = open_index(served)
    for rank in (0, 1):
        shares = block_shares(local, batch_size=8, rank=rank, world=2)
        assert keys[rank] == [batch[0] for batch in read(local, shares)]
    eventually(lambda: sorted(server.tars()) == [f"shard-{i:06d}.tar" for i in range(8)])
    assert all(count == 1 for name, count in server.asked.items() if name != DATASET_FILE)


def test_killed_in_the_middle_of_a_download(served, server, tmp_path):
    cache = tmp_path / "cache"
    server.rate = 2e4  # a table in half a second, a shard in a quarter of a minute or more
    process = start_reader(server, cache)
    eventually(lambda: process.poll() is not None or list(cache.rglob("*.tar.part")))
    parts = list(cache.rglob("*.tar.part"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert parts[0].exists() and not list(cache.rglob("*.tar"))
    server.rate = None
    size = str(need(open_remote(server, cache), range(8)))  # what was left counts until it is gone
    keys = finish(start_reader(server, cache, size=size))
    local = open_index(served)
    assert keys == [batch[0] for batch in read(local, block_shares(local, batch_size=8, rank=0, world=2))]
    assert len(list(cache.rglob("*.tar"))) == 8 and not list(cache.rglob("*.part"))


def test_what_a_killed_download_left_gives_way(server, tmp_path):
    cache = tmp_path / "cache"
    index = open_remote(server, cache, str(need(open_remote(server, cache), [0, 1])))
    folder = index.tars[0].parent
    folder.mkdir(parents=True)
    with (folder / "shard-000005.tar.part").open("wb") as file:
        file.truncate(index.cache.folder.size)
    with index.cache:
        index.cache.hold([0, 1])
    assert not list(cache.rglob("*.part"))


def test_an_unwritable_cache_is_one_line(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be used .* another --cache-dir"):
        open_remote(server, tmp_path / "cache")


def test_a_full_disk_is_one_line(server, tmp_path, monkeypatch):
    remote = open_remote(server, tmp_path / "cache")

    def full(file, piece):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(fetch, "_write", full)
    with pytest.raises(FetchError, match=r"tar\.part cannot be used \(No space left on device"):
        list(read(remote, block_shares(remote)))
    assert CacheFolder(tmp_path / "cache", 1).entries()  # the tables
