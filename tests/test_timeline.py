"""Files whose timestamps begin anew, or whose headers promise too little: sound and frames belong together."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.timeline import ClipRequest, Located, Segment, Timeline, locate
from tests.clips import decode, number_of, numbered_frame, pitch, pitch_at, reason, tones
from tools.media import encode_clip

FPS = 25  # MPEG-2 knows no 10
FIRST, SECOND = 6, 3  # seconds of the parts

JOINED = {
    "ts": {},
    "mkv": {},
    "vob": {"video_codec": "mpeg2video", "audio_codec": "ac3"},
    "mpg": {"video_codec": "mpeg2video", "audio_codec": "mp2"},
    "webm": {"video_codec": "vp8", "audio_codec": "opus"},
    "avi": {"video_codec": "mpeg4", "audio_codec": "mp3"},
}
RATE = 48_000  # so that what encoders put before and after the sound is short


def part(path: Path, begin: int, end: int, *, rate: int = RATE, **options: str) -> Path:
    """Seconds `begin` to `end` of a numbered clip, as a file of its own."""
    frames = (numbered_frame(number) for number in range(begin * FPS, end * FPS))
    waveform = tones(end, rate)[:, begin * rate :]
    settings = {"fps": FPS, "sample_rate": rate, "keyframe_seconds": 1.0} | options
    return encode_clip(path, frames, waveform, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two parts of one clip each, written one after the other."""
    folder = tmp_path_factory.mktemp("joined")
    files = {}
    for kind, options in JOINED.items():
        parts = [
            part(folder / f"{n}.{kind}", *span, **options)
            for n, span in enumerate([(0, FIRST), (FIRST, FIRST + SECOND)])
        ]
        files[kind] = folder / f"joined.{kind}"
        files[kind].write_bytes(b"".join(path.read_bytes() for path in parts))
    return files


@pytest.mark.parametrize("kind", JOINED)
def test_joined_files_run_on(joined: dict[str, Path], kind: str) -> None:
    clip = decode(joined[kind], frames=9)
    assert clip.duration == pytest.approx(FIRST + SECOND, abs=0.3)
    for time, frame in zip(clip.extra_frame_times, clip.extra_frames, strict=True):
        assert number_of(frame) == pytest.approx(time * FPS, abs=3)
    for second in range(FIRST + SECOND - 1):
        assert pitch_at(clip.waveform, second + 0.25) == pytest.approx(pitch(second), abs=4)


@pytest.mark.parametrize("kind", ["ts", "webm", "avi"])
def test_a_segment_of_the_second_part_is_found(joined: dict[str, Path], kind: str) -> None:
    """No header knows of it, and its timestamps are those of the first part: it must not be sought by time."""
    clip = decode(joined[kind], start=6.5, end=8.5, named_start=0.0)
    assert clip.file_start == 6.5 and clip.frame_time == pytest.approx(7.5, abs=0.05)
    assert number_of(clip.frame) == pytest.approx(clip.frame_time * FPS, abs=3)
    assert pitch_at(clip.waveform, 0.7) == pytest.approx(pitch(7), abs=4)


def test_a_segment_of_the_first_part_is_not_sought_in_the_second(tmp_path: Path) -> None:
    parts = [part(tmp_path / f"{n}.ts", *span) for n, span in enumerate([(0, 8), (8, 16)])]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(p.read_bytes() for p in parts))
    clip = decode(path, start=6.0, end=7.0, named_start=0.0)
    assert number_of(clip.frame) == pytest.approx(6.5 * FPS, abs=3)
    assert pitch_at(clip.waveform, 0.2) == pytest.approx(pitch(6), abs=4)


@pytest.mark.parametrize("kind", ["mkv", "webm"])
def test_decord_does_not_run_on_and_says_so(joined: dict[str, Path], kind: str) -> None:
    assert reason(joined[kind], "decord") == "decode_error"
    assert decode(joined[kind], "auto").decoder == "pyav"


# Sound whose rate changes.


def test_sound_after_a_change_of_rate_keeps_its_pitch(tmp_path: Path) -> None:
    parts = [part(tmp_path / "0.ts", 0, 3), part(tmp_path / "1.ts", 3, 6, rate=22_050)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(p.read_bytes() for p in parts))
    clip = decode(path, frames=6)
    for second, frame in enumerate(clip.extra_frames[:5]):
        assert number_of(frame) == pytest.approx((second + 0.5) * FPS, abs=4)
        assert pitch_at(clip.waveform, second + 0.25) == pytest.approx(pitch(second), abs=4)


