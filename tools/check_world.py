"""Is a synthetic world fair? What localization without any model scores in it, and what gives its classes away.

    python -m tools.check_world --clips 1200 --seed 0 --sheet docs/world.jpg
    python -m tools.check_world --compare s/train d/train    # the same clips, by way of files and without

The half of the frame nearest to the sounding box must score near 100, answers that do not listen must not. Colour,
position and size must say little of the class, and nothing of who sounds; together with the mean spectrum they say
some, which is printed beside chance: whoever has learned the world must be well above it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import UserError
from tools.world.checks import agreement_lines, compare, gather_facts, localization_lines, shortcut_lines
from tools.world.classes import LevelName
from tools.world.request import make_world
from tools.world.sheet import write_sheet


@dataclass(frozen=True, kw_only=True)
class CheckWorldConfig:
    """Prints trivial answers and shortcuts of a world, from clips that it draws itself."""

    clips: int = 1200
    """Clips to draw."""
    seed: int = 0
    """Of the world."""
    classes: Literal[25, 49] = 49
    """Classes of the world."""
    level: LevelName = "full"
    """How hard it is."""
    sheet: Path | None = None
    """Also write a picture: 24 clips with boxes and spectrograms (.png or .jpg)."""
    compare: tuple[Path, Path] | None = None
    """Instead: two datasets of one world, made from its files and with make_world --direct; how far they differ."""

    def check(self) -> None:
        """Raises UserError for values that make no sense."""
        if self.compare is not None and self != CheckWorldConfig(compare=self.compare):
            raise UserError("--compare reads two datasets and draws nothing: give it alone")
        if self.clips < 100:
            raise UserError(f"--clips must be at least 100 to say anything, got {self.clips}")
        if self.sheet is not None and self.sheet.suffix not in (".png", ".jpg"):
            raise UserError(f"--sheet {self.sheet}: expected a name that ends in .png or .jpg")


def main(arguments: list[str] | None = None) -> None:
    """The command. Exit status: 0 done, 2 a user's mistake."""
    with one_line_errors("python -m tools.check_world"):
        config = parse(CheckWorldConfig, arguments)
        config.check()
        if config.compare is not None:
            print("\n".join(agreement_lines(compare(*config.compare))))
            return
        world = make_world(config.seed, config.classes, config.level)
        facts = gather_facts(world, "train", config.clips)
        for line in (*localization_lines(facts), "", *shortcut_lines(facts)):
            print(line)
        if config.sheet is not None:
            write_sheet(config.sheet, world, "sheet")


if __name__ == "__main__":
    main()
