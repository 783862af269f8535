"""From a decoded picture to the stored one: how large it is scaled, turned upright, cropped, written as JPEG.

Scaling itself is the decoder's, before the picture is turned: both orders give the same pixels, and turning a
picture of 224x224 costs nothing.
"""

import io
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards_spec.sample import FRAME_SIZE, JPEG_QUALITY

FrameFit = Literal["resize", "crop"]
Orientation = tuple[bool, bool, bool]  # transpose, then mirror left-right, then mirror top-bottom
UPRIGHT: Orientation = (False, False, False)


class Crop(NamedTuple):
    """Rows and columns at the edges of a coded picture, before it is turned, that are not to be shown."""

    top: int
    bottom: int
    left: int
    right: int


UNCUT = Crop(top=0, bottom=0, left=0, right=0)


def orientation(matrix: bytes) -> Orientation:
    """How to turn a coded picture for display, from a display matrix: nine 32-bit integers (a b u c d v x y w).

    The matrix sends the point (p, q) to (a p + c q, b p + d q). Angles between the multiples of 90 degrees do
    not occur in practice; the nearest multiple is taken.
    """
    a, b, _, c, d = (int(value) for value in np.frombuffer(matrix, "<i4", 5))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def shown_size(width: int, height: int, crop: Crop) -> tuple[int, int]:
    """Width and height of what is left of a coded picture; all of it where nothing would be left."""
    shown = width - crop.left - crop.right, height - crop.top - crop.bottom
    return shown if min(shown) > 0 else (width, height)


def cut(image: npt.NDArray[np.uint8], crop: Crop) -> npt.NDArray[np.uint8]:
    """What is to be shown of a coded picture, uint8 [H, W, 3], contiguous."""
    height, width = image.shape[:2]
    if shown_size(width, height, crop) == (width, height):
        return np.ascontiguousarray(image)
    return np.ascontiguousarray(image[crop.top : height - crop.bottom, crop.left : width - crop.right])


def turn(image: npt.NDArray[np.uint8], how: Orientation) -> npt.NDArray[np.uint8]:
    """The upright picture of a coded one, uint8 [H, W, 3] -> [H, W, 3] or [W, H, 3]."""
    transpose, mirror, flip = how
    if transpose:
        image = image.transpose(1, 0, 2)
    if mirror:
        image = image[:, ::-1]
    if flip:
        image = image[::-1]
    return image


def scaled_size(width: int, height: int, *, pixel_aspect: float, frame_fit: FrameFit) -> tuple[int, int]:
    """Width and height to which a coded picture is scaled before it is turned and cropped.

    Args:
        width, height: of the coded picture.
        pixel_aspect: width of a pixel over its height, 1.0 where unknown.
        frame_fit: "resize" squashes to FRAME_SIZE x FRAME_SIZE; "crop" keeps the proportions of the picture as
            displayed, its short side becomes FRAME_SIZE.
    """
    if frame_fit == "resize":
        return FRAME_SIZE, FRAME_SIZE
    shown = width * pixel_aspect
    scale = FRAME_SIZE / min(shown, height)
    return max(FRAME_SIZE, round(shown * scale)), max(FRAME_SIZE, round(height * scale))


def finish(scaled: npt.NDArray[np.uint8], how: Orientation) -> npt.NDArray[np.uint8]:
    """uint8 [FRAME_SIZE, FRAME_SIZE, 3], contiguous: the scaled picture upright, its centre where it is larger."""
    image = turn(scaled, how)
    top = (image.shape[0] - FRAME_SIZE) // 2
    left = (image.shape[1] - FRAME_SIZE) // 2
    return np.ascontiguousarray(image[top : top + FRAME_SIZE, left : left + FRAME_SIZE])


def encode_jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    """A JPEG file of uint8 [H, W, 3] RGB, quality JPEG_QUALITY; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
