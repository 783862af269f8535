"""Decoding one segment of a file with decord 0.6.

decord decodes pictures and sound. What it does not tell (the container's start, exact timestamps, rotation outside
of MP4, rate and channels, where the sound begins) comes from the packets' headers and the first frame of each
stream, read with PyAV. What it is known to get wrong is put right here or refused, so that no clip differs
silently from the one that PyAV gives:

- It miscounts after seeking to the keyframe of an open group of pictures, and in files whose packets lack
  timestamps. It is sent to other keyframes and counts on from there; where its timestamps differ, it is refused.
- Beyond the first channel it returns memory as it found it. So it is asked for its own mono, which of two channels
  is their mean times sqrt(2); of more it drops and weighs some, and is refused.
- It may take another of several audio tracks: its first samples are compared.
- It does not follow where timestamps begin anew, or where the sound's rate or channels change: there it is refused.
- It opens what a playlist names: it gets no file of which PyAV did not find the kind in its first bytes.
- It keeps the samples that a codec in Matroska needs to start up, in MP4 it drops them as everybody does.
"""

import bisect
import errno
import math
import os
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer

from pipeline.audio import GAP, AudioRun, channel_sum
from pipeline.clip_error import ClipError
from pipeline.containers import DECORD_FORMATS
from pipeline.decode_pyav import display_orientation, scale
from pipeline.frame import UPRIGHT, FrameFit, finish, scaled_size
from pipeline.media_file import (
    RawClip,
    Streams,
    demux,
    locate_in,
    open_media,
    passing_over_damage,
    pick_streams,
    start_of,
    timeline_of,
    timestamp,
)
from pipeline.timeline import FRAME_TOLERANCE, ClipRequest, Located, Segment, Timeline

_TIMESTAMP_TOLERANCE = 5e-3  # seconds: decord keeps timestamps in float32
_NO_MEMORY = re.compile("bad_alloc|[Cc]annot allocate memory")
_NO_DESCRIPTOR = os.strerror(errno.EMFILE)
_LOOK_EVERY = 1.0  # seconds of sound: rate and channels may change anywhere, and only decoded frames tell
_SAMPLE_TOLERANCE = 1e-3  # the same frame of sound from two versions of FFmpeg


def decode(path: Path, *, request: ClipRequest, frame_fit: FrameFit) -> RawClip:
    """The sound and the frames of the requested segment.

    Raises:
        ClipError: any reason of a file that gives no sample; `decode_error` too where decord cannot give what
            PyAV gives.
    """
    try:
        located, video, sound = _scanned(path, request)
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise ClipError("decode_error", str(error)) from error
    segment = located.segment
    # Imported late: it loads an FFmpeg of its own, which processes that use PyAV alone can do without.
    import decord

    name = str(path.absolute())  # FFmpeg takes a relative "a:b.mp4" for a protocol
    decord.logging.set_level(decord.logging.QUIET)
    try:
        runs = _runs(decord.AudioReader(name, sample_rate=sound.rate, mono=True), sound)
        pictures, times = _pictures(decord.VideoReader(name, num_threads=1), video, segment, frame_fit)
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError, StopIteration) as error:
        # Without the clock and the place in its source: equal failures have equal details.
        if _NO_MEMORY.search(str(error)):
            raise MemoryError from error
        if _NO_DESCRIPTOR in str(error):
            raise OSError(errno.EMFILE, _NO_DESCRIPTOR, str(path)) from error
        message = re.sub(r"^(\[[\d:]+\] \S+: )+", "", str(error).partition("\n")[0]) or repr(error)
        raise ClipError("decode_error", f"decord: {message}") from error
    is_transposed = video.orientation[0]
    return RawClip(
        segment=segment,
        runs=runs,
        frames=pictures,
        frame_times=times,
        duration=located.duration,
        fps=video.fps,
        width=video.height if is_transposed else video.width,
        height=video.width if is_transposed else video.height,
        sample_rate=sound.rate,
        channels=sound.channels,
    )


