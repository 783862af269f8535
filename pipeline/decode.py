"""One segment of one media file -> its waveform, its middle frame and what is known of the file.

named_start, start, end ──timeline.locate──> where the segment lies in the file
      │ decode_pyav or decode_decord: frames, runs of sound with their times
      │ audio.place ─> mono 16 kHz       frame.py ─> 224x224
      v
DecodedClip
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline import decode_decord, decode_pair, decode_pyav, decode_sound
from pipeline.audio import check_samples, place
from pipeline.clip_error import ClipError
from pipeline.frame import FrameFit
from pipeline.media_file import RawClip
from pipeline.timeline import ClipRequest, FrameTimes

Decoder = Literal["auto", "decord", "pyav"]

# What one decoder says of a file that the other one may still read.
_WORTH_ANOTHER_TRY = ("unreadable", "decode_error")


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """A segment, decoded. Times are seconds on the file's own timeline, 0 = the start of the container."""

    waveform: npt.NDArray[np.float32]  # [samples], mono, SAMPLE_RATE, in [-1, 1], of the segment only
    frame: npt.NDArray[np.uint8] | None  # [FRAME_SIZE, FRAME_SIZE, 3] RGB, on display at the segment's middle
    extra_frames: list[npt.NDArray[np.uint8]]  # the same of `frames` evenly spaced times; empty for frames=1
    frame_time: float  # of the frame taken; NaN where nobody says
    extra_frame_times: list[float]
    file_start: float  # where the segment begins
    duration: float  # of the file
    fps: float  # 0.0 where the file does not say, NaN of sound alone
    width: int | None  # of the picture as displayed: turned upright, pixels as stored; None of sound alone
    height: int | None
    sample_rate: int  # Hz, of the source
    channels: int  # of the source
    decoder: str  # the one that did it: "pyav" or "decord"


def decode_clip(
    path: Path,
    *,
    start: float | None,
    end: float | None,
    named_start: float | None,
    decoder: Decoder,
    frame_fit: FrameFit,
    frames: int = 1,
    frame_times: FrameTimes = "middles",
    picture: Path | None = None,
    audio_only: bool = False,
) -> DecodedClip:
    """Decodes one segment of a file.

    Args:
        path: a clip of the segment, or the whole video.
        start, end: the segment in the original video, seconds. `start` None: the file is a clip of its own, the
            segment is its first `end` seconds (CLIP_SECONDS where `end` is None too).
        named_start: second of the original video at which the file begins, where its name says so.
        decoder: "pyav" or "decord"; "auto" takes PyAV, the faster one, and decord where PyAV cannot.
        frame_fit: "resize" squashes, "crop" takes the centre; see `frame.scaled_size`.
        frames: more than 1 takes as many evenly spaced frames beside the middle one.
        frame_times: these lie at the middles of equal parts, or at their starts.
        picture: the frame, where `path` is a sound alone (`decode_pair`).
        audio_only: no frame is wanted, whatever the file holds (`decode_sound`).

    Raises:
        ClipError: the file gives no sample; `.reason` says why. A decoder may also hang or end its process on
            damaged files: run clips where they can be killed.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    request = ClipRequest(start=start, end=end, named_start=named_start, frames=frames, frame_times=frame_times)
    if audio_only:
        return _clip(decode_sound.decode(path, request=request), "pyav")
    if picture is not None:
        return _clip(decode_pair.decode(path, picture, request=request, frame_fit=frame_fit), "pyav")
    if decoder != "auto":
        module = {"pyav": decode_pyav, "decord": decode_decord}[decoder]
        return _clip(module.decode(path, request=request, frame_fit=frame_fit), decoder)
    try:
        return _clip(decode_pyav.decode(path, request=request, frame_fit=frame_fit), "pyav")
    except ClipError as error:
        if error.reason not in _WORTH_ANOTHER_TRY:
            raise
        try:
            return _clip(decode_decord.decode(path, request=request, frame_fit=frame_fit), "decord")
        except ClipError:
            raise error from None  # PyAV's is the more telling one


def _clip(raw: RawClip, decoder: str) -> DecodedClip:
    waveform = place(raw.runs, raw.segment.begin, raw.segment.end)
    if not len(waveform):
        raise ClipError(
            "too_short", f"no sound between {raw.segment.begin:.3f} and {raw.segment.end:.3f} s of the file"
        )
    check_samples(waveform)
    return DecodedClip(
        waveform=waveform,
        frame=raw.frames[0] if raw.frames else None,
        extra_frames=list(raw.frames[1:]),
        frame_time=raw.frame_times[0] if raw.frame_times else math.nan,
        extra_frame_times=list(raw.frame_times[1:]),
        file_start=raw.segment.begin,
        duration=raw.duration,
        fps=raw.fps,
        width=raw.width,
        height=raw.height,
        sample_rate=raw.sample_rate,
        channels=raw.channels,
        decoder=decoder,
    )
