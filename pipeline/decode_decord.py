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
from collections.abc import Iterator
from dataclasses import dataclass
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
from pipeline.decode_pyav import display_orientation, picture, scale
from pipeline.frame import UPRIGHT, FrameFit, cut, finish, scaled_size, shown_size
from pipeline.frame_picker import LEADS, FramePicker
from pipeline.media_file import (
    RawClip,
    Streams,
    carries,
    container_crop,
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
from shards_spec.sample import FRAME_SIZE

_TIMESTAMP_TOLERANCE = 5e-3  # seconds: decord keeps timestamps in float32
_PICTURE_TOLERANCE = 8.0  # levels, on average over squares, in which two ways of interpolating chroma are alike
_SQUARE = 16  # pixels
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
    scan = _scan(path, request, frame_fit)
    segment, video, sound = scan.segment, scan.video, scan.sound
    # Imported late: it loads an FFmpeg of its own, which processes that use PyAV alone can do without.
    import decord

    name = str(path.absolute())  # FFmpeg takes a relative "a:b.mp4" for a protocol
    decord.logging.set_level(decord.logging.QUIET)
    try:
        runs = _runs(decord.AudioReader(name, sample_rate=sound.rate, mono=True), sound)
        pictures = _pictures(decord.VideoReader(name, num_threads=1), scan, frame_fit)
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError, StopIteration) as error:
        # Without the clock and the place in its source: equal failures have equal details.
        if _NO_MEMORY.search(str(error)):
            raise MemoryError from error
        if _NO_DESCRIPTOR in str(error):
            raise OSError(errno.EMFILE, _NO_DESCRIPTOR, str(path)) from error
        message = re.sub(r"^(\[[\d:]+\] \S+: )+", "", str(error).partition("\n")[0]) or repr(error)
        raise ClipError("decode_error", f"decord: {message}") from error
    width, height = shown_size(video.width, video.height, video.crop)
    is_transposed = video.orientation[0]
    return RawClip(
        segment=segment,
        runs=runs,
        frames=pictures,
        frame_times=[taken.time for taken in scan.taken],
        duration=scan.duration,
        fps=video.fps,
        width=height if is_transposed else width,
        height=width if is_transposed else height,
        sample_rate=sound.rate,
        channels=sound.channels,
    )


class _Video:
    """What the packets of the video stream say."""

    def __init__(self, path: Path, container: InputContainer, stream: av.VideoStream) -> None:
        self.crop = container_crop(path, container, stream)
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
        self._changes_headers = False  # decord's decoder learns of new ones only if it passes them

    def feed(self, packet: av.Packet) -> None:
        """Takes the next packet in file order."""
        time = timestamp(packet)
        if time is None:
            raise ClipError("decode_error", "decord miscounts the frames of a file whose packets lack timestamps")
        if packet.is_keyframe:
            self.keys.append(len(self.times))
        self.times.append(time)
        self._changes_headers |= carries(packet, "new_extradata")

    def is_past(self, packet: av.Packet, time: float) -> bool:
        """Whether no frame of a later packet is shown at `time` or before."""
        return packet.dts is not None and packet.dts * self.time_base > time + self.start + FRAME_TOLERANCE

    def entry(self, shown: list[int], index: int, trusted: int | None) -> int:
        """The keyframe from which decord is to count to frame `index` of `shown`.

        Decord seeks to the last keyframe that has at most `index` frames before it in the file. That is the right
        one where as many frames are shown before it, no later packet is shown earlier, and PyAV could begin there
        or later: at the frame shown at `trusted`.
        """
        if trusted is None or self._changes_headers:
            return 0
        last = self.times.index(trusted)
        closed = [k for k in self.keys if k <= min(index, last) and shown[k] == self.times[k] == min(self.times[k:])]
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
        if self.begin is None or time >= self._looked_at + _LOOK_EVERY or carries(packet, "new_extradata"):
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


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """A frame that decord is to give."""

    index: int  # in order of display
    entry: int  # position in the file of the keyframe from which to count to it
    time: float  # seconds on the file's timeline
    picture: npt.NDArray[np.uint8]  # what PyAV makes of it


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What PyAV says of the file: its packets, and which frames of it are the right ones, and clean."""

    segment: Segment
    duration: float
    video: _Video
    sound: _Sound
    taken: list[_Taken]


def _scan(path: Path, request: ClipRequest, frame_fit: FrameFit) -> _Scan:
    """Reads the packets of the segment and before it, and decodes the frames that are wanted.

    Raises:
        ClipError: as `decode`.
    """
    located: Located | None = None
    leads = iter(LEADS)
    lead = next(leads)
    try:
        while True:
            with open_media(path) as container:
                streams = pick_streams(container)
                _check_format(container)
                located = located or locate_in(path, container, request)
                segment, timeline = located.segment, timeline_of(container)
                video, sound = _Video(path, container, streams.video), _Sound(container, streams.audio)
                frames = FramePicker(streams.video, start_of(container), segment.targets, lead=lead)
                packets = demux(container, streams.video, streams.audio, timeline=timeline)
                end = _read(packets, streams, located, (video, sound, frames))
                _check_timeline(timeline, located)
                corrected = located.after_reading(request, end, timeline)
                if corrected is not None:
                    located = corrected
                elif frames.has_missed and frames.has_passed_over:
                    lead = next(leads)
                else:
                    _check(video, sound)
                    taken = _taken(video, frames, segment, frame_fit)
                    return _Scan(segment=segment, duration=located.duration, video=video, sound=sound, taken=taken)
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise ClipError("decode_error", str(error)) from error


def _check_format(container: InputContainer) -> None:
    kind = container.format.name
    if kind not in DECORD_FORMATS:
        raise ClipError("decode_error", f"decord is not trusted with {kind} files: use another decoder")


def _check_timeline(timeline: Timeline, located: Located) -> None:
    if timeline.has_jumped or located.has_jumped:
        raise ClipError("decode_error", "decord does not run on where timestamps begin anew: use another decoder")


def _read(
    packets: Iterator[av.Packet], streams: Streams, located: Located, into: tuple[_Video, _Sound, FramePicker]
) -> float:
    """Reads packets until those of the segment are known; returns the file's end where it was reached."""
    video, sound, frames = into
    segment = located.segment
    last = max(segment.targets)
    is_video_done = is_sound_done = False
    end = math.inf
    video_index = streams.video.index
    for packet in packets:
        if packet.stream_index == video_index:
            video.feed(packet)
            frames.feed(packet)
            is_video_done = is_video_done or video.is_past(packet, last)
        else:
            sound.feed(packet)
            is_sound_done = is_sound_done or sound.end > segment.end
        if is_video_done and is_sound_done and frames.is_done and located.is_sure:
            break
    else:
        end = max(frames.end, sound.end)
    frames.finish()
    return end