class _Video:
    """What the packets of the video stream say."""

    def __init__(self, container: InputContainer, stream: av.VideoStream) -> None:
        self._codec = stream.codec_context
        self.time_base = stream.time_base or Fraction(1)
        self.start = start_of(container)
        self.first = float((stream.start_time or 0) * self.time_base)  # where decord begins to count time
        self.is_mp4 = "mp4" in container.format.name
        self.pixel_aspect = float(stream.sample_aspect_ratio or 1)
        fps = stream.average_rate or stream.guessed_rate
        self.fps = float(fps) if fps else 0.0
        self.width = self.height = 0  # as stored
        self.orientation = UPRIGHT
        self.times: list[int] = []  # in the order of the file
        self.keys: list[int] = []  # positions of keyframes in `times`
        self.end = -math.inf

    def feed(self, packet: av.Packet) -> None:
        """Takes the next packet in file order."""
        time = timestamp(packet)
        if time is None:
            raise ClipError("decode_error", "decord miscounts the frames of a file whose packets lack timestamps")
        if packet.is_keyframe:
            self.keys.append(len(self.times))
        self.times.append(time)
        self.end = max(self.end, float((time + (packet.duration or 0)) * self.time_base) - self.start)
        if not self.width:
            with passing_over_damage():
                for frame in self._codec.decode(packet):
                    self.width, self.height = frame.width, frame.height
                    self.orientation = display_orientation(frame)

    def is_past(self, packet: av.Packet, time: float) -> bool:
        """Whether no frame of a later packet is shown at `time` or before."""
        return packet.dts is not None and packet.dts * self.time_base > time + self.start + FRAME_TOLERANCE

    def entry(self, shown: list[int], index: int) -> int | None:
        """The keyframe from which to count to frame `index` of `shown`; None where decord finds the right one itself.

        Decord seeks to the last keyframe that has at most `index` frames before it in the file. That is the right
        one where as many frames are shown before it, and no later packet is shown earlier.
        """
        earlier = [key for key in self.keys if key <= index]
        closed = [key for key in earlier if shown[key] == self.times[key] == min(self.times[key:])]
        if closed and closed[-1] == earlier[-1]:
            return None
        return closed[-1] if closed else 0


