"""What localization tells of its scores: rows of the result, their intervals, and tables of single samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.evaluation import localization as metrics
from training.evaluation.boxes import Annotated
from training.evaluation.intervals import FEW_RESAMPLES, Interval, draws, spread
from training.evaluation.localization import Detections
from training.evaluation.pairs import Pair
from training.evaluation.predictions import joined
from training.stream.index import DatasetIndex

# N images or pairs.


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What became of each of N images."""

    ciou: Tensor  # float64 [N]
    pointing: Tensor  # bool [N]
    confidence: Tensor  # float64 [N]

    def parts(self) -> dict[str, npt.NDArray[np.float64]]:
        """What each image adds to the columns of `row`, which are their means."""
        return {
            "CIoU": (self.ciou >= metrics.HIT).double().numpy(),
            "AUC": metrics.auc_parts(self.ciou).numpy(),
            "mean cIoU": self.ciou.numpy(),
            "pointing": self.pointing.double().numpy(),
        }

    def row(self) -> dict[str, float | None]:
        """The columns that need no negatives, in %."""
        return {
            "CIoU": 100 * metrics.success(self.ciou),
            "AUC": 100 * metrics.auc(self.ciou),
            "mean cIoU": 100 * self.ciou.mean().item(),
            "pointing": 100 * self.pointing.double().mean().item(),
        }


def beside_negatives(scores: Scores, negatives: Tensor) -> Detections:
    """N positives, and the confidences of M negatives, float [M]."""
    n, m = len(scores.ciou), len(negatives)
    return Detections(
        is_positive=torch.cat([torch.ones(n, dtype=torch.bool), torch.zeros(m, dtype=torch.bool)]),
        ciou=torch.cat([scores.ciou, torch.zeros(m, dtype=torch.float64)]),
        confidence=torch.cat([scores.confidence, negatives]),
    )


def detection_row(detections: Detections) -> dict[str, float | None]:
    """AP and max-F1 in %."""
    return {
        "AP (ours)": 100 * metrics.average_precision(detections),
        "max-F1 (ours)": 100 * metrics.max_f1(detections),
    }


def detection_intervals(detections: Detections, *, together: bool) -> dict[str, Interval]:
    """Intervals of `detection_row`; `together` draws each frame with its negative, which is the same frame again."""
    places = torch.arange(len(detections.ciou))
    groups = places.numpy() % int(detections.is_positive.sum()) if together else None
    return spread(
        detection_row(detections.take(places.repeat_interleave(torch.from_numpy(drawn))))
        for drawn in draws(len(places), groups=groups, resamples=FEW_RESAMPLES)
    )


def sample_table(annotated: Annotated, scores: Scores) -> dict[str, Any]:
    """The rows of --save-predictions for each frame with its own sound."""
    return {
        "protocol": ["EZ-VSL"] * len(annotated.keys),
        "key": annotated.keys,
        "sound": annotated.keys,
        "truth": [joined([" ".join(f"{v:g}" for v in box) for box in found]) for found in annotated.boxes],
        "cIoU": scores.ciou.numpy(),
        "confidence": scores.confidence.numpy(),
    }


def pair_table(index: DatasetIndex, pairs: Sequence[Pair], detections: Detections) -> dict[str, Any]:
    """The rows of --save-predictions for each of SLAVC's pairs."""
    return {
        "protocol": ["SLAVC"] * len(pairs),
        "key": [index.key(pair.image) for pair in pairs],
        "sound": [index.key(pair.sound) for pair in pairs],
        "truth": ["sounding" if pair.is_sounding else "non-sounding" for pair in pairs],
        "cIoU": detections.ciou.numpy(),
        "confidence": detections.confidence.numpy(),
    }
