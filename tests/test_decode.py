"""pipeline.decode: the right sound and the right frame of every kind of file, the same from both decoders."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline import decode_decord, decode_pyav
from pipeline.clip_error import ClipError
from pipeline.decode import DecodedClip
from pipeline.fbank import fbank
from pipeline.frame import encode_jpeg
from shards_spec.sample import FRAME_SIZE, SAMPLE_RATE
from tests.clips import (
    FPS,
    RATE,
    decode,
    make_clip,
    number_of,
    numbered_frame,
    numbered_frames,
    pitch,
    pitch_at,
    reason,
    tones,
)
from tools.media import encode_clip


def full_decode(path: Path, time: float) -> tuple[float, npt.NDArray[np.uint8]]:
    """The frame on display at `time`, found by decoding everything up to it: its time, its pixels unscaled."""
    with av.open(str(path)) as container:
        video = container.streams.best("video")
        start = (container.start_time or 0) / 1e6
        last = None
        for frame in container.decode(video):
            if last is not None and frame.time - start > time + 1e-4:
                break
            last = frame
        assert last is not None
        return last.time - start, decode_pyav.picture(last, float(video.sample_aspect_ratio or 1), "resize")


def assert_same(one: DecodedClip, other: DecodedClip, *, mean: float) -> None:
    """Equal facts, frame times and sound; pixels within the round-off of two conversions from YUV.

    decord turns the full picture into RGB with its FFmpeg's default conversion, a level darker and with chroma
    repeated, not interpolated; PyAV converts and scales at once, with interpolated chroma. On camera pictures that
    is a mean of one level; on saturated one-pixel lines (test patterns) up to three.
    """
    for field in fields(DecodedClip):
        if field.name not in ("waveform", "frame", "extra_frames", "decoder"):
            assert getattr(one, field.name) == getattr(other, field.name), field.name
    assert one.waveform.shape == other.waveform.shape
    # Two versions of the same floating-point decoders; one step of 16 bits is 3e-5.
    np.testing.assert_allclose(one.waveform, other.waveform, atol=1e-6, rtol=0)
    for a, b in zip([one.frame, *one.extra_frames], [other.frame, *other.extra_frames], strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).mean() < mean


# One frame at 0, the others at 0.02 to 0.18 s from each other.
IRREGULAR = np.concatenate([[0], np.cumsum(np.random.default_rng(0).uniform(0.02, 0.18, 99))])

FORMATS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "open_gop.mp4": {"video_options": {"x264-params": "open-gop=1:mbtree=0"}, "keyframe_seconds": 1.3},
    "intra_refresh.mp4": {"video_options": {"x264-params": "intra-refresh=1:mbtree=0"}, "keyframe_seconds": 3},
    "hevc.mkv": {"video_codec": "hevc", "keyframe_seconds": 1.3},
    "vp9.webm": {"video_codec": "vp9", "audio_codec": "opus"},
    "mpeg4.avi": {"video_codec": "mpeg4", "audio_codec": "mp3", "keyframe_seconds": 1},
    "mpeg4.mov": {"video_codec": "mpeg4", "audio_codec": "pcm_s16le", "keyframe_seconds": 3},
    "late.mp4": {"audio_delay": 1.25},
    "late.mkv": {"audio_delay": 1.25},
    "turned_90.mp4": {"rotation": 90},
    "turned_180.mov": {"rotation": 180},
    "turned_270.mkv": {"rotation": 270},
    "irregular.mp4": {"timestamps": IRREGULAR.tolist()},
    "odd.mkv": {"size": {"width": 161, "height": 91}, "pixel_format": "yuv444p"},
    "ten_bits.mp4": {"pixel_format": "yuv420p10le"},
    "stereo.mkv": {"waveform": tones(10, 44_100, 2), "sample_rate": 44_100, "audio_codec": "flac"},
    "telephone.mov": {"waveform": tones(10, 8_000), "sample_rate": 8_000, "audio_codec": "pcm_u8"},
}
UNREADABLE_FOR_DECORD = {
    "mpeg1.mpg": {"video_codec": "mpeg1video", "audio_codec": "mp2", "fps": 25, "sample_rate": 44_100},
    "mpeg2.ts": {"video_codec": "mpeg2video", "audio_codec": "mp2", "fps": 25, "sample_rate": 44_100},
    "av1.mp4": {"video_codec": "av1"},
    "surround.mkv": {"waveform": tones(10, RATE, 6), "audio_codec": "flac"},
    "no_duration.mkv": {"duration_header": False},
    "no_duration.webm": {"duration_header": False, "video_codec": "vp9", "audio_codec": "opus"},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, options in (FORMATS | UNREADABLE_FOR_DECORD).items():
        options = dict(options)
        if options.get("fps") == 25:  # what MPEG-1 and -2 can say
            options |= {"waveform": tones(10, 44_100)}
        make_clip(folder / name, **options)
    return folder


@pytest.mark.parametrize("name", [*FORMATS, *UNREADABLE_FOR_DECORD])
def test_middle_frame_is_that_of_a_full_decode(clips: Path, name: str) -> None:
    clip = decode(clips / name, frames=3)
    for time, frame in zip([clip.frame_time, *clip.extra_frame_times], [clip.frame, *clip.extra_frames], strict=True):
        exact_time, exact = full_decode(clips / name, time)
        assert time == pytest.approx(exact_time, abs=1e-9)
        np.testing.assert_array_equal(frame, exact)
    middle = min(10.0, clip.duration) / 2
    assert clip.frame_time == pytest.approx(full_decode(clips / name, middle)[0], abs=1e-9)


@pytest.mark.parametrize("name", FORMATS)
def test_both_decoders_agree(clips: Path, name: str) -> None:
    for frame_fit in ("resize", "crop"):
        one, other = (decode(clips / name, d, frames=3, frame_fit=frame_fit) for d in ("pyav", "decord"))
        assert (one.decoder, other.decoder) == ("pyav", "decord")
        assert_same(one, other, mean=3.0)


@pytest.mark.parametrize("name", UNREADABLE_FOR_DECORD)
def test_what_decord_cannot_give_it_refuses(clips: Path, name: str) -> None:
    assert reason(clips / name, "decord") == "decode_error"
    assert decode(clips / name, "auto").decoder == "pyav"


@pytest.mark.parametrize("name", [n for n in FORMATS if not n.startswith(("late", "turned", "irregular"))])
def test_ten_seconds_are_998_rows_of_the_right_sound(clips: Path, name: str) -> None:
    clip = decode(clips / name)
    assert clip.waveform.dtype == np.float32
    assert clip.waveform.shape == (10 * SAMPLE_RATE,)
    assert fbank(clip.waveform)[1] == 998
    for second in range(10):
        assert pitch_at(clip.waveform, second + 0.2) == pytest.approx(pitch(second), abs=3)
    if not name.endswith(".avi"):  # it has no timestamps: the encoder's delay of a frame stays in it
        assert number_of(clip.frame) == 50
    assert clip.frame_time == pytest.approx(5.0, abs=1e-3)
    assert (clip.fps, clip.file_start) == (FPS, 0.0)


def test_facts_of_the_source(clips: Path) -> None:
    clip = decode(clips / "stereo.mkv")
    assert (clip.width, clip.height, clip.sample_rate, clip.channels) == (160, 90, 44_100, 2)
    assert clip.duration == pytest.approx(10, abs=0.05)
    assert decode(clips / "surround.mkv").channels == 6
    turned = decode(clips / "turned_90.mp4")
    assert (turned.width, turned.height) == (90, 160)


@pytest.mark.parametrize("name", ["no_duration.mkv", "no_duration.webm"])
def test_duration_is_measured_where_the_header_is_silent(clips: Path, name: str) -> None:
    clip = decode(clips / name)
    assert clip.duration == pytest.approx(10, abs=0.05)
    assert number_of(clip.frame) == 50


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("name", ["late.mp4", "late.mkv"])
def test_late_sound_stands_at_its_time(clips: Path, name: str, decoder: str) -> None:
    clip = decode(clips / name, decoder)
    assert len(clip.waveform) == 10 * SAMPLE_RATE
    assert np.abs(clip.waveform[: round(1.15 * RATE)]).max() < 1e-3
    for second in range(8):
        assert pitch_at(clip.waveform, second + 1.45) == pytest.approx(pitch(second), abs=3)


@pytest.mark.parametrize(("name", "turns"), [("turned_90.mp4", 1), ("turned_180.mov", 2), ("turned_270.mkv", 3)])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_rotation(clips: Path, name: str, turns: int, decoder: str) -> None:
    upright = decode(clips / "h264.mp4").frame
    turned = decode(clips / name, decoder).frame
    assert np.abs(turned.astype(int) - np.rot90(upright, turns)).mean() < 3


def test_irregular_frames_are_chosen_by_time(clips: Path) -> None:
    clip = decode(clips / "irregular.mp4", frames=4)
    middle = min(10.0, clip.duration) / 2
    for target, time, frame in [
        (middle, clip.frame_time, clip.frame),
        *zip([middle * x for x in (0.25, 0.75, 1.25, 1.75)], clip.extra_frame_times, clip.extra_frames, strict=True),
    ]:
        index = int(np.searchsorted(IRREGULAR, target + 1e-4)) - 1
        assert time == pytest.approx(IRREGULAR[index], abs=1e-4)
        assert number_of(frame) == index


@pytest.mark.parametrize("keyframe_seconds", [0.1, 0.7, 5, 30])
def test_keyframes_do_not_matter(tmp_path: Path, keyframe_seconds: float) -> None:
    path = make_clip(tmp_path / "a.mp4", 12, keyframe_seconds=keyframe_seconds)
    clip = decode(path, frames=5)
    assert [number_of(f) for f in clip.extra_frames] == [10, 30, 50, 70, 90]
    assert clip.extra_frame_times == pytest.approx([1, 3, 5, 7, 9])


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("late", [0, 3])
def test_frames_at_the_starts_of_equal_parts(tmp_path: Path, decoder: str, late: int) -> None:
    """CAV-MAE's ten frames, at i / 10; where a file's pictures begin late, the first one stands for the start."""
    path = make_clip(tmp_path / "a.mp4", 10, timestamps=[(i + late) / FPS for i in range(10 * FPS)])
    clip = decode(path, decoder, frames=10, frame_times="starts")
    assert [number_of(f) for f in clip.extra_frames] == [0, *range(FPS - late, 10 * FPS - late, FPS)]
    assert decode(path, decoder).frame_time == clip.frame_time  # the middle one stays where it is


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [("bt709", (213, 73, 27)), ("smpte170m", (200, 61, 30)), ("bt2020nc", (205, 64, 26)), ("YCgCo", (200, 61, 30))],
)
def test_colours_follow_the_matrix_that_the_file_states(
    tmp_path: Path, matrix: str, expected: tuple[int, int, int]
) -> None:
    # The encoder is given BT.601 values whatever it writes into the header: other matrices read them otherwise.
    # YCgCo, which swscale refuses, is taken for BT.601.
    plain = np.full((90, 160, 3), (200, 60, 30), np.uint8)
    options = {"x264-params": f"mbtree=0:colormatrix={matrix}"}
    path = encode_clip(tmp_path / "a.mp4", [plain] * 10, tones(1), fps=FPS, sample_rate=RATE, video_options=options)
    assert np.abs(decode(path).frame.astype(int) - expected).max() <= 2


# Gaps and threads.


def drop_packets(source: Path, target: Path, first: float, last: float) -> Path:
    """Copies a file without the audio packets between two times."""
    with av.open(str(source)) as original, av.open(str(target), "w") as copy:
        streams = {s.index: copy.add_stream_from_template(s) for s in original.streams}
        for packet in original.demux():
            is_audio = packet.stream.type == "audio"
            if packet.size and not (is_audio and first <= packet.pts * packet.time_base < last):
                packet.stream = streams[packet.stream_index]
                copy.mux(packet)
    return target


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_sound_after_a_gap_stands_at_its_time(clips: Path, tmp_path: Path, decoder: str) -> None:
    clip = decode(drop_packets(clips / "h264.mp4", tmp_path / "gap.mkv", 3.0, 5.0), decoder)
    assert len(clip.waveform) == pytest.approx(10 * SAMPLE_RATE, abs=SAMPLE_RATE * 0.1)
    assert np.abs(clip.waveform[round(3.2 * RATE) : round(4.9 * RATE)]).max() < 1e-3
    for second in (0, 1, 2, 5, 6, 7, 8):
        assert pitch_at(clip.waveform, second + 0.2) == pytest.approx(pitch(second), abs=3)


def test_results_do_not_depend_on_threads(clips: Path) -> None:
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            clip = decode(clips / "stereo.mkv")
            results.append((clip.waveform.tobytes(), clip.frame.tobytes()))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1]


# Pictures.


def test_crop_keeps_proportions_and_takes_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((90, 160, 3), np.uint8)
    wide[:, 35:125] = 255  # the square in the middle
    path = encode_clip(tmp_path / "a.mkv", [wide] * 10, tones(1), fps=FPS, sample_rate=RATE, video_codec="ffv1")
    cropped = decode(path, frame_fit="crop").frame
    assert cropped.shape == (FRAME_SIZE, FRAME_SIZE, 3)
    assert cropped[:, 3:-3].min() > 250
    squashed = decode(path).frame
    assert squashed[:, :40].max() < 5 and squashed[:, 60:-60].min() > 250 and squashed[:, -40:].max() < 5


def test_jpeg_is_near_and_repeatable() -> None:
    frame = numbered_frame(341, 224, 224)
    jpeg = encode_jpeg(frame)
    assert jpeg == encode_jpeg(frame)
    import io

    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (224, 224), "RGB")
        assert np.abs(np.asarray(image).astype(int) - frame).mean() < 2


# Files that give no sample, and those that nearly do not.


def test_reasons_of_made_files(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("<html>not found</html>" * 100)
    encode_clip(tmp_path / "silent.mp4", numbered_frames(20), None, fps=FPS)
    encode_clip(tmp_path / "dark.mp4", None, tones(2), sample_rate=RATE)
    whole = make_clip(tmp_path / "whole.mp4", 3).read_bytes()
    (tmp_path / "unfinished.mp4").write_bytes(whole[: len(whole) // 2])  # its index would stand at the end
    expected = {
        "empty": "empty_file",
        "text": "unreadable",
        "silent": "no_audio",
        "dark": "no_video",
        "unfinished": "unreadable",
    }
    for name, why in expected.items():
        for decoder in ("pyav", "decord", "auto"):
            assert reason(tmp_path / f"{name}.mp4", decoder) == why, (name, decoder)
    assert reason(tmp_path / "nowhere.mp4") == "unreadable"


@pytest.mark.parametrize("decoder", ["pyav", "auto"])
def test_a_file_that_was_cut_off_gives_the_middle_of_what_exists(clips: Path, tmp_path: Path, decoder: str) -> None:
    whole = (clips / "hevc.mkv").read_bytes()
    path = tmp_path / "part.mkv"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    clip = decode(path, decoder)
    assert 4 < clip.duration < 8
    assert number_of(clip.frame) == int(clip.duration / 2 * FPS)
    assert len(clip.waveform) == pytest.approx(clip.duration * SAMPLE_RATE, abs=0.5 * SAMPLE_RATE)


@pytest.mark.parametrize("seed", range(12))
def test_damaged_bytes_end_in_a_clip_or_a_clip_error(clips: Path, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    name = ("h264.mp4", "vp9.webm", "hevc.mkv", "mpeg1.mpg")[seed % 4]
    data = bytearray((clips / name).read_bytes())
    for _ in range(20):
        place = int(rng.integers(len(data) - 64))
        data[place : place + 32] = rng.bytes(32)
    path = tmp_path / name
    path.write_bytes(data)
    try:
        clip = decode(path, frames=2)
    except ClipError as error:
        assert error.detail and "\n" not in error.detail
    else:
        assert clip.frame.shape == (FRAME_SIZE, FRAME_SIZE, 3)
        assert 0 < len(clip.waveform) <= 10 * SAMPLE_RATE


def test_some_damaged_packets_are_tolerated(clips: Path, tmp_path: Path) -> None:
    data = bytearray((clips / "h264.mp4").read_bytes())
    media = data.index(b"mdat") + 4
    data[media + 3000 : media + 3400] = bytes(400)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    clip = decode(path)
    assert clip.frame_time == pytest.approx(5.0)
    assert len(clip.waveform) == 10 * SAMPLE_RATE


# Choice of the decoder.


def test_auto_takes_decord_where_pyav_cannot_decode(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ClipError("decode_error", "the first one says no")

    monkeypatch.setattr(decode_pyav, "decode", fail)
    assert decode(clips / "h264.mp4", "auto").decoder == "decord"
    monkeypatch.setattr(decode_decord, "decode", fail)
    with pytest.raises(ClipError, match="the first one says no"):
        decode(clips / "h264.mp4", "auto")


def test_a_wrong_number_of_frames_is_a_mistake_of_the_caller(clips: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        decode(clips / "h264.mp4", frames=0)
