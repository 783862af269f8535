"""Pictures of what a dataset holds and of what a model rebuilds: frames and spectrograms inside a web page.

Hidden patches are transparent, so that the page's own grey shows through in its light and its dark dress.
Spectrograms are drawn time to the right and low frequencies at the bottom.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards_spec.sample import FRAME_SIZE

# S pixels a side, T fbank rows, M mel bins, N tokens of a modality.
Pixels = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

LEVELS = 255  # colours of a spectrogram; the palette's last entry is the transparent one

# Magma (S. van der Walt, N. Smith; CC0) at nine even places: equal steps look equally large.
_MAGMA = ("000004", "1d1147", "51127c", "822681", "b63679", "e65164", "fb8861", "fec287", "fcfdbf")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture for a page. `outline` is SVG path data in the picture's pixels."""

    uri: str
    width: int
    height: int
    outline: str = ""


@dataclass(frozen=True, kw_only=True)
class Triple:
    """One modality of a sample in MAE's manner; no `reconstruction` where the model has no pixel decoder."""

    masked: Picture
    reconstruction: Picture | None
    original: Picture  # the Attentive Tokens outlined


def image_triple(original: Pixels, predicted: Pixels | None, is_masked: Flags, is_attentive: Flags) -> Triple:
    """Pictures of a frame.

    Args:
        original: uint8 [S, S, 3].
        predicted: uint8 [S, S, 3], used where `is_masked`.
        is_masked: [rows, columns] of patches, True = hidden.
        is_attentive: [rows, columns], True = an Attentive Token.
    """
    hidden = _as_pixels(is_masked, original.shape[:2])
    rebuilt = None if predicted is None else np.where(hidden[..., None], predicted, original)
    return Triple(
        masked=_frame(original, hidden),
        reconstruction=None if rebuilt is None else _frame(rebuilt),
        original=_frame(original, outline=outline(is_attentive, original.shape[0] // len(is_attentive))),
    )


def audio_triple(
    original: npt.NDArray[np.float32],
    predicted: npt.NDArray[np.float32] | None,
    is_masked: Flags,
    is_attentive: Flags,
    *,
    valid: int,
) -> Triple:
    """Pictures of an fbank's first `valid` rows, all three in the colours of the original's range.

    Args:
        original: float32 [T, M].
        predicted: float32 [T, M], used where `is_masked`.
        is_masked: [times, bands] of patches, True = hidden.
        is_attentive: [times, bands], True = an Attentive Token.
        valid: rows before padding.
    """
    low, high = (float(bound) for bound in np.percentile(original[:valid], (2, 99.8)))
    hidden = _as_pixels(is_masked, original.shape)[:valid]
    levels = _levels(original[:valid], low, high)
    rebuilt = None if predicted is None else np.where(hidden, _levels(predicted[:valid], low, high), levels)
    side = original.shape[0] // len(is_attentive)
    return Triple(
        masked=_spectrogram(np.where(hidden, LEVELS, levels)),
        reconstruction=None if rebuilt is None else _spectrogram(rebuilt),
        original=_spectrogram(levels, outline=outline(is_attentive.T[::-1], side)),
    )


def frame_picture(jpeg: bytes, boxes: list[list[float]]) -> Picture:
    """A stored frame as it is, its boxes (normalised x0, y0, x1, y1) as outline."""
    paths = []
    for box in boxes:
        x0, y0, x1, y1 = (round(FRAME_SIZE * value, 1) for value in box)
        paths.append(f"M{x0:g} {y0:g}H{x1:g}V{y1:g}H{x0:g}Z")
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return Picture(uri=uri, width=FRAME_SIZE, height=FRAME_SIZE, outline="".join(paths))


def spectrogram_picture(fbank: npt.NDArray[np.float32], *, step: int) -> Picture:
    """An fbank's valid rows, float32 [T, M], in the colours of their own range, each `step` of them as their mean."""
    firsts = np.arange(0, len(fbank), step)
    means = np.add.reduceat(fbank, firsts, axis=0) / np.minimum(step, len(fbank) - firsts)[:, None]
    low, high = (float(bound) for bound in np.percentile(means, (2, 99.8)))
    return _spectrogram(_levels(means.astype(np.float32), low, high))


def valid_rows(fbank: npt.NDArray[np.float16]) -> int:
    """Rows of an fbank [T, M] before its zero padding; all where it holds nothing else."""
    rows = np.flatnonzero(fbank.any(axis=1))
    return int(rows[-1]) + 1 if len(rows) else len(fbank)


def outline(cells: Flags, side: int) -> str:
    """The contour of the cells of a grid [rows, columns] as SVG path data: cells that touch share one contour."""
    padded = np.pad(cells, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [rows + 1, columns]: a line above cell (y, x)
    down = padded[1:-1, 1:] != padded[1:-1, :-1]  # [rows, columns + 1]: a line left of cell (y, x)
    lines = [f"M{x * side} {y * side}h{side}" for y, x in np.argwhere(across).tolist()]
    lines += [f"M{x * side} {y * side}v{side}" for y, x in np.argwhere(down).tolist()]
    return "".join(lines)


def _as_pixels(cells: Flags, shape: tuple[int, ...]) -> Flags:
    """Flags of patches as flags of pixels."""
    rows, columns = shape[0] // cells.shape[0], shape[1] // cells.shape[1]
    return cells.repeat(rows, axis=0).repeat(columns, axis=1)


def _levels(fbank: npt.NDArray[np.float32], low: float, high: float) -> Pixels:
    """Values as colours 0 .. LEVELS - 1; one range for pictures that are to be compared."""
    scaled = (fbank - low) / max(high - low, 1e-6)
    return np.round(np.clip(scaled, 0, 1) * (LEVELS - 1)).astype(np.uint8)


def _palette() -> list[int]:
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _MAGMA], np.float64)
    places = np.linspace(0, len(anchors) - 1, LEVELS)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return [*np.round(np.stack(channels, axis=1)).astype(int).flatten().tolist(), 128, 128, 128]


def _frame(pixels: Pixels, hidden: Flags | None = None, outline: str = "") -> Picture:
    if hidden is not None:
        alpha = np.where(hidden, 0, 255).astype(np.uint8)
        # Hidden pixels are cleared too: what the model does not see is nowhere in the file.
        pixels = np.dstack([np.where(hidden[..., None], 0, pixels), alpha])
    return _png(Image.fromarray(pixels), outline)


def _spectrogram(levels: Pixels, outline: str = "") -> Picture:
    """From levels [T, M], LEVELS being transparent."""
    image = Image.fromarray(np.ascontiguousarray(levels.T[::-1], np.uint8))
    image.putpalette(_palette())  # turns the greys into indices
    return _png(image, outline, transparency=LEVELS)


def _png(image: Image.Image, outline: str, **options: int) -> Picture:
    png = io.BytesIO()
    image.save(png, "PNG", **options)
    uri = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    return Picture(uri=uri, width=image.width, height=image.height, outline=outline)
