"""Where a segment of the original video lies in a file, and at which times of the file frames are taken.

All times are seconds on the file's own timeline, 0 = the start of the container.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.clip_error import ClipError
from shards_spec.sample import CLIP_SECONDS

CLEARLY_LONGER = 2.0  # a file that exceeds the segment by more is a whole video, or names its own start
REACHES_END = 1.0  # a whole video may end this much before the segment does
CUT_OFF = 0.5  # a file that ends so much before its header says was cut off
WENT_BACK = 0.1  # packets of a stream that go back by more begin anew: FFmpeg's bound, as the next one
LEAP = 10.0  # packets that are so much later than all before them begin anew, where clocks may be set anew
HELD_BACK = 1.0  # so far from a jump a packet may stand behind it that belongs before it
FrameTimes = Literal["middles", "starts"]  # of the equal parts of the segment
_WITHIN: dict[FrameTimes, float] = {"middles": 0.5, "starts": 0.0}  # a part
FRAME_TOLERANCE = 1e-4  # a frame this much after a wanted time counts as at it: timestamps are rounded


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """What is asked of one file."""

    start: float | None  # segment in the original video; None: the file is a clip of its own
    end: float | None
    named_start: float | None  # the start that the file's name states
    frames: int  # evenly spaced frames beside the middle one, where more than 1
    frame_times: FrameTimes = "middles"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The segment's place in the file. `end` is where the segment ends or the file, whichever is first."""

    begin: float
    end: float
    frames: int
    frame_times: FrameTimes = "middles"

    @property
    def targets(self) -> list[float]:
        """Times of the frames to take: the middle, then `frames` evenly spaced ones where that is more than 1."""
        span, within = self.end - self.begin, _WITHIN[self.frame_times]
        extra = [self.begin + (i + within) / self.frames * span for i in range(self.frames)] if self.frames > 1 else []
        return [self.begin + span / 2, *extra]


def locate(request: ClipRequest, duration: float) -> Segment:
    """Where the requested segment lies in a file of `duration` seconds.

    A name that states a start decides. Otherwise a file that is clearly longer than the segment and reaches to
    its end is the whole video; any other file is a clip that begins with the segment.

    Raises:
        ClipError: `bad_segment`, the segment is empty; `too_short`, the file ends before it.
    """
    begin, length = _begin(request, duration)
    if begin >= duration:
        raise ClipError("too_short", f"the segment begins at {begin:.3f} s of the file, which lasts {duration:.3f} s")
    return Segment(
        begin=begin, end=min(begin + length, duration), frames=request.frames, frame_times=request.frame_times
    )


def reaches(request: ClipRequest, duration: float) -> bool:
    """Whether a file of `duration` seconds holds anything of the requested segment.

    Raises:
        ClipError: `bad_segment`.
    """
    return _begin(request, duration)[0] < duration


def _begin(request: ClipRequest, duration: float) -> tuple[float, float]:
    """Second of the file at which the segment begins, and its length."""
    start = 0.0 if request.start is None else request.start
    end = start + CLIP_SECONDS if request.end is None else request.end
    length = end - start
    if not length > 0:
        raise ClipError("bad_segment", f"segment from {start} to {end} s is empty")
    if request.start is None:
        return 0.0, length
    if request.named_start is not None:
        return max(0.0, start - request.named_start), length
    is_whole_video = duration > length + CLEARLY_LONGER and duration >= end - REACHES_END
    return (start if is_whole_video else 0.0), length


