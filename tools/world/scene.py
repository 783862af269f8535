"""One clip of the world as numbers: who is in view, where, who sounds, and how the background looks and sounds.

    (seed, split, index) -> Scene -> picture.py, sound.py, annotations.py

Two large objects, the rivals, take part in nearly every scene: the place and size of both follow the same rules, and
only then it is drawn which of them sounds. So nothing but the match of look and sound tells them apart. Smaller silent
objects come on top.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shards_spec.sample import audioset_key
from tools.world.backdrop import Backdrop, draw_backdrop
from tools.world.classes import MOTIONS, Level, WorldClass
from tools.world.look import Colour, Look, inside, outline
from tools.world.rhythm import Voice, pulse_at

SECONDS = 10.0
MIDDLE = SECONDS / 2
ASPECT = 4 / 3  # of the world, as of the pictures: x from 0 to ASPECT, y from 0 to 1

_CAST_STREAM, _SCENE_STREAM, _SOUND_STREAM = 2, 3, 4
_BOTH = 0.12  # share of the scenes with two large objects in which both sound
_THIRD = 0.6  # ... that have a small one, too
_LARGE = (0.46, 0.31)  # share of the picture that a large object's box covers: at the lowest and the highest pitch
_SMALL = (0.13, 0.06)
_LEAST_BOX = 0.27  # of a large object, as far as it is seen
_LEAST_SEEN = 0.72  # share of a large object that must be seen; of a small one
_LEAST_SEEN_SMALL = 0.4
_TRIES = 60
_GRID = 48  # rows of the coarse picture on which a layout is tried
_MOVE = 0.035  # how far a motion carries, picture heights
_HUE_SPREAD = 0.06  # of an object around a hue of its class


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where an object is at one time: centre, half axes, angle (radians)."""

    x: float
    y: float
    half_width: float
    half_height: float
    angle: float

    def extent(self, kind: WorldClass) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of its silhouette, in the world's units; may lie outside of the picture."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        u, v = outline(kind.shape, kind.lobes)
        a, b = self.half_width * u, self.half_height * v
        x, y = self.x + cosine * a - sine * b, self.y + sine * a + cosine * b
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())


@dataclass(frozen=True, kw_only=True)
class Actor:
    """An object in view."""

    voice: Voice
    look: Look
    pose: Pose  # at rest
    is_large: bool
    is_sounding: bool

    def states(self, times: Sequence[float]) -> list[tuple[Pose, float]]:
        """Its pose and brightness at times in seconds: moved in the rhythm of its voice, whether that sounds or not.

        Loud ones are bright, and light up with each strike: colours are multiplied by the brightness.
        """
        pulse = pulse_at(self.voice, np.array(times, np.float64))
        motion, base = MOTIONS[self.voice.kind.motion], 0.72 + 0.36 * self.voice.loudness
        return [
            (moved(self.pose, motion, drive, int(count)), base * (1 + 0.12 * drive))
            for drive, count in zip(pulse.drive.tolist(), pulse.count.tolist(), strict=True)
        ]

    def pose_at(self, time: float) -> Pose:
        """Its pose at one time."""
        return self.states([time])[0][0]


