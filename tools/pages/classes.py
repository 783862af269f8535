"""The classes of a result: the best, the worst, and what is most often taken for what."""

from collections.abc import Mapping
from typing import Any

from tools.pages.tables import results_table
from tools.pages.web_page import text

_SHOWN = 10  # classes at each end, and confusions
_BY = ("AP", "accuracy")  # the column by which classes are ranked: the first that is there


def classes_of(result: Mapping[str, Any]) -> str:
    """Folded tables for each row of a result that tells of classes; nothing where none does."""
    confusions = result.get("confusion")
    of_rows = confusions if isinstance(confusions, Mapping) else {}
    classes = result.get("classes")
    tables = [
        _folded(f"Classes: {row}", _best_and_worst(of_row) + _confused(of_rows.get(row)))
        for row, of_row in (classes if isinstance(classes, Mapping) else {}).items()
        if isinstance(of_row, Mapping) and of_row
    ]
    return "".join(tables)


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{text(title)}</summary>{inside}</details>" if inside else ""


def _best_and_worst(classes: Mapping[str, Any]) -> str:
    """Classes with the highest and the lowest numbers; all of them where they are few."""
    rows = [(name, values) for name, values in classes.items() if isinstance(values, Mapping)]
    by = next((column for column in _BY if any(column in values for _, values in rows)), None)
    if by is None:
        return ""
    ranked = sorted(rows, key=lambda row: (-(row[1].get(by) or 0.0), row[0]))
    if len(ranked) <= 2 * _SHOWN:
        groups = [("", ranked)]
    else:
        groups = [(f"best of {len(ranked)}", ranked[:_SHOWN]), (f"worst of {len(ranked)}", ranked[-_SHOWN:])]
    return results_table(
        [{"name": name, "group": group, **values} for group, members in groups for name, values in members],
        head="class",
    )


def _confused(table: Any) -> str:
    """The pairs of classes that are most often mistaken."""
    if not isinstance(table, Mapping):
        return ""
    pairs = [
        (count, right, said)
        for right, of_class in table.items()
        if isinstance(of_class, Mapping)
        for said, count in of_class.items()
        if said != right and isinstance(count, int)
    ]
    most = sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:_SHOWN]
    return results_table(
        [{"name": right, "taken for": said, "samples": count} for count, right, said in most], head="class"
    )
