"""The rows of a CSV that spreadsheets, scripts and people have been at, each with its line number."""

import csv
from collections.abc import Iterator
from pathlib import Path

from shards_spec.errors import UserError

Row = tuple[int, list[str], str]  # line number from 1, cells, what is wrong with the line

_MAX_ROW = 20_000  # characters; the longest row of AudioSet has about 250
_UTF16 = ("\udcff\udcfe", "\udcfe\udcff")  # its byte order marks, as bytes that are no UTF-8


def csv_rows(path: Path) -> Iterator[Row]:
    """Each line that is not blank. The file is read once, from its beginning to its end: it may be a pipe.

    A line is a row, whatever its quotes: one lost quote must not swallow the rows below it.

    Raises:
        UserError: the file cannot be read, or is not of UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            damaged: dict[int, str] = {}

            def lines() -> Iterator[str]:
                for number, line in enumerate(file, 1):
                    if number == 1 and line.startswith(_UTF16):
                        raise UserError(f"{path} is a text of UTF-16: save it as UTF-8")
                    text, problem = _mended(line)
                    if problem:
                        damaged[number] = problem
                    yield text

            reader = csv.reader(lines(), skipinitialspace=True)
            for row in reader:
                if row and (len(row) > 1 or row[0].strip()):
                    yield reader.line_num, row, damaged.get(reader.line_num, "") if damaged else ""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _mended(line: str) -> tuple[str, str]:
    """A line that is one row of text, and what was wrong with it."""
    if len(line) > _MAX_ROW:
        return line[:200].replace('"', "").encode(errors="replace").decode(), f"the row has {len(line)} characters"
    if line.count('"') % 2:
        return _mended(line.replace('"', ""))[0], "a quote is not closed"
    if "\0" in line:
        return _mended(line.replace("\0", ""))[0], "the row holds bytes of value 0: it is no text"
    if not line.isascii() and not _is_utf8(line):
        return line.encode(errors="replace").decode(), "the row is not UTF-8: save the file as UTF-8"
    return line, ""


def _is_utf8(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True
