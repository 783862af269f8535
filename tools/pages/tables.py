"""Tables of results: rows of plain dicts, columns found in them or given, the best of each column marked.

    results_table(
        [
            {"name": "crossmae", "run": 0, "audio_to_image/R@1": Spread(mean=22.8, spread=0.4, count=3)},
            {"name": "random tokens", "run": 1, "audio_to_image/R@1": 19.6},
            {"name": "chance", "kind": "reference", "audio_to_image/R@1": 0.2},
            {"name": "paper", "kind": "reference", "detail": "Table 6", "audio_to_image/R@1": 22.8},
        ],
        better={"audio_to_image/R@1": "higher"},
    )

Keys of a row beside its values: `name` (text); `run`, the number of its colour; `kind`, "reference" for rows to read
the others against (baselines, oracles, chance, published figures: at the end, never marked as best); `detail`, a few
words after the name; `group`, a heading over the rows that share it, which are compared among themselves. A value is a
number, a Spread, text, or None; what a row lacks is a dash. A column's key is a path: what precedes its last "/"
becomes a heading over the columns that share it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, Literal

from tools.pages.curves import number
from tools.pages.web_page import run_name, text

Better = Literal["higher", "lower"]
_ABOUT = ("name", "run", "kind", "detail", "group")
_MOST_COLUMNS = 9  # a wider table is turned: a row for each metric


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A value over `count` seeds: mean and deviation."""

    mean: float
    spread: float
    count: int


def results_table(
    rows: Sequence[Mapping[str, Any]],
    *,
    columns: Sequence[str] | None = None,
    titles: Mapping[str, str] | None = None,
    better: Mapping[str, Better] | None = None,
    head: str = "",
) -> str:
    """The HTML of a table; nothing where no row has a value.

    Args:
        rows: see above.
        columns: keys to show, in this order. Default: all, in the order in which they are met.
        titles: what a part of a key is called, where not as it is.
        better: by key, which value is best among the rows that are no reference.
        head: over the names of the rows, text.
    """
    keys = list(columns) if columns is not None else _keys(rows)
    if not keys or not rows:
        return ""
    ordered = _ordered(rows)
    has_groups = any(row.get("group") for row in rows)
    best = {
        (group, key): _best([row for row in ordered if row.get("group", "") == group], key, way)
        for group in {row.get("group", "") for row in rows}
        for key, way in (better or {}).items()
    }
    make = _wide if has_groups or len(keys) <= _MOST_COLUMNS else _tall
    body = make(ordered, keys, titles or {}, best, head)
    return f'<div class="scroll" tabindex="0"><table class="results">{body}</table></div>'


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested numbers with a path as key: {"a": {"b": 1}} gives {"a/b": 1}. Lists and text are left out."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = value
    return flat


def shown(value: Any) -> str:
    """A cell: three digits or so, whole numbers whole, a spread with its sign, a dash for nothing."""
    if isinstance(value, Spread):
        if value.count < 2:
            return shown(value.mean)
        digits = _digits(value.mean)
        return f'{value.mean:,.{digits}f}<span class="spread"> ± {value.spread:.{digits}f}</span>'
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 0.01:
        return number(value)
    return f"{value:,.{_digits(value)}f}"


def _digits(value: float) -> int:
    return 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All columns; those under one heading together."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in _ABOUT))
    groups = list(dict.fromkeys(_group(key) for key in keys))
    return sorted(keys, key=lambda key: groups.index(_group(key)))


def _ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Group by group, those without one at the end; references behind the others of their group."""
    groups = sorted(dict.fromkeys(row.get("group", "") for row in rows), key=lambda group: not group)  # stable
    return sorted(rows, key=lambda row: (groups.index(row.get("group", "")), row.get("kind") == "reference"))


def _group(key: str) -> str:
    return key.rpartition("/")[0]


def _comparable(value: Any) -> float | None:
    """The number by which cells are ranked: as it is printed, so that equal cells are equal."""
    value = value.mean if isinstance(value, Spread) else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(value, _digits(value))


def _best(rows: Sequence[Mapping[str, Any]], key: str, way: Better) -> float | None:
    """The best value of a column, where two rows or more have one that differ."""
    values = [_comparable(row.get(key)) for row in rows if row.get("kind") != "reference"]
    known = [value for value in values if value is not None]
    if len(set(known)) < 2:
        return None
    return max(known) if way == "higher" else min(known)


def _title(part: str, titles: Mapping[str, str]) -> str:
    return escape(titles.get(part, part.replace("_", " ")))


def _cell(row: Mapping[str, Any], key: str, best: Mapping[tuple[str, str], float | None]) -> str:
    value = row.get(key)
    first = best.get((row.get("group", ""), key))
    is_best = first is not None and row.get("kind") != "reference" and _comparable(value) == first
    marked = ' class="best"' if is_best else ""
    return f"<td{marked}>{shown(value)}</td>"


def _name(row: Mapping[str, Any]) -> str:
    name = run_name(str(row["name"]), row["run"]) if row.get("run") is not None else text(str(row["name"]))
    detail = f' <span class="detail">{text(str(row["detail"]))}</span>' if row.get("detail") else ""
    return name + detail


def _wide(
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    titles: Mapping[str, str],
    best: Mapping[tuple[str, str], float | None],
    head: str,
) -> str:
    """A row for each row, headings over the columns."""
    groups = [(group, len(list(members))) for group, members in groupby(keys, _group)]
    upper = ""
    if any(group for group, _ in groups):
        cells = "".join(
            f'<th scope="colgroup" colspan="{count}" class="group">'
            f"{f'<span>{_heading(group, titles)}</span>' if group else ''}</th>"
            for group, count in groups
        )
        upper = f"<tr><td></td>{cells}</tr>"
    lower = "".join(f'<th scope="col">{_title(key.rpartition("/")[2], titles)}</th>' for key in keys)
    body, group = "", ""
    for row, kind in zip(rows, _kinds(rows), strict=True):
        if row.get("group", "") != group:
            group = row.get("group", "")
            if group:
                body += f'<tr class="heading"><th scope="rowgroup" colspan="{len(keys) + 1}">{escape(group)}</th></tr>'
        body += f'<tr{kind}><th scope="row">{_name(row)}</th>{"".join(_cell(row, key, best) for key in keys)}</tr>'
    return f"<thead>{upper}<tr><td>{escape(head)}</td>{lower}</tr></thead><tbody>{body}</tbody>"


def _tall(
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    titles: Mapping[str, str],
    best: Mapping[tuple[str, str], float | None],
    head: str,
) -> str:
    """A row for each metric, a column for each row."""
    names = "".join(f'<th scope="col">{_name(row)}</th>' for row in rows)
    body = "".join(
        f'<tr><th scope="row">{_heading(key, titles)}</th>{"".join(_cell(row, key, best) for row in rows)}</tr>'
        for key in keys
    )
    return f"<thead><tr><td>{escape(head)}</td>{names}</tr></thead><tbody>{body}</tbody>"


def _heading(path: str, titles: Mapping[str, str]) -> str:
    return ", ".join(_title(part, titles) for part in path.split("/"))


def _kinds(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Class of each row; a stronger line where the references at the end begin."""
    before: Any = None
    for row in rows:
        is_reference = row.get("kind") == "reference"
        parts_from = is_reference and before is not None and row.get("group", "") == "" and not before
        before = is_reference and row.get("group", "") == ""
        yield f' class="reference{" first-reference" if parts_from else ""}"' if is_reference else ""
