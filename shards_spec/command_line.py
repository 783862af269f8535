"""Command lines of every program here: generated from a dataclass by tyro, mistakes answered in one line."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from shards_spec import __version__
from shards_spec.errors import UserError, refusal
from shards_spec.messages import speaker, speaking_as, tell

Config = TypeVar("Config")
_HELP = {"-h", "--help"}
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Runs a command, which speaks as `program`, and ends it with one line on stderr where something is wrong.

    With status 2 on UserError, with 1 on OSError, with 130 on Ctrl-C. What it cannot print is dropped (messages.py).
    """
    with speaking_as(program):
        try:
            yield
        except UserError as error:
            tell(f"error: {' '.join(str(error).split())}")  # the words of libraries in it may be several lines
            raise SystemExit(2) from None
        except OSError as error:
            tell(f"error: {refusal(error)}")
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            tell("stopped by SIGINT")
            raise SystemExit(_INTERRUPTED) from None


def parse(
    config: type[Config] | dict[str, Any],
    arguments: Sequence[str] | None,
    *,
    prog: str | None = None,
    default: Config | None = None,
) -> Config:
    """The configuration that a command line asks for.

    Args:
        config: a dataclass, or one per subcommand name.
        arguments: the words after the command; None takes sys.argv.
        prog: what is called with these arguments; None: the command that runs.
        default: where defaults differ from the dataclass's own.

    Raises:
        UserError: unknown options, malformed or contradictory values.
        SystemExit: --help or --version was asked for.
    """
    prog = prog or speaker()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"{prog} {__version__}")
        raise SystemExit(0)
    if isinstance(config, dict) and words and words[0] not in config and not words[0].startswith("-"):
        raise UserError(f"{words[0]} is none of {', '.join(config)} (see {prog} --help)")
    said = io.StringIO()
    settings: dict[str, Any] = {"args": words, "prog": prog, "use_underscores": False}
    try:
        with contextlib.redirect_stderr(said), contextlib.nullcontext() if _HELP & set(words) else _unfolded():
            if isinstance(config, dict):
                return tyro.extras.subcommand_cli_from_dict(config, **settings)
            if default is not None:
                settings["default"] = default
            return tyro.cli(config, **settings)
    except SystemExit as ended:
        if ended.code == 2:
            raise UserError(f"{_message(said.getvalue())} (see {prog} --help)") from None
        raise


@contextlib.contextmanager
def _unfolded() -> Iterator[None]:
    """Tyro takes the terminal to be so wide that it folds no line."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _message(frame: str) -> str:
    """What tyro says in its frame of lines or dashes, unfolded: the message, and the options that it finds similar.

    Rules part its sections. The first is the message; in that on similar options an option is indented by 4, and what
    is said of it by 8.
    """
    sections: list[list[str]] = [[]]
    for row in re.sub("\x1b\\[[0-9;]*m", "", frame).split("\n")[1:]:  # the title says nothing more
        text = row[2:].rstrip(" │")
        if text and set(text) <= set("─-╯"):
            sections.append([])
        elif text:
            sections[-1].append(text)
    message, *others = filter(None, sections)
    said = " ".join(" ".join(message).split())
    for title, *rows in others:
        if title.startswith(("Perhaps you meant", "Arguments similar to")):
            names = dict.fromkeys(text.strip() for text in rows if re.match(" {4}[^ []", text))
            said += f"; {title[0].lower()}{title[1:]} {', '.join(names)}"
    return said
