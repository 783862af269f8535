"""How well maps of classes fit, as AVSBench scores AVSS (avs_scripts/avss: utils/compute_color_metrics.py, test.py).

IoU and F of a class in a frame; their mean over the frames in which the class is annotated or predicted; the mean of
that over all classes, of which one that is in no frame counts as 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.evaluation.heads.segmentation_metrics import f_score

# N frames, C classes, S pixels a side.


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Of each of N frames and C classes, float64, on the CPU; 0 where the class is neither annotated nor predicted."""

    iou: Tensor  # [N, C]
    f: Tensor  # [N, C]
    is_there: Tensor  # bool [N, C], annotated or predicted


def class_scores(predicted: Tensor, annotated: Tensor, classes: int) -> ClassScores:
    """Scores maps of classes, int64 [N, S, S] each, frame by frame."""
    predicted, annotated = predicted.flatten(1), annotated.flatten(1)
    inter = _counts(torch.where(predicted == annotated, predicted, classes), classes + 1)[:, :classes]
    said, true = _counts(predicted, classes), _counts(annotated, classes)
    union = said + true - inter
    return ClassScores(
        iou=(inter / union.clamp(min=1)).cpu(), f=f_score(inter, said, true).cpu(), is_there=(union > 0).cpu()
    )


def _counts(values: Tensor, bins: int) -> Tensor:
    """How many pixels of each frame have each value, float64 [N, bins]."""
    places = values + bins * torch.arange(len(values), device=values.device).unsqueeze(1)
    return torch.bincount(places.flatten(), minlength=bins * len(values)).view(-1, bins).double()


def summarise_classes(frames: Iterable[ClassScores]) -> dict[str, float | None]:
    """The columns of the result, in %. Class 0 is what does not sound.

    mIoU, F: AVSBench's, over all classes. In its test.py the five missing frames of 5 s videos count as black ones
    that hold class 0; here only frames count that there are. without 0: the mean over the other classes (its
    `miou_noBg` leaves the last class out instead of class 0). mIoU there: over the classes that are in a frame.
    """
    scores = list(frames)
    is_there = torch.cat([part.is_there for part in scores]).sum(dim=0)
    iou = torch.cat([part.iou for part in scores]).sum(dim=0) / is_there.clamp(min=1)
    f = torch.cat([part.f for part in scores]).sum(dim=0) / is_there.clamp(min=1)
    return {
        "mIoU": 100 * iou.mean().item(),
        "F": 100 * f.mean().item(),
        "mIoU without 0": 100 * iou[1:].mean().item(),
        "F without 0": 100 * f[1:].mean().item(),
        "mIoU there": 100 * iou[is_there > 0].mean().item(),
    }
