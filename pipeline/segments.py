"""Segment CSVs -> requested clips; class_labels_indices.csv -> class list.

Three forms of segment CSV are read, told apart by their rows:

    --PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"     AudioSet (`#` lines above are comments)
    ---g-f_I2yQ,1,people marching,test                     VGGSound: id, start second, label, split
    glLQrEijrKg_000300.mp4,playing hammond organ           VGGSound: file name, label

Every row becomes a Segment: damaged ones (spreadsheets turn ids into `#NAME?`) say what is wrong with them.
"""

import csv
import functools
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from pipeline.raw_files import VIDEO_SUFFIXES, parse_name
from shards_spec.errors import UserError
from shards_spec.sample import audioset_key, file_key

Form = Literal["audioset", "vggsound", "files"]
_FORMS: tuple[Form, ...] = ("audioset", "vggsound", "files")

_YTID = re.compile(r"[A-Za-z0-9_-]{11}")
_SPREADSHEET_ERROR = re.compile(r'"?#(NAME\?|REF!|VALUE!|N/A|DIV/0!|NUM!|NULL!)')
_HEADER_WORDS = {"ytid", "youtube_id", "video_id", "videoid", "id", "filename", "file", "file_name", "video"}
_FORM_ROWS = 200  # rows looked at to tell the form
_MAX_ROW = 20_000  # characters; the longest row of AudioSet has about 250
_MAX_SECONDS = 1e7


class Segment(NamedTuple):
    """One row of a segment CSV.

    Attributes:
        ytid: video id; None where the row names a file that carries none, or is damaged.
        stem: file name without suffix, for rows that can only be found by file name.
        start, end: seconds in the original video, None in damaged rows.
        line: line number in the CSV, from 1.
        problem: what is wrong with the row, empty for usable ones.
    """

    key: str
    ytid: str | None
    stem: str | None
    start: float | None
    end: float | None
    labels: tuple[str, ...]
    line: int
    problem: str


class ClassList:
    """The classes of a dataset, and which label means which.

    Attributes:
        classes: {index, mid, name} each, by index.
    """

    def __init__(self, classes: list[dict[str, Any]]) -> None:
        self.classes = classes
        self.unknown: Counter[str] = Counter()
        self._ids = {c["name"]: c["index"] for c in classes} | {c["mid"]: c["index"] for c in classes if c["mid"]}

    def label_ids(self, labels: tuple[str, ...]) -> list[int]:
        """Class indices of labels (mids or display names); labels outside the list are left out, and counted."""
        if not self._ids:
            return []
        ids = [self._ids.get(label) for label in labels]
        if None in ids:
            self.unknown.update(label for label in labels if label not in self._ids)
        return [index for index in ids if index is not None]


def read_classes(path: Path) -> ClassList:
    """Reads `index,mid,display_name` rows below a header, or VGGSound's `name,count,category` without one.

    Raises:
        UserError: the file is missing, or a row is not of the form.
    """
    rows = [(number, row) for number, row, _ in _csv_rows(path)]
    if not rows:
        raise UserError(f"class list {path} is empty: expected rows of index,mid,display_name")
    classes: list[dict[str, Any]] = []
    if rows[0][1][:1] == ["index"]:
        for number, row in rows[1:]:
            if len(row) != 3 or row[0] != str(len(classes)):
                raise UserError(
                    f"{path} line {number}: got {','.join(row)[:80]!r}, expected index,mid,display_name "
                    f"with index {len(classes)}"
                )
            classes.append({"index": len(classes), "mid": row[1], "name": row[2]})
    else:
        for number, row in rows:
            if not row[0] or row[0].isdigit():
                raise UserError(
                    f"{path} line {number}: got {','.join(row)[:80]!r}, expected a header index,mid,display_name, "
                    f"or rows that begin with a class name"
                )
            classes.append({"index": len(classes), "mid": "", "name": row[0]})
    return ClassList(classes)


