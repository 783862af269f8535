"""Numbers for classification: average precision, area under the ROC curve, d', top-k accuracy. Pure functions.

N samples, C classes. A class that no sample has says nothing of a model: it is left out of means, and counted.
"""

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from shards_spec.errors import UserError
from training.finetune.labels import Task

Scores = npt.NDArray[np.floating]
Targets = npt.NDArray[np.bool_]
Metrics = dict[str, float | None]  # shares in %; None where it is not defined


def average_precision(scores: Scores, is_positive: Targets) -> npt.NDArray[np.float64]:
    """The average precision of each class, 0 to 1, float64 [C]; NaN for a class without positive.

    The sum over thresholds of (recall gained) x precision, without interpolation, equal scores taken together: that of
    scikit-learn, which the AudioSet evaluators of AST, CAV-MAE and PANNs call.

    Args:
        scores: [N, C], finite.
        is_positive: [N, C].
    """
    check_finite(scores)
    result = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        found, taken = _thresholds(scores[:, c], is_positive[:, c])
        if found[-1]:
            result[c] = np.sum(np.diff(found, prepend=0) * found / taken) / found[-1]
    return result


def roc_auc(scores: Scores, is_positive: Targets) -> npt.NDArray[np.float64]:
    """The area under each class's ROC curve, 0 to 1, float64 [C]; NaN where a class lacks positives or negatives."""
    check_finite(scores)
    result = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        found, taken = _thresholds(scores[:, c], is_positive[:, c])
        wrong = taken - found
        if found[-1] and wrong[-1]:
            heights = found + np.concatenate([[0], found[:-1]])
            result[c] = np.sum(np.diff(wrong, prepend=0) * heights) / 2 / (found[-1] * wrong[-1])
    return result


def _thresholds(scores: Scores, is_positive: Targets) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each distinct score, highest first: the positives, and all samples, that score as much or more."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # of those with the same score
    return np.cumsum(is_positive[order])[last].astype(np.int64), last + 1


def d_prime(auc: float) -> float | None:
    """sqrt(2) times the normal quantile of an AUC (Gemmeke et al. 2017); None at 0 and 1, where it is infinite."""
    return math.sqrt(2) * NormalDist().inv_cdf(auc) if 0 < auc < 1 else None


def multilabel_metrics(scores: Scores, is_positive: Targets) -> Metrics:
    """mAP and AUC, in %, as means over the classes that occur; d' of the mean AUC, as AST and CAV-MAE report it."""
    precision, auc = average_precision(scores, is_positive), roc_auc(scores, is_positive)
    area = None if np.isnan(auc).all() else float(np.nanmean(auc))
    return {
        "mAP": None if np.isnan(precision).all() else 100 * float(np.nanmean(precision)),
        "AUC": None if area is None else 100 * area,
        "d'": None if area is None else d_prime(area),
    }


def singlelabel_metrics(scores: Scores, is_positive: Targets) -> Metrics:
    """Top-1 and top-5 accuracy, in %, of samples with one class each. Ties are decided as in `class_ranks`."""
    ranks = class_ranks(scores, is_positive)
    return {f"top-{k}": 100 * float((ranks <= k).mean()) for k in (1, 5)}


def class_ranks(scores: Scores, is_positive: Targets) -> npt.NDArray[np.int64]:
    """The rank (1 = first) of each sample's one class among all, int64 [N].

    Of classes that score the same, the first in the class list ranks first: numpy's argmax, by which CAV-MAE counts.
    """
    check_finite(scores)
    right = is_positive.argmax(axis=1)[:, None]
    own = np.take_along_axis(scores, right, axis=1)
    is_earlier = np.arange(scores.shape[1]) < right
    return 1 + ((scores > own) | ((scores == own) & is_earlier)).sum(axis=1)


def count_tied(scores: Scores, is_positive: Targets) -> int:
    """Of how many samples with one class each another class scores as much as the right one."""
    own = np.take_along_axis(scores, is_positive.argmax(axis=1)[:, None], axis=1)
    return int(((scores == own).sum(axis=1) > 1).sum())


def check_finite(scores: Scores) -> None:
    """Raises UserError where a score is no finite number: it would rank anywhere."""
    is_bad = ~np.isfinite(scores).all(axis=1)
    if is_bad.any():
        raise UserError(
            f"the scores of {int(is_bad.sum()):,} of {len(scores):,} samples are not finite numbers:"
            " evaluate an older checkpoint"
        )


def metrics_of(task: Task, scores: Scores, is_positive: Targets) -> Metrics:
    """The metrics of a task."""
    return (multilabel_metrics if task == "multilabel" else singlelabel_metrics)(scores, is_positive)


def prior_metrics(task: Task, counts: npt.NDArray[np.int64], is_positive: Targets) -> Metrics:
    """What the same answer for every sample scores.

    Of several classes a sample: mAP is the mean share of positives, AUC 50%, whatever the answer. Of one: the most
    frequent classes, by `counts` int64 [C] (of the training set where there is one).
    """
    if task == "multilabel":
        return multilabel_metrics(np.zeros(is_positive.shape), is_positive)
    order = np.argsort(-counts, kind="stable")
    shares = is_positive.mean(axis=0)[order]
    return {f"top-{k}": 100 * float(shares[:k].sum()) for k in (1, 5)}


def notes_on_scores(task: Task, scores: Scores, is_positive: Targets) -> tuple[str, ...]:
    """What is to be known of scores [N, C]: classes that no sample has, or ties."""
    if task == "multilabel":
        return notes_on_classes(is_positive)
    tied = count_tied(scores, is_positive)
    if not tied:
        return ()
    return (f"of {tied:,} samples another class scores as much as the right one: the first in the list wins",)


def notes_on_classes(is_positive: Targets) -> tuple[str, ...]:
    """What is to be known of the classes that no sample has."""
    absent = int((~is_positive.any(axis=0)).sum())
    if not absent:
        return ()
    return (f"{absent} of {is_positive.shape[1]} classes have no positive here and are left out of mAP, AUC and d'",)
