"""Opening a media file and reading its header with PyAV; what both decoders know of a file before they decode it."""

import contextlib
import errno
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.format import Flags

from pipeline.audio import AudioRun
from pipeline.clip_error import ClipError
from pipeline.containers import MEDIA_FORMATS
from pipeline.file_errors import is_of_the_machine, machine_error, unreadable
from pipeline.frame import UNCUT, Crop
from pipeline.matroska import pixel_crop
from pipeline.timeline import ClipRequest, Located, Segment, Timeline, locate, reaches

MICROSECONDS = 1_000_000  # FFmpeg's unit for whole containers
_PICTURES = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
_MP4_SUFFIXES = (".mp4", ".m4v", ".mov")
_BAD_READS = 100  # damaged places of a file that are passed over


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The tracks of a file that a player would play."""

    video: av.VideoStream
    audio: av.AudioStream


def open_media(path: Path, *, quick: bool = False) -> InputContainer:
    """Opens a file of one of MEDIA_FORMATS: nothing but this file, whatever is written in it.

    Args:
        quick: decode no picture to learn about the video stream. For MP4, whose header says all that is needed,
            that halves the time; what is not said then is the pixel format and, rarely, how far frames are
            reordered. Other containers need the picture for right timestamps and are opened as ever.

    Raises:
        ClipError: `empty_file`, `unreadable`.
        OSError: the machine cannot open files.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(MEDIA_FORMATS)}
    if quick and path.suffix.lower() in _MP4_SUFFIXES:
        options |= {"skip_frame": "all", "threads": "1"}
    try:
        if path.stat().st_size == 0:
            raise ClipError("empty_file", "zero bytes")
        # "file:" keeps names that look like a protocol ("a:b.mp4") from being taken for one.
        return av.open(f"file:{path}", "r", options=options, metadata_errors="replace")
    except MemoryError:
        raise
    except OSError as error:
        if error.errno == errno.EIO:  # FFmpeg says so of damaged headers too
            raise ClipError("unreadable", f"no media container: {error.strerror}") from error
        raise unreadable(error, path) from error
    except av.error.ArgumentError as error:
        raise ClipError("unreadable", "no media container, or one of a kind that is not opened") from error
    except av.error.FFmpegError as error:
        raise ClipError("unreadable", f"no media container: {error.strerror}") from error


def pick_streams(container: InputContainer) -> Streams:
    """The video and the audio track that a player would choose: FFmpeg's choice, cover images left aside.

    Raises:
        ClipError: `no_video`, `no_audio`, `unreadable` (no packet at all), `decode_error` (no decoder).
    """
    video = container.streams.best("video")
    if video is None or video.disposition & _PICTURES:
        moving = [stream for stream in container.streams.video if not stream.disposition & _PICTURES]
        video = moving[0] if moving else None
    audio = container.streams.best("audio")
    if audio is None and container.streams.audio:
        audio = container.streams.audio[0]
    if (video is None or audio is None) and not any(packet.size for packet in demux(container)):
        raise ClipError("unreadable", f"a {container.format.name} container without a packet")
    if video is None:
        raise ClipError("no_video", "no video stream")
    if audio is None:
        raise ClipError("no_audio", "no audio stream")
    assert isinstance(video, av.VideoStream) and isinstance(audio, av.AudioStream)
    for stream in (video, audio):
        if stream.codec_context is None:
            raise ClipError("decode_error", f"this FFmpeg has no decoder for the {stream.type} stream")
    # One thread: clips are decoded in as many processes as there are cores.
    video.codec_context.thread_count = audio.codec_context.thread_count = 1
    return Streams(video=video, audio=audio)


def container_crop(path: Path, container: InputContainer, video: av.VideoStream) -> Crop:
    """What of the coded pictures the container says is not to be shown: Matroska's PixelCrop."""
    if "matroska" not in container.format.name:
        return UNCUT
    return pixel_crop(path, [stream.index for stream in container.streams.video].index(video.index))


def start_of(container: InputContainer) -> float:
    """The timestamp, in seconds, that is 0 on the file's timeline."""
    return (container.start_time or 0) / MICROSECONDS


def header_duration(container: InputContainer) -> float | None:
    """Seconds that the header states, None where it states nothing."""
    return container.duration / MICROSECONDS if container.duration and container.duration > 0 else None


def timeline_of(container: InputContainer) -> Timeline:
    """For the packets of a container from its start, or from where it was sought."""
    promised = header_duration(container)
    return Timeline(
        start=start_of(container), promised=math.inf if promised is None else promised, may_leap=may_leap(container)
    )


