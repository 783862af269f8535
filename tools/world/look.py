"""How an object looks: a silhouette with a texture, in its own coordinates (u, v), about -1 to 1.

A silhouette is a radius for each angle. The distance to its edge follows from that radius and its slope, and gives
antialiased edges, rim and shadow at any size.

H rows and W columns of the points asked for.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.world.classes import SHAPES, TEXTURES, WorldClass

Floats = npt.NDArray[np.float32]
Colour = tuple[float, float, float]

REACH = 1.16  # how far shadow and edge reach from the centre
_ANGLES = 2048  # entries of a silhouette
_TAU = np.float32(2 * np.pi)
_RIM = 0.07  # width of the dark rim
_SHADOW = 0.11  # ... of the shadow around
_DIAL, _DOT = 0.38, 0.115  # radius on which the two dots lie, and their own
_DIAL_SPAN = 2.4  # radians over which a dot moves
_NOISE = 256  # points a side of the noise behind the blotched texture


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is drawn. `dials` are the places of the two dots, 0 to 1: pitch and tempo of the object's voice."""

    kind: WorldClass
    dark: Colour
    light: Colour
    phase: float  # of the texture, 0 to 1
    dials: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Paint:
    """A drawn object: a background b becomes b * through + colour.

    Attributes:
        colour: [3, H, W], multiplied by the object's opacity.
        through: [H, W], share of the background that is seen, shadow included.
        is_inside: bool [H, W].
    """

    colour: Floats
    through: Floats
    is_inside: npt.NDArray[np.bool_]


@functools.lru_cache(maxsize=256)
def silhouette(shape: int, lobes: int) -> tuple[Floats, Floats]:
    """The radius at each of _ANGLES angles from 0, at most 1, and the cosine between radius and the edge's normal."""
    theta = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    name = SHAPES[shape]
    if name == "disc":
        radius = np.ones(_ANGLES)
    elif name in ("triangle", "square"):
        sides = 3 if name == "triangle" else 4
        turned = (theta + np.pi / 2) % (2 * np.pi / sides) - np.pi / sides
        radius = (np.cos(np.pi / sides) / np.cos(turned)) ** (0.95 - 0.1 * lobes)
    elif name == "star":
        saw = np.abs(((theta + np.pi / 2) * (5 + lobes) / (2 * np.pi)) % 1 - 0.5) * 2
        radius = 0.5 / (1 - 0.5 * saw)
    elif name == "flower":
        radius = 0.66 + 0.34 * np.abs(np.cos((theta + np.pi / 2) * (5 + lobes) / 2))
    elif name == "gear":
        radius = 0.87 + 0.13 * np.tanh(3 * np.sin((theta + np.pi / 2) * (8 + lobes)))
    else:
        arm = 0.34 + 0.04 * lobes
        cosine, sine = np.abs(np.cos(theta)) + 1e-9, np.abs(np.sin(theta)) + 1e-9
        radius = np.maximum(np.minimum(1 / cosine, arm / sine), np.minimum(arm / cosine, 1 / sine))
    radius /= radius.max()
    slope = (np.roll(radius, -1) - np.roll(radius, 1)) / (4 * np.pi / _ANGLES)
    return radius.astype(np.float32), (radius / np.hypot(radius, slope)).astype(np.float32)


@functools.lru_cache(maxsize=256)
def outline(shape: int, lobes: int) -> npt.NDArray[np.float64]:
    """Points on the silhouette, float64 [2, 128]: what an object's extent is computed from."""
    radius, _ = silhouette(shape, lobes)
    theta = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    step = _ANGLES // 128
    # The farthest point of each run of angles, so that no tip is missed.
    runs = radius.reshape(-1, step).argmax(1) + np.arange(128) * step
    return np.stack([radius[runs] * np.cos(theta[runs]), radius[runs] * np.sin(theta[runs])])


def inside(kind: WorldClass, u: Floats, v: Floats) -> npt.NDArray[np.bool_]:
    """Whether points [H, W] lie inside the silhouette; the same points as in `paint`."""
    radius, _ = silhouette(kind.shape, kind.lobes)
    return np.sqrt(u * u + v * v) <= radius[_angle_index(np.arctan2(v, u))]


