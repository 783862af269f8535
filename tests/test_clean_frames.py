"""pipeline.decode: every frame taken is as decoding from the file's start gives it, whatever the container promises."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.decode import decode_clip
from shards_spec.sample import SAMPLE_RATE
from tests.clips import (
    FIXTURES,
    FPS,
    RATE,
    decode,
    make_clip,
    number_of,
    numbered_frame,
    reason,
    tones,
    with_pixel_crop,
)
from tests.test_decode import full_decode
from tools.media import encode_clip

BOTH = pytest.mark.parametrize("decoder", ["pyav", "decord"])
FAULT = FIXTURES / "faults" / "seek_needs_first_packet.mp4"


def busy_frames(count: int) -> Iterable[npt.NDArray[np.uint8]]:
    """Frames of which each needs the ones before it: a grey texture that moves."""
    texture = np.random.default_rng(0).integers(0, 256, (150, 220, 1), dtype=np.uint8)
    texture = texture.repeat(4, axis=0).repeat(4, axis=1).repeat(3, axis=2)
    return (np.ascontiguousarray(texture[i : i + 90, 2 * i : 2 * i + 160]) for i in range(count))


def busy_clip(path: Path, seconds: float = 10, **options: object) -> Path:
    defaults: dict[str, object] = {"fps": FPS, "sample_rate": RATE, "keyframe_seconds": 60.0}
    return encode_clip(path, busy_frames(round(seconds * FPS)), tones(seconds), **(defaults | options))  # type: ignore[arg-type]


def remux(source: Path, target: Path, change: Callable[[av.Packet, int], None]) -> Path:
    """Copies a file; `change` is called with each video packet and its number."""
    with av.open(str(source)) as original, av.open(str(target), "w") as copy:
        streams = {s.index: copy.add_stream_from_template(s) for s in original.streams}
        number = 0
        for packet in original.demux():
            if packet.size:
                if packet.stream.type == "video":
                    change(packet, number)
                    number += 1
                packet.stream = streams[packet.stream_index]
                copy.mux(packet)
    return target


def assert_as_from_the_start(path: Path, decoder: str, frames: int = 5, **options: object) -> None:
    """All frames taken are those of a full decode; decord's within the round-off of two conversions from YUV."""
    clip = decode(path, decoder, frames=frames, **options)
    times, pictures = [clip.frame_time, *clip.extra_frame_times], [clip.frame, *clip.extra_frames]
    for time, picture in zip(times, pictures, strict=True):
        exact_time, exact = full_decode(path, time)
        assert time == pytest.approx(exact_time, abs=1e-6)
        difference = np.abs(picture.astype(int) - exact).mean()
        assert difference <= (0 if decoder == "pyav" else 3)


# Key frames that are none.


@BOTH
@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "mpeg4"])
@pytest.mark.parametrize("is_false", [lambda number: number == 45, lambda number: True], ids=["one", "all"])
def test_false_key_frames(tmp_path: Path, decoder: str, codec: str, is_false: Callable[[int], bool]) -> None:
    options = {"mpeg4": {"video_options": {"g": "600"}}}.get(codec, {})
    source = busy_clip(tmp_path / "a.mkv", video_codec=codec, **options)

    def mark(packet: av.Packet, number: int) -> None:
        packet.is_keyframe = number == 0 or is_false(number)

    for suffix in ("mkv", "mp4"):
        assert_as_from_the_start(remux(source, tmp_path / f"false.{suffix}", mark), decoder)


@BOTH
@pytest.mark.parametrize("x264", ["intra-refresh=1:keyint=20:mbtree=0", "open-gop=1:keyint=13:min-keyint=13:mbtree=0"])
def test_recovery_points_and_open_groups_that_are_called_key_frames(tmp_path: Path, decoder: str, x264: str) -> None:
    source = busy_clip(tmp_path / "a.mp4", video_options={"x264-params": x264})

    def mark(packet: av.Packet, number: int) -> None:
        packet.is_keyframe = number % 10 == 0 or packet.is_keyframe

    for suffix in ("mkv", "mp4"):
        assert_as_from_the_start(remux(source, tmp_path / f"false.{suffix}", mark), decoder, frames=7)


@pytest.mark.parametrize("false_at", [170, 210])
def test_false_key_frames_of_a_whole_video(tmp_path: Path, false_at: int) -> None:
    source = busy_clip(tmp_path / "a.mkv", 30, keyframe_seconds=8)

    def mark(packet: av.Packet, number: int) -> None:
        packet.is_keyframe = packet.is_keyframe or number >= false_at

    path = remux(source, tmp_path / "false.mp4", mark)
    assert_as_from_the_start(path, "pyav", start=16.5, end=26.5)


# What stays damaged.


def damage(packet: av.Packet) -> None:
    """Overwrites the second half of a packet."""
    data = bytearray(bytes(packet))
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    packet.update(bytes(data))


@pytest.mark.parametrize("decoder", ["pyav", "decord", "auto"])
@pytest.mark.parametrize("frames", [1, 4])
def test_a_frame_that_stays_damaged_is_an_error(tmp_path: Path, decoder: str, frames: int) -> None:
    source = busy_clip(tmp_path / "a.mp4", keyframe_seconds=2)
    path = remux(source, tmp_path / "b.mp4", lambda packet, number: damage(packet) if number == 41 else None)
    assert reason(path, decoder, frames=frames) == "decode_error"  # the middle is frame 50, predicted from it
