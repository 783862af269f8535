"""Which cell of a segment CSV says what: by the names in its first line, or by the form that most rows have.

path,start,end,label                                   a line of names; more names in _NAMES
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"     AudioSet (`#` lines above are comments)
---g-f_I2yQ,1,people marching,test                     VGGSound: id, start second, label, split
glLQrEijrKg_000300.mp4,playing hammond organ           VGGSound: file name, label
---g-f_I2yQ_000001,people_marching                     the same without suffix: EZ-VSL's and DeepAVFusion's lists
10000130166,202                                        Flickr-SoundNet: a name, and a number that nobody reads
filename,fold,target,category,esc10,src_file,take      ESC-50: its folds are splits, 1 to 5
key,vid_key,video_id,sentence                          MSR-VTT: the videos of JSFusion's test set
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.csv_rows import Row
from pipeline.raw_files import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from shards_spec.errors import UserError

_SPREADSHEET_ERROR = re.compile(r'"?#(NAME\?|REF!|VALUE!|N/A|DIV/0!|NUM!|NULL!)')
_NAMED_WITHOUT_SUFFIX = re.compile(r"[A-Za-z0-9_-]{11}_\d{6}")  # ID_000030: VGGSound's way, seconds
_FLICKR_ID = re.compile(r"\d{6,12}")
_MAX_SECONDS = 1e7

_NAMES = {
    "file": ("path", "file", "filename", "file_name", "filepath", "file_path"),
    "source": ("ytid", "youtube_id", "video_id", "videoid", "id", "video", "clip", "name"),  # an id, or a file
    "start": ("start", "start_seconds", "start_second", "start_time", "start_sec", "begin", "onset"),
    "end": ("end", "end_seconds", "end_second", "end_time", "end_sec", "stop"),
    "label": ("label", "class", "category"),
    "labels": ("labels", "positive_labels", "classes"),
    "split": ("split", "set", "subset"),
}
_MEANING = {name: meaning for meaning, names in _NAMES.items() for name in names}
_NUMBERED_LABEL = re.compile(r"label_?\d+")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The place of each thing in a row, from 0; None where the CSV does not say it.

    Attributes:
        source: a video id or the name of a file.
        is_file: the source is a file's name whatever it looks like.
        pattern: what sources look like, where the form says it.
        labels: cells with labels.
        lists: a label cell is a list, with commas between its labels; else it is one label.
        width: cells that a row may have; None: the cells beyond the last column are labels too.
        header: the cells of the first line where it names the columns.
    """

    source: int = 0
    is_file: bool = False
    pattern: re.Pattern[str] | None = None
    start: int | None = None
    end: int | None = None
    labels: tuple[int, ...] = ()
    lists: bool = False
    split: int | None = None
    width: int | None = None
    header: tuple[str, ...] = ()


_AUDIOSET = Columns(start=1, end=2, labels=(3,), lists=True)
_VGGSOUND = Columns(start=1, labels=(2,), split=3, width=4)
_FILES = Columns(labels=(1,), width=2)
_FLICKR = Columns(is_file=True, pattern=_FLICKR_ID, width=2)
_KNOWN_HEADERS = {  # first lines with columns of which nothing is read
    ("filename", "fold", "target", "category", "esc10", "src_file", "take"): Columns(
        is_file=True, labels=(3,), split=1, width=7
    ),
    ("key", "vid_key", "video_id", "sentence"): Columns(source=2, is_file=True),
}
_FORMS = (_AUDIOSET, _VGGSOUND, _FILES, _FLICKR)


def columns_of(path: Path, rows: Sequence[Row]) -> Columns:
    """The columns of a CSV that begins with `rows`.

    Raises:
        UserError: its first line names columns that are unknown, twice there, or not enough.
    """
    data = [(number, trimmed(row)) for number, row, _ in rows if not is_comment(row)]
    known = _KNOWN_HEADERS.get(tuple(_words(data[0][1]))) if data else None
    if known is not None:
        return replace(known, header=tuple(data[0][1]))
    if data and _is_header(data[0][1]):
        return _named(path, *data[0])
    votes = Counter(form for _, row in data if (form := _form_of(row)) is not None)
    return max(_FORMS, key=lambda form: votes[form])


def trimmed(row: list[str]) -> list[str]:
    """A row without the empty cells with which spreadsheets fill rows up."""
    if row[-1]:
        return row  # nearly all of them
    cells = len(row)
    while cells > 1 and not row[cells - 1].strip():
        cells -= 1
    return row[:cells]