def read_segments(path: Path, *, clip_seconds: float, limit: int | None = None) -> tuple[list[Segment], list[str]]:
    """Reads a segment CSV.

    Args:
        clip_seconds: length of a segment where the row gives no end.
        limit: rows taken, from the first.

    Returns:
        A Segment for each data row, in order, and warnings for the user.

    Raises:
        UserError: the file is missing or holds no usable row (named with its first bad line).
    """
    form = _form(path)
    segments: list[Segment] = []
    usable = announced = 0
    for number, row, problem in _csv_rows(path):
        if number <= 5 and (count := re.search(r"num_segs=(\d+)", ",".join(row))):
            announced = int(count[1])
        if _is_comment(row) or (not segments and _is_header(row)):
            continue
        if len(segments) == limit:
            announced = 0
            break
        segment = _segment(form, row, number, clip_seconds, problem)
        usable += not segment.problem
        segments.append(segment)
    if not segments:
        raise UserError(f"segment CSV {path} holds no row: expected `ytid, start, end, labels`")
    if not usable:
        first = segments[0]
        raise UserError(
            f"segment CSV {path} holds no usable row: {first.problem}; expected "
            f"`ytid, start, end, labels`, or VGGSound's `ytid,start,label,split` or `name.mp4,label`"
        )
    warnings = []
    if announced and announced != len(segments):
        warnings.append(f"{path} announces {announced} segments in its header and holds {len(segments)}")
    return segments, warnings


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """(line number, cells, what is wrong) of each line that is not blank. A line is a row, whatever its quotes:
    one lost quote must not swallow the rows below it."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            damaged: dict[int, str] = {}

            def lines() -> Iterator[str]:
                for number, line in enumerate(file, 1):
                    if len(line) > _MAX_ROW:
                        damaged[number] = f"the row has {len(line)} characters"
                        line = line[:200].replace('"', "")
                    elif line.count('"') % 2:
                        damaged[number] = "a quote is not closed"
                        line = line.replace('"', "")
                    yield line

            reader = csv.reader(lines(), skipinitialspace=True)
            for row in reader:
                if row and (len(row) > 1 or row[0].strip()):
                    yield reader.line_num, row, damaged.get(reader.line_num, "") if damaged else ""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _is_comment(row: list[str]) -> bool:
    """`#` lines, but not rows whose id a spreadsheet has replaced by `#NAME?`."""
    if row[0][:1] != "#":
        return False
    return not (_SPREADSHEET_ERROR.match(row[0]) or (len(row) > 1 and _seconds(row[1]) is not None))


def _is_header(row: list[str]) -> bool:
    return row[0].strip().lower() in _HEADER_WORDS


def _form(path: Path) -> Form:
    """The form that most of the first rows have."""
    votes: Counter[Form] = Counter()
    for _, row, _ in _csv_rows(path):
        if PurePosixPath(row[0]).suffix.lower() in VIDEO_SUFFIXES:
            votes["files"] += 1
        elif len(row) >= 3 and _seconds(row[2]) is not None:
            votes["audioset"] += 1
        elif len(row) >= 3 and _seconds(row[1]) is not None:
            votes["vggsound"] += 1
        if votes.total() == _FORM_ROWS:
            break
    return max(_FORMS, key=lambda form: votes[form])


@functools.lru_cache(maxsize=100_000)  # two million rows share their times: less memory, and faster
def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value < _MAX_SECONDS and "_" not in text else None


def _segment(form: Form, row: list[str], line: int, clip_seconds: float, problem: str) -> Segment:
    if problem:
        return _damaged(row, line, problem)
    if form == "files":
        return _file_segment(row, line, clip_seconds)
    ytid = row[0].strip()
    if not _YTID.fullmatch(ytid):
        return _damaged(row, line, f"{ytid[:40]!r} is no video id (11 characters of A-Z a-z 0-9 _ -)")
    start = _seconds(row[1]) if len(row) > 1 else None
    if start is None:
        return _damaged(row, line, f"start {_cell(row, 1)} is no number of seconds")
    labels: tuple[str, ...]
    if form == "vggsound":
        end, labels = start + clip_seconds, (row[2].strip(),) if len(row) > 2 and row[2].strip() else ()
    else:
        given = _seconds(row[2]) if len(row) > 2 else None
        if given is None:
            return _damaged(row, line, f"end {_cell(row, 2)} is no number of seconds")
        end = given
        if end <= start:
            return _damaged(row, line, f"end {end:g} is not after start {start:g}")
        labels = _split_labels(
            row[3] if len(row) == 4 else ",".join(row[3:])
        )  # whoever unquotes the labels leaves them in several cells
    return Segment(audioset_key(ytid, start), ytid, None, start, end, labels, line, "")


@functools.lru_cache(maxsize=200_000)  # two million rows share their labels: less memory
def _split_labels(cell: str) -> tuple[str, ...]:
    return tuple([sys.intern(label) for label in map(str.strip, cell.split(",")) if label])


def _file_segment(row: list[str], line: int, clip_seconds: float) -> Segment:
    name = PurePosixPath(row[0].strip())
    if name.suffix.lower() not in VIDEO_SUFFIXES:
        return _damaged(row, line, f"{str(name)[:40]!r} is no name of a video file")
    labels = (row[1].strip(),) if len(row) > 1 and row[1].strip() else ()
    parsed = parse_name(name.stem)
    if parsed is None or not parsed.starts:
        return Segment(file_key(name.stem), None, name.stem, 0.0, clip_seconds, labels, line, "")
    start = parsed.starts[0]
    end = start + clip_seconds
    return Segment(audioset_key(parsed.ytid, start), parsed.ytid, None, start, end, labels, line, "")


def _damaged(row: list[str], line: int, problem: str) -> Segment:
    """A row that gives no clip. Its key is made of its content, so it stays when rows are added above it."""
    key = file_key("_".join(cell.strip() for cell in row[:3])[:60])
    return Segment(key, None, None, None, None, (), line, f"line {line}: {problem}")


def _cell(row: list[str], index: int) -> str:
    return repr(row[index][:40]) if index < len(row) else "(no such column)"
