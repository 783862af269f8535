"""The classes of a dataset: a class list's, or the labels that a segment CSV holds."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.csv_rows import csv_rows
from shards_spec.errors import UserError

_MID = re.compile(r"/[a-z]/[A-Za-z0-9_-]+")  # AudioSet's name of a class: /m/09x0r


class ClassList:
    """The classes of a dataset, and which label means which.

    Attributes:
        classes: {index, mid, name} each, by index.
    """

    def __init__(self, classes: list[dict[str, Any]]) -> None:
        self.classes = classes
        self.unknown: Counter[str] = Counter()
        exact = {c["name"]: c["index"] for c in classes} | {c["mid"]: c["index"] for c in classes if c["mid"]}
        spelled = Counter(_spelled(c["name"]) for c in classes)
        others = {_spelled(c["name"]): c["index"] for c in classes if spelled[_spelled(c["name"])] == 1}
        self._ids = others | exact

    def label_ids(self, labels: tuple[str, ...]) -> list[int]:
        """Class indices of labels; labels outside the list are left out, and counted.

        A label is a mid, a display name, or a display name as file names spell it (DeepAVFusion's lists):
        `dog_bow-wow` for "dog bow-wow", `bird_chirping_tweeting` for "bird chirping, tweeting".
        """
        if not self._ids:
            return []
        ids = [self._ids.get(label) for label in labels]
        if None in ids:
            self.unknown.update(label for label in labels if label not in self._ids)
        return [index for index in ids if index is not None]


def _spelled(name: str) -> str:
    return re.sub(r"[ ,]+", "_", name)


def is_mid(label: str) -> bool:
    """Whether a label is one of AudioSet's own names, whose order AudioSet's class list gives."""
    return _MID.fullmatch(label) is not None


def classes_of_labels(labels: Iterable[str], begun: list[dict[str, Any]]) -> ClassList:
    """A class for each label, by name; those of the list that was `begun` keep their places."""
    names = [c["name"] for c in begun]
    names += sorted(set(labels) - set(names))
    return ClassList([{"index": index, "mid": "", "name": name} for index, name in enumerate(names)])


def read_classes(path: Path) -> ClassList:
    """Reads `index,mid,display_name` rows below a header, or VGGSound's `name,count,category` without one.

    Raises:
        UserError: the file is missing, or a row is not of the form.
    """
    rows = list(csv_rows(path))
    if not rows:
        raise UserError(f"class list {path} is empty: expected rows of index,mid,display_name")
    for number, _, problem in rows:
        if problem:
            raise UserError(f"{path} line {number}: {problem}")
    classes: list[dict[str, Any]] = []
    if rows[0][1][:1] == ["index"]:
        for number, row, _ in rows[1:]:
            if len(row) != 3 or row[0] != str(len(classes)):
                raise UserError(
                    f"{path} line {number}: got {','.join(row)[:80]!r}, expected index,mid,display_name "
                    f"with index {len(classes)}"
                )
            classes.append({"index": len(classes), "mid": row[1], "name": row[2]})
    else:
        for number, row, _ in rows:
            if not row[0] or row[0].isdigit():
                raise UserError(
                    f"{path} line {number}: got {','.join(row)[:80]!r}, expected a header index,mid,display_name, "
                    f"or rows that begin with a class name"
                )
            classes.append({"index": len(classes), "mid": "", "name": row[0]})
    return ClassList(classes)
