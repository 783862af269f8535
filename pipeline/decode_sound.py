"""A sound file, or the sound of a video -> the sound of a clip, without any picture."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av

from pipeline.audio import AudioRun
from pipeline.clip_error import ClipError
from pipeline.decode_pyav import Sound
from pipeline.media_file import RawClip, demux, open_media, packet_end, start_of
from pipeline.timeline import ClipRequest, Segment, locate


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What is heard in a segment of a file."""

    segment: Segment
    runs: list[AudioRun]
    duration: float  # of the file, seconds
    sample_rate: int  # of the source, Hz
    channels: int


def decode(path: Path, *, request: ClipRequest) -> RawClip:
    """The sound of the requested segment.

    Raises:
        ClipError: any reason of a file that gives no sample.
    """
    heard = hear(path, lambda duration: locate(request, duration))
    return RawClip(
        segment=heard.segment,
        runs=heard.runs,
        frames=[],
        frame_times=[],
        duration=heard.duration,
        fps=math.nan,
        width=None,
        height=None,
        sample_rate=heard.sample_rate,
        channels=heard.channels,
    )


def hear(path: Path, locate: Callable[[float], Segment]) -> Heard:
    """What is heard in a segment of a file, and how long the file is: by its packets, not by its header.

    Args:
        locate: where the segment lies in a file of so many seconds.

    Raises:
        ClipError: any reason of a file that gives no sample.
    """
    try:
        with open_media(path) as container:
            stream = _stream(container)
            ends = [end for packet in demux(container, stream) if (end := packet_end(packet)) is not None]
            if not ends:
                raise ClipError("too_short", "no packet with a timestamp")
            duration = max(ends) - start_of(container)
        segment = locate(duration)
        with open_media(path) as container:
            sound = Sound(_stream(container), start_of(container), segment)
            for packet in demux(container, _stream(container)):
                sound.feed(packet)
                if sound.is_done:
                    break
            sound.finish()
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise ClipError("decode_error", str(error)) from error
    rate, channels = sound.source()
    return Heard(segment=segment, runs=sound.runs(), duration=duration, sample_rate=rate, channels=channels)


def _stream(container: av.container.InputContainer) -> av.AudioStream:
    stream = container.streams.best("audio")
    if stream is None:
        raise ClipError("no_audio", "no audio stream")
    assert isinstance(stream, av.AudioStream)
    if stream.codec_context is None:
        raise ClipError("decode_error", "this FFmpeg has no decoder for the audio stream")
    stream.codec_context.thread_count = 1
    return stream
