"""The table of an ablation: a row for each variant and start, the mean and the spread over its seeds; and the order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from statistics import mean, stdev

from tools.ablation.measure import Metrics
from tools.ablation.plan import TABLE_2, Run, Start

# The columns of the two text tables: metric -> short heading.
_RETRIEVAL = {
    "retrieval A->V/R@1": "A->V R@1",
    "retrieval A->V/R@10": "A->V R@10",
    "retrieval A->V/class R@1": "A->V class",
    "retrieval V->A/R@1": "V->A R@1",
    "retrieval V->A/R@10": "V->A R@10",
    "retrieval V->A/class R@1": "V->A class",
    "probe/audio": "probe A",
    "probe/image": "probe V",
    "probe/both": "probe A-V",
}
_LOCALIZATION = {
    "localization/CIoU": "CIoU",
    "localization/AUC": "AUC",
    "localization/pointing": "pointing",
    "localization/sounding first": "first",
    "with another sound/CIoU": "CIoU, other sound",
    "with another sound/AUC": "AUC, other sound",
    "with another sound/pointing": "pointing, other sound",
    "with another sound/sounding first": "first, other sound",
}
SHORT = _RETRIEVAL | _LOCALIZATION
# What the paper's order is compared in: retrieval and localization.
ORDERED = ("retrieval A->V/R@10", "retrieval V->A/R@10", "localization/CIoU", "localization/AUC")


@dataclass(frozen=True, kw_only=True)
class Value:
    """Mean and sample standard deviation over `count` seeds; no deviation for one."""

    mean: float
    spread: float
    count: int


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of the table."""

    name: str
    start: Start | None  # None: a reference, which was not trained
    values: dict[str, Value]


def table_rows(measured: Mapping[Run, Metrics], references: Mapping[str, Sequence[Metrics]]) -> list[TableRow]:
    """Rows in the order in which they were planned, then the references (measured once or once a seed)."""
    rows = []
    for row, start in dict.fromkeys((run.row, run.start) for run in measured):
        figures = [metrics for run, metrics in measured.items() if (run.row, run.start) == (row, start)]
        rows.append(TableRow(name=row, start=start, values=_over_seeds(figures)))
    rows += [TableRow(name=name, start=None, values=_over_seeds(list(f))) for name, f in references.items()]
    return rows


def _over_seeds(figures: list[Metrics]) -> dict[str, Value]:
    values = {}
    for name in dict.fromkeys(key for metrics in figures for key in metrics):
        found = [metrics[name] for metrics in figures if name in metrics]
        values[name] = Value(mean=mean(found), spread=stdev(found) if len(found) > 1 else 0.0, count=len(found))
    return values


def text_table(rows: Sequence[TableRow]) -> str:
    """Two Markdown tables, retrieval with the linear probe and localization, of the rows that have a figure there."""
    return "\n\n".join(filter(None, (_text_table(rows, columns) for columns in (_RETRIEVAL, _LOCALIZATION))))


def _text_table(rows: Sequence[TableRow], possible: Mapping[str, str]) -> str:
    columns = [name for name in possible if any(name in row.values for row in rows)]
    shown = [row for row in rows if row.values.keys() & possible.keys()]
    if not shown:
        return ""
    lines = ["| | start | " + " | ".join(SHORT[name] for name in columns) + " |", "|---|---|" + "---:|" * len(columns)]
    for row in shown:
        cells = [_cell(row.values.get(name)) for name in columns]
        lines.append(f"| {row.name} | {row.start or ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Value | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.1f}" + (f" ± {value.spread:.1f}" if value.count > 1 else "")


def order_lines(rows: Sequence[TableRow], clips: int) -> list[str]:
    """How far the paper's order of Table 2 holds on `clips` test clips, a line for each start and metric.

    Of every two variants the paper ranks one higher. A pair agrees, or disagrees, where the means differ by more than
    the two spreads together and by more than the standard error of their difference, which more seeds do not lessen:
    they are measured on the same clips. Else it is undecided. A row of one seed is taken to spread as the trained rows
    with more seeds do (pooled); where there are none, training is taken to have no luck in it, which the line says.
    """
    place = {name: i for i, name in enumerate(TABLE_2)}
    lines = []
    for start in dict.fromkeys(row.start for row in rows if row.start is not None):
        mine = sorted(
            (row for row in rows if row.start == start and row.name in place), key=lambda row: place[row.name]
        )
        for metric in ORDERED:
            ranked = [row for row in mine if metric in row.values]
            if len(ranked) < 2:
                continue
            values, usual = [row.values[metric] for row in ranked], _usual_spread(rows, metric)
            agree, disagree, undecided = _pairs(values, clips, usual or 0.0)
            order = " > ".join(row.name for row in sorted(ranked, key=lambda row: -row.values[metric].mean))
            single = sum(value.count == 1 for value in values)
            told = "unknown" if usual is None else f"taken as {usual:.1f}"
            luck = f"; {single} of {len(values)} rows have one seed, their spread is {told}" if single else ""
            near = f"nearer than both spreads or one standard error of {clips:,} test clips{luck}"
            lines.append(
                f"start {start}, {SHORT[metric]}: {order}; pairs as in the paper: {agree}, the other way: {disagree},"
                f" undecided: {undecided} ({near})"
            )
    return lines


def _usual_spread(rows: Sequence[TableRow], metric: str) -> float | None:
    """Pooled standard deviation of a metric over the trained rows that have more than one seed; None without any."""
    trained = [row.values[metric] for row in rows if row.start is not None and metric in row.values]
    freedom = sum(value.count - 1 for value in trained)
    return sqrt(sum((value.count - 1) * value.spread**2 for value in trained) / freedom) if freedom else None


def _pairs(values: Sequence[Value], clips: int, usual: float) -> tuple[int, int, int]:
    """Pairs that agree, disagree, are undecided, of values that the paper ranks from low to high.

    `usual` is the spread of those of one seed.
    """
    agree = disagree = 0
    pairs = list(combinations(values, 2))
    for low, high in pairs:
        spread = sum(value.spread if value.count > 1 else usual for value in (low, high))
        margin = max(spread, _sampling_error(low, high, clips))
        agree += high.mean - low.mean > margin
        disagree += low.mean - high.mean > margin
    return agree, disagree, len(pairs) - agree - disagree


def _sampling_error(low: Value, high: Value, clips: int) -> float:
    """Standard error, in %, of the difference of two shares of `clips` clips.

    The AUC is a mean of values between 0 and 1, whose variance is at most that of a share. A share of 0 or 1 is taken
    for one clip more or less: not having seen something once says no more than that.
    """
    shares = (min(max(value.mean / 100, 1 / clips), 1 - 1 / clips) for value in (low, high))
    return 100 * sqrt(sum(share * (1 - share) for share in shares) / clips)
