"""What is behind the objects: scenes that have nothing to do with the classes.

H rows, W columns.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

KINDS = ("hills", "lights", "tiles", "clouds")
_GRAIN = 1 << 18  # values of the film grain


@dataclass(frozen=True, kw_only=True)
class Backdrop:
    """A background.

    Attributes:
        kind: index into KINDS.
        colours: [4, 3], 0 to 1.
        numbers: [64], uniform 0 to 1: what else the kind needs.
        grain: standard deviation of the film grain.
    """

    kind: int
    colours: Floats
    numbers: Floats
    grain: float


def draw_backdrop(generator: np.random.Generator) -> Backdrop:
    """A random background."""
    kind = int(generator.integers(len(KINDS)))
    base = generator.uniform(0.15, 0.75) + generator.normal(0, 0.11, 3)
    colours = np.clip(base + generator.normal(0, 0.1, (4, 3)), 0.04, 0.92).astype(np.float32)
    return Backdrop(
        kind=kind,
        colours=colours,
        numbers=generator.random(64, dtype=np.float32),
        grain=float(generator.uniform(0.01, 0.05)),
    )


def paint_backdrop(backdrop: Backdrop, height: int, width: int, aspect: float) -> Floats:
    """float32 [3, H, W], about 0 to 1, of a world that is `aspect` wide and 1 high."""
    y = ((np.arange(height) + 0.5) / height).astype(np.float32)[:, None]
    x = ((np.arange(width) + 0.5) * (aspect / width)).astype(np.float32)[None, :]
    picture = _gradient(backdrop, height, width)
    {"hills": _hills, "lights": _lights, "tiles": _tiles, "clouds": _clouds}[KINDS[backdrop.kind]](
        backdrop, picture, y, x
    )
    first = int(backdrop.numbers[60] * (_GRAIN // 2))
    noise = np.resize(_grain()[first : first + _GRAIN // 2], (height, width))
    picture += noise * np.float32(backdrop.grain)
    return picture


def _gradient(backdrop: Backdrop, height: int, width: int) -> Floats:
    """A soft field of colour: 3x4 colours around that of the backdrop, blended."""
    coarse = backdrop.colours[0][:, None, None] + 0.22 * (backdrop.numbers[:36].reshape(3, 3, 4) - 0.5)
    return np.matmul(np.matmul(_blend(height, 3), coarse.astype(np.float32)), _blend(width, 4).T)


@functools.lru_cache(maxsize=32)
def _blend(size: int, points: int) -> Floats:
    """float32 [size, points]: raised-cosine weights between `points` evenly spaced values."""
    place = np.arange(size)[:, None] / (size - 1) * (points - 1) - np.arange(points)[None, :]
    return (0.5 + 0.5 * np.cos(np.pi * np.clip(place, -1, 1))).astype(np.float32)


def _hills(backdrop: Backdrop, picture: Floats, y: Floats, x: Floats) -> None:
    """Three ridges, each before the last."""
    numbers = backdrop.numbers
    for ridge in range(3):
        a, b, c, d = (float(value) for value in numbers[36 + 4 * ridge : 40 + 4 * ridge])
        top = 0.3 + 0.2 * ridge + 0.12 * a
        line = top + 0.06 * np.sin((2 + 3 * b) * x + 6.3 * c) + 0.025 * np.sin((7 + 6 * d) * x + 6.3 * a)
        _blend_in(picture, backdrop.colours[ridge + 1], np.clip((y - line) * np.float32(picture.shape[1]), 0, 1))


def _lights(backdrop: Backdrop, picture: Floats, y: Floats, x: Floats) -> None:
    """Blurred lights."""
    picture *= np.float32(0.75)
    height, width = picture.shape[1:]
    for light in range(7):
        a, b, c = (float(value) for value in backdrop.numbers[36 + 3 * light : 39 + 3 * light])
        radius = 0.05 + 0.1 * c
        centre_x, centre_y = a * float(x[0, -1]), b
        rows = slice(max(0, int((centre_y - radius) * height)), int((centre_y + radius) * height) + 2)
        per = width / float(x[0, -1])
        columns = slice(max(0, int((centre_x - radius) * per)), int((centre_x + radius) * per) + 2)
        away = np.hypot(x[:, columns] - np.float32(centre_x), y[rows] - np.float32(centre_y))
        cover = np.clip((np.float32(radius) - away) * np.float32(60), 0, 0.55)
        _blend_in(picture[:, rows, columns], backdrop.colours[1 + light % 3] + np.float32(0.25), cover)


def _tiles(backdrop: Backdrop, picture: Floats, y: Floats, x: Floats) -> None:
    """A wall of tiles or planks above a floor."""
    a, b, c, d = (float(value) for value in backdrop.numbers[36:40])
    across, down = 3 + 8 * a, 2 + 8 * b
    joints = np.maximum(
        np.sin(np.float32(np.pi * across) * x + 6.3 * c) ** 24, np.sin(np.float32(np.pi * down) * y) ** 24
    )
    picture *= 1 - np.float32(0.3) * joints
    floor = np.clip((y - np.float32(0.62 + 0.25 * d)) * np.float32(picture.shape[1]), 0, 1)
    _blend_in(picture, backdrop.colours[1], np.broadcast_to(floor, picture.shape[1:]))


def _clouds(backdrop: Backdrop, picture: Floats, y: Floats, x: Floats) -> None:
    """Soft bands of another colour."""
    a, b, c, d = (np.float32(value) for value in backdrop.numbers[36:40])
    bend = np.sin((3 + 3 * a) * x + 6 * b) * np.float32(0.12)
    cover = np.sin((6 + 8 * c) * (y + bend) + 6 * d)
    np.clip(cover, 0, 1, out=cover)
    cover *= np.float32(0.7)
    _blend_in(picture, backdrop.colours[1], cover)


def _blend_in(picture: Floats, colour: Floats, cover: Floats) -> None:
    """Covers `picture`, [3, H, W], with a colour, [3], where `cover`, [H, W], says."""
    for channel in range(3):
        picture[channel] += cover * (np.float32(colour[channel]) - picture[channel])


@functools.cache
def _grain() -> Floats:
    return np.random.default_rng(_GRAIN).standard_normal(_GRAIN).astype(np.float32)
