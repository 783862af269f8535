"""What is asked for: which world, which splits, how many clips of each; and the folder that remembers it."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards_spec.atomic import atomic_path
from shards_spec.errors import UserError
from tools.world.classes import LEVELS, Level, LevelName, WorldClass, make_classes
from tools.world.scene import ClipName, Scene, clip_name, make_scene

WORLD_FILE = "world.json"


@dataclass(frozen=True, kw_only=True)
class World:
    """A world: its seed says which look goes with which sound, and draws the clips."""

    seed: int
    level: Level
    classes: tuple[WorldClass, ...]

    def scene(self, split: str, index: int) -> Scene:
        """Clip `index` of a split."""
        return make_scene(self.classes, self.level, self.seed, _number(split), index)

    def name(self, split: str, index: int) -> ClipName:
        """Name and labels of that clip."""
        return clip_name(len(self.classes), self.level, self.seed, _number(split), index)


def _number(split: str) -> int:
    """A split's place in the draws follows from its name: other splits change nothing."""
    return zlib.crc32(split.encode())


def make_world(seed: int, classes: int, level: LevelName = "full") -> World:
    """The world of a seed."""
    rules = LEVELS[level]
    return World(seed=seed, level=rules, classes=make_classes(seed, classes, rules))


def parse_splits(text: str, clips: int | None) -> dict[str, int]:
    """Clips by split, of `train:0.9,val:0.1` (shares of `clips`) or `train:900,val:100`.

    Raises:
        UserError: anything else.
    """
    expected = "expected NAME:SHARE,... as train:0.9,val:0.1, or NAME:CLIPS,... as train:900,val:100"
    values: dict[str, str] = {}
    for part in text.split(","):
        name, separator, value = part.strip().partition(":")
        is_name = name.replace("-", "").replace("_", "").isalnum() and name != "masks"
        if not separator or not is_name or name in values:
            raise UserError(f"--splits {text!r}: {part!r} is no split of its own: {expected}")
        values[name] = value
    try:
        if all(value.isdigit() for value in values.values()):
            sizes = {name: int(value) for name, value in values.items()}
            if clips not in (None, sum(sizes.values())):
                raise UserError(f"--splits {text!r} has {sum(sizes.values())} clips, --clips says {clips}: give one")
            return _some(sizes, text)
        shares = {name: float(value) for name, value in values.items()}
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(f"--splits {text!r}: {expected}") from None
    if clips is None:
        raise UserError("--clips is missing: give the number of clips, or numbers in --splits")
    if not all(0 < share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"--splits {text!r}: the shares must be above 0 and add up to 1")
    sizes = {name: round(clips * share) for name, share in shares.items()}
    first = next(iter(sizes))
    sizes[first] += clips - sum(sizes.values())
    return _some(sizes, text)


def _some(sizes: dict[str, int], text: str) -> dict[str, int]:
    kept = {name: size for name, size in sizes.items() if size > 0}
    if not kept:
        raise UserError(f"--splits {text!r}: no split has a clip")
    return kept


def agree(out: Path, recipe: dict[str, Any], splits: dict[str, int]) -> None:
    """Writes world.json, or checks that the folder holds the same world, with no more clips than are asked for.

    Raises:
        UserError: the folder holds something else.
    """
    path = out / WORLD_FILE
    if path.is_file():
        try:
            old = json.loads(path.read_bytes())
            before, had = dict(old["recipe"]), dict(old["splits"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}): give another folder") from error
        if differences := [name for name in sorted(before.keys() | recipe) if before.get(name) != recipe.get(name)]:
            told = "; ".join(f"{name} was {before.get(name)}, now {recipe.get(name)}" for name in differences)
            raise UserError(f"{out} holds another world ({told}): give the same options, or another folder")
        if lost := [name for name, size in had.items() if splits.get(name, 0) < size]:
            raise UserError(
                f"{out} holds {had[lost[0]]} clips of {lost[0]}, asked for are {splits.get(lost[0], 0)}: ask for as "
                "many or more, or give another folder"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and holds no {WORLD_FILE}: give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"recipe": recipe, "splits": splits}, indent=2) + "\n")


def chunks(count: int, size: int) -> Iterator[range]:
    """0 to count - 1 in runs of `size`."""
    return (range(first, min(first + size, count)) for first in range(0, count, size))
