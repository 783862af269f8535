"""Remote datasets in tests: opened with little patience, read, compared."""

import time

import torch

from training.stream import fetch
from training.stream.cache import ShardCache
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.order import Place, SampleStream
from training.stream.shares import rank_shares


def eventually(condition, seconds=60.0):
    """Waits until a condition holds; under load that may take its time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds:g} s"
        time.sleep(0.01)


def open_remote(server, cache, size="1GB", *, timeout=20.0, patience=40.0):
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
