"""Masks: their counts, their polarity, and that a sample's mask is its seed's alone."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.models import needs_compiler
from training.methods.shared.masking import GOLDEN, AudioStrategy, Mask, mask_audio, mask_image, noise, splitmix64
from training.methods.shared.patches import FBANK_GRID, FBANK_TOKENS, IMAGE_TOKENS
from training.methods.shared.streams import AUDIO_MASK, IMAGE_ATTENTIVE, IMAGE_MASK

STRATEGIES: tuple[AudioStrategy, ...] = get_args(AudioStrategy)
SEEDS = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 1234567])
BITS = 2**64


def splitmix64_of_python(state: int) -> int:
    """Sebastiano Vigna's splitmix64.c with Python's own integers."""
    z = (state + 0x9E3779B97F4A7C15) % BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % BITS
    return z ^ (z >> 31)


def test_splitmix64_known_answers() -> None:
    """The published first outputs for seed 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    outputs = splitmix64(1234567 + torch.arange(5) * GOLDEN).tolist()
    assert [value % BITS for value in outputs] == known
    assert [splitmix64_of_python(1234567 + n * GOLDEN) for n in range(5)] == known


def test_noise_hashes_seed_then_stream_then_index() -> None:
    values = noise(SEEDS, AUDIO_MASK, 100).tolist()
    for seed, row in zip(SEEDS.tolist(), values, strict=True):
        key = splitmix64_of_python(splitmix64_of_python(seed) ^ AUDIO_MASK)
        assert [value % BITS for value in row] == [splitmix64_of_python(key ^ n) for n in range(100)]


def test_streams_and_seeds_differ() -> None:
    seeds = torch.arange(50)
    streams = torch.stack([noise(seeds, stream, 64) for stream in (IMAGE_MASK, AUDIO_MASK, IMAGE_ATTENTIVE)])
    assert streams.unique().numel() == streams.numel()


def test_noise_is_uniform() -> None:
    share = noise(torch.arange(2000), IMAGE_MASK, 100).double() * 2.0**-64 + 0.5  # 200,000 numbers in [0, 1)
    assert share.mean().item() == pytest.approx(0.5, abs=0.005)
    counts = torch.histc(share.float(), bins=10, min=0, max=1)
    assert counts.min() > 19_300 and counts.max() < 20_700  # 5 standard deviations of a bin


@needs_compiler
def test_compiled_noise_is_the_same() -> None:
    """The hash overflows at every step, which a compiler's address arithmetic must never do."""
    compiled = torch.compile(noise, fullgraph=True)
    assert torch.equal(compiled(SEEDS, IMAGE_MASK, IMAGE_TOKENS), noise(SEEDS, IMAGE_MASK, IMAGE_TOKENS))


def masks(seeds: Tensor, ratio: float = 0.75) -> dict[str, Mask]:
    of_audio = {name: mask_audio(seeds, FBANK_GRID, ratio, name) for name in STRATEGIES}
    return {"image": mask_image(seeds, IMAGE_TOKENS, ratio), **of_audio}


@pytest.mark.parametrize(
    ("ratio", "of_image", "of_audio"), [(0.75, 49, 128), (0.5, 98, 256), (0.9, 20, 51), (0.6, 78, 205), (0.0, 196, 512)]
)
def test_counts_and_polarity(ratio: float, of_image: int, of_audio: int) -> None:
    for name, mask in masks(SEEDS, ratio).items():
        visible = of_image if name == "image" else of_audio
        assert mask.visible.shape == (len(SEEDS), visible)
        assert ((~mask.is_masked).sum(dim=1) == visible).all()
        for row, is_masked in zip(mask.visible.tolist(), mask.is_masked, strict=True):
            assert row == sorted(set(row))
            assert row == (~is_masked).nonzero().flatten().tolist()  # True = hidden


def test_a_mask_does_not_depend_on_its_batch() -> None:
    whole = masks(SEEDS)
    for i in range(len(SEEDS)):
        for name, mask in masks(SEEDS[i : i + 1]).items():
            assert torch.equal(mask.visible[0], whole[name].visible[i])
    for name, mask in masks(SEEDS.flip(0)).items():
        assert torch.equal(mask.visible.flip(0), whole[name].visible)


def test_masks_differ_from_sample_to_sample_and_leave_the_torch_generator_alone() -> None:
    before = torch.get_rng_state()
    for mask in masks(torch.arange(20)).values():
        distinct = len({tuple(row) for row in mask.visible.tolist()})
        assert distinct > 10  # 8 choose 2 = 28 frequency masks exist
    assert torch.equal(before, torch.get_rng_state())


def test_every_token_is_as_often_visible() -> None:
    seeds = torch.arange(4000)
    for name, mask in masks(seeds).items():
        share = (~mask.is_masked).float().mean(dim=0)
        assert share.min() > 0.21 and share.max() < 0.29, name  # 0.25, 5.8 standard deviations


def test_random_audio_masks_take_one_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an image's. A compiler for GPUs unrolls a sort of 512: one more takes it many seconds."""
    expected = noise(SEEDS, AUDIO_MASK, FBANK_TOKENS).argsort(dim=1, stable=True)[:, :128].sort(dim=1).values
    real, sorts = Tensor.argsort, list[Tensor]()

    def note(values: Tensor, *args: Any, **rest: Any) -> Tensor:
        sorts.append(values)
        return real(values, *args, **rest)

    monkeypatch.setattr(Tensor, "argsort", note)
    assert torch.equal(mask_audio(SEEDS, FBANK_GRID, 0.75, "random").visible, expected)
    assert len(sorts) == 1


def test_structured_masks_keep_steps_bands_and_rectangles() -> None:
    grids = {name: (~mask.is_masked).view(-1, *FBANK_GRID) for name, mask in masks(SEEDS).items() if name != "image"}
    times = {name: grid.sum(dim=2) for name, grid in grids.items()}  # visible tokens of each time step, of 8
    bands = {name: grid.sum(dim=1) for name, grid in grids.items()}  # visible tokens of each band, of 64
    assert set(times["time"].flatten().tolist()) == {0, 8} and ((times["time"] == 8).sum(dim=1) == 16).all()
    assert set(bands["frequency"].flatten().tolist()) == {0, 64} and ((bands["frequency"] == 64).sum(dim=1) == 2).all()
    assert set(times["time-frequency"].flatten().tolist()) == {0, 4}
    assert set(bands["time-frequency"].flatten().tolist()) == {0, 32}
    assert not set(times["random"].flatten().tolist()) <= {0, 8}


def test_the_rest_of_an_uneven_count_is_random_within_a_step() -> None:
    seeds = torch.arange(200)
    visible = (~mask_audio(seeds, FBANK_GRID, 0.9, "time").is_masked).view(-1, *FBANK_GRID)  # 51 = 6 steps and 3 tokens
    of_steps = visible.sum(dim=2)
    assert ((of_steps == 8).sum(dim=1) == 6).all() and ((of_steps == 3).sum(dim=1) == 1).all()
    partial = visible[of_steps == 3].float().mean(dim=0)  # where in the broken step the three lie
    assert partial.min() > 0.2 and FBANK_TOKENS == 512
