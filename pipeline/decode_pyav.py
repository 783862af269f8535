"""Decoding one segment of a file with PyAV: one open, one pass over the packets, for sound and frames together."""

import contextlib
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer

from pipeline.audio import GAP, AudioRun, channel_sum
from pipeline.clip_error import ClipError
from pipeline.frame import UPRIGHT, FrameFit, Orientation, finish, orientation, scaled_size
from pipeline.media_file import (
    MICROSECONDS,
    RawClip,
    demux,
    locate_in,
    may_leap,
    open_media,
    pick_streams,
    start_of,
    timeline_of,
    timestamp,
)
from pipeline.timeline import FRAME_TOLERANCE, ClipRequest, Located, Segment

_SEEK_FROM = 5.0  # seconds: reading over less costs less than a seek
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
    is_careful = False
    try:
        while True:
            with open_media(path, quick=not is_careful) as container:
                located = located or locate_in(path, container, request)
                reading = _Reading(container, located, is_careful=is_careful)
                reading.run()
                corrected = located.after_reading(request, reading.end, reading.timeline)
                if corrected is not None:
                    located = corrected
                elif reading.has_missed and not is_careful:
                    is_careful = True
                else:
                    return reading.raw_clip(frame_fit)
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise ClipError("decode_error", str(error)) from error


def picture(frame: av.VideoFrame, pixel_aspect: float, frame_fit: FrameFit) -> npt.NDArray[np.uint8]:
    """The stored picture of a decoded frame, uint8 [FRAME_SIZE, FRAME_SIZE, 3] RGB, in one pass of swscale."""
    size = scaled_size(frame.width, frame.height, pixel_aspect=pixel_aspect, frame_fit=frame_fit)
    return finish(scale(frame, size), display_orientation(frame))


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

    def __init__(self, container: InputContainer, located: Located, *, is_careful: bool) -> None:
        """`is_careful`: decode everything from the file's start, trusting no seek and no keyframe."""
        segment = located.segment
        self._container, self._located, self._segment = container, located, segment
        self._streams = pick_streams(container)
        self._start = start_of(container)
        self._may_seek = not (is_careful or located.has_jumped or may_leap(container))
        self._has_sought = False
        self.timeline = timeline_of(container)
        self.end = math.inf  # of the file, where it was read to its end
        self._sound = Sound(self._streams.audio, self._start, segment)
        self._frames = _FramePicker(self._streams.video, self._start, segment.targets, from_start=is_careful)

    def run(self) -> None:
        """Reads until sound and frames of the segment are decoded, and to the file's end where that may move it."""
        if self._segment.begin > _SEEK_FROM and self._may_seek:
            # A file without an index is read from its start, where it still stands.
            with contextlib.suppress(av.error.FFmpegError):
                time = self._segment.begin - _PREROLL + self._start
                self._container.seek(int(time * MICROSECONDS), backward=True)
                self._has_sought = True
                self.timeline.sought()
        sound, frames = self._sound, self._frames
        video_index = self._streams.video.index
        for packet in demux(self._container, self._streams.video, self._streams.audio, timeline=self.timeline):
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

    @property
    def has_missed(self) -> bool:
        """Whether something is missing that reading from the file's start may give."""
        is_late = self._has_sought and self._sound.begin > self._segment.begin + GAP
        return is_late or self._frames.has_missed or not self._frames.is_done

    def raw_clip(self, frame_fit: FrameFit) -> RawClip:
        """What was read. Must be called while the container is open."""
        video = self._streams.video
        picked = self._frames.picked(self._segment)
        rate, channels = self._sound.source()
        pixel_aspect = float(video.sample_aspect_ratio or video.codec_context.sample_aspect_ratio or 1)
        width, height = picked[0].width, picked[0].height
        is_transposed = display_orientation(picked[0])[0]
        fps = video.average_rate or video.guessed_rate
        return RawClip(
            segment=self._segment,
            runs=self._sound.runs(),
            frames=[picture(frame, pixel_aspect, frame_fit) for frame in picked],
            frame_times=[self._frames.time_of(frame) for frame in picked],
            duration=self._located.duration,
            fps=float(fps) if fps else 0.0,
            width=height if is_transposed else width,
            height=width if is_transposed else height,
            sample_rate=rate,
            channels=channels,
        )


