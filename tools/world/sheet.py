"""A contact sheet: middle frames with boxes, spectrograms below."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pipeline.fbank import fbank
from shards_spec.sample import FRAME_SIZE
from tools.world.annotations import objects_of
from tools.world.picture import draw_frame
from tools.world.request import World
from tools.world.scene import MIDDLE
from tools.world.sound import render_sound

_ROWS, _COLUMNS = 4, 6
_SIDE, _SOUND, _GAP = 150, 48, 6  # pixels
_HEARD, _SILENT = ((255, 225, 40), 3), ((225, 225, 225), 1)  # colour and width of a box
_FLOOR, _SPAN = -11.0, 13.0  # of log-mel values: black, and up to white
# Black, violet, orange, pale yellow: dark to light in even steps.
_INKS = np.array([(8, 6, 24), (72, 24, 110), (176, 46, 92), (242, 122, 48), (252, 238, 176)], np.float64)


def write_sheet(path: Path, world: World, split: str) -> None:
    """Draws the first clips of a split. Yellow boxes sound, thin grey ones are silent."""
    size = (_COLUMNS * (_SIDE + _GAP) + _GAP, _ROWS * (_SIDE + _SOUND + 2 * _GAP) + _GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    for number in range(_ROWS * _COLUMNS):
        row, column = divmod(number, _COLUMNS)
        frame, sound = _card(world, split, number)
        left, top = _GAP + column * (_SIDE + _GAP), _GAP + row * (_SIDE + _SOUND + 2 * _GAP)
        sheet.paste(frame, (left, top))
        sheet.paste(sound, (left, top + _SIDE + 2))
    sheet.save(path, quality=88, optimize=True)


def _card(world: World, split: str, index: int) -> tuple[Image.Image, Image.Image]:
    scene = world.scene(split, index)
    drawn = draw_frame(scene, MIDDLE, FRAME_SIZE, FRAME_SIZE)
    frame = Image.fromarray(drawn.picture).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(frame)
    for item in sorted(objects_of(scene, drawn.owners), key=lambda item: item["is_sounding"]):
        x0, y0, x1, y1 = (round(value * (_SIDE - 1)) for value in item["box"])
        colour, width = _HEARD if item["is_sounding"] else _SILENT
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=width)
    rows, valid = fbank(render_sound(scene))
    return frame, _spectrogram(rows[:valid])


def _spectrogram(rows: npt.NDArray[np.float16]) -> Image.Image:
    level = np.clip((rows.T[::-1].astype(np.float64) - _FLOOR) / _SPAN, 0, 1)
    places = np.linspace(0, 1, len(_INKS))
    inked = np.stack([np.interp(level, places, _INKS[:, channel]) for channel in range(3)], 2)
    return Image.fromarray(inked.astype(np.uint8)).resize((_SIDE, _SOUND), Image.Resampling.BOX)
