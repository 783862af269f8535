"""A scene -> its picture at any time: one frame straight away, or all frames of a clip from sprites.

H rows, W columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.world.backdrop import paint_backdrop
from tools.world.look import REACH, paint
from tools.world.scene import ASPECT, Actor, Owners, Pose, Scene, window

Picture = npt.NDArray[np.uint8]

_MARGIN = REACH - 1
_SPRITE_DENSITY = 1.4  # points of a sprite for each pixel that it covers, along a side


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture, uint8 [H, W, 3] RGB, and which object each of its pixels shows."""

    picture: Picture
    owners: Owners


def draw_frame(scene: Scene, time: float, height: int, width: int) -> Drawn:
    """The scene at a time, drawn from scratch."""
    canvas = paint_backdrop(scene.backdrop, height, width, ASPECT)
    number = np.full((height, width), -1, np.int8)
    whole = []
    for index, actor in enumerate(scene.actors):
        pose, brightness = actor.states([time])[0]
        place = window(pose, actor.voice.kind, height, width, margin=_MARGIN)
        count = 0
        if place is not None:
            drawn = paint(actor.look, place.u, place.v, place.pixel)
            part = canvas[:, place.rows, place.columns]
            part *= drawn.through
            part += drawn.colour * np.float32(brightness)
            number[place.rows, place.columns][drawn.is_inside] = index
            count = int(np.count_nonzero(drawn.is_inside))
        whole.append(count)
    return Drawn(picture=_to_bytes(canvas), owners=Owners(number=number, whole=tuple(whole)))


def _to_bytes(canvas: npt.NDArray[np.float32]) -> Picture:
    """uint8 [H, W, 3] of float32 [3, H, W]; changes its argument."""
    canvas *= np.float32(255)
    canvas += np.float32(0.5)
    np.clip(canvas, 0, 255.5, out=canvas)
    picture = np.empty((*canvas.shape[1:], 3), np.uint8)
    for channel in range(3):
        picture[..., channel] = canvas[channel]
    return picture


def draw_frames(scene: Scene, times: Sequence[float], height: int, width: int) -> Iterator[Picture]:
    """The scene at several times: the background and each object are drawn once, objects are then moved as sprites."""
    background = _to_bytes(paint_backdrop(scene.backdrop, height, width, ASPECT))
    cast = [(_sprite(actor, height, width), actor.states(times)) for actor in scene.actors]
    for step in range(len(times)):
        picture = background.copy()
        for sprite, states in cast:
            _put(picture, sprite, *states[step])
        yield picture


@dataclass(frozen=True, kw_only=True)
class _Sprite:
    """An object drawn once, N x N points over -REACH to REACH.

    Attributes:
        points: [N * N], four bytes each: red, green, blue and `through` (look.Paint), in 255ths.
        side: N.
    """

    actor: Actor
    points: npt.NDArray[np.uint32]
    side: int


def _sprite(actor: Actor, height: int, width: int) -> _Sprite:
    per = np.sqrt(height * width / ASPECT * actor.pose.half_width * actor.pose.half_height)  # pixels to a unit
    side = int(np.ceil(2 * REACH * per * _SPRITE_DENSITY))
    line = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / side) - 1) * np.float32(REACH)
    u, v = np.broadcast_arrays(line[None, :], line[:, None])
    drawn = paint(actor.look, u, v, 1 / float(per))
    points = np.empty((side, side, 4), np.uint8)
    for channel in range(3):
        points[..., channel] = np.clip(drawn.colour[channel] * 255 + 0.5, 0, 255)
    points[..., 3] = drawn.through * 255 + 0.5
    points[[0, -1]] = points[:, [0, -1]] = (0, 0, 0, 255)
    return _Sprite(actor=actor, points=points.view(np.uint32).ravel(), side=side)


def _put(picture: Picture, sprite: _Sprite, pose: Pose, brightness: float) -> None:
    """Draws a sprite into a picture, the nearest of its points for each pixel."""
    height, width = picture.shape[:2]
    place = window(pose, sprite.actor.voice.kind, height, width, margin=_MARGIN)
    if place is None:
        return
    scale, middle, last = np.float32(sprite.side / (2 * REACH)), np.float32(sprite.side / 2), sprite.side - 1
    column = np.clip((place.u * scale + middle).astype(np.int32), 0, last)
    row = np.clip((place.v * scale + middle).astype(np.int32), 0, last)
    row *= sprite.side
    row += column
    points = sprite.points.take(row).view(np.uint8).reshape(*row.shape, 4)
    part = picture[place.rows, place.columns]
    mixed = part * (points[..., 3:] * np.float32(1 / 255))
    mixed += points[..., :3] * np.float32(brightness)
    mixed += np.float32(0.5)
    np.minimum(mixed, 255, out=mixed)
    part[:] = mixed
