"""Remote datasets: the same batches as from a local folder, in bounded room, whatever the server does."""

import os
import threading

import pytest

from shards_spec.dataset import DATASET_FILE
from shards_spec.errors import UserError
from tests.datasets import make_dataset
from tests.remote_index import assert_same, block_shares, eventually, need, open_remote, read, used
from training.stream.ahead import check_cache
from training.stream.cache_folder import FetchError, parse_size
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.order import Place, SampleStream
from training.stream.shares import all_shares, rank_shares


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("window", [2, None])
def test_the_same_batches_as_from_the_folder(served, server, tmp_path, workers, window):
    local, remote = open_index(served), open_remote(server, tmp_path / "cache")
    assert remote.fingerprint == local.fingerprint and local.cache is None
    expected = read(local, block_shares(local, window=window))
    assert_same(read(remote, block_shares(remote, window=window), workers), expected)
    assert_same(read(remote, all_shares(len(remote), 4), workers), read(local, all_shares(len(local), 4)))
    eventually(lambda: sorted(server.tars()) == [f"shard-{i:06d}.tar" for i in range(8)])  # each once


def test_an_opened_dataset_fetches_what_it_is_asked_for(served, server, tmp_path):
    remote = open_remote(server, tmp_path / "cache")
    assert server.asked == {DATASET_FILE: 1}
    assert remote.key(0) == open_index(served).key(0)
    eventually(lambda: server.tars() == ["shard-000000.tar"])


def test_local_and_remote_mixed(served, server, tmp_path):
    folder = make_dataset(tmp_path / "other", (4, 3), seed=9)
    both = open_index(served, folder)
    mixed = open_index(server.url, str(folder), cache_dir=tmp_path / "cache")
    assert mixed.fingerprint == both.fingerprint and len(mixed.cache.shards) == 8
    shares = [rank_shares(SampleStream(i.counts, seed=2), Place(), steps=8, batch_size=4) for i in (both, mixed)]
    assert_same(read(mixed, shares[1]), read(both, shares[0]))


def test_memory_urls(served, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for path in served.iterdir():
        files.pipe_file(f"/cache-test/{path.name}", path.read_bytes())
    local, remote = open_index(served), open_index("memory://cache-test", cache_dir=tmp_path / "cache")
    assert_same(read(remote, block_shares(remote)), read(local, block_shares(local)))


# -------------------------------------------------------------------- room


def test_the_room_is_bounded_at_all_times(served, server, tmp_path):
    """A cache of 3 of 8 shards: two epochs and more, through three runs."""
    local, cache = open_index(served), tmp_path / "cache"
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


def test_shards_are_fetched_in_the_order_of_their_use_ahead_of_it(server, tmp_path, monkeypatch):
    remote = open_remote(server, tmp_path / "cache")
    steps = [sorted(set(remote.shards_of(share.numbers).tolist())) for share in block_shares(remote, window=1)]
    order = list(dict.fromkeys(shard for step in steps for shard in step))
    cache, begun = remote.cache, []
    following = cache._next

    def noted():
        with cache._changed:  # the threads take turns here
            begun.append(following())
            return begun[-1]

    monkeypatch.setattr(cache, "_next", noted)
    server.rate = 20e6
    batches = load(remote, block_shares(remote, window=1), seed=1, batch_size=4, workers=0)
    next(batches)
    eventually(lambda: len(server.tars()) == 8)  # in a step that takes long
    assert begun == order
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
    first, second = open_remote(server, cache, size), open_remote(server, cache, size, timeout=0.5, patience=2.0)
    with first.cache, second.cache:
        first.cache.hold([0, 1])
        with pytest.raises(FetchError, match="is full of shards that other runs use"):
            second.cache.hold([2])
        first.cache.release([0])
        second.cache.hold([4])


def test_ranks_in_step_get_on_with_the_room_of_a_step(served, server, tmp_path):
    """Four ranks take turns as if they waited for each other after each step; the cache holds little more than one."""
    cache, world = tmp_path / "cache", 4
    local, probe = open_index(served), open_remote(server, cache)
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