@dataclass(frozen=True, kw_only=True)
class Located:
    """A segment in a file, by what is known of the file so far."""

    segment: Segment
    duration: float  # of the file, seconds
    is_measured: bool  # `duration` is that of all packets, not the header's
    is_sure: bool  # a file that is longer than `duration` would have the segment at the same place
    has_jumped: bool = False  # timestamps begin anew somewhere: seeking by time leads astray

    def after_reading(self, request: ClipRequest, end: float, timeline: "Timeline") -> "Located | None":
        """Where the segment lies by what was read of the file, None where that is what was thought before.

        What is read counts, not what the header promised: too much of a file that was cut off, too little of one
        whose writer never came to the end, anything of one whose timestamps begin anew.

        Args:
            end: of the file, inf where it was not read to its end.
            timeline: of the packets that were read.

        Raises:
            ClipError: `too_short`, the file holds nothing of the segment.
        """
        if end == math.inf:
            return None
        if not self.is_measured and (timeline.has_jumped or timeline.unpromised > CUT_OFF):
            segment = locate(request, end)
        elif end < self.segment.end - CUT_OFF:
            if end <= self.segment.begin:
                begin = self.segment.begin
                raise ClipError("too_short", f"the file is cut off at {end:.3f} s, the segment begins at {begin:.3f} s")
            segment = replace(self.segment, end=end)  # the middle is that of what exists
        else:
            return None
        has_jumped = self.has_jumped or timeline.has_jumped
        return Located(segment=segment, duration=end, is_measured=True, is_sure=True, has_jumped=has_jumped)


class Timeline:
    """One timeline for the packets of a file, also where their timestamps begin anew.

    They do in files joined by `cat`, and in recordings of a broadcast whose clock was set. Players run on: so does
    FFmpeg's program, with these bounds. What comes first after a jump follows the latest end before it, in all
    streams together, so that sound and pictures of one part stay together.

    Attributes:
        has_jumped: whether timestamps began anew.
    """

    def __init__(self, *, start: float, promised: float, may_leap: bool) -> None:
        """
        Args:
            start: the timestamp, in seconds, that is 0 on the file's timeline.
            promised: seconds that the header says the file lasts; inf where it is silent.
            may_leap: whether the format's clock may be set anew, so that a leap ahead is no gap.
        """
        self._promised, self._may_leap = start + promised, may_leap
        self._shift = 0.0  # seconds, since the last jump
        self._shifts: dict[int, float] = {}  # of the last packet, by stream
        self._last: dict[int, float] = {}  # its time, by stream
        self._end = math.inf  # of all packets; inf before the first, which cannot leap
        self._joint = math.inf  # where the last jump was
        self._beyond: dict[int, float] = {}  # seconds of content after the promised end, by stream
        self.has_jumped = False

    @property
    def unpromised(self) -> float:
        """Seconds of content, of the stream that has most, that begins after the file should have ended."""
        return max(self._beyond.values(), default=0.0)

    def shift(self, stream: int, time: float | None, duration: float) -> float:
        """Takes the next packet in file order.

        Args:
            time: when it is to be decoded, as its container says, seconds; None where it does not.
            duration: seconds that it lasts.

        Returns:
            Seconds to add to its times.
        """
        if time is None:
            return self._shifts.get(stream, self._shift)
        shift = self._shifts[stream] if self.has_jumped and self._is_late(stream, time) else self._shift
        now = time + shift
        leaps = now > self._end + LEAP
        if leaps and not self._may_leap:
            return shift  # a long gap, or a damaged timestamp: nothing follows from it
        if leaps or now < self._last.get(stream, -math.inf) - WENT_BACK:
            self._joint = now = self._end
            self._shift = shift = self._end - time
            self.has_jumped = True
        self._shifts[stream], self._last[stream] = shift, now
        self._end = now + duration if self._end == math.inf else max(self._end, now + duration)
        if now > self._promised:
            self._beyond[stream] = self._beyond.get(stream, 0.0) + duration
        return shift

    def sought(self) -> None:
        """The next packet is one of another place in the file."""
        self._last.clear()
        self._shifts.clear()
        self._end = math.inf

    def _is_late(self, stream: int, time: float) -> bool:
        """Whether a packet belongs before the jump that another stream has made: containers hold some back."""
        if self._shifts.get(stream, self._shift) == self._shift:
            return False
        then = time + self._shifts[stream]
        return then >= self._last[stream] - WENT_BACK and abs(then - self._joint) < HELD_BACK
