"""Decoding one segment of a file with PyAV: one open, one pass over the packets, for sound and frames together."""

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer

from pipeline.audio import GAP, AudioRun, channel_sum
from pipeline.clip_error import ClipError
from pipeline.frame import (
    UNCUT,
    UPRIGHT,
    Crop,
    FrameFit,
    Orientation,
    cut,
    finish,
    orientation,
    scaled_size,
    shown_size,
)
from pipeline.frame_picker import LEADS, FramePicker
from pipeline.media_file import (
    MICROSECONDS,
    RawClip,
    container_crop,
    demux,
    locate_in,
    may_leap,
    open_media,
    pick_streams,
    start_of,
    timeline_of,
    timestamp,
)
from pipeline.timeline import ClipRequest, Located, Segment

_SEEK_FROM = 5.0  # seconds: reading over less costs less than a seek
_CHANGES_HEADERS = ("flv",)  # containers that may state a decoder's new headers at any place, and only there
_PREROLL = 0.5  # seconds of audio decoded before the segment, until codecs that look back are settled
_SCALING = 0x4 | 0x40000 | 0x2000  # SWS_BICUBIC, SWS_ACCURATE_RND, SWS_FULL_CHR_H_INT (PyAV 17 names only the first)

# Colour matrices that swscale refuses, as AVCOL_SPC numbers, and what they are taken for: BT.2020 with constant
# luminance for the usual BT.2020, the rare others for BT.601, which FFmpeg takes where nothing is said.
_MATRICES = {10: 9, **dict.fromkeys((3, 8, 11, 12, 13, 14, 15, 16, 17), 5)}

_Pieces = list[npt.NDArray[np.float32]]


def decode(path: Path, *, request: ClipRequest, frame_fit: FrameFit) -> RawClip:
    """The sound and the frames of the requested segment.

    Raises:
        ClipError: any reason of a file that gives no sample.
    """
    located: Located | None = None
    leads = iter(LEADS)
    lead = next(leads)
    try:
        while True:
            with open_media(path, quick=not lead) as container:
                located = located or locate_in(path, container, request)
                reading = _Reading(container, located, lead=lead)
                reading.run()
                corrected = located.after_reading(request, reading.end, reading.timeline)
                if corrected is not None:
                    located = corrected
                elif reading.has_missed and lead < LEADS[-1]:
                    lead = next(leads) if reading.has_passed_over else LEADS[-1]
                else:
                    return reading.raw_clip(path, frame_fit)
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise ClipError("decode_error", str(error)) from error


def picture(
    frame: av.VideoFrame, pixel_aspect: float, frame_fit: FrameFit, crop: Crop = UNCUT
) -> npt.NDArray[np.uint8]:
    """The stored picture of a decoded frame, uint8 [FRAME_SIZE, FRAME_SIZE, 3] RGB, in one pass of swscale.

    A frame of which a part is not to be shown takes two: colour planes that are smaller cannot be cut anywhere.
    """
    width, height = shown_size(frame.width, frame.height, crop)
    size = scaled_size(width, height, pixel_aspect=pixel_aspect, frame_fit=frame_fit)
    if (width, height) == (frame.width, frame.height):
        return finish(scale(frame, size), display_orientation(frame))
    part = av.VideoFrame.from_ndarray(cut(scale(frame, (frame.width, frame.height)), crop), format="rgb24")
    return finish(scale(part, size), display_orientation(frame))


