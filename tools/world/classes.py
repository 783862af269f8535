"""The classes of a world: which look goes with which sound, a table drawn from the world's seed.

A class is one value of each of six factors. Three are seen (shape, texture, motion), three are heard (timbre, rhythm,
register). The table is an orthogonal array: for a prime p, class (i, j) has the value i + c j mod p of the factor with
coefficient c. Any two factors then take each pair of values exactly once, so none of the seen ones, by itself,
tells anything about any of the heard ones: only the whole look tells the sound. (p = 6, for 36 classes, has no such
array: these are Euler's 36 officers.) Values are permuted by the seed.

Members of a family (two stars, two bells) differ by traits of their class: lobes, pattern, tempo, formant.

A level says how hard the world is to learn. In an easy one the colours tell shape and texture, which a small model
learns to see in minutes; half of the scenes have one large object only; nothing is recorded but the objects.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

SHAPES = ("disc", "triangle", "square", "star", "flower", "gear", "cross")
TEXTURES = ("striped", "checked", "dotted", "ringed", "rayed", "wavy", "blotched")
MOTIONS = ("bouncing", "swaying", "pulsing", "shaking", "circling", "squashing", "turning")
TIMBRES = ("whistle", "reed", "brass", "bell", "growl", "hiss", "pluck")
RHYTHMS = ("drone", "beat", "patter", "gallop", "trill", "siren", "burst")
REGISTERS = (200.0, 233.0, 272.0, 317.0, 369.0, 430.0, 501.0)  # Hz, the middle of the range; the ranges overlap
CLASS_COUNTS = (25, 49)  # p * p; p = 5 takes the first five values of each factor

LevelName = Literal["full", "easy"]

_TABLE_STREAM = 1  # tells the draws of the table from those of the clips


@dataclass(frozen=True, kw_only=True)
class Level:
    """How hard a world is to learn.

    Attributes:
        has_palettes: whether a class has its own two hues; else all objects have any.
        alone: share of the scenes with a single large object.
        noise: what the levels of background noise and the tilts of the spectrum are multiplied by.
    """

    has_palettes: bool
    alone: float
    noise: float


LEVELS: dict[LevelName, Level] = {
    "full": Level(has_palettes=False, alone=0.1, noise=1.0),
    "easy": Level(has_palettes=True, alone=0.5, noise=0.0),
}


@dataclass(frozen=True, kw_only=True)
class WorldClass:
    """A class. The factors are indices into the tuples above, the traits are shares between 0 and 1 but for `lobes`."""

    index: int
    shape: int
    texture: int
    motion: int
    timbre: int
    rhythm: int
    register: int
    lobes: int  # points of a star, teeth of a gear, petals, added to the family's fewest
    slenderness: float  # width over height, around 1
    grain: float  # how fine the texture is
    slant: float  # of the texture against the shape
    pace: float  # of the rhythm, within its family
    formant: float  # where the timbre is emphasised
    hues: tuple[float, float] | None  # of its dark and its light colour, 0 to 1; None: any

    @property
    def mid(self) -> str:
        """Its id in CSVs, as AudioSet's machine ids."""
        return f"/w/{self.index:02d}"

    @property
    def name(self) -> str:
        """Look and sound in words."""
        look = f"{MOTIONS[self.motion]} {TEXTURES[self.texture]} {SHAPES[self.shape]}"
        return f"{look} ({TIMBRES[self.timbre]} {RHYTHMS[self.rhythm]} at {REGISTERS[self.register]:.0f} Hz)"


def make_classes(seed: int, count: int, level: Level = LEVELS["full"]) -> tuple[WorldClass, ...]:
    """The classes of the world of this seed, by index.

    Args:
        count: one of CLASS_COUNTS.
    """
    order = round(count**0.5)
    if count not in CLASS_COUNTS:
        raise ValueError(f"classes must be one of {CLASS_COUNTS}, got {count}")
    generator = np.random.default_rng([seed, _TABLE_STREAM])
    row, column = np.divmod(generator.permutation(count), order)
    columns = {"shape": row, "texture": column}
    for coefficient, name in enumerate(("motion", "timbre", "rhythm", "register"), 1):
        columns[name] = (row + coefficient * column) % order
    factors = {name: generator.permutation(order)[values] for name, values in columns.items()}
    classes = []
    for index in range(count):
        own: dict[str, Any] = {name: int(values[index]) for name, values in factors.items()}
        lobes = int(generator.integers(0, 4))
        names = ("slenderness", "grain", "slant", "pace", "formant")
        traits: dict[str, Any] = dict(zip(names, generator.random(len(names)).tolist(), strict=True))
        hues = (own["shape"] / order, own["texture"] / order) if level.has_palettes else None
        classes.append(WorldClass(index=index, lobes=lobes, hues=hues, **own, **traits))
    return tuple(classes)


def class_list(classes: tuple[WorldClass, ...]) -> list[dict[str, Any]]:
    """The classes as dataset.json and plan.parquet hold them."""
    return [{"index": kind.index, "mid": kind.mid, "name": kind.name} for kind in classes]