class _Sound:
    """What the packets of the audio stream say. Times are seconds on the file's timeline."""

    def __init__(self, container: InputContainer, stream: av.AudioStream) -> None:
        self._codec = stream.codec_context
        self._time_base = stream.time_base or Fraction(1)
        self._start = start_of(container)
        self._is_matroska = "matroska" in container.format.name
        self._first: float | None = None  # time of the first packet
        self._content = 0.0  # seconds of sound in the packets so far
        self._looked_at = -math.inf  # time of the last packet that was decoded here
        self.begin: float | None = None  # time of the first sample
        self.rate = self.channels = 0
        self.opening = np.zeros(0, np.float32)  # the first samples
        self.start_up = 0  # samples that decord gives before it
        self.jumps: list[tuple[float, float]] = []  # seconds of sound before a gap, time after it
        self.end = -math.inf

    def feed(self, packet: av.Packet) -> None:
        """Takes the next packet in file order."""
        ticks = timestamp(packet)
        time = self.end if ticks is None else float(ticks * self._time_base) - self._start
        if self._first is None:
            self._first = time
            if self._is_matroska and packet.has_sidedata("skip_samples"):
                side_data: Any = packet.get_sidedata("skip_samples")
                self.start_up = int.from_bytes(bytes(side_data)[:4], "little")
        elif abs(time - self.end) > GAP:
            self.jumps.append((self._content, time))
        duration = float((packet.duration or 0) * self._time_base)
        self._content += duration
        self.end = time + duration
        if self.begin is None or time >= self._looked_at + _LOOK_EVERY or packet.has_sidedata("new_extradata"):
            with passing_over_damage():
                for frame in self._codec.decode(packet)[:1]:
                    self._look_at(frame, time)

    def _look_at(self, frame: av.AudioFrame, time: float) -> None:
        """Takes a frame of the packet of `time`: the first one, and now and then one to see whether it is as the first.

        Raises:
            ClipError: `decode_error`, it is not.
        """
        self._looked_at = time
        if self.begin is None:
            self.begin = time if frame.pts is None else float(frame.pts * self._time_base) - self._start
            total, self.channels, gain = channel_sum(frame)
            self.opening = total * np.float32(gain)
            self.rate = frame.sample_rate
        elif (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
            told = f"{frame.sample_rate} Hz, {frame.layout.nb_channels} channels after {self.rate} Hz, {self.channels}"
            raise ClipError("decode_error", f"decord does not follow sound that changes ({told}): use another decoder")

    def cuts(self) -> list[tuple[int, float]]:
        """Where runs without gaps begin: sample as decord counts after `start_up`, time."""
        assert self.begin is not None and self._first is not None
        dropped = self.begin - self._first  # in seconds, at the start
        later = [(round((content - dropped) * self.rate), time) for content, time in self.jumps]
        return [(0, self.begin), *later]


def _scanned(path: Path, request: ClipRequest) -> tuple[Located, _Video, _Sound]:
    """Where the segment lies, and what the packets say up to its end."""
    located: Located | None = None
    while True:
        with open_media(path) as container:
            streams = pick_streams(container)
            if container.format.name not in DECORD_FORMATS:
                kind = container.format.name
                raise ClipError("decode_error", f"decord is not trusted with {kind} files: use another decoder")
            located = located or locate_in(path, container, request)
            timeline = timeline_of(container)
            video, sound, end = _scan(container, streams, located, timeline)
        if timeline.has_jumped or located.has_jumped:
            raise ClipError("decode_error", "decord does not run on where timestamps begin anew: use another decoder")
        corrected = located.after_reading(request, end, timeline)
        if corrected is None:
            return located, video, sound
        located = corrected


def _scan(
    container: InputContainer, streams: Streams, located: Located, timeline: Timeline
) -> tuple[_Video, _Sound, float]:
    """Reads packets until those of the segment are known; the third value is the file's end where it was reached."""
    video, sound = _Video(container, streams.video), _Sound(container, streams.audio)
    segment = located.segment
    last = max(segment.targets)
    is_video_done = is_sound_done = False
    end = math.inf
    video_index = streams.video.index
    for packet in demux(container, streams.video, streams.audio, timeline=timeline):
        if packet.stream_index == video_index:
            video.feed(packet)
            is_video_done = is_video_done or video.is_past(packet, last)
        else:
            sound.feed(packet)
            is_sound_done = is_sound_done or sound.end > segment.end
        if is_video_done and is_sound_done and located.is_sure:
            break
    else:
        end = max(video.end, sound.end)
    if not video.width or sound.begin is None:
        missing = "frame" if not video.width else "sound"
        raise ClipError("decode_error" if video.times else "too_short", f"no {missing} in the file")
    if sound.channels > 2:
        raise ClipError("decode_error", f"decord cannot mix {sound.channels} channels evenly: use another decoder")
    return video, sound, end


def _runs(reader: Any, sound: _Sound) -> list[AudioRun]:
    """The sound of the file from decord's mono."""
    # Its public access turns every sample into a Python integer on the way; this is the array behind it.
    samples: npt.NDArray[np.float32] = reader._array[0][sound.start_up :]
    if sound.channels == 2:
        samples = samples * np.float32(math.sqrt(0.5))
    opening = samples[: len(sound.opening)]
    if len(opening) < len(sound.opening) or np.abs(opening - sound.opening).max() > _SAMPLE_TOLERANCE:
        raise ClipError("decode_error", "decord takes another audio track, or begins elsewhere in it")
    cuts = sound.cuts()
    ends = [first for first, _ in cuts[1:]] + [len(samples)]
    return [AudioRun(time, samples[first:end], sound.rate) for (first, time), end in zip(cuts, ends, strict=True)]


def _pictures(
    reader: Any, video: _Video, segment: Segment, frame_fit: FrameFit
) -> tuple[list[npt.NDArray[np.uint8]], list[float]]:
    """The frame of each of the segment's targets, and its time."""
    shown = sorted(video.times)
    pictures, times = [], []
    for target in segment.targets:
        limit = math.floor((target + video.start + FRAME_TOLERANCE) / video.time_base)
        index = max(0, bisect.bisect_right(shown, limit) - 1)
        index = bisect.bisect_left(shown, shown[index])
        time = float(shown[index] * video.time_base) - video.start
        if time > segment.end:
            raise ClipError("too_short", f"no frame between {segment.begin:.3f} and {segment.end:.3f} s of the file")
        theirs = float(reader.get_frame_timestamp(index)[0])
        if not abs(theirs - (time + video.start - video.first)) < _TIMESTAMP_TOLERANCE:
            raise ClipError("decode_error", f"decord counts frames otherwise: frame {index} at {theirs} s")
        pictures.append(_picture(_frame(reader, video.entry(shown, index), index), video, frame_fit))
        times.append(time)
    return pictures, times


def _frame(reader: Any, entry: int | None, index: int) -> npt.NDArray[np.uint8]:
    """Frame `index` as decord returns it, uint8 [H, W, 3], counted from `entry` where that is given."""
    reader.seek_accurate(index if entry is None else entry)
    for _ in range(index - entry if entry is not None else 0):
        reader.next()
    frame: npt.NDArray[np.uint8] = reader.next().asnumpy()
    return frame


def _picture(image: npt.NDArray[np.uint8], video: _Video, frame_fit: FrameFit) -> npt.NDArray[np.uint8]:
    """The stored picture of what decord returns, uint8 [H, W, 3]: in MP4 it is turned upright already."""
    transpose, mirror, flip = video.orientation
    if video.is_mp4 and transpose ^ mirror ^ flip:
        raise ClipError("decode_error", "decord does not mirror pictures")
    size = scaled_size(video.width, video.height, pixel_aspect=video.pixel_aspect, frame_fit=frame_fit)
    expected = (video.height, video.width)
    how = video.orientation
    if video.is_mp4:
        size, expected = (size[::-1], expected[::-1]) if transpose else (size, expected)
        how = UPRIGHT
    if image.shape != (*expected, 3):
        raise ClipError("decode_error", f"decord returns a picture of {image.shape}, expected {(*expected, 3)}")
    return finish(scale(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"), size), how)
