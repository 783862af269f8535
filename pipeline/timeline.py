"""Where a segment of the original video lies in a file, and at which times of the file frames are taken.

All times are seconds on the file's own timeline, 0 = the start of the container.
"""

from dataclasses import dataclass, replace

from pipeline.clip_error import ClipError
from shards_spec.sample import CLIP_SECONDS

CLEARLY_LONGER = 2.0  # a file that exceeds the segment by more is a whole video, or names its own start
REACHES_END = 1.0  # a whole video may end this much before the segment does
CUT_OFF = 0.5  # a file that ends so much before its header says was cut off
FRAME_TOLERANCE = 1e-4  # a frame this much after a wanted time counts as at it: timestamps are rounded


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """What is asked of one file."""

    start: float | None  # segment in the original video; None: the file is a clip of its own
    end: float | None
    named_start: float | None  # the start that the file's name states
    frames: int  # evenly spaced frames beside the middle one, where more than 1


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The segment's place in the file. `end` is where the segment ends or the file, whichever is first."""

    begin: float
    end: float
    frames: int

    @property
    def targets(self) -> list[float]:
        """Times of the frames to take: the middle, then `frames` evenly spaced ones where that is more than 1."""
        span = self.end - self.begin
        extra = [self.begin + (i + 0.5) / self.frames * span for i in range(self.frames)] if self.frames > 1 else []
        return [self.begin + span / 2, *extra]


def locate(request: ClipRequest, duration: float) -> Segment:
    """Where the requested segment lies in a file of `duration` seconds.

    A name that states a start decides. Otherwise a file that is clearly longer than the segment and reaches to
    its end is the whole video; any other file is a clip that begins with the segment.

    Raises:
        ClipError: `bad_segment`, the segment is empty; `too_short`, the file ends before it.
    """
    start = 0.0 if request.start is None else request.start
    end = start + CLIP_SECONDS if request.end is None else request.end
    length = end - start
    if not length > 0:
        raise ClipError("bad_segment", f"segment from {start} to {end} s is empty")
    begin = 0.0
    if request.start is not None:
        is_whole_video = duration > length + CLEARLY_LONGER and duration >= end - REACHES_END
        if request.named_start is not None:
            begin = max(0.0, start - request.named_start)
        elif is_whole_video:
            begin = start
    if begin >= duration:
        raise ClipError("too_short", f"the segment begins at {begin:.3f} s of the file, which lasts {duration:.3f} s")
    return Segment(begin=begin, end=min(begin + length, duration), frames=request.frames)


def is_cut_off(segment: Segment, end: float) -> bool:
    """Whether a file whose last packet ends at `end` lacks a part of the segment that its header promised."""
    return end < segment.end - CUT_OFF


def cut_off(segment: Segment, end: float) -> Segment:
    """The part of the segment that a file ending at `end` holds.

    Raises:
        ClipError: `too_short`, nothing of it.
    """
    if end <= segment.begin:
        raise ClipError("too_short", f"the file is cut off at {end:.3f} s, the segment begins at {segment.begin:.3f} s")
    return replace(segment, end=end)
