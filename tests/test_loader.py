"""Reading samples: the right bytes, or a message that says where they are wrong."""

import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import webdataset

from shards_spec.errors import DamagedSampleError, UserError
from shards_spec.sample import FBANK_MEMBER, FRAME_MEMBER
from tests.datasets import make_dataset
from training.stream.index import open_index
from training.stream.loader import Normalise, load
from training.stream.order import Place, SampleStream, epoch_order
from training.stream.reader import SampleReader
from training.stream.shares import rank_shares

SIZES = (5, 4, 3)
START = Place()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "with space", SIZES)


@dataclass
class Copied:
    """A batch that outlives the loader's memory."""

    numbers: torch.Tensor
    keys: list
    seeds: torch.Tensor
    image: torch.Tensor
    fbank: torch.Tensor


def batches(
    index, *, place=START, steps, batch_size, rank=0, world=1, micro_steps=1, workers=0, seed=1, skip_bad=False
):
    topology = {"rank": rank, "world": world, "micro_steps": micro_steps}
    stream = SampleStream(index.counts, seed=seed)
    shares = rank_shares(stream, place, steps=steps, batch_size=batch_size, **topology)
    size = batch_size // topology.get("world", 1) // topology.get("micro_steps", 1)
    skip = {"skip_bad_in": stream if skip_bad else None}
    loaded = load(index, shares, seed=seed, batch_size=size, workers=workers, **skip)
    return [Copied(b.numbers, b.keys, b.seeds, b.image.clone(), b.fbank.clone()) for b in loaded]


def test_every_sample_is_what_plain_webdataset_reads(dataset):
    index = open_index(dataset)
    (batch,) = batches(index, steps=1, batch_size=len(index))
    ours = {key: (batch.image[i, 0].numpy(), batch.fbank[i].numpy()) for i, key in enumerate(batch.keys)}
    urls = sorted(str(path) for path in dataset.glob("*.tar"))
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert sorted(sample["__key__"].rsplit("/", 1)[-1] for sample in theirs) == sorted(ours)
    for sample in theirs:
        image, fbank = ours[sample["__key__"].rsplit("/", 1)[-1]]
        assert np.array_equal(image, sample["jpg"])
        assert np.array_equal(fbank, sample["fbank.npy"]) and fbank.dtype == np.float16


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("world", "micro_steps"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_batches_follow_the_order_for_every_topology(dataset, workers, world, micro_steps):
    index = open_index(dataset)
    ranks = [
        batches(index, steps=6, batch_size=4, rank=rank, world=world, micro_steps=micro_steps, workers=workers)
        for rank in range(world)
    ]
    pieces = [
        ranks[rank][step * micro_steps + piece].numbers
        for step in range(6)
        for rank in range(world)
        for piece in range(micro_steps)
    ]
    expected = np.concatenate([epoch_order(1, 0, 12), epoch_order(1, 1, 12)])
    assert torch.cat(pieces).tolist() == expected.tolist()


def test_a_batch_may_span_epochs(dataset):
    index = open_index(dataset)
    first, second = batches(index, place=Place(cursor=10), steps=2, batch_size=5)
    assert first.numbers.tolist() == [*epoch_order(1, 0, 12)[10:], *epoch_order(1, 1, 12)[:3]]
    assert second.numbers.tolist() == epoch_order(1, 1, 12)[3:8].tolist()


def test_seeds_are_the_samples_own(dataset):
    index = open_index(dataset)
    whole = batches(index, steps=1, batch_size=12)[0]
    halves = batches(index, steps=2, batch_size=6, workers=2)
    assert whole.seeds.tolist() == [seed for half in halves for seed in half.seeds.tolist()]
    assert len(set(whole.seeds.tolist())) == 12


def test_normalise_by_hand():
    image = torch.tensor([[[[255, 0, 128]]]], dtype=torch.uint8)
    fbank = torch.tensor([[[-4.0, 0.0, 2.0]]], dtype=torch.float16)
    pixels, log_mel = Normalise(-4.0, 2.0)(image, fbank)
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    assert pixels.shape == (1, 3, 1, 1)
    assert torch.allclose(pixels.flatten(), torch.tensor(expected), atol=1e-6)
    assert log_mel.flatten().tolist() == [0.0, 2.0, 3.0]


def read(index, number):
    image, fbank = np.empty((224, 224, 3), np.uint8), np.empty((1024, 128), np.float16)
    SampleReader(index.tars).read_into(index.place(number), image[None], fbank)
    return image, fbank


def damage(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("member", [FRAME_MEMBER, FBANK_MEMBER])
def test_a_flipped_byte_is_named(tmp_path, member):
    index = open_index(make_dataset(tmp_path / "data", SIZES))
    place = index.place(6)
    (payload,) = (payload for payload in (*place.frames, place.fbank) if payload.member == member)
    tar = index.tars[place.shard]
    byte = tar.read_bytes()[payload.offset + 300]
    damage(tar, payload.offset + 300, bytes([byte ^ 1]))
    with pytest.raises(
        DamagedSampleError, match=rf"{tar}: sample {index.key(6)} at byte {index.place(6).offset}.*crc32"
    ):
        batches(index, steps=1, batch_size=12)
    read(index, 5)  # its neighbours are whole


def test_a_shard_cut_under_a_running_job_is_named(tmp_path):
    index = open_index(make_dataset(tmp_path / "data", SIZES))
    os.truncate(index.tars[index.place(11).shard], index.place(11).offset + 5000)
    with pytest.raises(DamagedSampleError, match=f"sample {index.key(11)} at byte .* is cut"):
        read(index, 11)


def test_a_shard_that_vanished_under_a_running_job_is_named(tmp_path):
    index = open_index(make_dataset(tmp_path / "data", SIZES))
    index.tars[0].unlink()
    with pytest.raises(DamagedSampleError, match=r"shard-000000\.tar: sample .* the shard is gone"):
        read(index, 0)


def test_a_dataset_that_cannot_be_used_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_index(tmp_path / "absent")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(UserError, match="is no dataset"):
        open_index(tmp_path / "foreign")

    unfinished = make_dataset(tmp_path / "unfinished", SIZES)
    (unfinished / "dataset.json").unlink()
    (unfinished / "plan.parquet").touch()
    with pytest.raises(UserError, match="is unfinished"):
        open_index(unfinished)

    cut = make_dataset(tmp_path / "cut", SIZES)
    os.truncate(cut / "shard-000001.tar", 10_000)
    with pytest.raises(UserError, match=r"shard-000001\.tar has 10000 bytes, dataset\.json lists"):
        open_index(cut)

    gone = make_dataset(tmp_path / "gone", SIZES)
    (gone / "shard-000002.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-000002\.parquet is missing"):
        open_index(gone)

    empty = make_dataset(tmp_path / "empty", (0, 0))
    with pytest.raises(UserError, match="holds no sample"):
        open_index(empty)
