"""The annotations of AVE (Tian et al., ECCV 2018): which second of which video holds which event.

trainSet.txt, valSet.txt and testSet.txt have a line a video, in the form of Annotations.txt, which holds all of them:

    Category&VideoID&Quality&StartTime&EndTime          the header
    Church bell&MH3m4AwEcRY&good&6&8                    the event is in seconds 6 and 7
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shards_spec.errors import UserError
from training.evaluation.heads.left_out import LeftOut

SECONDS = 10  # one-second segments of a clip
FILES = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}
_YTID = re.compile(r"[A-Za-z0-9_-]{11}")
_TIME = re.compile(r"[0-9]{1,3}")


@dataclass(frozen=True, kw_only=True)
class Event:
    """The one event of a video, in seconds `start` to `end` - 1 of its 10; in none of them where both are equal."""

    category: str
    ytid: str
    start: int
    end: int

    def labels(self, classes: list[str]) -> Tensor:
        """The class of each second, int64 [SECONDS]; len(classes) is background."""
        labels = torch.full((SECONDS,), len(classes))
        labels[self.start : self.end] = classes.index(self.category)
        return labels


def read_lists(folder: Path, left_out: LeftOut) -> dict[str, list[Event]]:
    """The events of each split, in the order of the files; [] where there is no valSet.txt.

    Args:
        left_out: is told of damaged lines.

    Raises:
        UserError: trainSet.txt or testSet.txt is not there, or has no usable line.
    """
    lists = {split: _read_list(folder / name, left_out) for split, name in FILES.items() if _is_there(folder, split)}
    for split in ("train", "test"):
        if not lists[split]:
            raise UserError(f"{folder / FILES[split]} has no usable line, expected Category&VideoID&Quality&Start&End")
    return {"val": []} | lists


def _is_there(folder: Path, split: str) -> bool:
    if (folder / FILES[split]).is_file():
        return True
    if split == "val":
        return False
    raise UserError(
        f"{folder / FILES[split]} does not exist: --annotations takes the folder of AVE's trainSet.txt, valSet.txt,"
        " testSet.txt"
    )


def _read_list(path: Path, left_out: LeftOut) -> list[Event]:
    events = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip() or (number == 1 and line.startswith("Category&")):
            continue
        event = _parse(line)
        if isinstance(event, Event):
            events.append(event)
        else:
            left_out.add(event, f"{path.name}:{number}")
    return events


def _parse(line: str) -> Event | str:
    """The event, or what is wrong with the line."""
    fields = [field.strip() for field in line.split("&")]
    if len(fields) != 5 or not fields[0]:
        return "lines that are not Category&VideoID&Quality&Start&End"
    category, ytid, _, start, end = fields
    if not _YTID.fullmatch(ytid):
        return "lines without a video id of 11 characters"
    if not (_TIME.fullmatch(start) and _TIME.fullmatch(end)):
        return "lines whose times are no whole seconds"
    if not int(start) <= int(end) <= SECONDS:  # one of AVE's 4,143 is 0&0: background in all seconds
        return f"lines without 0 <= start <= end <= {SECONDS}"
    return Event(category=category, ytid=ytid, start=int(start), end=int(end))
