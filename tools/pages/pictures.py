"""Pictures of what a dataset holds and of what a model makes of it: frames and spectrograms, as pixels and in a page.

Pixels are uint8 [H, W, 3] as people look at them: spectrograms run to the right in time, low frequencies are at the
bottom. Hidden patches are transparent, so that a page's own grey shows through in its light and its dark dress.

    frame [S, S, 3] ─────────────────────────┐
    fbank [T, M] ── Sound.pixels ── [M, W, 3] ┴─> hide, brighten, heat ─> as_picture ─> web_page.drawn
"""

import base64
import io
import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards_spec.sample import FBANK_FRAMES, FRAME_SIZE

# S pixels a side, T fbank rows, M mel bins, W columns of a spectrogram.
Pixels = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Value = TypeVar("Value", bound=np.generic)

LEVELS = 255  # colours of a spectrogram
STEP = 2  # fbank rows to a column of a spectrogram: 20 ms
_QUALITY = 84  # of WebP: a frame takes some 10 kB

# Magma (S. van der Walt, N. Smith; CC0) at nine even places: equal steps look equally large.
_MAGMA = ("000004", "1d1147", "51127c", "822681", "b63679", "e65164", "fb8861", "fec287", "fcfdbf")
# Heat upon grey: from a dark red to a pale yellow, so that more is also lighter.
_HEAT = ("8a0f1d", "c8311f", "ee6a2c", "fbae4b", "fee79a", "fffbe0")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture for a page. `outline` is SVG path data in the picture's pixels."""

    uri: str
    width: int
    height: int
    outline: str = ""


