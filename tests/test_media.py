"""tools.media: files with the properties asked for."""

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from tools.media import encode_clip

RATE = 16_000


def frames(count: int, width: int = 64, height: int = 48) -> list[npt.NDArray[np.uint8]]:
    ramp = np.add.outer(np.arange(height), np.arange(width))
    return [np.stack([(ramp + 5 * i) % 256] * 3, axis=2).astype(np.uint8) for i in range(count)]


def tone(seconds: float, channels: int = 1) -> npt.NDArray[np.float32]:
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)
    return np.stack([wave] * channels).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "video_codec", "audio_codec", "decoders"),
    [
        ("a.mp4", "h264", "aac", {"h264", "aac"}),
        ("a.webm", "vp9", "opus", {"vp9", "opus"}),
        ("a.mkv", "hevc", "flac", {"hevc", "flac"}),
        ("a.mov", "mpeg4", "pcm_s16le", {"mpeg4", "pcm_s16le"}),
        ("a.mpg", "mpeg1video", "mp2", {"mpeg1video", "mp2"}),
    ],
)
def test_codecs_and_containers(
    tmp_path: Path, name: str, video_codec: str, audio_codec: str, decoders: set[str]
) -> None:
    path = encode_clip(
        tmp_path / name,
        frames(25),
        tone(1, 2),
        fps=25,
        sample_rate=48_000 if audio_codec == "mp2" else RATE,
        video_codec=video_codec,
        audio_codec=audio_codec,
    )
    with av.open(str(path)) as container:
        assert {stream.codec_context.codec.canonical_name for stream in container.streams} == decoders
        assert (container.streams.video[0].width, container.streams.video[0].height) == (64, 48)
        assert container.streams.audio[0].channels == 2
        assert sum(1 for _ in container.decode(video=0)) == 25


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    for suffix, codecs in (("mp4", ("h264", "aac")), ("webm", ("vp9", "opus")), ("mkv", ("h264", "opus"))):
        one, two = (
            encode_clip(
                tmp_path / f"{i}.{suffix}",
                frames(40, 320, 180),
                tone(2),
                sample_rate=RATE,
                video_codec=codecs[0],
                audio_codec=codecs[1],
            )
            for i in range(2)
        )
        assert one.read_bytes() == two.read_bytes(), suffix


def test_either_stream_may_be_absent(tmp_path: Path) -> None:
    with av.open(str(encode_clip(tmp_path / "silent.mp4", frames(5), None))) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    with av.open(str(encode_clip(tmp_path / "dark.mp4", None, tone(1), sample_rate=RATE))) as container:
        assert [stream.type for stream in container.streams] == ["audio"]
    with pytest.raises(ValueError, match="needs frames or a waveform"):
        encode_clip(tmp_path / "nothing.mp4", None, None)
    with pytest.raises(ValueError, match="channels"):
        encode_clip(tmp_path / "three.mp4", None, np.zeros((3, 100), np.float32))


def test_keyframes_stand_where_they_are_asked_for(tmp_path: Path) -> None:
    path = encode_clip(tmp_path / "a.mp4", frames(60), None, fps=20, keyframe_seconds=0.5)
    with av.open(str(path)) as container:
        keys = [float(p.pts * p.time_base) for p in container.demux(video=0) if p.size and p.is_keyframe]
    assert keys == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])


def test_irregular_timestamps(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.55, 1.9]
    path = encode_clip(tmp_path / "a.mp4", frames(5), None, timestamps=times)
    with av.open(str(path)) as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(times, abs=1e-4)
    with pytest.raises(ValueError, match="more frames than timestamps"):
        encode_clip(tmp_path / "b.mp4", frames(6), None, timestamps=times)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation(tmp_path: Path, suffix: str, rotation: int) -> None:
    path = encode_clip(tmp_path / f"a.{suffix}", frames(3), None, rotation=rotation)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation % 360 == rotation


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_audio_delay(tmp_path: Path, suffix: str) -> None:
    path = encode_clip(tmp_path / f"a.{suffix}", frames(60), tone(1), sample_rate=RATE, audio_delay=1.0)
    with av.open(str(path)) as container:
        first = next(container.decode(audio=0))
        assert first.time == pytest.approx(1.0, abs=0.07)  # AAC may begin one frame of 64 ms earlier, with silence


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_header_without_duration(tmp_path: Path, suffix: str) -> None:
    codecs = {"video_codec": "vp9", "audio_codec": "opus"}
    path = encode_clip(tmp_path / f"a.{suffix}", frames(30), tone(1), sample_rate=RATE, duration_header=False, **codecs)
    with av.open(str(path)) as container:
        assert container.duration is None
