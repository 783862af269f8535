"""pipeline.decode: every frame taken is as decoding from the file's start gives it, whatever the container promises."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.packet import PacketSideData

from pipeline import decode_pyav
from tests.clips import FIXTURES, FPS, RATE, decode, reason, tones, with_pixel_crop
from tools.media import encode_clip

BOTH = pytest.mark.parametrize("decoder", ["pyav", "decord"])
FAULT = FIXTURES / "faults" / "seek_needs_first_packet.mp4"
NEW_EXTRADATA = 1  # AV_PKT_DATA_NEW_EXTRADATA
SECONDS = 6


def busy_frames(count: int) -> Iterable[npt.NDArray[np.uint8]]:
    """Frames of which each needs the ones before it: a grey texture that moves."""
    texture = np.random.default_rng(0).integers(0, 256, (100, 220, 1), dtype=np.uint8)
    texture = texture.repeat(4, axis=0).repeat(4, axis=1).repeat(3, axis=2)
    return (np.ascontiguousarray(texture[i : i + 90, 2 * i : 2 * i + 160]) for i in range(count))


def busy_clip(path: Path, seconds: float = SECONDS, **options: Any) -> Path:
    defaults = {"fps": FPS, "sample_rate": RATE, "keyframe_seconds": 60.0}
    return encode_clip(path, busy_frames(round(seconds * FPS)), tones(seconds), **(defaults | options))


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


def assert_as_from_the_start(path: Path, decoder: str = "pyav", frames: int = 5, **options: Any) -> None:
    """All frames taken are those of a full decode; decord's within the round-off of two conversions from YUV."""
    clip = decode(path, decoder, frames=frames, **options)
    taken = zip([clip.frame_time, *clip.extra_frame_times], [clip.frame, *clip.extra_frames], strict=True)
    with av.open(str(path)) as container:
        start = (container.start_time or 0) / 1e6
        exact = {round(frame.time - start, 3): frame for frame in container.decode(video=0)}
    for time, picture in taken:
        difference = np.abs(picture.astype(int) - decode_pyav.picture(exact[round(time, 3)], 1.0, "resize")).mean()
        assert difference <= (0 if decoder == "pyav" else 3), time


# Key frames that are none.


