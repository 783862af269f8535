"""The result tables of a report: what evaluate.py wrote for one run or several -> a table for each task and dataset.

A result is JSON: {"task", "data", "dataset_fingerprint", "step", "pool", "metrics": {row: {column: number}},
"baselines": {row: {...}}, "paper": {row: {...}}, "protocol_name", "protocol", "notes": [...], "intervals": {row:
{column: [low, high]}}, "classes": {row: {class: {column: number}}}, "confusion": {row: {class: {said: samples}}}}.
Whatever is there is shown: numbers may nest deeper or stand alone, and what is missing is a dash.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import PurePosixPath
from typing import Any

from tools.pages.classes import classes_of
from tools.pages.tables import Better, flatten, results_table
from tools.pages.web_page import section, text

Result = dict[str, Any]
_LOWER = ("median rank", "mean rank", "rank", "loss", "error", "eer")  # columns of which less is better


def results_section(names: Sequence[str], results: Sequence[Sequence[Result]], steps: Sequence[int | None]) -> str:
    """The section; nothing where no run was evaluated.

    Args:
        names: of the runs, by colour number.
        results: of each run.
        steps: of each run's newest checkpoint: results of another one say so.
    """
    by_task: dict[tuple[str, str, str], list[tuple[int, Result]]] = {}
    for number, of_run in enumerate(results):
        for result in of_run:
            key = (str(result.get("task", "")), _folder(result), str(result.get("dataset_fingerprint", "")))
            by_task.setdefault(key, []).append((number, result))
    return section("Results", "".join(_table(names, found, steps) for found in by_task.values()))


def _folder(result: Result) -> str:
    return PurePosixPath(str(result.get("data", ""))).name


def _table(names: Sequence[str], found: Sequence[tuple[int, Result]], steps: Sequence[int | None]) -> str:
    first = found[0][1]
    rows = _measured(names, found, steps)
    groups = list(dict.fromkeys(row["group"] for row in rows if row.get("group")))
    rows += _references(found, "baselines", "", groups) + _references(found, "paper", "in the paper", groups)
    columns = list(
        dict.fromkeys(key for row in rows for key in row if key not in ("name", "run", "group", "kind", "detail"))
    )
    better: dict[str, Better] = {c: "lower" if c.lower().startswith(_LOWER) else "higher" for c in columns}
    title = f"{_arrows(str(first.get('task', 'result'))).capitalize()} on {_folder(first) or 'a dataset'}"
    notes = [
        str(first.get("protocol_name") or ""),
        f"{first['pool']:,} samples" if isinstance(first.get("pool"), int) else "",
        str(first.get("pool_rule") or ""),
    ]
    about = [str(line) for line in [first.get("protocol"), *_list(first.get("notes"))] if line]
    details = "".join(f"<p>{text(line)}</p>" for line in about)
    below = f"<details><summary>Protocol</summary>{details}</details>" if details else ""
    note = ", ".join(escape(note) for note in notes if note)
    table = results_table(rows, better=better if len(names) > 1 else {})
    below = "".join(_intervals(result) + classes_of(result) for _, result in found) + below
    return f'<div class="result"><h3>{text(title)}</h3><p class="note">{note}</p>{table}{below}</div>'


def _intervals(result: Result) -> str:
    """What the bootstrap says of the numbers, folded."""
    lines = [
        f"<p>{text(_arrows(str(row)))}: {text(', '.join(said))}</p>"
        for row, columns in _mapping(result.get("intervals")).items()
        if (said := [f"{c} {ends[0]:.1f} to {ends[1]:.1f}" for c, ends in _mapping(columns).items() if _is_pair(ends)])
    ]
    title = "95% of resamples of the samples"
    return f"<details><summary>{title}</summary>{''.join(lines)}</details>" if lines else ""


def _is_pair(ends: Any) -> bool:
    return isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)


def _measured(
    names: Sequence[str], found: Sequence[tuple[int, Result]], steps: Sequence[int | None]
) -> list[dict[str, Any]]:
    rows = []
    for number, result in found:
        step = result.get("step")
        detail = f"step {step:,}" if isinstance(step, int) and step != steps[number] else ""
        for name, values in _by_row(result.get("metrics")):
            if len(names) > 1:
                rows.append({"name": names[number], "run": number, "group": name, "detail": detail, **values})
            else:
                rows.append({"name": name or names[number], "detail": detail, **values})
    return rows


def _references(
    found: Sequence[tuple[int, Result]], field: str, detail: str, groups: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows to read the others against, each once; under the heading that their name ends with, where it does."""
    rows: list[dict[str, Any]] = []
    for _, result in found:
        for name, values in _by_row(result.get(field)):
            group = next((g for g in groups if name.endswith(g)), "")
            shorter = name.removesuffix(group).rstrip(" ,:") or name
            row = {"name": shorter or field, "kind": "reference", "detail": detail, "group": group, **values}
            if row not in rows:
                rows.append(row)
    return rows


def _by_row(values: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a result: its nested mappings, and one without a name for the numbers beside them."""
    if not isinstance(values, Mapping):
        return
    alone = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    if flat := flatten(alone):
        yield "", flat
    for name, value in values.items():
        if isinstance(value, Mapping) and (flat := flatten(value)):
            yield _arrows(str(name)), flat


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _arrows(name: str) -> str:
    return name.replace("->", "→")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
