"""What may stand behind --segments -> rows as of a CSV; what is no CSV gets a first line that names the columns.

a CSV                                                    as it is (`csv_rows`)
WORD/NAME.wav ..., validation_list.txt, testing_list.txt a folder with a folder for each class: Speech Commands
{"data": [{"video_id": ..., "labels": ..., ...}, ...]}   CAV-MAE's JSON lists
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.csv_rows import Row, csv_rows
from pipeline.raw_files import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from shards_spec.errors import UserError, reason

_LISTS = {"validation_list.txt": "validation", "testing_list.txt": "test"}  # whose files are of which split
_REST = "train"


def request_rows(path: Path) -> Iterator[Row]:
    """The rows of a request, each with its line number.

    Raises:
        UserError: it cannot be read, or is of none of these forms.
    """
    if path.is_dir():
        yield from _class_folders(path)
    elif path.suffix.lower() == ".json":
        yield from _json_list(path)
    else:
        yield from csv_rows(path)


def _class_folders(folder: Path) -> Iterator[Row]:
    """A row for each media file in a folder of its class; folders named `_background_noise_` or `.git` are no classes.

    Where a list of Speech Commands is there, files have splits, and what is listed and not there is asked for too.
    """
    try:
        splits = {name: split for list_name, split in _LISTS.items() for name in _listed(folder / list_name)}
        found = {f"{file.parent.name}/{file.name}" for word in _classes(folder) for file in word.iterdir()}
    except OSError as error:
        raise UserError(f"cannot read the class folders of {folder}: {reason(error)}") from error
    found = {name for name in found if _is_media(name.rpartition("/")[2])}
    if not found:
        raise UserError(f"{folder} has no folder with media files: as --segments it needs a folder for each class")
    yield 1, ["path", "label", "split"] if splits else ["path", "label"], ""
    for number, name in enumerate(sorted(found | splits.keys()), 2):
        split = [splits.get(name, _REST)] if splits else []
        yield number, [name, name.partition("/")[0], *split], ""


def _classes(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name[0] not in "._" and entry.is_dir()]


def _is_media(name: str) -> bool:
    return name[0] != "." and Path(name).suffix.lower() in AUDIO_SUFFIXES | VIDEO_SUFFIXES


def _listed(path: Path) -> list[str]:
    """The files that a list names, `WORD/NAME.wav` a line; none where it is not there."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines if "/" in line]


def _json_list(path: Path) -> Iterator[Row]:
    """A row for each entry; its number counts entries, from 1."""
    yield 0, ["file", "labels"], ""
    for number, entry in enumerate(read_json_list(path), 1):
        video, labels = (
            (entry.get(name) for name in ("video_id", "labels")) if isinstance(entry, dict) else (None, None)
        )
        is_usable = isinstance(video, str) and video.strip() and isinstance(labels, str | None)
        problem = "" if is_usable else "the entry has no video_id, or labels that are no text"
        yield number, [str(video or "?").strip(), str(labels or "")], problem


def read_json_list(path: Path) -> list[Any]:
    """The entries of one of CAV-MAE's lists.

    Raises:
        UserError: it cannot be read, or is no such list.
    """
    expected = 'expected {"data": [{"video_id": ..., "wav": ..., "video_path": ..., "labels": ...}, ...]}'
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): {expected}") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise UserError(f"{path} is no list of CAV-MAE's: {expected}")
    entries: list[Any] = content["data"]
    return entries
