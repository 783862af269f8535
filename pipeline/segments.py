"""Segment CSVs -> requested clips. The forms of CSV are those of `pipeline/columns.py`.

Every row becomes a Segment: damaged ones (spreadsheets turn ids into `#NAME?`) say what is wrong with them.
"""

import functools
import itertools
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from pipeline.classes import is_mid
from pipeline.columns import (
    Columns,
    columns_of,
    is_clip_name,
    is_comment,
    is_media_name,
    refuse_ambiguous,
    seconds,
    trimmed,
)
from pipeline.raw_files import named_parts, parse_name
from pipeline.requests import request_rows
from shards_spec.errors import UserError
from shards_spec.sample import audioset_key, file_key

KeyOf = Literal["stem", "path"]

_YTID = re.compile(r"[A-Za-z0-9_-]{11}")
_FORM_ROWS = 200  # rows looked at to tell the form
_EXPECTED = (
    "expected `ytid, start, end, labels`, VGGSound's `ytid,start,label,split` or `name.mp4,label`, or a first line "
    "that names the columns, such as path,start,end,label"
)


class Segment(NamedTuple):
    """One row of a segment CSV, or one media file where there is no CSV.

    Attributes:
        key: the clip's key, as long as no other name has the same (`plan.final_keys`).
        ytid: video id; None where the row names a file that carries none, or is damaged.
        stem: file name without suffix, for rows that can only be found by file name.
        start, end: seconds in the original video, None in damaged rows; in the file where `of_file`.
        line: line number in the CSV, from 1.
        problem: what is wrong with the row, empty for usable ones.
        name: what the key of a clip that is known by its file is made of; empty for others.
        path: the file as the row gives it; without a CSV, the number of its raw root and its path below it.
        of_file: start and end are places in the file itself.
    """

    key: str
    ytid: str | None
    stem: str | None
    start: float | None
    end: float | None
    labels: tuple[str, ...]
    line: int
    problem: str
    name: str = ""
    path: str = ""
    of_file: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmentTable:
    """What a segment CSV asks for.

    Attributes:
        rows: a Segment for each data row of the wanted split, in order.
        labels: every label of the CSV, whatever its split; empty where they are AudioSet's mids.
        warnings: for the user.
    """

    rows: list[Segment]
    labels: frozenset[str]
    warnings: list[str]


def read_segments(
    path: Path, *, clip_seconds: float, limit: int | None = None, split: str | None = None, key_of: KeyOf = "stem"
) -> SegmentTable:
    """Reads a segment CSV, once, from its beginning to its end.

    Args:
        clip_seconds: length of a segment where the row gives no end.
        limit: rows taken, from the first.
        split: rows taken, by what their column `split` says; several names with commas between them.
        key_of: what the key of a clip that is known by its file is made of.

    Raises:
        UserError: the file is missing, ambiguous, or holds no usable row (named with its first bad line); it has
            several splits and none is named, or not the one that is.
    """
    rows = request_rows(path)
    head = list(itertools.islice(rows, _FORM_ROWS))
    columns = columns_of(path, head)
    wanted = None if split is None else {name.strip() for name in split.split(",")}
    segments: list[Segment] = []
    splits: Counter[str] = Counter()
    labels: set[str] = set()
    announced = 0
    for number, row, problem in itertools.chain(head, rows):
        if number <= 5 and (count := re.search(r"num_segs=(\d+)", ",".join(row))):
            announced = int(count[1])
        if row[0][:1] == "#" and is_comment(row):
            continue
        if columns.header and tuple(trimmed(row)) == columns.header:
            continue
        if len(segments) == limit:
            announced = 0
            if columns.split is None and any(map(is_mid, labels)):
                break  # nothing below says anything more
        if not problem:
            refuse_ambiguous(path, columns, number, trimmed(row))
        segment, of_split = _segment(columns, row, number, clip_seconds, problem, key_of)
        labels.update(segment.labels)
        if of_split:
            splits[of_split] += 1
        is_taken = wanted is None or not of_split or of_split in wanted
        if is_taken and len(segments) != limit:
            segments.append(segment)
    _check_splits(path, splits, wanted)
    _check_usable(path, segments)
    _check_folders(path, segments, key_of)
    warnings = []
    if announced and announced != len(segments):
        warnings.append(f"{path} announces {announced} segments in its header and holds {len(segments)}")
    names = frozenset() if any(map(is_mid, labels)) else frozenset(labels)
    return SegmentTable(rows=segments, labels=names, warnings=warnings)


def _check_splits(path: Path, splits: Counter[str], wanted: set[str] | None) -> None:
    shown = ", ".join(f"{name} ({count:,} rows)" for name, count in splits.items())
    if wanted is None:
        if len(splits) > 1:
            one, *others = splits
            raise UserError(
                f"segment CSV {path} holds several splits, {shown}: say which with --split {one}, or take several "
                f"with --split {','.join([one, *others])}"
            )
    elif not splits:
        raise UserError(f"segment CSV {path} has no column of splits: leave --split away")
    elif unknown := sorted(wanted - splits.keys()):
        raise UserError(f"segment CSV {path} has no split {unknown[0]!r}: its splits are {shown}")


def _check_usable(path: Path, segments: list[Segment]) -> None:
    if not segments:
        raise UserError(f"segment CSV {path} holds no row: {_EXPECTED}")
    if all(segment.problem for segment in segments):
        raise UserError(f"segment CSV {path} holds no usable row: {segments[0].problem}; {_EXPECTED}")