def paint(look: Look, u: Floats, v: Floats, pixel: float) -> Paint:
    """Draws an object at points (u, v), float32 [H, W].

    Args:
        pixel: distance between neighbouring points.
    """
    kind = look.kind
    radii, cosines = silhouette(kind.shape, kind.lobes)
    rho = np.sqrt(u * u + v * v)
    theta = np.arctan2(v, u)
    index = _angle_index(theta)
    radius = radii[index]
    depth = radius - rho
    is_inside = depth >= 0
    cosine = cosines[index]
    away = depth * np.maximum(cosine, np.float32(0.8))  # for the shadow: outside, the flank of a tooth may be far
    depth *= cosine  # distance to the edge, > 0 inside
    opacity = depth * np.float32(1 / pixel) + np.float32(0.5)
    np.clip(opacity, 0, 1, out=opacity)

    mix = _texture(look, u, v, rho, theta, pixel)
    shade = depth * np.float32(1 / _RIM)
    np.clip(shade, 0.12, 1, out=shade)
    shade *= np.float32(1.1) - np.float32(0.3) * (rho * rho) - np.float32(0.16) * (u + v)  # lit from the upper left
    shade *= opacity
    colour = np.empty((3, *u.shape), np.float32)
    for channel in range(3):
        low, high = look.dark[channel], look.light[channel]
        np.multiply(mix, np.float32(high - low), out=colour[channel])
        colour[channel] += np.float32(low)
        colour[channel] *= shade
    _draw_dials(look, u, v, pixel, opacity, colour)

    through = away
    through *= np.float32(-1 / _SHADOW)
    np.clip(through, 0, 1, out=through)
    through *= np.float32(0.45)
    through += np.float32(0.55)
    through *= 1 - opacity
    return Paint(colour=colour, through=through, is_inside=is_inside)


def _angle_index(theta: Floats) -> npt.NDArray[np.int32]:
    """Index into a silhouette of angles, -pi to pi."""
    return (theta * np.float32(_ANGLES / (2 * np.pi)) + np.float32(_ANGLES)).astype(np.int32) & (_ANGLES - 1)


def _draw_dials(look: Look, u: Floats, v: Floats, pixel: float, opacity: Floats, colour: Floats) -> None:
    """A white dot on the right half tells the pitch, a black one on the left half the tempo."""
    for side, place, ink in ((1, look.dials[0], 0.97), (-1, look.dials[1], 0.04)):
        angle = (0.5 - place) * _DIAL_SPAN
        x, y = side * _DIAL * np.cos(angle), _DIAL * np.sin(angle)
        columns = np.flatnonzero((np.abs(u - np.float32(x)) < 1.7 * _DOT).any(0))
        rows = np.flatnonzero((np.abs(v - np.float32(y)) < 1.7 * _DOT).any(1))
        if not len(columns) or not len(rows):
            continue
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        away = np.hypot(u[box] - np.float32(x), v[box] - np.float32(y))
        for reach, value in ((1.5 * _DOT, 1.0 - ink), (_DOT, ink)):
            cover = np.clip((np.float32(reach) - away) * np.float32(1 / pixel) + np.float32(0.5), 0, 1)
            colour[:, box[0], box[1]] *= 1 - cover
            colour[:, box[0], box[1]] += cover * opacity[box] * np.float32(value)


def _texture(look: Look, u: Floats, v: Floats, rho: Floats, theta: Floats, pixel: float) -> Floats:
    """Share of the light colour, 0 to 1, float32 [H, W]."""
    kind, name = look.kind, TEXTURES[look.kind.texture]
    shift = np.float32(2 * np.pi * look.phase)
    angle = np.pi * kind.slant
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = u * cosine + v * sine, v * cosine - u * sine
    waves = 1.5 + 1.6 * kind.grain  # in a unit of length
    rate = np.float32(2 * np.pi * waves)
    if name == "striped":
        value = np.sin(rate * along + shift)
    elif name == "checked":
        value = np.sin(rate * np.float32(0.7) * along + shift) * np.sin(rate * np.float32(0.7) * across)
        value *= np.float32(2)
    elif name == "dotted":
        value = np.cos(rate * along + shift) + np.cos(rate * across)
        value -= np.float32(0.45)
    elif name == "ringed":
        value = np.sin(rate * rho + shift)
    elif name == "rayed":
        rays = np.float32(5 + int(6 * kind.grain))
        value = np.sin(rays * theta + shift)
        value *= np.float32(1.6) * rho
    elif name == "wavy":
        value = np.sin(rate * across + np.float32(1.1) * np.sin(np.float32(4.2) * along + shift))
    else:
        noise = _noise()
        scale = np.float32(_NOISE / 6 * (0.8 + 0.8 * kind.grain))
        offset = np.float32(_NOISE * (4 + look.phase))
        rows = (along * scale + offset).astype(np.int32) & (_NOISE - 1)
        rows *= _NOISE
        rows += (across * scale + offset).astype(np.int32) & (_NOISE - 1)
        value = noise.take(rows)
    softness = 1 / (2 * np.pi * waves * pixel)  # as sharp as the pixels allow
    value *= np.float32(max(0.5, softness))
    value += np.float32(0.5)
    return np.clip(value, 0, 1, out=value)


@functools.cache
def _noise() -> Floats:
    """float32 [_NOISE ** 2]: smooth noise that repeats, mean 0, about -2 to 2."""
    generator = np.random.default_rng(_NOISE)
    spectrum = np.fft.rfft2(generator.standard_normal((_NOISE, _NOISE)))
    rows = np.fft.fftfreq(_NOISE)[:, None] * _NOISE
    columns = np.fft.rfftfreq(_NOISE)[None, :] * _NOISE
    spectrum *= np.exp(-((np.hypot(rows, columns) / 14) ** 2))
    field = np.fft.irfft2(spectrum, (_NOISE, _NOISE))
    return (field / field.std()).astype(np.float32).ravel()
