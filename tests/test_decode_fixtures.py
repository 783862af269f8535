"""pipeline.decode on files from the wild, where they are present beside the repository."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.clip_error import ClipError
from pipeline.decode import decode_clip
from pipeline.fbank import fbank
from tests.clips import FIXTURES, decode, reason
from tests.test_decode import assert_same, full_decode

pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no files in {FIXTURES}")

CLIPS = sorted((FIXTURES / "clips").glob("*"))
BROKEN = sorted(path for path in (FIXTURES / "broken").glob("*/*") if path.is_file())

# What decord cannot give as PyAV does: it takes another audio track, mixes six channels, seeks by guess.
REFUSED = ("nasa_13013.mp4", "big_buck_bunny_5.1.mp4", "sine_stereo_mp2.mpg")
# Saturated lines of one pixel, where two ways of interpolating chroma show.
PATTERNS = ("mov_text.mp4", "webvtt.mkv")


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.name)
def test_clip_and_its_exact_middle_frame(path: Path) -> None:
    clip = decode(path)
    exact_time, exact = full_decode(path, min(10.0, clip.duration) / 2)
    assert clip.frame_time == pytest.approx(exact_time, abs=1e-6)
    np.testing.assert_array_equal(clip.frame, exact)
    assert fbank(clip.waveform)[1] > 0
    if clip.duration > 10.1:
        assert len(clip.waveform) == 160_000
        assert fbank(clip.waveform)[1] == 998


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.name)
def test_both_decoders_agree(path: Path) -> None:
    if path.name in REFUSED:
        assert reason(path, "decord") == "decode_error"
        return
    assert_same(decode(path), decode(path, "decord"), mean=3.0 if path.name in PATTERNS else 2.0)


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_broken_files_say_why(path: Path) -> None:
    for decoder in ("pyav", "auto", "decord"):
        try:
            decode_clip(
                path,
                start=None,
                end=None,
                named_start=None,
                decoder=decoder,
                frame_fit="resize",  # type: ignore[arg-type]
            )
        except ClipError as error:
            if path.parent.name == "unreadable":
                assert error.reason == ("unreadable" if path.stat().st_size else "empty_file")
            elif path.parent.name in ("no_audio", "no_video"):
                assert error.reason == path.parent.name
        else:
            assert path.parent.name == "damaged"