def chained(path: Path, sources: list[Path], seconds: float) -> Path:
    """The packets of several files in one, `seconds` after each other."""
    with av.open(str(path), "w") as target:
        streams = []
        for number, source in enumerate(sources):
            with av.open(str(source)) as container:
                streams = streams or [target.add_stream_from_template(s) for s in container.streams]
                for packet in container.demux():
                    if packet.size:
                        ticks = round(number * seconds / packet.time_base)
                        packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                        packet.stream = streams[packet.stream_index]
                        target.mux(packet)
    return path


def test_decord_does_not_follow_a_change_of_rate_and_says_so(tmp_path: Path) -> None:
    options = {"video_codec": "mpeg4", "audio_codec": "mp2"}
    parts = [part(tmp_path / "0.mkv", 0, 3, **options), part(tmp_path / "1.mkv", 3, 6, rate=24_000, **options)]
    path = chained(tmp_path / "chained.mkv", parts, 3.0)
    assert reason(path, "decord") == "decode_error"
    clip = decode(path, "auto")
    for second in range(5):
        assert pitch_at(clip.waveform, second + 0.25) == pytest.approx(pitch(second), abs=4)


# Headers that promise too little.


def promise(path: Path, target: Path, seconds: float) -> Path:
    """A copy of a file with another duration in its header."""
    data = bytearray(path.read_bytes())
    match path.suffix:
        case ".mkv":
            place = data.index(b"\x44\x89\x88") + 3  # Duration, a float of 8 bytes, in milliseconds
            data[place : place + 8] = struct.pack(">d", seconds * 1000)
        case ".flv":
            place = data.index(b"\x00\x08duration\x00") + 11
            data[place : place + 8] = struct.pack(">d", seconds)
        case ".avi":
            place = data.index(b"avih") + 24  # frames in the file, then in each stream
            data[place : place + 4] = struct.pack("<I", round(seconds * FPS))
            for place in _places(data, b"strh"):
                data[place + 40 : place + 44] = struct.pack("<I", round(seconds * FPS))
        case ".mp4":
            for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
                for place in _places(data, box):
                    (before,) = struct.unpack_from(">I", data, place + offset)
                    struct.pack_into(">I", data, place + offset, round(before * seconds / 10))
    target.write_bytes(data)
    return target


def _places(data: bytes | bytearray, word: bytes) -> Iterator[int]:
    place = data.find(word)
    while place >= 0:
        yield place
        place = data.find(word, place + 1)