@pytest.fixture(scope="module")
def one_group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of which only the first frame is a key frame."""
    folder = tmp_path_factory.mktemp("one_group")
    for codec in ("h264", "hevc", "vp9"):
        busy_clip(folder / f"{codec}.mkv", video_codec=codec)
    busy_clip(folder / "mpeg4.mkv", video_codec="mpeg4", video_options={"g": "600"})
    return folder


@BOTH
@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "hevc.mp4", "vp9.mkv", "mpeg4.mp4"])
@pytest.mark.parametrize("false", [{25}, set(range(60))], ids=["one", "all"])
def test_false_key_frames(one_group: Path, tmp_path: Path, decoder: str, name: str, false: set[int]) -> None:
    def mark(packet: av.Packet, number: int) -> None:
        packet.is_keyframe = number == 0 or number in false

    path = remux((one_group / name).with_suffix(".mkv"), tmp_path / name, mark)
    assert_as_from_the_start(path, decoder)


@BOTH
@pytest.mark.parametrize("x264", ["intra-refresh=1:keyint=20:mbtree=0", "open-gop=1:keyint=13:min-keyint=13:mbtree=0"])
def test_recovery_points_and_open_groups_that_are_called_key_frames(tmp_path: Path, decoder: str, x264: str) -> None:
    source = busy_clip(tmp_path / "a.mp4", video_options={"x264-params": x264})

    def mark(packet: av.Packet, number: int) -> None:
        packet.is_keyframe = number % 10 == 0 or packet.is_keyframe

    for suffix in ("mkv", "mp4"):
        assert_as_from_the_start(remux(source, tmp_path / f"false.{suffix}", mark), decoder, frames=7)


@pytest.mark.parametrize("false", [range(120, 300), range(1, 300)], ids=["after a true one", "all"])
def test_false_key_frames_of_a_whole_video(tmp_path: Path, false: range) -> None:
    source = busy_clip(tmp_path / "a.mkv", 30, keyframe_seconds=8, video_codec="mpeg4", video_options={"g": "80"})

    def mark(packet: av.Packet, number: int) -> None:
        packet.is_keyframe = packet.is_keyframe or number in false

    path = remux(source, tmp_path / "false.mp4", mark)
    assert_as_from_the_start(path, start=16.5, end=26.5)


# What comes with the first packets, or with packets that are passed over.


@pytest.fixture(scope="module")
def fault_frames() -> dict[int, npt.NDArray[np.uint8]]:
    """Two frames of FAULT, as decoding from its start gives them."""
    if not FAULT.is_file():
        pytest.skip(f"no file {FAULT}")
    with av.open(str(FAULT)) as container:
        frames = zip(range(142), container.decode(video=0), strict=False)
        return {n: decode_pyav.picture(frame, 1.0, "resize") for n, frame in frames if n in (86, 141)}


@BOTH
def test_a_decoder_that_needs_to_know_the_encoder(decoder: str, fault_frames: dict[int, npt.NDArray[np.uint8]]) -> None:
    # The second segment begins behind where reading would end: the file is sought.
    for number, segment in ((86, {"end": 8.6}), (141, {"start": 5.5, "end": 8.6, "named_start": 0.0})):
        clip = decode(FAULT, decoder, **segment)
        assert clip.frame_time == pytest.approx(number / 20)
        difference = np.abs(clip.frame.astype(int) - fault_frames[number]).mean()
        assert difference <= (0 if decoder == "pyav" else 3)


def palette_clip(path: Path, codec: str, seconds: int) -> Path:
    """Frames of 256 colours that the file names once."""
    palette = np.stack([np.arange(256), np.arange(256) * 7 % 256, 255 - np.arange(256), np.full(256, 255)], axis=1)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(codec, rate=FPS)
        video.width, video.height, video.pix_fmt, video.codec_context.gop_size = 160, 96, "pal8", 20
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for number in range(seconds * FPS):
            frame = av.VideoFrame(160, 96, "pal8")
            indices = np.zeros((96, frame.planes[0].line_size), np.uint8)
            indices[:, :160] = np.add.outer(np.arange(96), np.arange(160) + 3 * number) % 256
            frame.planes[0].update(indices.tobytes())
            frame.planes[1].update(palette.astype(np.uint8).tobytes())
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = (tones(seconds) * 32767).astype(np.int16)
        sound = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = RATE, 0, Fraction(1, RATE)
        container.mux([*audio.encode(sound), *audio.encode(None)])
    return path


@pytest.mark.parametrize(("codec", "suffix"), [("rawvideo", "avi"), ("rawvideo", "mov"), ("smc", "mov")])
def test_palettes_are_given_to_the_decoder(tmp_path: Path, codec: str, suffix: str) -> None:
    path = palette_clip(tmp_path / f"a.{suffix}", codec, 15)
    segments: tuple[dict[str, Any], ...] = ({}, {"start": 8.0, "end": 14.0})
    for segment in segments:
        assert_as_from_the_start(path, "pyav", **segment)
        assert_as_from_the_start(path, "auto", 1, **segment)
    assert reason(path, "decord") == "decode_error"  # it indexes the file first, and then has no palette


def with_new_headers(path: Path) -> Path:
    """A file of two parts, whose headers of the second one stand with its first packet alone."""
    one, two = path.with_name("one.mp4"), path.with_name("two.mp4")
    busy_clip(one, 2.0)
    busy_clip(two, 13.0, keyframe_seconds=2, video_options={"x264-params": "cabac=0:8x8dct=0:bframes=0:mbtree=0"})
    with av.open(str(one)) as first, av.open(str(two)) as second, av.open(str(path), "w") as target:
        streams = [target.add_stream_from_template(stream) for stream in first.streams]
        last = {0: Fraction(-1), 1: Fraction(-1)}
        headers: bytes | None = second.streams.video[0].codec_context.extradata
        for begin, source in ((0, first), (2, second)):
            demuxed: Any = source.demux()
            for packet in demuxed:
                index = packet.stream_index
                if not packet.size or packet.dts * packet.time_base + begin <= last[index]:
                    continue
                packet.pts, packet.dts = (round(t + begin / packet.time_base) for t in (packet.pts, packet.dts))
                last[index] = packet.dts * packet.time_base
                if begin and index == 0 and headers:
                    side_data = PacketSideData(NEW_EXTRADATA, len(headers))  # type: ignore[call-arg]
                    side_data.update(headers)
                    packet.set_sidedata(side_data)
                    headers = None
                packet.stream = streams[index]
                target.mux(packet)
    return path


@BOTH
def test_headers_that_change(tmp_path: Path, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_new_headers(tmp_path / "a.flv")
    monkeypatch.setattr(decode_pyav, "LEADS", (0.0, 0.0))  # the first try is enough
    for frames in (1, 5):
        for segment in ({}, {"start": 7.0, "end": 14.0}):
            assert_as_from_the_start(path, decoder, frames, **segment)


# What stays damaged.


def damage(packet: av.Packet) -> None:
    """Overwrites the second half of a packet."""
    data = bytes(packet)
    packet.update(data[: len(data) // 2].ljust(len(data), b"\0"))


@pytest.fixture(scope="module")
def three_groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"x264-params": "bframes=0:mbtree=0"}
    return busy_clip(tmp_path_factory.mktemp("three_groups") / "a.mp4", keyframe_seconds=2, video_options=options)


@pytest.mark.parametrize("decoder", ["pyav", "decord", "auto"])
@pytest.mark.parametrize("damaged", [20, 23, 30], ids=["key frame", "one before", "itself"])
def test_a_frame_that_stays_damaged_is_an_error(three_groups: Path, tmp_path: Path, decoder: str, damaged: int) -> None:
    path = remux(three_groups, tmp_path / "b.mp4", lambda packet, number: damage(packet) if number == damaged else None)
    assert reason(path, decoder) == "decode_error"  # the middle is frame 30, in the group that begins with 20
    assert reason(path, decoder, frames=4) == "decode_error"


@BOTH
def test_damage_in_other_groups_does_no_harm(three_groups: Path, tmp_path: Path, decoder: str) -> None:
    path = remux(three_groups, tmp_path / "b.mp4", lambda packet, number: damage(packet) if number in (5, 45) else None)
    assert_as_from_the_start(path, decoder, frames=1)
    assert reason(path, decoder, frames=3) == "decode_error"


# What is not to be shown.


@BOTH
@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_pixel_crop(tmp_path: Path, decoder: str, suffix: str) -> None:
    inner = np.zeros((60, 100, 3), np.uint8)
    inner[:30, :50], inner[30:, 50:] = (200, 60, 30), (40, 90, 220)
    outer = np.full((96, 160, 3), (0, 250, 0), np.uint8)
    outer[6:66, 36:136] = inner
    codecs: dict[str, Any] = {} if suffix == "mkv" else {"video_codec": "vp9", "audio_codec": "opus"}
    path = encode_clip(tmp_path / f"a.{suffix}", [outer] * 20, tones(2), fps=FPS, sample_rate=RATE, **codecs)
    plain = decode(path, decoder)
    assert (plain.width, plain.height) == (160, 96)
    with_pixel_crop(path, top=6, bottom=30, left=36, right=24, display=(200, 60))
    squashed, wide = (decode(path, decoder, frame_fit=fit) for fit in ("resize", "crop"))
    assert (squashed.width, squashed.height) == (wide.width, wide.height) == (100, 60)
    # Shown twice as wide as stored, 200x60: its centre is 30 of 100 columns.
    for clip, width in ((squashed, 112), (wide, 112)):
        for rows, columns, colour in (
            (slice(8, 100), slice(8, width - 12), (200, 60, 30)),
            (slice(124, 216), slice(width + 12, 216), (40, 90, 220)),
            (slice(8, 100), slice(width + 12, 216), (0, 0, 0)),
        ):
            assert np.abs(clip.frame[rows, columns].reshape(-1, 3).mean(0) - colour).max() < 12
    assert number_of_columns(wide) < number_of_columns(squashed)


def number_of_columns(clip: Any) -> float:
    """How sharp the border between left and right is: a picture that is enlarged more has a wider one."""
    return float(np.abs(np.diff(clip.frame[20].astype(int).sum(axis=1))).max())
