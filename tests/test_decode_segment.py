"""pipeline.decode: where the segment lies in a file, and its sound."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio

from pipeline.audio import resample
from shards_spec.sample import SAMPLE_RATE
from tests.clips import FPS, decode, make_clip, number_of, pitch, pitch_at, reason


@pytest.fixture(scope="module")
def whole_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    webm = {"video_codec": "vp9", "audio_codec": "opus"}
    return {
        "mp4": make_clip(folder / "a.mp4", 30, keyframe_seconds=4),
        "webm": make_clip(folder / "a.webm", 30, keyframe_seconds=4, **webm),
        "live": make_clip(folder / "live.webm", 30, keyframe_seconds=4, duration_header=False, **webm),
        "short": make_clip(folder / "short.mp4", 4.1),
    }


@pytest.mark.parametrize(("kind", "decoder"), [("mp4", "pyav"), ("webm", "pyav"), ("live", "pyav"), ("mp4", "decord")])
@pytest.mark.parametrize("start", [2.0, 12.5, 20.0])
def test_segment_is_cut_out_of_a_whole_video(
    whole_videos: dict[str, Path], kind: str, decoder: str, start: float
) -> None:
    clip = decode(whole_videos[kind], decoder, start=start, end=start + 10)
    assert clip.file_start == start
    assert number_of(clip.frame) == round((start + 5) * FPS)
    assert clip.frame_time == pytest.approx(start + 5, abs=1e-3)
    assert len(clip.waveform) == 10 * SAMPLE_RATE
    for second in range(int(np.ceil(start)), int(start) + 9):
        assert pitch_at(clip.waveform, second - start + 0.2) == pytest.approx(pitch(second), abs=3)


@pytest.mark.parametrize(("kind", "tolerance"), [("mp4", 0.0), ("webm", 1e-3)])
def test_a_late_segment_sounds_as_if_all_before_had_been_decoded(
    whole_videos: dict[str, Path], kind: str, tolerance: float
) -> None:
    late = decode(whole_videos[kind], start=17.0, end=27.0).waveform[1000:-1000]
    early = decode(whole_videos[kind], start=0.0, end=30.0).waveform
    # WebM states times to 1 ms, so its sound may stand as much beside where it would have come to.
    shift = round(tolerance * SAMPLE_RATE)
    first = 17 * SAMPLE_RATE + 1000 - shift
    differences = [np.abs(late - early[lag : lag + len(late)]).max() for lag in range(first, first + 2 * shift + 1)]
    assert min(differences) < 1e-3


@pytest.mark.parametrize(
    ("start", "end", "named_start", "file_start"),
    [
        (100.0, 110.0, 100.0, 0.0),  # a clip that says so, longer than its segment
        (105.0, 115.0, 100.0, 5.0),  # a clip of something longer
        (90.0, 100.0, 100.0, 0.0),  # a name that contradicts: from the file's start on
        (100.0, 110.0, None, 0.0),  # 30 s do not reach to 110 s: a clip
        (19.5, 30.5, None, 19.5),  # ends half a second early
        (0.0, 29.0, None, 0.0),  # not clearly longer
        (None, 6.0, None, 0.0),
        (None, None, None, 0.0),
        (20.0, None, None, 20.0),
    ],
)
def test_where_the_segment_lies(
    whole_videos: dict[str, Path],
    start: float | None,
    end: float | None,
    named_start: float | None,
    file_start: float,
) -> None:
    clip = decode(whole_videos["mp4"], start=start, end=end, named_start=named_start)
    length = (end if end is not None else (start or 0) + 10) - (start or 0)
    assert clip.file_start == file_start
    assert number_of(clip.frame) == int((file_start + min(length, 30 - file_start) / 2) * FPS + 1e-6)
    assert len(clip.waveform) == pytest.approx(min(length, 30 - file_start) * SAMPLE_RATE, abs=1)


def test_a_short_clip_gives_the_middle_of_what_exists(whole_videos: dict[str, Path]) -> None:
    clip = decode(whole_videos["short"], start=30.0, end=40.0)
    assert number_of(clip.frame) == 20
    assert len(clip.waveform) == pytest.approx(4.1 * SAMPLE_RATE, abs=1)


def test_a_segment_beyond_the_file(whole_videos: dict[str, Path]) -> None:
    assert reason(whole_videos["short"], start=30.0, end=40.0, named_start=20.0) == "too_short"
    assert reason(whole_videos["short"], start=30.0, end=30.0) == "bad_segment"


# Sound.


def test_sound_is_the_channel_mean_resampled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for rate, channels in ((44_100, 2), (48_000, 6), (22_050, 1)):
        waveform = (rng.integers(-8000, 8000, (channels, 2 * rate)) / 32768).astype(np.float32)
        path = make_clip(tmp_path / "a.mkv", 2, waveform=waveform, sample_rate=rate, audio_codec="flac")
        mean = torch.from_numpy(waveform.mean(0))
        expected = torchaudio.functional.resample(mean, rate, SAMPLE_RATE)
        np.testing.assert_allclose(decode(path).waveform, expected, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
def test_resample_equals_torchaudio(rate: int) -> None:
    for samples in (1, 400, rate + 1, 10 * rate - 1):
        waveform = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
        expected = torchaudio.functional.resample(torch.from_numpy(waveform), rate, SAMPLE_RATE).numpy()
        resampled = resample(waveform, rate)
        assert resampled.shape == expected.shape
        np.testing.assert_allclose(resampled, expected, atol=2e-6, rtol=0)


def test_unusual_rates_need_no_filter_of_gigabytes() -> None:
    assert len(resample(np.ones(441_010, np.float32), 44_101)) == 160_000


def test_samples_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    waveform = np.zeros((1, 2 * SAMPLE_RATE), np.float32)
    waveform[0, SAMPLE_RATE] = np.nan
    path = make_clip(tmp_path / "a.mov", 2, waveform=waveform, audio_codec="pcm_f32le")
    assert reason(path) == "decode_error"
