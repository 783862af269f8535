"""A picture of where in a frame a file's own sound comes from: frame, heatmap, spectrogram."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards_spec.sample import FBANK_SHIFT_MS
from tools.embedding.files import FileSample
from tools.pages.pictures import Floats, Pixels, Sound, heat

_SIDE = 336  # pixels of a drawn frame
_GAP, _MARGIN, _LINE = 12, 18, 22
_SOUND_HEIGHT = 150
_INK, _SOFT, _PAPER = (28, 28, 30), (110, 110, 116), (255, 255, 255)


def localization_picture(sample: FileSample, heatmap: Floats, similarity: float) -> Image.Image:
    """Frame and heatmap side by side, the spectrogram below them.

    Args:
        heatmap: [S, S] in 0 .. 1.
        similarity: cosine of the file's pooled sound and image.
    """
    width = 2 * _SIDE + _GAP
    size = (width + 2 * _MARGIN, 2 * _MARGIN + _LINE + _SIDE + _LINE + _SOUND_HEIGHT + _LINE)
    picture = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(picture)
    top = _MARGIN + _LINE
    _write(pen, _MARGIN, _MARGIN, _fitting(pen, sample.key, width - 190), _INK, 15)
    _write(pen, _MARGIN + width, _MARGIN, f"cosine of sound and image {similarity:.3f}", _SOFT, 13, anchor="ra")
    picture.paste(_scaled(sample.frame, _SIDE, _SIDE), (_MARGIN, top))
    picture.paste(_scaled(heat(sample.frame, heatmap), _SIDE, _SIDE), (_MARGIN + _SIDE + _GAP, top))
    below = top + _SIDE + 4
    _write(pen, _MARGIN, below, "frame", _SOFT, 13)
    _write(pen, _MARGIN + _SIDE + _GAP, below, "where its sound comes from: dark red to pale yellow", _SOFT, 13)
    _draw_sound(picture, pen, sample, (_MARGIN, top + _SIDE + _LINE + 4, width))
    return picture


def _draw_sound(picture: Image.Image, pen: ImageDraw.ImageDraw, sample: FileSample, at: tuple[int, int, int]) -> None:
    """The spectrogram at (left, top, width), with its seconds below."""
    left, top, width = at
    sound = Sound.of(sample.fbank)
    picture.paste(_scaled(sound.pixels(sample.fbank.astype(np.float32)), width, _SOUND_HEIGHT), (left, top))
    seconds = sound.valid * FBANK_SHIFT_MS / 1000
    base = top + _SOUND_HEIGHT
    ticks = np.arange(0, seconds + 1e-6, 1.0 if seconds > 3 else 0.5)
    for i, tick in enumerate(ticks.tolist()):
        x = left + round(tick / seconds * (width - 1))
        pen.line([(x, base), (x, base + 3)], fill=_SOFT)
        anchor = "la" if i == 0 else "ra" if x > left + width - 14 else "ma"
        _write(pen, x, base + 4, f"{tick:g} s" if i == 0 else f"{tick:g}", _SOFT, 12, anchor=anchor)


def _scaled(pixels: Pixels, width: int, height: int) -> Image.Image:
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def _fitting(pen: ImageDraw.ImageDraw, words: str, width: int) -> str:
    """The words, cut where they are wider than `width`."""
    font = ImageFont.load_default(15)
    if pen.textlength(words, font=font) <= width:
        return words
    while words and pen.textlength(words + "...", font=font) > width:
        words = words[:-1]
    return words + "..."


def _write(
    pen: ImageDraw.ImageDraw, x: int, y: int, words: str, ink: tuple[int, int, int], size: int, anchor: str = "la"
) -> None:
    pen.text((x, y), words, fill=ink, font=ImageFont.load_default(size), anchor=anchor)
