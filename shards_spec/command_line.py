"""Command lines of every program here: generated from a dataclass by tyro, mistakes answered in one line."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from shards_spec.errors import UserError, refusal

Config = TypeVar("Config")


@contextlib.contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Ends the program with one line on stderr: with status 2 where the block raises UserError, with 1 on OSError."""
    try:
        yield
    except UserError as error:
        said = " ".join(str(error).split())  # the words of libraries in it may be several lines
        print(f"{command}: error: {said}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # nobody reads what is printed
        raise
    except OSError as error:
        print(f"{command}: error: {refusal(error)}", file=sys.stderr)
        raise SystemExit(1) from None


def parse(
    config: type[Config] | dict[str, Any], arguments: Sequence[str] | None, *, prog: str, default: Config | None = None
) -> Config:
    """The configuration that a command line asks for.

    Args:
        config: a dataclass, or one per subcommand name.
        arguments: the words after the command; None takes sys.argv.
        default: where defaults differ from the dataclass's own.

    Raises:
        UserError: unknown options, malformed or contradictory values.
        SystemExit: --help was asked for.
    """
    said = io.StringIO()
    settings: dict[str, Any] = {"args": arguments, "prog": prog, "use_underscores": False}
    try:
        with contextlib.redirect_stderr(said):
            if isinstance(config, dict):
                return tyro.extras.subcommand_cli_from_dict(config, **settings)
            if default is not None:
                settings["default"] = default
            return tyro.cli(config, **settings)
    except SystemExit as ended:
        if ended.code == 2:
            raise UserError(f"{_unboxed(said.getvalue())} (see {prog} --help)") from None
        raise


def _unboxed(box: str) -> str:
    """The message in tyro's frame, as one line: between its title and its first rule, of dashes where not of lines."""
    title, *rows = re.sub("\x1b\\[[0-9;]*m", "", box).split("\n")
    inner = len(title) - (4 if title.startswith("╭") else 2)
    if set(rows[0].strip()) == {"-"}:
        rows = rows[1:]
    message, is_full = "", False
    for row in rows:
        text = row.strip("│ ")
        if row.startswith("╰") or set(text) in ({"─"}, {"-"}):
            break
        # A word that is longer than the frame was broken at its edge; one that just ends there looks the same.
        is_broken = is_full and len(message.split(" ")[-1] + text.split(" ")[0]) > inner
        message += text if is_broken or not message else f" {text}"
        is_full = len(text) == inner
    return re.sub(r"\s+", " ", message)
