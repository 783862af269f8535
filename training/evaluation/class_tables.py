"""What a number hides: each class by itself, and which class is taken for which.

N samples, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation.classification_metrics import (
    Metrics,
    Scores,
    Targets,
    average_precision,
    class_ranks,
    metrics_of,
)
from training.evaluation.intervals import FEW_RESAMPLES, Interval, draws, of_means, spread
from training.evaluation.predictions import joined
from training.finetune.labels import Task

ClassRows = dict[str, dict[str, float | None]]  # class -> column -> number
Confusion = dict[str, dict[str, int]]  # right class -> said class -> samples; what never happens is left out


def class_names(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each entry of a dataset's class list; of equal names, all carry their index."""
    names = [str(entry.get("name") or entry.get("mid") or number) for number, entry in enumerate(classes)]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]


def class_rows(task: Task, scores: Scores, is_positive: Targets, names: Sequence[str]) -> ClassRows:
    """AP in %, and of single labels the share of the class's samples that are right, of each class that occurs."""
    precision = average_precision(scores, is_positive)
    counts = is_positive.sum(axis=0)
    is_right = class_ranks(scores, is_positive) == 1 if task == "singlelabel" else None
    rows: ClassRows = {}
    for c in np.flatnonzero(counts).tolist():
        rows[names[c]] = {"count": int(counts[c]), "AP": 100 * float(precision[c])}
        if is_right is not None:
            rows[names[c]]["accuracy"] = 100 * float(is_right[is_positive[:, c]].mean())
    return rows


def confusion(right: npt.NDArray[np.int64], said: npt.NDArray[np.int64], names: Sequence[str]) -> Confusion:
    """How often which class was said of samples of which, from class numbers int64 [N]; the most frequent first."""
    pairs, counts = np.unique(np.stack([right, said], axis=1), axis=0, return_counts=True)
    table: Confusion = {}
    for place in np.lexsort((-counts, pairs[:, 0])).tolist():
        r, s = pairs[place].tolist()
        table.setdefault(names[r], {})[names[s]] = int(counts[place])
    return table


def recalls(right: npt.NDArray[np.int64], said: npt.NDArray[np.int64], names: Sequence[str]) -> ClassRows:
    """Count and accuracy in % of each class that occurs, from class numbers int64 [N]."""
    found = np.unique(right).tolist()
    return {
        names[c]: {"count": int((right == c).sum()), "accuracy": 100 * float((said[right == c] == c).mean())}
        for c in found
    }


def score_intervals(task: Task, scores: Scores, is_positive: Targets) -> dict[str, Interval]:
    """Bootstrap intervals of the headline numbers: top-1 and top-5, or mAP."""
    if task == "singlelabel":
        ranks = class_ranks(scores, is_positive)
        return of_means({f"top-{k}": (ranks <= k).astype(np.float64) for k in (1, 5)})
    drawn = np.stack(list(draws(len(scores), resamples=FEW_RESAMPLES)))
    columns = [
        weighted_precision(drawn, scores[:, c], is_positive[:, c]) for c in np.flatnonzero(is_positive.any(axis=0))
    ]
    if not columns:
        return {}
    with_positive = np.stack(columns)  # [C, R], NaN where a resample has none of the class
    return spread({"mAP": 100 * float(value)} for value in np.nanmean(with_positive, axis=0))


def weighted_precision(
    weights: npt.NDArray[np.int64], scores: npt.NDArray[np.floating], is_positive: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """`average_precision` of one class [N] where sample i counts weights[r, i] times, for each r: float64 [R]."""
    order = np.argsort(-scores, kind="stable")
    ordered, positive = scores[order], is_positive[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # of those with the same score
    ends = last[np.searchsorted(last, np.flatnonzero(positive))]  # of each positive's ties
    drawn = weights[:, order]
    taken = drawn.cumsum(axis=1)[:, ends]
    gained = drawn[:, positive]
    found = np.where(positive, drawn, 0).cumsum(axis=1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(taken > 0, found / taken, 0)
        return (gained * precision).sum(axis=1) / gained.sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """All that is told of the scores of one model."""

    metrics: Metrics
    intervals: dict[str, Interval]
    classes: ClassRows
    confusion: Confusion  # empty where samples have several classes


def scored(task: Task, scores: Scores, is_positive: Targets, names: Sequence[str]) -> Scored:
    """Numbers, their intervals, classes and confusions of scores [N, C].

    Raises:
        UserError: a score is no finite number.
    """
    is_single = task == "singlelabel"
    return Scored(
        metrics=metrics_of(task, scores, is_positive),
        intervals=score_intervals(task, scores, is_positive),
        classes=class_rows(task, scores, is_positive, names),
        confusion=confusion(is_positive.argmax(axis=1), scores.argmax(axis=1), names) if is_single else {},
    )


def tables_of(found: Mapping[str, Scored]) -> dict[str, Any]:
    """The fields of a Result beside its metrics, by row."""
    return {
        "intervals": {row: one.intervals for row, one in found.items() if one.intervals},
        "classes": {row: one.classes for row, one in found.items()},
        "confusion": {row: one.confusion for row, one in found.items() if one.confusion},
    }


def score_columns(keys: Sequence[str], scores: Scores, is_positive: Targets, names: Sequence[str]) -> dict[str, Any]:
    """The table of --save-predictions: key, truth (classes, joined by ;), and a column of scores for each class."""
    truth = [joined([names[c] for c in np.flatnonzero(row).tolist()]) for row in is_positive]
    return {"key": list(keys), "truth": truth} | {f"score of {name}": scores[:, c] for c, name in enumerate(names)}