def is_comment(row: list[str]) -> bool:
    """`#` lines, but not rows whose id a spreadsheet has replaced by `#NAME?`, nor files named so (`#1 hit.mp4`)."""
    if row[0][:1] != "#":
        return False
    is_row = _SPREADSHEET_ERROR.match(row[0]) or is_media_name(row[0].strip())
    return not (is_row or (len(row) > 1 and seconds(row[1]) is not None))


def is_media_name(text: str) -> bool:
    """Whether a cell ends as the names of media files do."""
    dot = text.rfind(".")
    return dot > 0 and ((suffix := text[dot:].lower()) in VIDEO_SUFFIXES or suffix in AUDIO_SUFFIXES)


def is_clip_name(text: str) -> bool:
    """Whether a cell names a VGGSound clip as its file is named, without the suffix."""
    return _NAMED_WITHOUT_SUFFIX.fullmatch(text) is not None


@functools.lru_cache(maxsize=100_000)  # two million rows share their times: less memory, and faster
def seconds(text: str) -> float | None:
    """The number of seconds in a cell, None where it holds none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value < _MAX_SECONDS and "_" not in text else None


def refuse_ambiguous(path: Path, columns: Columns, line: int, row: list[str]) -> None:
    """Raises UserError for a row without a header whose cells may mean this or that."""
    if columns is not _VGGSOUND and columns is not _FILES:
        return
    shown = ",".join(row)[:80]
    names = "path,start,end,label or path,label"
    if columns is _FILES and len(row) > 1 and seconds(row[1]) is not None:
        raise UserError(
            f"{path} line {line}: {shown!r}: {row[1].strip()!r} may be a label or a time: "
            f"put a first line that names the columns, such as {names}"
        )
    if columns.width is not None and len(row) > columns.width:
        form = "name.mp4,label" if columns is _FILES else "id,start,label,split"
        raise UserError(
            f"{path} line {line}: {shown!r} has {len(row)} cells, expected {form}: put labels that hold a comma "
            f"into quotes, or put a first line that names the columns, such as {names}"
        )


def _form_of(row: list[str]) -> Columns | None:
    first = row[0].strip()
    if is_media_name(first) or is_clip_name(first):
        return _FILES
    if len(row) >= 3 and seconds(row[2]) is not None:
        return _AUDIOSET
    if len(row) >= 3 and seconds(row[1]) is not None:
        return _VGGSOUND
    if len(row) <= 2 and all(_FLICKR_ID.fullmatch(first) and cell.strip().isdigit() for cell in row):
        return _FLICKR
    return None


def _words(row: Sequence[str]) -> list[str]:
    return [cell.strip().lower().replace(" ", "_").replace("-", "_") for cell in row]


def _is_header(row: list[str]) -> bool:
    names = {_MEANING.get(word) for word in _words(row)}
    is_data = any(is_media_name(cell) or is_clip_name(cell.strip()) or seconds(cell) is not None for cell in row)
    return not is_data and bool(names & {"file", "source"})


def _named(path: Path, line: int, row: list[str]) -> Columns:
    """The columns that a header names."""
    places: dict[str, list[int]] = {}
    for place, (cell, word) in enumerate(zip(row, _words(row), strict=True)):
        meaning = "label" if _NUMBERED_LABEL.fullmatch(word) else _MEANING.get(word)
        if meaning is None:
            known = "path (or ytid), start, end, label, labels, split"
            raise UserError(f"{path} line {line}: column {cell!r} is unknown: remove it, or name it one of {known}")
        places.setdefault("source" if meaning == "file" else meaning, []).append(place)
    for meaning, found in places.items():
        if len(found) > 1 and meaning != "label":
            twice = ", ".join(repr(row[place]) for place in found)
            raise UserError(f"{path} line {line}: the columns {twice} say the same: leave one of them")
    if "label" in places and "labels" in places:
        raise UserError(f"{path} line {line}: it has a column of one label and one of lists of labels: leave one")
    if "end" in places and "start" not in places:
        raise UserError(f"{path} line {line}: it has a column of ends and none of starts: add a column start")
    source = places["source"][0]
    labels = tuple(places.get("label", places.get("labels", ())))
    return Columns(
        source=source,
        is_file=_MEANING[_words(row)[source]] == "file",
        start=places.get("start", [None])[0],
        end=places.get("end", [None])[0],
        labels=labels,
        lists="labels" in places,
        split=places.get("split", [None])[0],
        width=None if labels and labels[-1] == len(row) - 1 else len(row),
        header=tuple(row),
    )
