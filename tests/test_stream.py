"""The stream as a whole: every sample exactly once an epoch, on any topology, in blocks, mixed, or with damage."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from shards_spec.errors import DamagedSampleError
from tests.datasets import make_dataset
from tests.runs import ROOT
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.order import Place, SampleStream, block_order, epoch_order, sample_seeds
from training.stream.shares import rank_shares

COUNTS = (11, 7, 13, 5, 9, 2, 6)  # 53 samples in 7 shards: nothing divides them


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(make_dataset(tmp_path_factory.mktemp("data") / "shards", COUNTS))


def step_keys(index, stream, place, *, batch_size, world, workers=0, micro_steps=1, skip_bad=False):
    """The keys of one step from `place`, of all ranks in turn."""
    keys = []
    for rank in range(world):
        shares = rank_shares(
            stream, place, steps=1, batch_size=batch_size, rank=rank, world=world, micro_steps=micro_steps
        )
        size = batch_size // world // micro_steps
        skip = stream if skip_bad else None
        for batch in load(index, shares, seed=0, batch_size=size, workers=workers, skip_bad_in=skip):
            keys += batch.keys
    return keys


@pytest.mark.parametrize("window", [None, 3])
def test_one_run_over_changing_topologies(index, window):
    """World sizes 8 -> 3 -> 16 -> 1, other batch sizes and worker counts in each leg, three epochs."""
    legs = [(8, 16, 2, 2), (3, 12, 0, 1), (16, 32, 0, 1), (1, 7, 3, 1)]  # world, batch, workers, steps
    stream = SampleStream(index.counts, seed=3, window=window)
    place, taken = Place(), []
    while place.samples_done(stream.n) < 3 * stream.n:
        for world, batch_size, workers, steps in legs:
            for _ in range(steps):
                taken += step_keys(index, stream, place, batch_size=batch_size, world=world, workers=workers)
                place = place.advance(batch_size, stream.n)
    for epoch in range(3):
        expected = [index.key(number) for number in stream.orders[0].of_epoch(epoch).tolist()]
        assert taken[epoch * stream.n : (epoch + 1) * stream.n] == expected
        assert len(set(expected)) == sum(COUNTS)


@pytest.mark.parametrize("workers", [0, 1, 16])
def test_more_workers_than_work(index, workers):
    stream = SampleStream(index.counts, seed=3)
    assert len(step_keys(index, stream, Place(), batch_size=16, world=16, workers=workers and 2)) == 16
    assert len(step_keys(index, stream, Place(), batch_size=3, world=1, workers=workers)) == 3


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
def test_block_order_stays_in_its_window(window):
    order = block_order(5, 2, COUNTS, window)
    assert sorted(order.tolist()) == list(range(sum(COUNTS)))
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    shards = epoch_shards(order, shard_of)
    filled = 0
    for start in range(0, len(COUNTS), window):
        of_window = shards[start : start + window]
        size = sum(COUNTS[s] for s in of_window)
        assert set(shard_of[order[filled : filled + size]]) == set(of_window)
        filled += size


def epoch_shards(order, shard_of):
    """The shards in the order of the windows that hold them; inside one window by first appearance."""
    return list(dict.fromkeys(shard_of[order].tolist()))


def test_block_orders_differ_by_epoch_and_seed():
    orders = {tuple(block_order(seed, epoch, COUNTS, 2).tolist()) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_order_version_1_is_what_it_was():
    """A change here breaks the resuming of every such run: it needs a new ORDER_VERSION."""
    assert block_order(0, 0, (3, 2, 4, 1), 2).tolist() == [6, 3, 5, 4, 8, 7, 0, 9, 1, 2]
    assert SampleStream([[5], [4]], seed=1, weights=(2, 1)).take(Place(), 9)[0].tolist() == [0, 4, 5, 8, 1, 3, 6, 2, 3]


def test_datasets_without_weights_are_one(tmp_path):
    folders = [make_dataset(tmp_path / name, (4, 3), seed=seed) for seed, name in enumerate("ab")]
    both = open_index(*folders)
    stream = SampleStream(both.counts, seed=0)
    numbers, epochs = stream.take(Place(), 14)
    assert numbers.tolist() == epoch_order(0, 0, 14).tolist() and set(epochs.tolist()) == {0}
    assert both.fingerprint not in {open_index(folder).fingerprint for folder in folders}
    assert both.tars[both.place(7).shard].parent == folders[1]
    assert both.place(7).key == open_index(folders[1]).place(0).key


@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (2, 5)])
def test_weights_are_exact_and_every_dataset_keeps_its_epochs(weights):
    counts = [[5, 6], [7]]
    stream = SampleStream(counts, seed=1, weights=weights)
    size = sum(weights)
    total = 20 * size
    whole, whole_epochs = stream.take(Place(), total)
    for start in range(0, total, size):
        assert np.bincount(whole[start : start + size] >= 11, minlength=2).tolist() == list(weights)
    for first, n, mine in ((0, 11, whole < 11), (11, 7, whole >= 11)):
        numbers, epochs = whole[mine], whole_epochs[mine]
        for epoch in range(int(epochs.max())):  # all complete ones
            assert sorted(numbers[epochs == epoch].tolist()) == list(range(first, first + n))
    place, pieces = Place(), []
    for size in [1, 13, 2, 40] * 10:  # any cuts give the same run
        if sum(map(len, pieces)) + size > total:
            break
        pieces.append(stream.take(place, size)[0])
        place = place.advance(size, stream.n)
    cut = np.concatenate(pieces)
    assert cut.tolist() == whole[: len(cut)].tolist()
    turns = whole >= 11
    assert len({tuple(turns[i : i + sum(weights)].tolist()) for i in range(0, total, sum(weights))}) > 1


def damage_sample(index, number):
    place = index.place(number)
    with index.tars[place.shard].open("r+b") as file:
        file.seek(place.frames[0].offset + 40)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_a_bad_sample_is_replaced_by_the_next_good_one_on_every_topology(tmp_path):
    index = open_index(make_dataset(tmp_path / "data", COUNTS))
    stream = SampleStream(index.counts, seed=3)
    order = stream.orders[0].of_epoch(0).tolist()
    for position in (4, 10, 11, 12):  # one alone; three in a row, over the edge of a share
        damage_sample(index, order[position])
    expected = [index.key(number) for number in order[:24]]
    expected[4] = expected[5]
    expected[10] = expected[11] = expected[12] = expected[13]
    for world, workers, micro_steps in [(1, 0, 1), (1, 2, 1), (2, 0, 1), (4, 2, 1), (3, 0, 2), (8, 0, 1)]:
        keys = step_keys(
            index, stream, Place(), batch_size=24, world=world, workers=workers, micro_steps=micro_steps, skip_bad=True
        )
        assert keys == expected, (world, workers, micro_steps)
    with pytest.raises(DamagedSampleError, match="crc32"):
        step_keys(index, stream, Place(), batch_size=24, world=2)


def test_the_replaced_are_told_and_their_neighbours_are_whole(tmp_path):
    index = open_index(make_dataset(tmp_path / "data", COUNTS))
    stream = SampleStream(index.counts, seed=3)
    first = int(stream.take(Place(), 1)[0][0])
    whole = next(
        iter(load(index, rank_shares(stream, Place(), steps=1, batch_size=8), seed=0, batch_size=8, workers=0))
    )
    images = whole.image.clone()
    damage_sample(index, first)
    shares = rank_shares(stream, Place(), steps=1, batch_size=8)
    (batch,) = load(index, shares, seed=0, batch_size=8, workers=1, skip_bad_in=stream)
    assert len(batch.replaced) == 1 and f"sample {index.key(first)} at byte" in batch.replaced[0]
    assert batch.keys[0] == batch.keys[1] and int(batch.seeds[0]) == int(batch.seeds[1])
    assert np.array_equal(batch.image[1:], images[1:]) and np.array_equal(batch.image[0], images[1])


def test_what_stands_in_from_the_next_epoch_makes_that_epochs_choices(tmp_path):
    """The last sample of an epoch is damaged: the first one of the next stands in, as it will be seen there."""
    index = open_index(make_dataset(tmp_path / "data", (3, 2)))
    stream = SampleStream(index.counts, seed=3)
    last, following = stream.take(Place(cursor=4), 2)[0].tolist()
    damage_sample(index, last)
    shares = rank_shares(stream, Place(cursor=4), steps=1, batch_size=1)
    (batch,) = load(index, shares, seed=0, batch_size=1, workers=0, skip_bad_in=stream)
    assert batch.numbers.tolist() == [following]
    assert batch.seeds.tolist() == sample_seeds(0, np.array([1]), [index.key(following)]).tolist()


def test_a_dataset_without_any_good_sample_ends_the_run(tmp_path):
    index = open_index(make_dataset(tmp_path / "data", (3,)))
    for number in range(3):
        damage_sample(index, number)
    stream = SampleStream(index.counts, seed=0)
    with pytest.raises(DamagedSampleError, match="no sample of the dataset can be read"):
        step_keys(index, stream, Place(), batch_size=2, world=1, skip_bad=True)


def test_a_dataset_that_changes_under_a_running_job_is_noticed(tmp_path):
    index = open_index(make_dataset(tmp_path / "data", (3, 3)))
    index.place(0)  # the second shard's table is not read yet
    other = make_dataset(tmp_path / "other", (3, 3), seed=9)
    (other / "shard-000001.parquet").replace(tmp_path / "data" / "shard-000001.parquet")
    with pytest.raises(DamagedSampleError, match=r"is not the table that dataset\.json lists"):
        index.place(4)


_RESUMES = """
import json, sys, time
from pathlib import Path
import training.train  # imports are not what is timed
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.shares import rank_shares
from training.stream.order import Place, SampleStream
begin = time.perf_counter()
index = open_index(Path(sys.argv[1]))
stream = SampleStream(index.counts, seed=0)
place = Place(cursor=int(sys.argv[2]))
batch = next(load(index, rank_shares(stream, place, steps=9, batch_size=4), seed=0, batch_size=4, workers=2))
print(json.dumps({"keys": batch.keys, "seconds": time.perf_counter() - begin, "tables": sorted(index._rows)}))
"""


@pytest.mark.parametrize("cursor", [0, 26, 52])
def test_resuming_reads_no_skipped_data(index, cursor):
    """Only the tables of the shards that the first batch needs are read before it, wherever the run goes on."""
    command = [sys.executable, "-c", _RESUMES, str(index.folders[0]), str(cursor)]
    result = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    stream = SampleStream(index.counts, seed=0)
    numbers, _ = stream.take(Place(cursor=cursor), 4)
    assert result["keys"] == [index.key(number) for number in numbers.tolist()]
    assert result["tables"] == sorted({index.locate(number)[0] for number in numbers.tolist()})


def test_two_million_samples_take_little_memory():
    counts = [512] * 3907
    stream = SampleStream([counts], seed=0)
    assert stream.n > 2_000_000
    numbers, _ = stream.take(Place(cursor=1_900_000), 512)
    assert stream.orders[0].of_epoch(0).nbytes == 8 * stream.n
    assert Counter(np.bincount(stream.orders[0].of_epoch(0)).tolist()) == {1: stream.n}
    assert len(set(numbers.tolist())) == 512
