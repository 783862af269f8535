"""Patches, their order and their positions."""

import math

import pytest
import torch

from shards_spec import sample
from training.methods.shared import patches as p


def test_shapes_are_those_of_the_shards() -> None:
    assert p.FBANK_SHAPE == sample.FBANK_SHAPE
    assert p.IMAGE_SHAPE == (sample.FRAME_SIZE, sample.FRAME_SIZE)


def test_round_trips() -> None:
    image, fbank = torch.randn(2, 3, 224, 224), torch.randn(2, 1024, 128)
    assert p.patchify_image(image).shape == (2, 196, 768)
    assert p.patchify_fbank(fbank).shape == (2, 512, 256)
    assert torch.equal(p.unpatchify_image(p.patchify_image(image)), image)
    assert torch.equal(p.unpatchify_fbank(p.patchify_fbank(fbank)), fbank)


@pytest.mark.parametrize(("y", "x", "channel"), [(0, 0, 0), (17, 40, 1), (223, 223, 2)])
def test_image_order_is_maes(y: int, x: int, channel: int) -> None:
    image = torch.zeros(1, 3, 224, 224)
    image[0, channel, y, x] = 1
    token, value = (y // 16) * 14 + x // 16, ((y % 16) * 16 + x % 16) * 3 + channel
    assert p.patchify_image(image)[0].nonzero().tolist() == [[token, value]]


@pytest.mark.parametrize(("time", "mel"), [(0, 0), (16, 0), (0, 16), (500, 77), (1023, 127)])
def test_fbank_order_is_time_major(time: int, mel: int) -> None:
    fbank = torch.zeros(1, 1024, 128)
    fbank[0, time, mel] = 1
    token = (time // 16) * 8 + mel // 16  # t * 8 + f
    assert p.patchify_fbank(fbank)[0].nonzero().tolist() == [[token, (time % 16) * 16 + mel % 16]]


def test_positions_by_hand() -> None:
    """MAE's table: sines and cosines of the column, then of the row."""
    dim, grid = 8, (3, 4)
    positions = p.sincos_positions(dim, grid)
    assert positions.shape == (12, dim)
    for row in range(3):
        for column in range(4):
            expected = [
                trig(place / 10000 ** (i / (dim / 4)))
                for place in (column, row)
                for trig in (math.sin, math.cos)
                for i in range(dim // 4)
            ]
            torch.testing.assert_close(positions[row * 4 + column], torch.tensor(expected))
