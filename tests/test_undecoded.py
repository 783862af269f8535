"""Frames of older datasets that were not decoded from a key frame are listed by verify_shards and inspect_shards."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.frame import encode_jpeg
from pipeline.make_shards import main as make_shards
from tests.clips import FPS, RATE, tones
from tools.inspect_shards import main as inspect_shards
from tools.media import encode_clip
from tools.verify.undecoded import UNDECODED, looks_undecoded
from tools.verify_shards import main as verify_shards


def noise() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)


@pytest.mark.parametrize("colour", [(129, 129, 129), (0, 135, 0), (0, 77, 0), (0, 255, 0)])
@pytest.mark.parametrize(("rows", "is_rubbish"), [(224, True), (64, True), (24, False)])
def test_what_decoders_put_for_nothing(colour: tuple[int, int, int], rows: int, is_rubbish: bool) -> None:
    image = noise()
    image[:rows] = colour
    assert looks_undecoded(encode_jpeg(image)) == is_rubbish


def test_pictures_that_are_none_of_it() -> None:
    ramp = np.repeat(np.linspace(0, 255, 224).astype(np.uint8)[None, :, None], 224, axis=0).repeat(3, axis=2)
    for image in (noise(), ramp, np.zeros_like(ramp), np.full_like(ramp, 255), np.full_like(ramp, (20, 130, 90))):
        assert not looks_undecoded(encode_jpeg(image))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samples, of which one is of a grey clip: as good as a grey frame that an older version stored."""
    folder = tmp_path_factory.mktemp("undecoded")
    (folder / "raw").mkdir()
    for name, image in (("grey", np.full((96, 160, 3), 129, np.uint8)), ("noise", noise()[:96, :160])):
        encode_clip(folder / "raw" / f"{name}.mp4", [image] * 10, tones(1), fps=FPS, sample_rate=RATE)
    make_shards([str(folder / "raw"), "--out", str(folder / "set"), "--frames", "2", "--workers", "1"])
    return folder / "set"


def test_verify_shards_lists_them(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_shards([str(dataset), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert said.count(UNDECODED) == 3  # the middle frame, and two more
    assert "shard-000000.tar, sample grey, byte" in said and "sample noise" not in said
    assert "3 frames to look at: see above" in said and ": whole: 2 samples" in said


def test_inspect_shards_lists_them(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_shards([str(dataset), "--out", str(tmp_path / "page.html")])
    assert f"1 with a frame that {UNDECODED}:\n  grey\n" in capsys.readouterr().out
