"""SLAVC's protocol (Mo and Morgado, NeurIPS 2022): frames with their own sounds, silent ones, and those of other clips.

As the code of github.com/stoneMo/SLAVC computes it: test.py with --relative_prediction, as its README runs it, and
`EvaluatorFull` of utils.py, quirks included:

    cosines [14, 14] ─> bicubic to [224, 224] ─> at or above the median: the predicted region ─> cIoU, confidence

Its maps are affine functions of the cosines, which changes neither regions nor ranks.
"""

import math

import torch
from torch import Tensor

from training.evaluation.intervals import FEW_RESAMPLES, Interval, draws, spread
from training.evaluation.localization import Detections, auc, ciou, confidence, min_max, predicted_region, upsample

# N pairs, S pixels a side.
Row = dict[str, float | None]

HITS = (0.5, 0.75)  # cIoU from which a frame counts as localized
SIZES = {"small": 0, "medium": 32**2, "large": 96**2, "huge": 144**2}  # least pixels of the ground truth
_AP_THRESHOLDS, _F1_THRESHOLDS = 200, 10  # about how many confidences are tried
_CHUNK = 32  # maps held at once, 200 kB each


def detect(maps: Tensor, truths: list[Tensor]) -> tuple[Detections, Tensor]:
    """What became of pairs, and how many pixels each was to find, float64 [N].

    Args:
        maps: cosines, float [N, 14, 14].
        truths: float [S, S] each, all 0 where nothing in view sounds.
    """
    cious, sure = [], []
    areas = torch.tensor([truth.sum(dtype=torch.float64) for truth in truths], dtype=torch.float64)
    for start in range(0, len(maps), _CHUNK):
        raw = upsample(maps[start : start + _CHUNK], "bicubic")
        cious.append(ciou(predicted_region(min_max(raw)), torch.stack(truths[start : start + _CHUNK])))
        sure.append(confidence(raw).double())
    return Detections(is_positive=areas > 0, ciou=torch.cat(cious), confidence=torch.cat(sure)), areas


def rows(detections: Detections, areas: Tensor) -> dict[str, Row]:
    """The numbers of each subset, in %: all pairs, those with something to find, and these by its size.

    A subset without pairs is left out; the sizes hold no negatives, as in SLAVC's code.
    """
    limits = [*SIZES.values(), math.inf]
    subsets = {"all": torch.ones_like(detections.is_positive), "visible": detections.is_positive}
    for (name, least), limit in zip(SIZES.items(), limits[1:], strict=True):
        subsets[name] = detections.is_positive & (areas >= least) & (areas < limit)
    return {name: row(detections.take(members)) for name, members in subsets.items() if members.any()}


def row(detections: Detections) -> Row:
    """AP, max-F1 and precision at each cIoU of HITS, and AUC over the positives; None without any of these."""
    columns: Row = {}
    for hit in HITS:
        name = f"@{round(100 * hit)}"
        columns[f"AP{name}"] = 100 * average_precision(detections, hit)
        columns[f"max-F1{name}"] = 100 * max_f1(detections, hit)
        columns[f"precision{name}"] = 100 * precision_recall(detections, -math.inf, hit)[0]
    positive = detections.ciou[detections.is_positive]
    return columns | {"AUC": 100 * auc(positive) if len(positive) else None}


def intervals(detections: Detections) -> dict[str, Interval]:
    """Bootstrap intervals of `row`: pairs are drawn."""
    places = torch.arange(len(detections.ciou))
    return spread(
        row(detections.take(places.repeat_interleave(torch.from_numpy(drawn))))
        for drawn in draws(len(places), resamples=FEW_RESAMPLES)
    )


def counts(detections: Detections, threshold: float, hit: float) -> tuple[int, int, int]:
    """True positives (found and in the right place), false positives, false negatives (positives not found)."""
    found = detections.confidence >= threshold
    true_positives = int((found & detections.is_positive & (detections.ciou >= hit)).sum())
    return true_positives, int(found.sum()) - true_positives, int((~found & detections.is_positive).sum())


def precision_recall(detections: Detections, threshold: float, hit: float) -> tuple[float, float]:
    """SLAVC's `calc_precision_recall`: a positive found in the wrong place leaves the recall alone."""
    true_positives, false_positives, false_negatives = counts(detections, threshold, hit)
    precision = true_positives / (true_positives + false_positives) if true_positives + false_positives else 1.0
    recall = true_positives / (true_positives + false_negatives) if true_positives + false_negatives else 1.0
    return precision, recall


def average_precision(detections: Detections, hit: float) -> float:
    """SLAVC's `calc_ap`, its quirks included.

    Some 200 of the confidences are tried, falling, the highest never; precision is made monotone; what lies left of the
    first recall is left out; and recall forgets positives that were found in the wrong place.
    """
    ordered = detections.confidence.sort().values[:-1].flip(0)
    tried = ordered[:: max(1, len(detections.confidence) // _AP_THRESHOLDS)].tolist()
    curve = [precision_recall(detections, threshold, hit) for threshold in tried]
    best, highest = [], 0.0  # precision of this threshold and all below
    for precision, _ in reversed(curve):
        highest = max(highest, precision)
        best.append(highest)
    best.reverse()
    return sum(best[i] * (curve[i + 1][1] - curve[i][1]) for i in range(len(curve) - 1))


def max_f1(detections: Detections, hit: float) -> float:
    """The best F1 over the some ten confidences that SLAVC's `finalize_stats` tries."""
    ordered = detections.confidence.sort().values
    tried = ordered[:: max(1, len(ordered) // _F1_THRESHOLDS)].tolist()
    found = [precision_recall(detections, threshold, hit) for threshold in tried]
    return max((2 * r * p / (r + p) if r + p > 0 else 0.0) for p, r in found)
