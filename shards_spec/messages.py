"""What a command says: lines that begin with its name, of which those that cannot be printed are dropped."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_program: str | None = None  # None where no command runs: in a notebook, in a script of the user's


def speaker() -> str:
    """The command that runs, as its user calls it."""
    return _program or Path(sys.argv[0]).name


def say(line: str) -> None:
    """Tells how the work goes, on stdout."""
    print(_named(line), flush=True)


def tell(line: str) -> None:
    """Tells what is no result, or why there is none, on stderr."""
    print(_named(line), file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Tells on stderr what may be wrong, where the work goes on."""
    tell(f"warning: {line}")


def _named(line: str) -> str:
    return line if _program is None else f"{_program}: {line}"


@contextlib.contextmanager
def speaking_as(program: str) -> Iterator[None]:
    """Within the block `program` speaks, and its work does not depend on whether anybody can hear it.

    A closed stdout, a reader that has gone, a full disk, a terminal that was hung up, characters that the encoding
    does not have: what cannot be printed is dropped (such characters are written as escapes), and no print raises.
    """
    global _program
    before = _program, sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        _fill_standard_files()
        sys.stdout = _never_failing(sys.stdout, sys.__stdout__, opened)
        sys.stderr = _never_failing(sys.stderr, sys.__stderr__, opened)
        _program = program
        try:
            yield
        finally:
            _program, sys.stdout, sys.stderr = before


def _fill_standard_files() -> None:
    """Opens /dev/null where stdin, stdout or stderr is closed.

    The next file to be opened would get its number, and what a library or another process prints would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, as this one is
            os.set_inheritable(opened, True)


def _never_failing(stream: TextIO | None, own: TextIO | None, opened: contextlib.ExitStack) -> TextIO:
    """What stands in for a stream; the stream itself where it is not the process's own, as in a notebook."""
    if stream is None:  # it was closed when Python started, which then has none
        return opened.enter_context(Path(os.devnull).open("w", errors="backslashreplace"))
    if stream is not own or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    file = io.BufferedWriter(_DroppingFile(stream.fileno(), "wb", closefd=False))
    return opened.enter_context(
        io.TextIOWrapper(
            file,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
    )


class _DroppingFile(io.FileIO):
    """A file to which every write succeeds: what it cannot take is lost."""

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        return size if written is None else written  # None: it would have to be waited for