def _check(video: _Video, sound: _Sound) -> None:
    """Whether there is what a sample needs, and decord can give it.

    Raises:
        ClipError: `decode_error`, `too_short`.
    """
    if sound.begin is None:
        raise ClipError("decode_error" if video.times else "too_short", "no sound in the file")
    if sound.channels > 2:
        raise ClipError("decode_error", f"decord cannot mix {sound.channels} channels evenly: use another decoder")


def _taken(video: _Video, frames: FramePicker, segment: Segment, frame_fit: FrameFit) -> list[_Taken]:
    """The frame of each of the segment's targets, as PyAV gives it, and where decord finds it."""
    picked = frames.picked(segment)
    video.width, video.height = picked[0].width, picked[0].height
    video.orientation = display_orientation(picked[0])
    shown = sorted(video.times)
    taken = []
    for frame, trusted in zip(picked, frames.entries(), strict=True):
        time = timestamp(frame)
        index = bisect.bisect_left(shown, time) if time is not None else len(shown)
        if index == len(shown) or shown[index] != time:
            raise ClipError("decode_error", "decord miscounts the frames of a file whose packets lack timestamps")
        made = picture(frame, video.pixel_aspect, frame_fit, video.crop)
        entry = video.entry(shown, index, trusted)
        taken.append(_Taken(index=index, entry=entry, time=frames.time_of(frame), picture=made))
    return taken


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


def _pictures(reader: Any, scan: _Scan, frame_fit: FrameFit) -> list[npt.NDArray[np.uint8]]:
    """The pictures of the frames taken, in the order in which they are wanted."""
    video = scan.video
    pictures: dict[int, npt.NDArray[np.uint8]] = {}
    reader.next()  # what the first packet says, its decoder may need after a seek
    at = 1  # the frame that decord gives next
    for taken in sorted(scan.taken, key=lambda taken: taken.index):
        if taken.index in pictures:
            continue
        theirs = float(reader.get_frame_timestamp(taken.index)[0])
        if not abs(theirs - (taken.time + video.start - video.first)) < _TIMESTAMP_TOLERANCE:
            raise ClipError("decode_error", f"decord counts frames otherwise: frame {taken.index} at {theirs} s")
        made = _picture(_frame(reader, taken, at), video, frame_fit)
        at = taken.index + 1
        if np.abs(_coarse(made) - _coarse(taken.picture)).mean() > _PICTURE_TOLERANCE:
            raise ClipError("decode_error", f"decord gives another picture than PyAV at {taken.time:.3f} s")
        pictures[taken.index] = made
    return [pictures[taken.index] for taken in scan.taken]


def _coarse(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The means of squares of [FRAME_SIZE, FRAME_SIZE, 3]."""
    count = FRAME_SIZE // _SQUARE
    means: npt.NDArray[np.float64] = image.reshape(count, _SQUARE, count, _SQUARE, 3).mean(axis=(1, 3))
    return means


def _frame(reader: Any, taken: _Taken, at: int) -> npt.NDArray[np.uint8]:
    """A frame as decord returns it, uint8 [H, W, 3], where frame `at` would be the next one that it gives."""
    if taken.entry == max((key for key in reader.get_key_indices() if key <= taken.index), default=0):
        reader.seek_accurate(taken.index)  # decord begins at the same keyframe, or where it is if that is later
    else:
        if not taken.entry <= at <= taken.index:
            reader.seek_accurate(taken.entry)
            at = taken.entry
        for _ in range(taken.index - at):
            reader.next()
    frame: npt.NDArray[np.uint8] = reader.next().asnumpy()
    return frame


def _picture(image: npt.NDArray[np.uint8], video: _Video, frame_fit: FrameFit) -> npt.NDArray[np.uint8]:
    """The stored picture of what decord returns, uint8 [H, W, 3]: in MP4 it is turned upright already."""
    transpose, mirror, flip = video.orientation
    if video.is_mp4 and transpose ^ mirror ^ flip:
        raise ClipError("decode_error", "decord does not mirror pictures")
    shown = shown_size(video.width, video.height, video.crop)
    size = scaled_size(*shown, pixel_aspect=video.pixel_aspect, frame_fit=frame_fit)
    expected = (video.height, video.width)
    how = video.orientation
    if video.is_mp4:
        size, expected = (size[::-1], expected[::-1]) if transpose else (size, expected)
        how = UPRIGHT
    if image.shape != (*expected, 3):
        raise ClipError("decode_error", f"decord returns a picture of {image.shape}, expected {(*expected, 3)}")
    return finish(scale(av.VideoFrame.from_ndarray(cut(image, video.crop), format="rgb24"), size), how)
