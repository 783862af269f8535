"""A picture and a sound file -> the frame and the sound of a clip.

The frame is the picture itself. The sound is the middle of the file, as EZ-VSL takes it (there 3 s, here the length of
a clip); or the part that a CSV gives.
"""

import math
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.clip_error import ClipError
from pipeline.decode_pyav import scale
from pipeline.decode_sound import hear
from pipeline.file_errors import is_of_the_machine
from pipeline.frame import UPRIGHT, FrameFit, finish, scaled_size
from pipeline.media_file import RawClip
from pipeline.timeline import ClipRequest, Segment, locate
from shards_spec.sample import CLIP_SECONDS

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "MPO")  # MPO: JPEG of cameras, with a second picture behind the first


def decode(sound: Path, picture: Path, *, request: ClipRequest, frame_fit: FrameFit) -> RawClip:
    """The picture, and of the sound the middle part, or the part that the request's `start` says.

    Raises:
        ClipError: any reason of a file that gives no sample.
    """
    heard = hear(sound, lambda duration: _located(request, duration))
    image = _image(picture)
    height, width = image.shape[:2]
    size = scaled_size(width, height, pixel_aspect=1.0, frame_fit=frame_fit)
    return RawClip(
        segment=heard.segment,
        runs=heard.runs,
        frames=[finish(scale(av.VideoFrame.from_ndarray(image, format="rgb24"), size), UPRIGHT)],
        frame_times=[math.nan],  # nobody says at which time of the sound the picture was taken
        duration=heard.duration,
        fps=0.0,
        width=width,
        height=height,
        sample_rate=heard.sample_rate,
        channels=heard.channels,
    )


def _located(request: ClipRequest, duration: float) -> Segment:
    """Where the segment lies in the sound: in its middle, where the file is a clip of its own."""
    if request.start is not None:
        return locate(request, duration)
    length = CLIP_SECONDS if request.end is None else request.end
    begin = max(0.0, (duration - length) / 2)
    return Segment(begin=begin, end=min(begin + length, duration), frames=1)


def _image(path: Path) -> npt.NDArray[np.uint8]:
    """The picture as displayed, uint8 [H, W, 3] RGB."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise ClipError("missing", "the picture is gone since the plan was made") from None
    except UnidentifiedImageError:
        raise ClipError("unreadable", f"{path.name} is no picture of the kinds JPEG, PNG, WebP, BMP") from None
    except PermissionError as error:
        raise ClipError("unreadable", f"{path.name}: permission denied") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if is_of_the_machine(error):
            raise
        raise ClipError("decode_error", f"{path.name}: {' '.join(str(error).split())}") from error