class _FramePicker:
    """Takes, for each wanted time, the frame on display: the last one at or before it.

    Packets are kept, not decoded, until one is due later than the wanted time. A keyframe at or before the
    wanted time makes the packets before it superfluous. So no more is decoded than from the last keyframe on,
    without a seek, and the time of the wanted frame is known before any decoding.
    """

    def __init__(self, stream: av.VideoStream, start: float, targets: Sequence[float], *, from_start: bool) -> None:
        """`from_start`: use no keyframe but the first."""
        self._codec, self._from_start = stream.codec_context, from_start
        self._time_base, self._start = stream.time_base or Fraction(1), start
        self._targets = [math.floor((time + start + FRAME_TOLERANCE) / self._time_base) for time in targets]
        self._wanted = sorted(set(self._targets))
        self._taken: dict[int, av.VideoFrame] = {}
        self._pending: list[av.Packet] = []
        self._last: av.VideoFrame | None = None  # the last decoded one
        self._last_time, self._last_duration = -math.inf, 0  # of the packets so far
        self._announced: list[int] = []  # times of the frames in the packets so far
        self._shown: int | None = None  # of those, the time of the first wanted frame, once that is sure
        self._is_after_jump = False
        self._errors = 0
        self.has_missed = False  # a frame taken is not the one that the packets announced

    @property
    def is_done(self) -> bool:
        """Whether every wanted frame is found."""
        return not self._wanted

    @property
    def end(self) -> float:
        """Seconds on the file's timeline at which the last frame ends that a packet was read of."""
        return float((self._last_time + self._last_duration) * self._time_base) - self._start

    def time_of(self, frame: av.VideoFrame) -> float:
        """Seconds on the file's timeline."""
        return float((timestamp(frame) or 0) * self._time_base) - self._start

    def picked(self, segment: Segment) -> list[av.VideoFrame]:
        """The frame of each wanted time, in the order in which they were asked for.

        Raises:
            ClipError: `decode_error`, `too_short`.
        """
        frames = [self._taken.get(target) for target in self._targets]
        found = [frame for frame in frames if frame is not None and self.time_of(frame) <= segment.end]
        if len(found) == len(frames):
            return found
        if self._errors:
            raise ClipError("decode_error", f"no frame could be decoded, {self._errors} packets are damaged")
        raise ClipError("too_short", f"no frame between {segment.begin:.3f} and {segment.end:.3f} s of the file")

    def feed(self, packet: av.Packet) -> None:
        """Takes the next packet in file order."""
        pts = packet.pts
        time = pts if pts is not None else packet.dts
        if time is not None and time >= self._last_time:
            self._last_time, self._last_duration = time, packet.duration or 0
        if not self._wanted:
            return
        if pts is not None and not packet.is_discard:
            self._announced.append(pts)
        if packet.is_keyframe and time is not None and time <= self._wanted[0] and not self._from_start:
            self._pending.clear()
            self._is_after_jump = True
        self._pending.append(packet)
        due = packet.dts if packet.dts is not None else pts
        if due is None or due > self._wanted[0]:
            self._decode_pending()

    def finish(self) -> None:
        """No packet is to come: the last frame stays on display."""
        if self._wanted:
            self._decode_pending()
        if self._wanted:
            self._decode(None)
        while self._wanted and self._last is not None:
            self._take(self._last)

    def _decode_pending(self) -> None:
        if self._is_after_jump:
            self._codec.flush_buffers()
            self._last, self._is_after_jump = None, False
        # Every packet up to the wanted time is here, so the wanted frame's own time is known. In H.264, frames
        # before it that no other frame is predicted from (with B-frames: half of them) need no decoding.
        shown = self._shown = self._announced_for(self._wanted[0])
        may_skip = self._codec.name == "h264" and not self._from_start and shown is not None
        for packet in self._pending:
            if may_skip:
                is_earlier = shown is not None and packet.pts is not None and packet.pts < shown
                self._codec.skip_frame = "NONREF" if is_earlier else "DEFAULT"
            self._decode(packet)
            if not self._wanted:
                break
        self._pending.clear()

    def _decode(self, packet: av.Packet | None) -> None:
        try:
            frames = self._codec.decode(packet)
        except MemoryError:  # no damage: what a clip gives must not depend on the memory that there is
            raise
        except av.error.FFmpegError:
            self._errors += 1
            return
        for frame in frames:
            time = timestamp(frame)
            while self._wanted and time is not None and time > self._wanted[0]:
                self._take(self._last or frame)
            if self._wanted and self._shown is not None and frame.pts == self._shown:
                self._take(frame)
            self._last = frame

    def _take(self, frame: av.VideoFrame) -> None:
        # Between a keyframe and the wanted frame, codecs may drop frames that refer to others before the keyframe.
        wanted = self._wanted.pop(0)
        self.has_missed = self.has_missed or self._announced_for(wanted) not in (None, frame.pts)
        self._taken[wanted] = frame
        self._shown = None

    def _announced_for(self, wanted: int) -> int | None:
        """The time of the frame on display at `wanted`, as far as packets say it that were read."""
        return max((time for time in self._announced if time <= wanted), default=None)


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