def as_picture(pixels: Pixels, outline: str = "") -> Picture:
    """Pixels [H, W, 3], or [H, W, 4] with alpha, for a page."""
    webp = io.BytesIO()
    Image.fromarray(pixels).save(webp, "WEBP", quality=_QUALITY, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(webp.getvalue()).decode()
    return Picture(uri=uri, width=pixels.shape[1], height=pixels.shape[0], outline=outline)


# -------------------------------------------------------------------- spectrograms


@dataclass(frozen=True, kw_only=True)
class Sound:
    """How a sample's spectrograms are drawn: its rows before padding, and the values of the darkest and lightest."""

    valid: int
    low: float
    high: float

    @classmethod
    def of(cls, fbank: npt.NDArray[np.float16]) -> "Sound":
        """For a stored fbank [T, M]."""
        valid = valid_rows(fbank)
        low, high = (float(bound) for bound in np.percentile(fbank[:valid].astype(np.float32), (2, 99.8)))
        return cls(valid=valid, low=low, high=high)

    def pixels(self, fbank: Floats) -> Pixels:
        """A spectrogram [M, W, 3] of an fbank [T, M]; the same range of colours whatever the fbank."""
        levels = _levels(_means(fbank[: self.valid], STEP), self.low, self.high)
        return np.ascontiguousarray(_ramp(_MAGMA, LEVELS)[levels.T[::-1]])

    def cells(self, values: npt.NDArray[Value]) -> npt.NDArray[Value]:
        """Values of patches [times, bands] as values of pixels [M, W]."""
        side = FBANK_FRAMES // len(values)
        upright = values.T[::-1].repeat(side, axis=0).repeat(side // STEP, axis=1)
        return upright[:, : -(-self.valid // STEP)]

    def outline(self, flags: Flags) -> str:
        """The contour of patches [times, bands] in pixels of the spectrogram."""
        side = FBANK_FRAMES // len(flags)
        return outline(flags.T[::-1], side // STEP, side, columns=-(-self.valid // STEP))


def valid_rows(fbank: npt.NDArray[np.float16]) -> int:
    """Rows of an fbank [T, M] before its zero padding; all where it holds nothing else."""
    rows = np.flatnonzero(fbank.any(axis=1))
    return int(rows[-1]) + 1 if len(rows) else len(fbank)


def spectrogram_picture(fbank: Floats, *, step: int, bright: float = -math.inf) -> Picture:
    """An fbank's valid rows, float32 [T, M], in the colours of their own range, each `step` of them as their mean.

    Args:
        bright: the brightest colour means this level at least, so that quiet sound is dark.
    """
    means = _means(fbank, step)
    low, high = (float(bound) for bound in np.percentile(means, (2, 99.8)))
    high = max(high, bright)
    image = Image.fromarray(np.ascontiguousarray(_levels(means, low, high).T[::-1]))
    image.putpalette(_ramp(_MAGMA, LEVELS).flatten().tolist())  # turns the greys into indices
    return _png(image)


# -------------------------------------------------------------------- frames


def frame_cells(values: npt.NDArray[Value]) -> npt.NDArray[Value]:
    """Values of patches [rows, columns] as values of pixels [S, S]."""
    side = FRAME_SIZE // len(values)
    return values.repeat(side, axis=0).repeat(side, axis=1)


def frame_outline(flags: Flags) -> str:
    """The contour of patches [rows, columns] in pixels of the frame."""
    side = FRAME_SIZE // len(flags)
    return outline(flags, side, side, columns=FRAME_SIZE)


def frame_picture(jpeg: bytes, boxes: list[list[float]]) -> Picture:
    """A stored frame as it is, its boxes (normalised x0, y0, x1, y1) as outline."""
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return Picture(uri=uri, width=FRAME_SIZE, height=FRAME_SIZE, outline=box_outline(boxes))


def box_outline(boxes: list[list[float]]) -> str:
    """Boxes (normalised x0, y0, x1, y1) as SVG path data in a frame's pixels."""
    paths = []
    for box in boxes:
        x0, y0, x1, y1 = (round(FRAME_SIZE * value, 1) for value in box)
        paths.append(f"M{x0:g} {y0:g}H{x1:g}V{y1:g}H{x0:g}Z")
    return "".join(paths)


def thumbnail(pixels: Pixels, width: int, height: int) -> Pixels:
    """Pixels [H, W, 3] made smaller, [height, width, 3]."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


# -------------------------------------------------------------------- what is laid upon them


def hide(pixels: Pixels, hidden: Flags) -> Pixels:
    """Pixels [H, W, 3] with those of `hidden` [H, W] transparent, [H, W, 4].

    Hidden pixels are cleared too: what the model does not see is nowhere in the file.
    """
    return np.dstack([np.where(hidden[..., None], 0, pixels), np.where(hidden, 0, 255)]).astype(np.uint8)


def brighten(pixels: Pixels, chosen: Flags) -> Pixels:
    """Pixels [H, W, 3] where only those of `chosen` [H, W] keep their light."""
    return np.where(chosen[..., None], pixels, _grey(pixels) * 0.42 + 26).round().astype(np.uint8)


def heat(pixels: Pixels, values: Floats, seen: Flags | None = None) -> Pixels:
    """A heatmap upon grey pixels [H, W, 3].

    Args:
        values: [H, W], 0 (the grey alone) to 1.
        seen: [H, W]; pixels that are not are darker and without heat.
    """
    values = np.clip(values, 0, 1)
    strength = (0.8 * values**0.75)[..., None]
    colours = _ramp(_HEAT, 256)[(values * 255).round().astype(np.uint8)]
    warm = (1 - strength) * (0.62 * _grey(pixels) + 30) + strength * colours
    cold = 0.3 * _grey(pixels) + 18
    return np.where(True if seen is None else seen[..., None], warm, cold).round().clip(0, 255).astype(np.uint8)


def outline(cells: Flags, width: int, height: int, *, columns: int) -> str:
    """The contour of the cells of a grid as SVG path data: cells that touch share one contour.

    Args:
        cells: [rows, columns of the grid].
        width, height: of a cell.
        columns: width of the picture, which may cut the last cells.
    """
    padded = np.pad(cells, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [rows + 1, columns]: a line above cell (y, x)
    down = padded[1:-1, 1:] != padded[1:-1, :-1]  # [rows, columns + 1]: a line left of cell (y, x)
    lines = []
    for y, x in np.argwhere(across).tolist():
        if x * width < columns:
            lines.append(f"M{x * width} {y * height}h{min(width, columns - x * width)}")
    for y, x in np.argwhere(down).tolist():
        if (x - 1) * width < columns:
            lines.append(f"M{min(x * width, columns)} {y * height}v{height}")
    return "".join(lines)


def _grey(pixels: Pixels) -> Floats:
    """Luminance (ITU-R BT.601) of pixels [H, W, 3] as [H, W, 1]."""
    return (pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


def _means(fbank: Floats, step: int) -> Floats:
    """Rows [T, M], each `step` of them as their mean."""
    firsts = np.arange(0, len(fbank), step)
    sums = np.add.reduceat(fbank, firsts, axis=0)
    return (sums / np.minimum(step, len(fbank) - firsts)[:, None]).astype(np.float32)


def _levels(fbank: Floats, low: float, high: float) -> Pixels:
    """Values as colours 0 .. LEVELS - 1; one range for pictures that are to be compared."""
    scaled = (fbank - low) / max(high - low, 1e-6)
    return np.round(np.clip(scaled, 0, 1) * (LEVELS - 1)).astype(np.uint8)


def _ramp(colours: tuple[str, ...], levels: int) -> Pixels:
    """`levels` colours [levels, 3] through even anchors."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in colours], np.float64)
    places = np.linspace(0, len(anchors) - 1, levels)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def _png(image: Image.Image) -> Picture:
    png = io.BytesIO()
    image.save(png, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    return Picture(uri=uri, width=image.width, height=image.height)
