"""Pictures that look as if a decoder had begun where it could not: earlier versions of make-shards stored them."""

import numpy as np
import numpy.typing as npt
import simplejpeg

from shards_spec.sample import FRAME_SIZE

# What decoders put where nothing is known is flat: half of every channel is grey, nothing is one of these greens.
_SCALE = 8
_GREY, _GREY_WITHIN = 129, 4  # levels
_GREENS = ((70, 84), (128, 160), (248, 255))  # of BT.709, BT.601 and RGB, with red and blue at most _BLACK
_BLACK = 8
_FLAT = 2  # levels between neighbours
_SHARE = 0.2

UNDECODED = "looks as if it had been decoded from no key frame: a fifth of it or more is the grey or green of nothing"


def looks_undecoded(jpeg: bytes | memoryview) -> bool:
    """Whether a stored frame, which is a JPEG of the right size, is to a large part what decoders put for nothing."""
    size = FRAME_SIZE // _SCALE
    means: npt.NDArray[np.int16] = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=size, min_width=size).astype(np.int16)
    flat = np.abs(np.diff(means, axis=1)).max(axis=2, initial=0) <= _FLAT
    means = means[:, 1:]
    is_grey = (np.abs(means - _GREY) <= _GREY_WITHIN).all(axis=2)
    is_green = (means[..., [0, 2]] <= _BLACK).all(axis=2) & np.logical_or.reduce(
        [(low <= means[..., 1]) & (means[..., 1] <= high) for low, high in _GREENS]
    )
    return bool((flat & (is_grey | is_green)).mean() >= _SHARE)
