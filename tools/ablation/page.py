"""The page of an ablation: the table, the order, and the curves of all runs of the first seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.ablation.plan import Run
from tools.ablation.table import TableRow
from tools.pages.metrics import metric_groups
from tools.pages.panels import STYLE, curves_section
from tools.pages.tables import Spread, results_table
from tools.pages.web_page import document, key_facts, section, text
from training.run_folder import METRICS_FILE, read_step_log

_TITLES = {"init": "from the weights of a SelfMAE run on other clips", "scratch": "from scratch"}
_TABLES = {
    "Retrieval": ("retrieval",),
    "Localization": ("localization", "with another sound"),
    "Linear probe": ("probe",),
}


def write_page(
    path: Path,
    rows: Sequence[TableRow],
    order: Sequence[str],
    folders: Mapping[Run, Path],
    facts: list[tuple[str, str]],
) -> None:
    """Writes one self-contained HTML page."""
    note = "Means over the seeds, ± their standard deviation. Shares in %; one pool of all test clips."
    tables = [section(title, _table(rows, starts), note=note) for title, starts in _TABLES.items()]
    first = {run: folder for run, folder in folders.items() if run.seed == 0}
    names = [run.name.removesuffix("-seed0") for run in first]
    logs = [read_step_log(folder / METRICS_FILE) for folder in first.values()]
    lines = "".join(f"<li>{text(line)}</li>" for line in order)
    sections = [
        f"<header><h1>Ablation on the synthetic world</h1>{key_facts(facts)}</header>",
        *tables,
        section("The paper's order", f"<ul>{lines}</ul>" if lines else ""),
        curves_section("Curves of the first seed", metric_groups(logs), names=names),
    ]
    path.write_text(document(title="Ablation", style=STYLE, sections=sections))


def _table(rows: Sequence[TableRow], prefixes: tuple[str, ...]) -> str:
    """The columns that begin with one of `prefixes`, of the rows that have any."""
    found = dict.fromkeys(name for row in rows for name in row.values if name.startswith(prefixes))
    heads = list(dict.fromkeys(name.partition("/")[0] for name in found))
    columns = sorted(found, key=lambda name: heads.index(name.partition("/")[0]))
    shown = [_row(row) for row in rows if row.values.keys() & found.keys()]
    best = [name for name in columns if not name.startswith("with another sound")]
    return results_table(shown, columns=columns, better=dict.fromkeys(best, "higher"))


def _row(row: TableRow) -> dict[str, Any]:
    values = {name: Spread(mean=v.mean, spread=v.spread, count=v.count) for name, v in row.values.items()}
    if row.start is None:
        return {"name": row.name, "kind": "reference", "group": "to read them against", **values}
    return {"name": row.name, "group": _TITLES[row.start], **values}