@pytest.fixture(scope="module")
def modest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips of 10 s whose headers promise less."""
    folder = tmp_path_factory.mktemp("modest")
    files = {}
    for kind, seconds in (("mkv", 1.0), ("flv", 1.5), ("avi", 0.4), ("mp4", 1.0)):
        options = {"video_codec": "mpeg4", "audio_codec": "mp3"} if kind == "avi" else {}
        whole = part(folder / f"whole.{kind}", 0, 10, **options)
        files[kind] = promise(whole, folder / f"modest.{kind}", seconds)
        with av.open(str(files[kind])) as container:
            assert container.duration < 2_000_000
    return files


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("kind", ["mkv", "flv", "avi", "mp4"])
def test_what_is_read_counts_where_the_header_promises_less(modest: dict[str, Path], kind: str, decoder: str) -> None:
    clip = decode(modest[kind], decoder)
    assert clip.duration == pytest.approx(10, abs=0.15)
    assert number_of(clip.frame) == pytest.approx(5 * FPS, abs=2)
    assert len(clip.waveform) == 160_000
    assert pitch_at(clip.waveform, 8.25) == pytest.approx(pitch(8), abs=4)


@pytest.mark.parametrize("named_start", [0.0, None])
def test_the_whole_video_is_known_by_what_is_read(modest: dict[str, Path], named_start: float | None) -> None:
    """By its header it would be a clip that begins with the segment, or end before it."""
    clip = decode(modest["mkv"], start=4.0, end=8.0, named_start=named_start)
    assert (clip.file_start, len(clip.waveform)) == (4.0, 64_000)
    assert number_of(clip.frame) == pytest.approx(6 * FPS, abs=2)
    assert reason(modest["mkv"], start=40.0, end=48.0, named_start=20.0) == "too_short"


# The rules alone.


def seen(timeline: Timeline, *packets: tuple[int, float]) -> list[float]:
    """Times on the timeline of packets (stream, time), half a second each."""
    return [time + timeline.shift(stream, time, 0.5) for stream, time in packets]


def new_timeline(promised: float = math.inf, may_leap: bool = True) -> Timeline:
    return Timeline(start=0.0, promised=promised, may_leap=may_leap)


def test_all_streams_of_a_part_follow_the_end_of_the_one_before() -> None:
    timeline = new_timeline()
    assert seen(timeline, (0, 1.0), (1, 1.0), (1, 1.5)) == [1.0, 1.0, 1.5]
    assert not timeline.has_jumped
    assert seen(timeline, (0, 0.0), (1, 0.1), (0, 0.5)) == [2.0, 2.1, 2.5]
    assert seen(timeline, (1, 0.05), (0, 0.45)) == [2.05, 2.45]  # within the tolerance
    assert timeline.has_jumped


def test_a_packet_that_was_held_back_belongs_to_the_part_before() -> None:
    timeline = new_timeline()
    seen(timeline, (0, 4.0), (1, 4.0))
    assert seen(timeline, (0, 0.5), (1, 4.5), (1, 0.5), (0, 1.0)) == [4.5, 4.5, 4.5, 5.0]


def test_packets_without_a_time_belong_to_the_last_one_of_their_stream() -> None:
    timeline = new_timeline()
    assert timeline.shift(0, None, 0.0) == 0.0
    seen(timeline, (0, 4.0), (0, 0.0))
    assert timeline.shift(0, None, 0.0) == 4.5


def test_a_leap_ahead_is_a_jump_only_where_clocks_may_be_set() -> None:
    assert seen(new_timeline(), (0, 1.0), (0, 100.0), (0, 100.5)) == [1.0, 1.5, 2.0]
    damaged = new_timeline(may_leap=False)
    assert seen(damaged, (0, 1.0), (0, 100.0), (0, 1.5)) == [1.0, 100.0, 1.5]
    assert not damaged.has_jumped
    gap = new_timeline()
    assert seen(gap, (0, 1.0), (1, 1.0), (0, 8.0), (0, 16.0), (1, 16.0)) == [1.0, 1.0, 8.0, 16.0, 16.0]
    assert not gap.has_jumped


def test_after_a_seek_no_time_is_a_jump() -> None:
    timeline = new_timeline()
    seen(timeline, (0, 1.0))
    timeline.sought()
    assert seen(timeline, (0, 500.0), (1, 499.0), (0, 500.5)) == [500.0, 499.0, 500.5]
    assert not timeline.has_jumped


def test_one_damaged_timestamp_makes_no_longer_file() -> None:
    request = ClipRequest(start=30.0, end=40.0, named_start=None, frames=1)
    segment = locate(request, 10.0)
    located = Located(segment=segment, duration=10.0, is_measured=False, is_sure=False)
    timeline = new_timeline(promised=10.0, may_leap=False)
    seen(timeline, (0, 9.0), (0, 4000.0), (0, 9.5))
    assert located.after_reading(request, 4000.5, timeline) is None
    seen(timeline, (0, 10.5), (0, 11.0))
    corrected = located.after_reading(request, 45.0, timeline)
    assert corrected is not None and corrected.segment == Segment(begin=30.0, end=40.0, frames=1)
    assert corrected.after_reading(request, 45.0, timeline) is None


def test_what_was_not_read_to_its_end_stays_where_it_was() -> None:
    request = ClipRequest(start=None, end=None, named_start=None, frames=1)
    located = Located(segment=locate(request, 5.0), duration=5.0, is_measured=False, is_sure=False)
    timeline = new_timeline(promised=5.0)
    seen(timeline, *[(0, second) for second in np.arange(0, 8, 0.5)])
    assert located.after_reading(request, math.inf, timeline) is None
    corrected = located.after_reading(request, 8.0, timeline)
    assert corrected is not None and (corrected.segment.end, corrected.duration) == (8.0, 8.0)
