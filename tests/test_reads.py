"""What a method reads of a sample: frames and sound chosen by its seed, the same on any topology, and nothing else."""

import os

import numpy as np
import pytest
import torch

from shards_spec.errors import DamagedSampleError, UserError
from tests.datasets import make_dataset
from training.methods.interface import Reads
from training.methods.shared.masking import noise
from training.stream.choice import MIDDLE, choose, uniform
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.order import Place, SampleStream, sample_seeds
from training.stream.shares import rank_shares

SIZES = (5, 4)
RANDOM = Reads(frames=1, choose="random")
WINDOW = Reads(frames=3, choose="window")
WITH_SOUND = Reads(frames=1, choose="random", waveform_seconds=3.0)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Ten frames and ten seconds of sound a sample."""
    return make_dataset(tmp_path_factory.mktemp("data") / "shards", SIZES, frames=10, seconds=10.0)


def read(folder, reads, *, steps=3, batch_size=3, workers=0, place=None, **options):
    """Everything that is read, by (epoch, key)."""
    index = open_index(folder, reads=reads)
    shares = rank_shares(SampleStream(index.counts, seed=0), place or Place(), steps=steps, batch_size=batch_size)
    found = {}
    for batch in load(index, shares, seed=0, batch_size=batch_size, workers=workers, **options):
        for i, key in enumerate(batch.keys):
            sound = None if batch.sound is None else batch.sound[i].clone()
            found.setdefault(key, []).append((batch.image[i].clone(), batch.fbank[i].clone(), sound))
    return found


def brightness(image):
    """Which stored frames these are: frame i has the brightness 10 i."""
    return (image.float().mean(dim=(1, 2, 3)) / 10).round().int().tolist()


def test_a_random_frame_is_one_of_all_and_the_seed_s_choice(stored):
    index = open_index(stored, reads=RANDOM)
    seen = set()
    for epoch in range(6):
        numbers = np.arange(len(index))
        keys = index.keys(numbers)
        seeds = sample_seeds(0, np.full(len(index), epoch), keys)
        for place in index.places(numbers, seeds):
            (frame,) = place.frames
            seen.add(frame.member)
    assert seen == {f"frame{i:02d}.jpg" for i in range(10)}


def test_what_is_read_does_not_depend_on_batches_or_workers(stored):
    for reads in (RANDOM, WINDOW, WITH_SOUND):
        first = read(stored, reads)
        other = read(stored, reads, steps=9, batch_size=1, workers=2)
        assert first.keys() == other.keys() and len(first) == 9
        for key, ((image, fbank, sound),) in first.items():
            ((image_2, fbank_2, sound_2),) = other[key]
            assert torch.equal(image, image_2) and torch.equal(fbank, fbank_2)
            assert sound is None or torch.equal(sound, sound_2)


def test_another_epoch_chooses_anew_and_a_resumed_run_the_same(stored):
    whole = read(stored, WITH_SOUND, steps=6)  # two epochs
    later = read(stored, WITH_SOUND, steps=3, place=Place(epoch=1, cursor=0))
    assert any(not torch.equal(epochs[0][2], epochs[1][2]) for epochs in whole.values())
    assert all(torch.equal(whole[key][1][2], epochs[0][2]) for key, epochs in later.items())
    assert all(torch.equal(whole[key][1][0], epochs[0][0]) for key, epochs in later.items())


def test_a_window_is_so_many_frames_in_a_row(stored):
    starts = set()
    for key, ((image, _, _),) in read(stored, WINDOW).items():
        numbers = brightness(image)
        assert numbers == list(range(numbers[0], numbers[0] + 3)), key
        starts.add(numbers[0])
    assert len(starts) > 3


def test_window_starts_are_all_there_is():
    choice = choose(
        Reads(frames=8, choose="window"),
        np.arange(4000),
        np.full(4000, 20),
        np.full(4000, 998),
    )
    assert set(choice.frames[:, 0].tolist()) == set(range(13))  # 0 to 12
    counts = np.bincount(choice.frames[:, 0])
    assert counts.min() > 230 and counts.max() < 390  # 308 expected


def test_the_sound_is_so_many_seconds_of_the_clip_and_its_frame_lies_in_it(stored):
    for (image, _, sound), *_ in read(stored, WITH_SOUND).values():
        assert sound.shape == (48_000,)
        first = int(sound[0]) * 8 / 16_000  # seconds; samples count up by one in every 8
        assert int(sound[-1]) - int(sound[0]) in (5999, 6000)
        (frame,) = brightness(image)
        assert first - 0.01 <= frame + 0.5 <= first + 3.01


def test_with_the_middle_frame_comes_the_middle_of_the_sound(stored):
    for ((_, _, sound),) in read(stored, Reads(waveform_seconds=3.0)).values():
        assert int(sound[0]) == 56_000 // 8


def test_a_clip_shorter_than_the_sound_ends_in_zeros(tmp_path):
    folder = make_dataset(tmp_path / "data", (2,), frames=4, seconds=1.0)
    index = open_index(folder, reads=WITH_SOUND)
    shares = rank_shares(SampleStream(index.counts, seed=0), Place(), steps=1, batch_size=2)
    (batch,) = load(index, shares, seed=0, batch_size=2, workers=0)
    assert batch.heard.tolist() == [16_000, 16_000]
    assert (batch.sound[:, 16_000:] == 0).all() and int(batch.sound[0, 15_999]) == 1999


def test_nothing_else_is_read_and_what_lies_together_in_one_call(stored, monkeypatch):
    calls = []
    preadv = os.preadv

    def spy(descriptor, buffers, offset):
        calls.append((offset, sum(map(len, buffers))))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", spy)
    index = open_index(stored)
    place = index.place(0)
    read(stored, Reads(), steps=9, batch_size=1)
    assert len(calls) == 9  # the frame and the fbank lie together
    assert (place.frames[0].offset, place.fbank.offset + place.fbank.length - place.frames[0].offset) in calls
    calls.clear()
    index = open_index(stored, reads=WINDOW)
    numbers = np.arange(len(index))
    places = index.places(numbers, sample_seeds(0, np.zeros_like(numbers), index.keys(numbers)))
    far = next(place for place in places if place.frames[0].member >= "frame04.jpg")
    assert len(read(stored, WINDOW, steps=9, batch_size=1)) == 9
    first, last = far.frames[0], far.frames[-1]
    assert (first.offset, last.offset + last.length - first.offset) in calls
    assert (far.fbank.offset, far.fbank.length) in calls


@pytest.mark.parametrize("member", ["frame", "flac"])
def test_damage_is_named(tmp_path, member):
    folder = make_dataset(tmp_path / "data", (1,), frames=2, seconds=4.0)
    index = open_index(folder, reads=WITH_SOUND)
    key = index.keys(np.array([0]))
    place = index.places(np.array([0]), sample_seeds(0, np.zeros(1, np.int64), key))[0]
    payload = place.sound if member == "flac" else place.frames[0]
    tar = index.tars[0]
    data = bytearray(tar.read_bytes())
    data[payload.offset + 60] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DamagedSampleError, match=rf"sample {key[0]} at byte \d+: the crc32 of its {payload.member}"):
        read(folder, WITH_SOUND, steps=1, batch_size=1)


def test_a_stand_in_gives_what_its_own_seed_chooses(tmp_path):
    """Another sample takes a damaged one's place: with the frame that it gives at its own place in the order."""
    folder = make_dataset(tmp_path / "data", (6,), frames=10)
    whole = read(folder, RANDOM, steps=1, batch_size=6)
    index = open_index(folder, reads=RANDOM)
    numbers, epochs = SampleStream(index.counts, seed=0).take(Place(), 6)
    place = index.places(numbers, sample_seeds(0, epochs, index.keys(numbers)))[2]
    with index.tars[0].open("r+b") as file:
        file.seek(place.frames[0].offset + 50)
        file.write(b"damaged")
    stream = SampleStream(index.counts, seed=0)
    found = read(folder, RANDOM, steps=1, batch_size=6, skip_bad_in=stream)
    stood_in = index.key(int(numbers[3]))
    assert place.key not in found and len(found[stood_in]) == 2
    assert all(torch.equal(image, whole[stood_in][0][0]) for image, _, _ in found[stood_in])


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        (RANDOM, "the middle frame alone; make it with make-shards --frames 10"),
        (Reads(frames=8, choose="window"), "the middle frame alone; make it with make-shards --frames 20"),
        (Reads(waveform_seconds=3), "3 s of sound, it holds no waveform; make it with make-shards --keep-audio"),
        (WITH_SOUND, "make it with make-shards --frames 10 --keep-audio"),
    ],
)
def test_a_dataset_that_lacks_what_is_read_is_refused(tmp_path, reads, message):
    folder = make_dataset(tmp_path / "data", (2,))
    with pytest.raises(UserError, match=message):
        open_index(folder, reads=reads)


def test_too_few_frames_are_refused(tmp_path):
    folder = make_dataset(tmp_path / "data", (2,), frames=4)
    with pytest.raises(UserError, match="it holds 4 evenly spaced frames"):
        open_index(folder, reads=Reads(frames=8, choose="window"))


@pytest.mark.parametrize("values", [{"frames": -1}, {"frames": 2}, {"waveform_seconds": 11.0}])
def test_what_cannot_be_read_is_refused(values):
    with pytest.raises(ValueError, match=r"reads\."):
        Reads(**values)


def test_choices_are_those_of_the_masks_noise():
    seeds = np.array([5, -7, 1 << 62], np.int64)
    expected = (noise(torch.from_numpy(seeds), 200, 6) & (2**53 - 1)).double() * 2.0**-53
    assert np.array_equal(uniform(seeds, 200, 6), expected.numpy())


def test_the_middle_needs_no_draw():
    choice = choose(Reads(), np.arange(3), np.zeros(3, np.int64), np.full(3, 998))
    assert (choice.frames == MIDDLE).all() and (choice.sound == 0.5).all()