@dataclass(frozen=True, kw_only=True)
class ClipName:
    """What a segment CSV says of a clip: an id as YouTube's, the segment's start in seconds, what is heard."""

    ytid: str
    start: float
    label_ids: tuple[int, ...]

    @property
    def key(self) -> str:
        """AudioSet's segment_id, the key of its sample."""
        return audioset_key(self.ytid, self.start)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A clip.

    Attributes:
        actors: from the back to the front.
        noise: level of the background noise, and its colour (share of low frequencies); 0 to 1 each.
        tilt: of the whole recording's spectrum, -1 to 1.
        sound_seed: for the noise in the sounds.
    """

    name: ClipName
    actors: tuple[Actor, ...]
    backdrop: Backdrop
    noise: tuple[float, float]
    tilt: float
    sound_seed: tuple[int, ...]

    @property
    def sounding(self) -> tuple[Actor, ...]:
        """Those that are heard."""
        return tuple(actor for actor in self.actors if actor.is_sounding)


def moved(pose: Pose, motion: str, drive: float, count: int) -> Pose:
    """A pose after `count` strikes, carried away by `drive`."""
    side = -1 if count % 2 else 1
    if motion == "bouncing":
        return replace(pose, y=pose.y - 2 * _MOVE * abs(drive))
    if motion == "swaying":
        return replace(pose, angle=pose.angle + 0.22 * side * drive)
    if motion == "pulsing":
        size = 1 + 0.1 * drive
        return replace(pose, half_width=pose.half_width * size, half_height=pose.half_height * size)
    if motion == "shaking":
        return replace(pose, x=pose.x + 1.4 * _MOVE * side * drive)
    if motion == "circling":
        angle = 2 * math.pi * (count + (1 - drive)) / 6
        return replace(pose, x=pose.x + _MOVE * math.cos(angle), y=pose.y + _MOVE * math.sin(angle))
    if motion == "squashing":
        stretch = 1 + 0.13 * drive
        return replace(pose, half_width=pose.half_width * stretch, half_height=pose.half_height / stretch)
    return replace(pose, angle=pose.angle + math.pi / 5 * (count - drive))


def make_scene(classes: tuple[WorldClass, ...], level: Level, seed: int, split: int, index: int) -> Scene:
    """The scene of one clip. Depends on nothing but its arguments: more clips change none of the others."""
    who = _cast(len(classes), level, seed, split, index)
    generator = np.random.default_rng([seed, _SCENE_STREAM, split, index])
    is_stacked = bool(generator.random() < 0.5)  # the rivals: one above the other, or side by side
    drafts = [
        _draft(classes[kind], generator, is_stacked, is_large=i < who.larges, is_sounding=i < who.sounding)
        for i, kind in enumerate(who.kinds)
    ]
    return Scene(
        name=clip_name(len(classes), level, seed, split, index),
        actors=_arranged(drafts, generator, is_stacked),
        backdrop=draw_backdrop(generator),
        noise=(level.noise * float(generator.random()), float(generator.random())),
        tilt=level.noise * float(generator.uniform(-1, 1)),
        sound_seed=(seed, _SOUND_STREAM, split, index),
    )


def clip_name(classes: int, level: Level, seed: int, split: int, index: int) -> ClipName:
    """The name and the labels of a clip, without the scene: a hundred times as fast."""
    who = _cast(classes, level, seed, split, index)
    digest = hashlib.sha256(f"{seed}/{classes}/{split}/{index}".encode()).digest()
    return ClipName(
        ytid=base64.urlsafe_b64encode(digest)[:11].decode(),
        start=float(10 * (digest[-1] % 30)),
        label_ids=tuple(sorted(who.kinds[: who.sounding])),
    )


class _Cast(NamedTuple):
    """Classes of the objects: first `sounding` ones that sound, all of them among the first `larges` large ones."""

    kinds: list[int]
    larges: int
    sounding: int


def _cast(classes: int, level: Level, seed: int, split: int, index: int) -> _Cast:
    generator = np.random.default_rng([seed, _CAST_STREAM, split, index])
    chance = generator.random(3)
    if chance[0] < level.alone:
        larges, sounding, smalls = 1, 1, int(np.searchsorted((0.2, 0.7), chance[2]))
    else:
        larges, sounding, smalls = 2, 1 + int(chance[1] < _BOTH), int(chance[2] < _THIRD)
    # The first class goes round: every class sounds equally often.
    others = generator.choice(classes - 1, larges + smalls - 1, replace=False)
    first = index % classes
    return _Cast([first, *(other + (other >= first) for other in others.tolist())], larges, sounding)


def _draft(
    kind: WorldClass, generator: np.random.Generator, is_stacked: bool, *, is_large: bool, is_sounding: bool
) -> Actor:
    """An object without a place; wider than high where the rivals are stacked."""
    pitch, tempo, loudness, phase, shape = (float(value) for value in generator.random(5))
    start = 0.0 if generator.random() < 0.4 else float(generator.uniform(0.2, 4.5))
    end = SECONDS + 1 if generator.random() < 0.7 else float(generator.uniform(6.5, 9.5))
    voice = Voice(kind=kind, pitch=pitch, tempo=tempo, loudness=loudness, start=start, end=end)
    dark, light = _colours(generator, kind)
    look = Look(kind=kind, dark=dark, light=light, phase=phase, dials=(pitch, tempo))
    low, high = _LARGE if is_large else _SMALL
    share = low * (high / low) ** pitch  # of the picture: low voices are large
    slender = math.exp(0.3 * (kind.slenderness - 0.5) + 0.3 * (shape - 0.5) + (0.27 if is_stacked else -0.08))
    tilt = float(generator.normal(0, 0.25))
    pose = Pose(x=0.0, y=0.0, half_width=slender, half_height=1 / slender, angle=tilt)
    x0, y0, x1, y1 = pose.extent(kind)
    size = math.sqrt(share * ASPECT / ((x1 - x0) * (y1 - y0)))
    pose = replace(pose, half_width=slender * size, half_height=size / slender)
    return Actor(voice=voice, look=look, pose=pose, is_large=is_large, is_sounding=is_sounding)


def _colours(generator: np.random.Generator, kind: WorldClass) -> tuple[Colour, Colour]:
    """Two colours of clearly different lightness."""
    hue, turn, strong, pale = generator.random(4)
    dark, light = generator.uniform(0.1, 0.38), generator.uniform(0.72, 1.0)
    if kind.hues is None:
        return _hsl(hue, 0.5 + 0.5 * strong, dark), _hsl(hue + 0.15 + 0.7 * turn, 0.35 + 0.6 * pale, light)
    of_dark, of_light = (own + _HUE_SPREAD * (2 * at - 1) for own, at in zip(kind.hues, (hue, turn), strict=True))
    return _hsl(of_dark, 0.7 + 0.3 * strong, dark), _hsl(of_light, 0.6 + 0.4 * pale, light)


def _hsl(hue: float, saturation: float, value: float) -> Colour:
    """The colour of a hue (0 to 1) with this largest component."""
    wheel = [abs(((hue + third) * 6) % 6 - 3) - 1 for third in (0, 2 / 3, 1 / 3)]
    red, green, blue = (value * (1 - saturation * (1 - min(1.0, max(0.0, part)))) for part in wheel)
    return red, green, blue


# Places.


def _arranged(drafts: list[Actor], generator: np.random.Generator, is_stacked: bool) -> tuple[Actor, ...]:
    """The objects at places of their own, from the back to the front; all large ones well in view."""
    best: tuple[float, tuple[Actor, ...]] | None = None
    for _ in range(_TRIES):
        order = generator.permutation(len(drafts))
        placed = _placed(drafts, generator, is_stacked)
        actors = tuple(placed[i] for i in order)
        lack = _lack(actors)
        if lack <= 0:
            return actors
        if best is None or lack < best[0]:
            best = (lack, actors)
    assert best is not None
    return best[1]


def _placed(drafts: list[Actor], generator: np.random.Generator, is_stacked: bool) -> list[Actor]:
    """The objects at random places: rivals on opposite sides of the middle, small ones anywhere."""
    toward = generator.choice((0, math.pi)) + generator.uniform(-0.8, 0.8) + (math.pi / 2 if is_stacked else 0)
    placed = []
    for number, actor in enumerate(drafts):
        if actor.is_large:
            far = generator.uniform(0.6, 1.0) if len(drafts) > 1 else generator.uniform(0.2, 1.0)
            x = ASPECT / 2 + far * 0.46 * ASPECT * math.cos(toward + number * math.pi)
            y = 0.5 + far * 0.46 * math.sin(toward + number * math.pi)
        else:
            x, y = generator.uniform(0.08, 0.92) * ASPECT, generator.uniform(0.08, 0.92)
        at_rest = replace(actor.pose, x=0.0, y=0.0)
        # Where a large one would be cut, it is pushed inside, but for a little.
        x0, y0, x1, y1 = replace(actor, pose=at_rest).pose_at(MIDDLE).extent(actor.voice.kind)
        cut = 0.08 * generator.random() if actor.is_large else 0.0
        x = min(max(x, -x0 - cut), ASPECT - x1 + cut)
        y = min(max(y, -y0 - cut), 1 - y1 + cut)
        placed.append(replace(actor, pose=replace(at_rest, x=x, y=y)))
    return placed


def _lack(actors: tuple[Actor, ...]) -> float:
    """How far a layout is from one where every large object is seen well enough; 0 or less where it is good."""
    rows, columns = _GRID, round(_GRID * ASPECT)
    owner = owners(actors, MIDDLE, rows, columns)
    lack = 0.0
    for number, actor in enumerate(actors):
        seen, whole = owner.seen(number), owner.whole[number]
        least = _LEAST_SEEN if actor.is_large else _LEAST_SEEN_SMALL
        lack = max(lack, least - seen / max(whole, 1))
        if actor.is_large:
            box = owner.box(number)
            area = 0.0 if box is None else (box[2] - box[0]) * (box[3] - box[1])
            lack = max(lack, _LEAST_BOX - area)
    return lack


@dataclass(frozen=True, kw_only=True)
class Owners:
    """Which object each pixel shows.

    Attributes:
        number: int8 [H, W], index of the object, -1 for the background.
        whole: pixels of each object inside the picture, hidden ones included.
    """

    number: npt.NDArray[np.int8]
    whole: tuple[int, ...]

    def seen(self, actor: int) -> int:
        """Pixels in which an object is seen."""
        return int(np.count_nonzero(self.number == actor))

    def box(self, actor: int) -> tuple[float, float, float, float] | None:
        """x0, y0, x1, y1 around what is seen of an object, as shares of the picture; None where nothing is."""
        mask = self.number == actor
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if not len(rows):
            return None
        height, width = mask.shape
        return (
            float(columns[0] / width),
            float(rows[0] / height),
            float((columns[-1] + 1) / width),
            float((rows[-1] + 1) / height),
        )


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of a picture that an object may touch, and the object's own coordinates of its pixels, float32 [h, w].

    Attributes:
        pixel: distance of two neighbouring pixels in the object's coordinates, the mean of both directions.
    """

    rows: slice
    columns: slice
    u: npt.NDArray[np.float32]
    v: npt.NDArray[np.float32]
    pixel: float