def _check_folders(path: Path, segments: list[Segment], key_of: KeyOf) -> None:
    """Raises UserError where class folders hold files of the same name, all but one of which would be duplicates."""
    if not path.is_dir() or key_of == "path":
        return
    first: dict[str, str] = {}
    for segment in segments:
        other = first.setdefault(segment.key, segment.path)
        if segment.path and other != segment.path:
            raise UserError(
                f"the class folders of {path} hold several files of one name, as {other!r} and {segment.path!r}: "
                "give --key path"
            )


def _segment(
    columns: Columns, row: list[str], line: int, clip_seconds: float, problem: str, key_of: KeyOf
) -> tuple[Segment, str]:
    """The Segment of a row, and its split; none where it cannot be told."""
    of_split = "" if problem else _text(row, columns.split)
    if not problem and columns.header and columns.split is not None and not of_split:
        problem = "the row names no split"
    found = problem or _clip(columns, row, line, clip_seconds, key_of)
    if isinstance(found, Segment):
        return found, of_split
    return _damaged(row, line, found), of_split


def _clip(columns: Columns, row: list[str], line: int, clip_seconds: float, key_of: KeyOf) -> Segment | str:
    """The clip that a row asks for, or what is wrong with the row."""
    row = trimmed(row)
    if columns.width is not None and len(row) > columns.width:
        return f"the row has {len(row)} cells, expected {columns.width}"
    source, labels = _text(row, columns.source), _labels(columns, row)
    if columns.pattern is not None and not columns.pattern.fullmatch(source):
        return f"{source[:40]!r} is no name of this list: its first row has another form"
    if columns.is_file or is_media_name(source) or (columns.start is None and _is_name(columns, source)):
        return _file_clip(columns, row, line, clip_seconds, labels, key_of)
    if columns.start is None:
        return f"{source[:40]!r} is no name of a media file, and no column says when a clip of a video id starts"
    if not _YTID.fullmatch(source):
        return f"{source[:40]!r} is no video id (11 characters of A-Z a-z 0-9 _ -)"
    times = _times(columns, row, clip_seconds)
    if isinstance(times, str):
        return times
    return Segment(audioset_key(source, times[0]), source, None, *times, labels, line, "")


def _is_name(columns: Columns, source: str) -> bool:
    """Whether a source without a start is a file's name: one that can be no video id, or that says its start."""
    return is_clip_name(source) or bool(columns.header and source and not _YTID.fullmatch(source))


def _times(columns: Columns, row: list[str], clip_seconds: float) -> tuple[float, float] | str:
    """Start and end of a row, or what is wrong with them."""
    start = seconds(_text(row, columns.start))
    if start is None:
        return f"start {_cell(row, columns.start)} is no number of seconds"
    if columns.end is None:
        return start, start + clip_seconds
    end = seconds(_text(row, columns.end))
    if end is None:
        return f"end {_cell(row, columns.end)} is no number of seconds"
    return (start, end) if end > start else f"end {end:g} is not after start {start:g}"


def _labels(columns: Columns, row: list[str]) -> tuple[str, ...]:
    cells = [row[place] for place in columns.labels if place < len(row)]
    if columns.labels and columns.width is None:
        cells += row[columns.labels[-1] + 1 :]  # whoever unquotes a list leaves it in several cells
    if columns.lists and len(cells) == 1:
        return _split_labels(cells[0])  # AudioSet's millions of rows
    labels: tuple[str, ...] = ()
    for cell in cells:
        parts = _split_labels(cell)
        is_list = len(parts) < 2 or columns.lists or all(map(is_mid, parts))
        labels += parts if is_list else (sys.intern(cell.strip()),)
    return labels


@functools.lru_cache(maxsize=200_000)  # two million rows share their labels: less memory
def _split_labels(cell: str) -> tuple[str, ...]:
    return tuple([sys.intern(label) for label in map(str.strip, cell.split(",")) if label])


def _file_clip(
    columns: Columns, row: list[str], line: int, clip_seconds: float, labels: tuple[str, ...], key_of: KeyOf
) -> Segment | str:
    """The clip of a row that names a file. Times that the row gives are places in that file."""
    path = _text(row, columns.source)
    parts = named_parts(path)
    if not parts:
        return f"{path[:40]!r} is no name of a file"
    name = PurePosixPath(*parts)
    if is_media_name(path):
        name = name.with_suffix("")
    base = str(name) if key_of == "path" else name.name
    if _text(row, columns.start) or _text(row, columns.end):
        times = _times(columns, row, clip_seconds)
        if isinstance(times, str):
            return times
        begin, end = (round(1000 * second) for second in times)
        key, identity = file_key(f"{base}_{begin}"), f"{base}_{begin}-{end}"
        return Segment(key, None, name.name, *times, labels, line, "", identity, path, True)
    parsed = parse_name(name.name)
    if parsed is None or not parsed.starts:
        return Segment(file_key(base), None, name.name, 0.0, clip_seconds, labels, line, "", base, path)
    start = parsed.starts[0]
    key = audioset_key(parsed.ytid, start)
    return Segment(key, parsed.ytid, None, start, start + clip_seconds, labels, line, "")


def _damaged(row: list[str], line: int, problem: str) -> Segment:
    """A row that gives no clip. Its key is made of its content, so it stays when rows are added above it."""
    key = file_key("_".join(cell.strip() for cell in row[:3])[:60])
    return Segment(key, None, None, None, None, (), line, f"line {line}: {problem}")


def _text(row: list[str], place: int | None) -> str:
    return row[place].strip() if place is not None and place < len(row) else ""


def _cell(row: list[str], place: int | None) -> str:
    return repr(row[place][:40]) if place is not None and place < len(row) else "(no such column)"
