"""The rows of a benchmark's CSV whose first line names the columns."""

import csv
from collections.abc import Sequence
from pathlib import Path

from shards_spec.errors import UserError, reason

FIRST = ""  # stands for the first column, whatever it is called


def read_named(path: Path, columns: Sequence[str], *, given_by: str) -> list[tuple[int, list[str]]]:
    """Line number, and the cells of `columns`, of each row; cells that a row lacks are empty.

    Args:
        given_by: what the user gave it with, for messages.

    Raises:
        UserError: the file cannot be read, is no CSV, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.DictReader(line.replace("\0", "") for line in file)
            try:
                names = list(reader.fieldnames or ())
                wanted = [column or next(iter(names), "a name") for column in columns]
                if not set(wanted) <= set(names):
                    expected = ", ".join(wanted[:-1]) + f" and {wanted[-1]}"
                    raise UserError(f"{path} has the columns {names}, expected {expected}")
                return [(reader.line_num, [str(row[name] or "").strip() for name in wanted]) for row in reader]
            except csv.Error as error:
                raise UserError(f"{path}:{reader.line_num} is no CSV ({error}): fetch it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): {given_by}") from error
