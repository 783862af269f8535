"""How well semantic masks fit, as DeepAVFusion's eval_avsegm.py counts: class by class over images.

Classes are averaged over the images where they are annotated or predicted, then over classes. Images without any
foreground are skipped. With one channel there are two classes, the background among them.

N images, C channels, S pixels a side.
"""

import torch
from torch import Tensor

from training.evaluation.heads.segmentation_metrics import BETA2, f_curves

_THRESHOLDS = 256
_EPS = 1e-10


def semantic_scores(scores: Tensor, target: Tensor) -> dict[str, float]:
    """miou, fscore, precision and recall, and each without the background (`_noBg`), as shares.

    The F of one channel is the mean of each image's best over 256 thresholds, and knows no background.

    Args:
        scores: logits [N, C, S, S]; the argmax is taken, of one channel what is above 0.
        target: class of each pixel, int64 [N, S, S], 0 for background; below 0 what does not count.

    Raises:
        ValueError: no image has foreground.
    """
    has_foreground = (target > 0).flatten(1).any(dim=1)
    if not has_foreground.any():
        raise ValueError("no image has an annotated pixel: there is nothing to score")
    scores, target = scores[has_foreground], target[has_foreground]
    is_binary = scores.shape[1] == 1
    is_counted = target >= 0
    predicted = ((scores[:, 0] > 0).long() if is_binary else scores.argmax(dim=1)).where(is_counted, -1)
    classes = torch.arange(2 if is_binary else scores.shape[1], device=target.device).view(1, -1, 1)
    given, true = predicted.flatten(1).unsqueeze(1) == classes, target.flatten(1).unsqueeze(1) == classes  # [N, C, P]
    inter, in_given, in_true = ((x.sum(dim=2).double()) for x in (given & true, given, true))
    union = in_given + in_true - inter
    precision, recall = inter / (in_given + _EPS), inter / (in_true + _EPS)
    found = {
        "miou": inter / (union + _EPS),
        "precision": precision,
        "recall": recall,
        "fscore": (1 + BETA2) * precision * recall / (BETA2 * precision + recall + _EPS),
    }
    occurs = union > 0
    seen = occurs.any(dim=0)
    means = {name: (value * occurs).sum(dim=0) / occurs.sum(dim=0) for name, value in found.items()}
    result = {}
    for name, value in means.items():
        result[name] = value[seen].mean().item()
        result[f"{name}_noBg"] = value[1:][seen[1:]].mean().item()
    if is_binary:
        probabilities = scores[:, 0].sigmoid().where(is_counted, 0.0)
        best = f_curves(probabilities, target == 1, _THRESHOLDS).amax(dim=1).mean().item()
        result["fscore"] = result["fscore_noBg"] = best
    return result
