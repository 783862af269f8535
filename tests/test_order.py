"""The order of samples: a fixed permutation, the same for every topology."""

import numpy as np
import pytest

from training.stream.order import Place, SampleStream, epoch_order, rank_slice, sample_seeds, splitmix64


def test_splitmix64_gives_the_published_sequence():
    # The reference C implementation (Vigna), state 1234567: the k-th output hashes state + (k-1) * golden gamma.
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + k * golden) % 2**64 for k in range(3)], np.uint64)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_order_version_1_is_what_it_was():
    """A change here breaks the resuming of every run: it needs a new ORDER_VERSION."""
    assert epoch_order(0, 0, 10).tolist() == [0, 9, 1, 6, 3, 5, 4, 2, 8, 7]
    assert sample_seeds(0, np.array([0, 1]), ["a", "b"]).tolist() == [-1103029820981522561, -5642375486985301507]


@pytest.mark.parametrize("n", [1, 2, 3, 64, 65, 1000, 4097])
def test_each_epoch_is_a_permutation_and_no_two_are_alike(n):
    first, second, other_seed = epoch_order(3, 0, n), epoch_order(3, 1, n), epoch_order(4, 0, n)
    for order in (first, second, other_seed):
        assert sorted(order.tolist()) == list(range(n))
    if n > 60:
        assert first.tolist() != second.tolist() != other_seed.tolist() != first.tolist()


def test_order_is_well_mixed():
    """Neighbours in the order are as far apart as random numbers are: n/3 on average."""
    n = 100_000
    order = epoch_order(0, 0, n)
    distance = np.abs(np.diff(order)).mean() / n
    assert abs(distance - 1 / 3) < 0.005  # standard error 0.0008
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.015  # standard error 0.003


@pytest.mark.parametrize("batch_sizes", [[7], [64], [1, 30, 5], [250]])
def test_first_and_rest_are_all_across_epochs(batch_sizes):
    n, total = 101, 404
    stream = SampleStream([[n]], seed=5)
    place, taken = Place(), []
    while place.samples_done(n) < total:
        size = min(batch_sizes[len(taken) % len(batch_sizes)], total - place.samples_done(n))
        numbers, epochs = stream.take(place, size)
        taken.append(np.stack([epochs, numbers]))
        place = place.advance(size, n)
    stream = np.concatenate(taken, axis=1)
    for epoch in range(4):
        assert stream[1, stream[0] == epoch].tolist() == epoch_order(5, epoch, n).tolist()
    assert place == Place(epoch=4, cursor=0)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_together_take_the_step(world):
    numbers, _ = SampleStream([[100]], seed=0).take(Place(epoch=1, cursor=90), 24)
    shares = [numbers[rank_slice(24, rank, world)] for rank in range(world)]
    assert np.concatenate(shares).tolist() == numbers.tolist()
    assert {len(share) for share in shares} == {24 // world}


def test_sample_seeds_depend_on_seed_epoch_and_key_alone():
    epochs = np.array([0, 0, 1, 1])
    keys = ["a", "b", "a", "b"]
    seeds = sample_seeds(7, epochs, keys)
    assert len(set(seeds.tolist())) == 4
    assert sample_seeds(7, epochs[::-1].copy(), keys[::-1]).tolist() == seeds[::-1].tolist()
    assert not set(sample_seeds(8, epochs, keys).tolist()) & set(seeds.tolist())