def may_leap(container: InputContainer) -> bool:
    """Whether the format's timestamps are a clock that may be set anew: then no time says where in the file it is."""
    return Flags.ts_discont in Flags(container.format.flags)


def demux(
    container: InputContainer, *streams: av.stream.Stream, timeline: Timeline | None = None
) -> Iterator[av.Packet]:
    """The packets of `streams` (all, if none are named) in file order, their times on one timeline.

    Damaged places are passed over.

    Args:
        timeline: a new one of `timeline_of`, for those who want to know what it has seen.

    Raises:
        OSError: the machine cannot read the file.
    """
    timeline = timeline or timeline_of(container)
    units: dict[int, float] = {}  # seconds a tick, by stream: fractions are slow
    for packet in _packets(container, streams):
        index, time = packet.stream_index, packet.dts
        unit = units.get(index) or units.setdefault(index, float(packet.time_base))
        if time is None and packet.stream.type == "audio":
            time = packet.pts
        seconds = None if time is None else time * unit
        if shift := timeline.shift(index, seconds, (packet.duration or 0) * unit):
            ticks = round(shift / unit)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        yield packet


def _packets(container: InputContainer, streams: Sequence[av.stream.Stream]) -> Iterator[av.Packet]:
    """Packets as the container gives them."""
    for _ in range(_BAD_READS):
        try:
            for packet in container.demux(*streams):
                if packet.size:  # the last ones are empty: they tell decoders to end, which ours are told otherwise
                    yield packet
            return
        except MemoryError:
            raise
        except av.error.FFmpegError as error:
            if isinstance(error, OSError) and is_of_the_machine(error):
                raise machine_error(error, Path(container.name.removeprefix("file:"))) from error
        except IndexError:
            return  # PyAV ends so, after the last packet, where damage made FFmpeg see one more stream


@contextlib.contextmanager
def passing_over_damage() -> Iterator[None]:
    """What FFmpeg says of a damaged packet is ignored; want of memory is no damage."""
    try:
        yield
    except MemoryError:
        raise
    except av.error.FFmpegError:
        return


def timestamp(item: av.Packet | av.VideoFrame) -> int | None:
    """When a packet or a frame is shown, in its stream's time base; some containers state only decoding times."""
    return item.pts if item.pts is not None else item.dts


def carries(packet: av.Packet, kind: str) -> bool:
    """Whether a packet has side data of a kind, as PyAV names it. (Its own `has_sidedata` takes ten times as long.)"""
    return any(data.data_type == kind for data in packet.iter_sidedata())


def packet_end(packet: av.Packet) -> float | None:
    """Seconds at which a packet's content ends, as the stream counts time; None where it does not say."""
    begin = timestamp(packet)
    return None if begin is None else float((begin + (packet.duration or 0)) * packet.time_base)


def locate_in(path: Path, container: InputContainer, request: ClipRequest) -> Located:
    """Where the segment lies: by the header; where that is silent, or promises too little, by all packets.

    Raises:
        ClipError: as `open_media`, `pick_streams` and `locate`; `too_short`, no packet has a timestamp.
    """
    promised = header_duration(container)
    if promised is not None and reaches(request, promised):
        segment = locate(request, promised)
        is_sure = locate(request, math.inf) == segment
        return Located(segment=segment, duration=promised, is_measured=False, is_sure=is_sure)
    with open_media(path) as whole:
        streams, timeline = pick_streams(whole), timeline_of(whole)
        packets = demux(whole, streams.video, streams.audio, timeline=timeline)
        ends = [end for packet in packets if (end := packet_end(packet))]
        if not ends:
            raise ClipError("too_short", "no packet with a timestamp")
        duration = max(ends) - start_of(whole)
    segment, has_jumped = locate(request, duration), timeline.has_jumped
    return Located(segment=segment, duration=duration, is_measured=True, is_sure=True, has_jumped=has_jumped)


@dataclass(frozen=True, kw_only=True)
class RawClip:
    """What a decoder gives of one segment, before it is a waveform."""

    segment: Segment
    runs: Sequence[AudioRun]  # all sound of the segment, perhaps more
    frames: Sequence[npt.NDArray[np.uint8]]  # [FRAME_SIZE, FRAME_SIZE, 3] for each of segment.targets
    frame_times: Sequence[float]  # seconds on the file's timeline
    duration: float  # of the file, seconds
    fps: float  # 0.0 where the file does not say, NaN of sound alone
    width: int | None  # of the picture as displayed: turned upright, pixels as stored; None of sound alone
    height: int | None
    sample_rate: int  # Hz, of the source
    channels: int
