"""Remote datasets: the same batches as from a local folder, in bounded room, whatever the server does."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from shards_spec.dataset import DATASET_FILE
from shards_spec.errors import DamagedSampleError, UserError
from tests.datasets import make_dataset
from tests.file_server import FileServer
from tests.runs import ROOT
from training.stream import cache as cache_module
from training.stream import fetch
from training.stream.ahead import check_cache
from training.stream.cache import ShardCache
from training.stream.cache_folder import CacheFolder, FetchError, parse_size
from training.stream.index import open_index
from training.stream.loader import all_shares, load, rank_shares
from training.stream.order import Place, SampleStream

COUNTS = (3, 2, 4, 3, 2, 3, 1, 2)  # 20 samples in 8 shards
pytest.importorskip("aiohttp")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("remote") / "shards", COUNTS)


@pytest.fixture
def server(dataset):
    with FileServer(dataset) as server:
        yield server


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSES", (0.05,))
    monkeypatch.setattr(fetch, "_OPENING_PATIENCE", 1.0)


def open_remote(server, cache, size="1GB", *, timeout=1.0, patience=1.0):
    index = open_index(server.url, cache_dir=cache, cache_size=size)
    transfers = fetch.Transfers(timeout=timeout, patience=patience)
    index.cache = ShardCache(index.cache.folder, index.cache.shards, transfers)
    return index


def block_shares(index, *, steps=10, batch_size=4, window=2, seed=1, rank=0, world=1):
    stream = SampleStream(index.counts, seed=seed, window=window)
    return rank_shares(stream, Place(), steps=steps, batch_size=batch_size, rank=rank, world=world)


def facts(batch):
    return batch.keys, batch.seeds.clone(), batch.image.clone(), batch.fbank.clone()


def assert_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for (keys, *tensors), (other_keys, *others) in zip(first, second, strict=True):
        assert keys == other_keys
        assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def read(index, shares, workers=0):
    return map(facts, load(index, shares, seed=1, batch_size=4, workers=workers))


def used(cache):
    """Bytes of all files in a cache, a file that is on its way in full. Files may come and go meanwhile."""
    total = 0
    for path in cache.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def need(index, shards):
    return sum(index.cache.shards[shard].bytes for shard in shards)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("window", [2, None])
def test_the_same_batches_as_from_the_folder(dataset, server, tmp_path, workers, window):
    local, remote = open_index(dataset), open_remote(server, tmp_path / "cache")
    assert remote.fingerprint == local.fingerprint and local.cache is None
    expected = read(local, block_shares(local, window=window))
    assert_same(read(remote, block_shares(remote, window=window), workers), expected)
    assert_same(read(remote, all_shares(len(remote), 4), workers), read(local, all_shares(len(local), 4)))
    assert sorted(server.tars()) == [f"shard-{i:06d}.tar" for i in range(8)]  # each once


def test_an_opened_dataset_fetches_what_it_is_asked_for(dataset, server, tmp_path):
    remote = open_remote(server, tmp_path / "cache")
    assert server.asked == {DATASET_FILE: 1}
    assert remote.key(0) == open_index(dataset).key(0)
    assert server.tars() == ["shard-000000.tar"]


def test_local_and_remote_mixed(dataset, server, tmp_path):
    folder = make_dataset(tmp_path / "other", (4, 3), seed=9)
    both = open_index(dataset, folder)
    mixed = open_index(server.url, str(folder), cache_dir=tmp_path / "cache")
    assert mixed.fingerprint == both.fingerprint and len(mixed.cache.shards) == 8
    shares = [rank_shares(SampleStream(i.counts, seed=2), Place(), steps=8, batch_size=4) for i in (both, mixed)]
    assert_same(read(mixed, shares[1]), read(both, shares[0]))


def test_memory_urls(dataset, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for path in dataset.iterdir():
        files.pipe_file(f"/cache-test/{path.name}", path.read_bytes())
    local, remote = open_index(dataset), open_index("memory://cache-test", cache_dir=tmp_path / "cache")
    assert_same(read(remote, block_shares(remote)), read(local, block_shares(local)))


# -------------------------------------------------------------------- room


def test_the_room_is_bounded_at_all_times(dataset, server, tmp_path):
    """A cache of 3 of 8 shards: two epochs and more, through three runs."""
    local, cache = open_index(dataset), tmp_path / "cache"
    size = 3 * max(need(open_remote(server, cache), [s]) for s in range(8))
    most, over = [0], threading.Event()

    def watch():
        while not over.is_set():
            most.append(used(cache))

    watcher = threading.Thread(target=watch)
    watcher.start()
    server.rate = 8e6
    for window, seed in ((2, 1), (1, 2), (2, 3)):
        remote = open_remote(server, cache, str(size), patience=20.0)
        shares = block_shares(remote, window=window, seed=seed, batch_size=2, steps=25)
        expected = block_shares(local, window=window, seed=seed, batch_size=2, steps=25)
        assert_same(read(remote, shares, workers=1), read(local, expected))
    over.set()
    watcher.join()
    assert 0.6 * size < max(most) <= size


def test_shards_are_fetched_in_the_order_of_their_use_ahead_of_it(dataset, server, tmp_path):
    remote = open_remote(server, tmp_path / "cache")
    order = list(dict.fromkeys(remote.locate(int(n))[0] for s in block_shares(remote, window=1) for n in s.numbers))
    server.rate = 20e6
    batches = load(remote, block_shares(remote, window=1), seed=1, batch_size=4, workers=0)
    next(batches)
    time.sleep(1.0)  # a step that takes long
    assert len(server.tars()) == 8
    asked = [int(name[6:12]) for name in server.asked if name.endswith(".tar")]
    assert set(asked[:4]) == set(order[:4])  # four threads
    assert [order.index(shard) for shard in asked] == pytest.approx(range(8), abs=3)
    batches.close()


def test_the_least_recently_used_goes_first_and_what_is_used_stays(server, tmp_path):
    cache = tmp_path / "cache"
    size = need(open_remote(server, cache), [0, 1, 2])
    remote, other = open_remote(server, cache, str(size)), open_remote(server, cache, str(size))

    def whole():
        return {s for s in range(8) if remote.cache.shards[s].is_whole()}

    with remote.cache, other.cache:
        for shard in (0, 1, 2):
            remote.cache.hold([shard])
            remote.cache.release([shard])
        for age, shard in enumerate((1, 0, 2)):
            os.utime(remote.cache.shards[shard].tar, (0, 1000 + age))
        other.cache.hold([1])  # by somebody else: it stays, and is the newest from now on
        remote.cache.hold([6])  # small: the room of one
        remote.cache.release([6])
        assert whole() == {1, 2, 6}
        remote.cache.hold([3])
        assert whole() == {1, 3, 6}
        other.cache.release([1])
    assert used(cache) <= size


def test_a_cache_that_is_too_small_says_how_large_it_must_be(server, tmp_path):
    cache = tmp_path / "cache"
    remote = open_remote(server, cache, "1MB")
    with pytest.raises(UserError, match=r"cache-size 0\.001GB is too small: one step needs \d shards at .* 0\.\d+GB"):
        list(read(remote, block_shares(remote, window=8)))
    block, everything = SampleStream(remote.counts, seed=0, window=4), SampleStream(remote.counts, seed=0)
    with pytest.raises(UserError, match="one step needs"):
        check_cache(remote, block, Place(), 12)
    with pytest.raises(UserError, match=r"--shuffle global needs all 8 remote shards .* use --shuffle block"):
        check_cache(remote, everything, Place(), 2)
    check_cache(open_remote(server, cache), everything, Place(), 2)
    assert server.tars() == []  # before any work


def test_a_cache_full_of_what_others_use_is_an_error_not_a_deadlock(server, tmp_path):
    cache = tmp_path / "cache"
    size = str(need(open_remote(server, cache), [0, 1]))
    first, second = open_remote(server, cache, size), open_remote(server, cache, size, timeout=0.2, patience=0.5)
    with first.cache, second.cache:
        first.cache.hold([0, 1])
        with pytest.raises(FetchError, match="is full of shards that other runs use"):
            second.cache.hold([2])
        first.cache.release([0])
        second.cache.hold([4])


def test_ranks_in_step_get_on_with_the_room_of_a_step(dataset, server, tmp_path):
    """Four ranks take turns as if they waited for each other after each step; the cache holds little more than one."""
    cache, world = tmp_path / "cache", 4
    local, probe = open_index(dataset), open_remote(server, cache)
    steps = [set(probe.shards_of(s.numbers).tolist()) for s in block_shares(probe, batch_size=8)]
    size = str(max(need(probe, step) for step in steps))
    indices = [open_remote(server, cache, size, patience=20.0) for _ in range(world)]
    ranks = [
        read(index, block_shares(index, batch_size=8, rank=rank, world=world), workers=1)
        for rank, index in enumerate(indices)
    ]
    expected = [read(local, block_shares(local, batch_size=8, rank=rank, world=world)) for rank in range(world)]
    results = [list(r) for r in zip(*zip(*ranks, strict=True), strict=True)]
    for rank in range(world):
        assert_same(results[rank], expected[rank])


@pytest.mark.parametrize(
    ("text", "size"), [("200GB", 200e9), ("1.5T", 1.5e12), ("64MiB", 64 * 2**20), ("10k", 1e4), ("7", 7)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-3G", "3 apples", "1iB"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="--cache-size is a number with K, M, G or T"):
        parse_size(text)


# -------------------------------------------------------------------- servers


@pytest.mark.parametrize("fault", ["cut", "short", "garbage", 503])
@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_bad_transfer_is_repeated(dataset, server, tmp_path, fault, suffix):
    local, remote = open_index(dataset), open_remote(server, tmp_path / "cache")
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


def test_a_server_that_stops_and_comes_back(dataset, server, tmp_path):
    local, remote = open_index(dataset), open_remote(server, tmp_path / "cache", patience=20.0)
    server.rate = 10e6
    batches = load(remote, block_shares(remote, window=1), seed=1, batch_size=4, workers=0)
    got = [facts(next(batches))]
    server.stop()
    threading.Timer(1.0, server.start).start()
    got += map(facts, batches)
    assert_same(got, read(local, block_shares(local, window=1)))


def test_a_server_that_is_gone_is_one_error_in_time(server, tmp_path):
    remote = open_remote(server, tmp_path / "cache", timeout=0.5, patience=1.0)
    server.stop()
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"^http.*shard-00000\d\.\w+ cannot be fetched, tried for 1 s: .*onnect"):
        list(read(remote, block_shares(remote)))
    assert time.monotonic() - began < 5
    with pytest.raises(FetchError, match=r"dataset\.json cannot be fetched, tried for 1 s"):
        open_index(server.url, cache_dir=tmp_path / "cache")


def test_a_server_that_hangs_is_one_error_in_time(server, tmp_path):
    remote = open_remote(server, tmp_path / "cache", timeout=0.3, patience=1.0)
    server.hangs = True
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"shard-00000\d\.\w+ cannot be fetched, tried (for 1 s|5 times): .*imeout"):
        list(read(remote, block_shares(remote)))
    assert time.monotonic() - began < 8


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
    with pytest.raises(FetchError, match=r"\.tar did not come in \d s: no answer"):
        list(read(remote, block_shares(remote)))
    assert time.monotonic() - began < 10
    never.set()


def test_no_dataset_at_a_url(server, tmp_path):
    with pytest.raises(UserError, match=r"nothing/dataset\.json cannot be fetched: there is no such file"):
        server_url = server.url.replace("shards", "nothing")
        server.faults[DATASET_FILE] = [404]
        open_index(server_url, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="is unknown"):
        open_index("gopher://host/shards", cache_dir=tmp_path / "cache")


def test_a_dataset_json_that_leads_elsewhere_is_refused(dataset, server, tmp_path):
    server.folder = tmp_path / "shards"
    server.folder.mkdir()
    listed = json.loads((dataset / DATASET_FILE).read_text())
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
        file.seek(place.frame_offset + 40)
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
from training.stream.loader import load, rank_shares
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


def test_two_processes_fetch_each_shard_once(dataset, server, tmp_path):
    server.rate = 4e6
    processes = [start_reader(server, tmp_path / "cache", rank) for rank in (0, 1)]
    keys = [finish(process) for process in processes]
    local = open_index(dataset)
    for rank in (0, 1):
        shares = block_shares(local, batch_size=8, rank=rank, world=2)
        assert keys[rank] == [batch[0] for batch in read(local, shares)]
    assert sorted(server.tars()) == [f"shard-{i:06d}.tar" for i in range(8)]
    assert all(count == 1 for name, count in server.asked.items() if name != DATASET_FILE)


def test_killed_in_the_middle_of_a_download(dataset, server, tmp_path):
    cache = tmp_path / "cache"
    server.rate = 1e6
    process = start_reader(server, cache)
    deadline = time.monotonic() + 60
    while not (parts := list(cache.rglob("*.tar.part"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert parts[0].exists() and not list(cache.rglob("*.tar"))
    server.rate = None
    size = str(need(open_remote(server, cache), range(8)))  # what was left counts until it is gone
    keys = finish(start_reader(server, cache, size=size))
    local = open_index(dataset)
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
    with pytest.raises(UserError, match=r"cannot be written .* another --cache-dir"):
        open_remote(server, tmp_path / "cache")


def test_a_full_disk_is_one_line(server, tmp_path, monkeypatch):
    remote = open_remote(server, tmp_path / "cache")

    def full(file, piece):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(fetch, "_write", full)
    with pytest.raises(FetchError, match=r"tar\.part cannot be written \(No space left on device\)"):
        list(read(remote, block_shares(remote)))
    assert CacheFolder(tmp_path / "cache", 1).entries()  # the tables
