"""How well masks fit: IoU and F-score of frames, in the three conventions that papers use under the same names.

AVSBench (its avs_scripts/avs_s4: test.py, utils/utility.py) scores the foreground, video by video; DeepAVFusion
(its eval_avsegm.py) averages the background's IoU in, and takes another threshold for the F of each frame; ACL-SSL
(its AVSBench/eval_utils.py) takes one threshold for all frames of all videos.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from shards_spec.errors import UserError

# N frames, S pixels a side.
BETA2 = 0.3
_AVSBENCH_THRESHOLDS, _DEEPAVFUSION_THRESHOLDS = 255, 256


@dataclass(frozen=True, kw_only=True)
class FrameScores:
    """Of each of N frames, float64, on the CPU."""

    iou: Tensor  # [N], of the foreground at 0.5; where there is none, the share of pixels that are not predicted
    background_iou: Tensor  # [N], of the background at 0.5; NaN where neither side has any
    f_half: Tensor  # [N], F of the foreground at 0.5
    f_curve: Tensor  # [N, 255], F at each of AVSBench's thresholds
    f_best: Tensor  # [N], the best F among DeepAVFusion's thresholds
    is_empty: Tensor  # bool [N], no pixel is annotated


def frame_scores(probabilities: Tensor, masks: Tensor) -> FrameScores:
    """Scores frames one by one.

    Args:
        probabilities: of the foreground, float [N, S, S], 0 to 1.
        masks: annotated foreground, bool [N, S, S].

    Raises:
        UserError: a probability is no number, which would pass for background.
    """
    if probabilities.isnan().any():
        raise UserError("the predicted masks are not finite numbers: evaluate an older checkpoint")
    predicted, masks = (probabilities > 0.5).flatten(1), masks.flatten(1)
    inter, union = (predicted & masks).sum(dim=1).double(), (predicted | masks).sum(dim=1).double()
    pixels = masks.shape[1]
    is_empty = ~masks.any(dim=1)
    background_inter, background_union = pixels - union, pixels - inter
    iou = torch.where(is_empty, background_inter / pixels, inter / union.clamp(min=1))
    f_half = f_score(inter, predicted.sum(dim=1).double(), masks.sum(dim=1).double())
    scores = FrameScores(
        iou=iou,
        background_iou=background_inter / background_union,
        f_half=f_half,
        f_curve=f_curves(probabilities, masks, _AVSBENCH_THRESHOLDS),
        f_best=f_curves(probabilities, masks, _DEEPAVFUSION_THRESHOLDS).amax(dim=1),
        is_empty=is_empty,
    )
    return FrameScores(**{name: value.cpu() for name, value in vars(scores).items()})


def f_score(inter: Tensor, predicted: Tensor, annotated: Tensor) -> Tensor:
    """F with beta^2 = 0.3, (1 + beta^2) P R / (beta^2 P + R), from numbers of pixels; 0 where no pixel is right."""
    precision, recall = inter / predicted.clamp(min=1), inter / annotated.clamp(min=1)
    f = (1 + BETA2) * precision * recall / (BETA2 * precision + recall)
    return torch.where(inter > 0, f, 0.0)


def f_curves(probabilities: Tensor, masks: Tensor, thresholds: int) -> Tensor:
    """F of each frame where pixels at or above each of evenly spaced thresholds are foreground, [N, thresholds].

    Args:
        probabilities: [N, ...], masks: bool, the same pixels.
        thresholds: how many, from 0 to 1 (both repositories write 1 - 1e-10, which is 1 in float32).
    """
    values, masks = probabilities.float().flatten(1), masks.flatten(1)
    levels = torch.linspace(0, 1, thresholds, device=values.device)
    reached = torch.searchsorted(levels, values.contiguous(), right=True)  # how many levels lie at or below a pixel
    bins = thresholds + 1
    places = (reached + bins * torch.arange(len(values), device=values.device).unsqueeze(1)).flatten()
    size = bins * len(values)
    counts = torch.bincount(places, minlength=size).view(-1, bins)
    hits = torch.bincount(places[masks.flatten()], minlength=size).view(-1, bins)
    predicted, inter = (x.flip(1).cumsum(dim=1).flip(1)[:, 1:].double() for x in (counts, hits))
    return f_score(inter, predicted, masks.sum(dim=1, keepdim=True).double())


def summarise(frames: Iterable[FrameScores]) -> dict[str, float | None]:
    """The columns of the result, in %, from the scores of whole videos, one item a video.

    mIoU, F: AVSBench's, means over videos. Its F averages the curves of a video's frames before it takes the best
    threshold (its test.py scores a video at a time); a video without any annotated pixel has F = 0.
    mIoU+bg, F per frame: DeepAVFusion's, over frames with annotated pixels.
    F@0.5: mean over these, at the threshold of the IoU.
    F one threshold: ACL-SSL's (its AVSBench/eval_utils.py), the best threshold for these frames together.
    """
    videos = list(frames)
    ious = [video.iou.mean().item() for video in videos]
    fs = [0.0 if video.is_empty.all() else video.f_curve[~video.is_empty].mean(dim=0).max().item() for video in videos]
    is_scored = ~torch.cat([video.is_empty for video in videos])
    of_frames = {
        name: torch.cat([getattr(video, name) for video in videos])[is_scored]
        for name in ("iou", "background_iou", "f_best", "f_half", "f_curve")
    }
    sides = [_mean(of_frames["background_iou"]), _mean(of_frames["iou"])]
    known = [side for side in sides if side is not None]
    return {
        "mIoU": 100 * sum(ious) / len(ious),
        "F": 100 * sum(fs) / len(fs),
        "F@0.5": _mean(of_frames["f_half"]),
        "F one threshold": 100 * of_frames["f_curve"].mean(dim=0).max().item() if is_scored.any() else None,
        "mIoU+bg": sum(known) / len(known) if known else None,
        "F per frame": _mean(of_frames["f_best"]),
    }


def _mean(values: Tensor) -> float | None:
    values = values[~values.isnan()]
    return 100 * values.mean().item() if len(values) else None
