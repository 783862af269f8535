"""The two kinds of errors that a person meets; anything else is a defect of ours."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line: what, where, got, expected, what to do.

    Every command prints it as `COMMAND: error: MESSAGE` without a traceback and exits with status 2.
    """


class DamagedSampleError(RuntimeError):
    """Bytes of a shard are not what its index says. The message names shard, key and byte offset."""


@contextlib.contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Ends the program with status 2 and one line on stderr when the block raises UserError."""
    try:
        yield
    except UserError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