def scale(frame: av.VideoFrame, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A frame of any pixel format as uint8 [H, W, 3] RGB of `size` (W, H)."""
    width, height = size
    matrix = _MATRICES.get(frame.colorspace, frame.colorspace)
    scaled = frame.reformat(
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=matrix,
        dst_colorspace=matrix,
        interpolation=_SCALING,
        threads=1,
    )
    return scaled.to_ndarray().astype(np.uint8, copy=False)


def display_orientation(frame: av.VideoFrame) -> Orientation:
    """How to turn the decoded picture for display."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else orientation(bytes(matrix))


class _Reading:
    """One pass over the packets of a file."""

    def __init__(self, container: InputContainer, located: Located, *, lead: float) -> None:
        """`lead`: as of FramePicker."""
        segment = located.segment
        self._container, self._located, self._segment, self._lead = container, located, segment, lead
        self._streams = pick_streams(container)
        self._start = start_of(container)
        self._may_seek = not (located.has_jumped or may_leap(container) or container.format.name in _CHANGES_HEADERS)
        self._has_sought = False
        self.timeline = timeline_of(container)
        self.end = math.inf  # of the file, where it was read to its end
        self._sound = Sound(self._streams.audio, self._start, segment)
        self._frames = FramePicker(self._streams.video, self._start, segment.targets, lead=lead)

    def run(self) -> None:
        """Reads until sound and frames of the segment are decoded, and to the file's end where that may move it."""
        packets = demux(self._container, self._streams.video, self._streams.audio, timeline=self.timeline)
        sound, frames = self._sound, self._frames
        video_index = self._streams.video.index
        for packet in itertools.chain(self._seek(packets), packets):
            if packet.stream_index == video_index:
                frames.feed(packet)
            else:
                sound.feed(packet)
            is_known = self._located.is_measured or (self._located.is_sure and not self.timeline.has_jumped)
            if frames.is_done and sound.is_done and is_known:
                break
        else:
            self.end = max(frames.end, sound.end)
        frames.finish()
        sound.finish()

    def _seek(self, packets: Iterator[av.Packet]) -> list[av.Packet]:
        """Goes to the segment, where that saves reading and loses nothing; returns what was read and is still needed.

        A file without an index is read from its start, where it still stands.
        """
        time = self._segment.begin - self._lead
        if not time > _SEEK_FROM or not self._may_seek:
            return []
        read = []
        for packet in packets:
            read.append(packet)
            if packet.stream_index == self._streams.video.index:
                break
        else:
            return read
        if not self._frames.may_begin_later(packet):
            return read
        try:
            self._container.seek(int((time - _PREROLL + self._start) * MICROSECONDS), backward=True)
        except av.error.FFmpegError:
            return read
        self._has_sought = True
        self.timeline.sought()
        self._frames.pass_over(packet)
        return []

    @property
    def has_passed_over(self) -> bool:
        """Whether there is more to read, or to decode, before what was."""
        return self._has_sought or self._frames.has_passed_over

    @property
    def has_missed(self) -> bool:
        """Whether something is missing that reading from the file's start may give."""
        is_late = self._has_sought and self._sound.begin > self._segment.begin + GAP
        return is_late or self._frames.has_missed

    def raw_clip(self, path: Path, frame_fit: FrameFit) -> RawClip:
        """What was read. Must be called while the container is open."""
        video = self._streams.video
        picked = self._frames.picked(self._segment)
        rate, channels = self._sound.source()
        pixel_aspect = float(video.sample_aspect_ratio or video.codec_context.sample_aspect_ratio or 1)
        crop = container_crop(path, self._container, video)
        width, height = shown_size(picked[0].width, picked[0].height, crop)
        is_transposed = display_orientation(picked[0])[0]
        fps = video.average_rate or video.guessed_rate
        return RawClip(
            segment=self._segment,
            runs=self._sound.runs(),
            frames=[picture(frame, pixel_aspect, frame_fit, crop) for frame in picked],
            frame_times=[self._frames.time_of(frame) for frame in picked],
            duration=self._located.duration,
            fps=float(fps) if fps else 0.0,
            width=height if is_transposed else width,
            height=width if is_transposed else height,
            sample_rate=rate,
            channels=channels,
        )


class Sound:
    """Decodes the audio packets of a segment to mono."""

    def __init__(self, stream: av.AudioStream, start: float, segment: Segment) -> None:
        self._codec, self._start = stream.codec_context, start
        self._time_base = stream.time_base or Fraction(1)
        self._tick = float(self._time_base)
        self._first = math.floor((segment.begin - _PREROLL + start) / self._time_base)
        self._beyond = math.ceil((segment.end + start) / self._time_base)
        self._runs: list[tuple[float, int, float, _Pieces]] = []  # time, rate, gain, sound
        self._pieces: _Pieces = []  # of the last run
        self._rate, self._gain = 0, 0.0  # of the last run
        self._next = 0.0  # time at which the last run ends
        self._source: tuple[int, int] | None = None  # rate, channels
        self._last_end = -math.inf
        self._errors = 0
        self.is_done = False

    @property
    def begin(self) -> float:
        """Seconds on the file's timeline at which the decoded sound begins."""
        return self._runs[0][0] if self._runs else math.inf

    @property
    def end(self) -> float:
        """Seconds on the file's timeline at which the last packet ends that was read."""
        return float(self._last_end * self._time_base) - self._start

    def source(self) -> tuple[int, int]:
        """Sample rate in Hz and number of channels, as decoded.

        Raises:
            ClipError: `decode_error`, `too_short`: there is no sound in the segment.
        """
        if self._source is not None:
            return self._source
        if self._errors:
            raise ClipError("decode_error", f"no sound could be decoded, {self._errors} packets are damaged")
        raise ClipError("too_short", "no sound in the segment")

    def runs(self) -> list[AudioRun]:
        """The sound, in runs without gaps."""
        return [
            AudioRun(time, np.concatenate(pieces) * np.float32(gain), rate) for time, rate, gain, pieces in self._runs
        ]

    def feed(self, packet: av.Packet) -> None:
        """Takes the next packet in file order."""
        time = timestamp(packet)
        if time is not None:
            end = time + (packet.duration or 0)
            if end > self._last_end:
                self._last_end = end
            if time >= self._beyond:
                self.is_done = True
            if end < self._first:
                return
        if not self.is_done:
            self._decode(packet)

    def finish(self) -> None:
        """No packet is to come: takes what the decoder still holds."""
        self._decode(None)

    def _decode(self, packet: av.Packet | None) -> None:
        try:
            frames = self._codec.decode(packet)
        except MemoryError:  # no damage: what a clip gives must not depend on the memory that there is
            raise
        except av.error.FFmpegError:
            self._errors += 1
            return
        for frame in frames:
            self._add(frame)

    def _add(self, frame: av.AudioFrame) -> None:
        samples, channels, gain = channel_sum(frame)
        rate, pts = frame.sample_rate, frame.pts
        time = self._next if pts is None else pts * self._tick - self._start
        if rate != self._rate or gain != self._gain or not -GAP < time - self._next < GAP:
            self._rate, self._gain, self._pieces, self._next = rate, gain, [], time
            self._runs.append((time, rate, gain, self._pieces))
        self._source = self._source or (rate, channels)
        self._pieces.append(samples)
        self._next += len(samples) / rate