def window(pose: Pose, kind: WorldClass, rows: int, columns: int, *, margin: float) -> Window | None:
    """The window of an object in a picture of `rows` x `columns`; None where they do not meet.

    Args:
        margin: added around its extent, as a share of its size.
    """
    x0, y0, x1, y1 = pose.extent(kind)
    more = margin * max(pose.half_width, pose.half_height)
    per_x, per_y = columns / ASPECT, float(rows)
    left, right = max(0, math.floor((x0 - more) * per_x)), min(columns, math.ceil((x1 + more) * per_x))
    top, bottom = max(0, math.floor((y0 - more) * per_y)), min(rows, math.ceil((y1 + more) * per_y))
    if left >= right or top >= bottom:
        return None
    cosine, sine = math.cos(pose.angle), math.sin(pose.angle)
    x = (np.arange(left, right) + 0.5) / per_x - pose.x
    y = (np.arange(top, bottom) + 0.5) / per_y - pose.y
    along = np.stack([cosine / pose.half_width * x, -sine / pose.half_height * x]).astype(np.float32)
    across = np.stack([sine / pose.half_width * y, cosine / pose.half_height * y]).astype(np.float32)
    pixel = math.sqrt(1 / (per_x * per_y * pose.half_width * pose.half_height))
    return Window(
        rows=slice(top, bottom),
        columns=slice(left, right),
        u=np.add.outer(across[0], along[0]),
        v=np.add.outer(across[1], along[1]),
        pixel=pixel,
    )


def owners(actors: tuple[Actor, ...], time: float, rows: int, columns: int) -> Owners:
    """Which object each pixel of a picture shows at a time."""
    number = np.full((rows, columns), -1, np.int8)
    whole = []
    for index, actor in enumerate(actors):
        seen = window(actor.pose_at(time), actor.voice.kind, rows, columns, margin=0.0)
        count = 0
        if seen is not None:
            mask = inside(actor.voice.kind, seen.u, seen.v)
            number[seen.rows, seen.columns][mask] = index
            count = int(np.count_nonzero(mask))
        whole.append(count)
    return Owners(number=number, whole=tuple(whole))
