"""Sound-source localization: where in the frame is what is heard. The metrics, as functions of tensors.

The evaluator is that of EZ-VSL (Mo and Morgado, ECCV 2022; github.com/stoneMo/EZ-VSL, utils.py and test.py); AP and
max-F1 are our own, on SLAVC's confidence. SLAVC's whole protocol is in slavc.py.

    cosines [14, 14] ─> bilinear to [224, 224] ─> min-max ─> at or above the median: the predicted region ─> cIoU

Maps are indexed [y, x]. Boxes are (x0, y0, x1, y1), normalised to the frame. Shares are 0 to 1 here, in % in results.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from shards_spec.sample import FRAME_SIZE
from training.methods.shared.patches import IMAGE_GRID

# B images, D features, S = 224 pixels a side, K objects.
Benchmark = Literal["flickr", "vggss"]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1

HIT = 0.5  # cIoU from which an image counts as localized
_FAR = 0.5  # of a frame's side: a box further outside is damaged, not a slip (as make-shards has it)


# -------------------------------------------------------------------- heatmaps


def cosine_maps(image_tokens: Tensor, audio: Tensor) -> Tensor:
    """Cosine of a sound with each place of an image: tokens [B, 196, D], pooled audio [B, D] -> float32 [B, 14, 14]."""
    cosines = F.cosine_similarity(image_tokens.float(), audio.float().unsqueeze(1), dim=-1)
    return cosines.unflatten(1, IMAGE_GRID)


def upsample(maps: Tensor, mode: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """Maps [B, 14, 14] -> [B, S, S] with aligned corners: bilinear, as EZ-VSL, or bicubic, as SLAVC."""
    size = (FRAME_SIZE, FRAME_SIZE)
    return F.interpolate(maps.float().unsqueeze(1), size=size, mode=mode, align_corners=True).squeeze(1)


def min_max(maps: Tensor) -> Tensor:
    """Each map [B, S, S] scaled to 0 ... 1; a constant one stays as it is."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny), maps)


def heatmaps(image_tokens: Tensor, audio: Tensor) -> Tensor:
    """Heatmaps of sounds over images: tokens [B, 196, D], pooled audio [B, D] -> [B, S, S] in 0 ... 1."""
    return min_max(upsample(cosine_maps(image_tokens, audio)))


def predicted_region(maps: Tensor) -> Tensor:
    """Where a sound is said to be: pixels at or above the upper median of their map, bool [B, S, S].

    About half of the image, whatever the map says; all of it where the map is constant.
    """
    values = maps.flatten(1)
    median = values.sort(dim=1).values[:, values.shape[1] // 2]
    return maps >= median[:, None, None]


def confidence(maps: Tensor) -> Tensor:
    """How sure a map is that something sounds: mean of its top quarter, before min-max, [B, S, S] -> [B] (SLAVC)."""
    values = maps.flatten(1)
    return values.topk(math.ceil(values.shape[1] / 4), dim=1).values.mean(dim=1)


# -------------------------------------------------------------------- ground truth


@dataclass(frozen=True, kw_only=True)
class UsableBoxes:
    """The boxes of a sample, inside the frame, and what is wrong with those that are left out, a line each."""

    boxes: list[Box]
    left_out: list[str]


def usable_boxes(values: Any) -> UsableBoxes:
    """The usable boxes of a sample's JSON: numbers, not far outside, with a pixel inside; moved to the edge if need be.

    make-shards has done this before; a dataset may come from elsewhere. EZ-VSL clips an absurd box to what remains of
    it, often nothing, and counts the image as missed.
    """
    boxes, left_out = [], []
    if not isinstance(values, list):
        return UsableBoxes(boxes=[], left_out=[f"boxes are {_short(values)}, expected a list"])
    for value in values:
        box, wrong = _usable(value)
        if box is None:
            left_out.append(f"box {_short(value)} {wrong}")
        else:
            boxes.append(box)
    return UsableBoxes(boxes=boxes, left_out=left_out)


def _usable(value: Any) -> tuple[Box | None, str]:
    is_four = isinstance(value, list | tuple) and len(value) == 4
    if not is_four or not all(isinstance(v, int | float) and not isinstance(v, bool) and v == v for v in value):
        return None, "is no list of four numbers"
    if any(v < -_FAR or v > 1 + _FAR for v in value):
        return None, "lies far outside the frame"
    x0, y0, x1, y1 = (float(min(max(v, 0), 1)) for v in value)
    rows, columns = _pixels((x0, y0, x1, y1))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None, "is inverted or empty"
    return (x0, y0, x1, y1), ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _pixels(box: Sequence[float]) -> tuple[slice, slice]:
    """Rows and columns of a box: coordinates are cut to whole pixels, as EZ-VSL."""
    x0, y0, x1, y1 = (int(min(max(v, 0.0), 1.0) * FRAME_SIZE) for v in box)
    return slice(y0, y1), slice(x0, x1)


def ground_truth(boxes: Sequence[Box], benchmark: Benchmark) -> Tensor:
    """What is to be found, float32 [S, S] in 0 ... 1.

    flickr: a box an annotator; a pixel counts whole where two agree, half where one marked it, min(sum / 2, 1).
    vggss: the union of the objects' boxes.
    """
    total = torch.zeros(FRAME_SIZE, FRAME_SIZE)
    for box in boxes:
        total[_pixels(box)] += 1
    return (total / 2).clamp_max(1) if benchmark == "flickr" else (total > 0).float()


# -------------------------------------------------------------------- scores


def ciou(region: Tensor, gt: Tensor) -> Tensor:
    """Consensus IoU of predicted regions, bool [B, S, S], with ground truths, float [B, S, S] -> float64 [B].

    sum(region * gt) / (sum(gt) + sum(region where gt = 0)); 0 where nothing is to be found.
    """
    hit = (region * gt).sum(dim=(1, 2), dtype=torch.float64)
    outside = (region & (gt == 0)).sum(dim=(1, 2))
    whole = gt.sum(dim=(1, 2), dtype=torch.float64) + outside
    return torch.where(whole > 0, hit / whole.clamp_min(1e-12), torch.zeros_like(hit))


def success(cious: Tensor, threshold: float = HIT) -> float:
    """The share of images with a cIoU of at least `threshold`; at 0.5, the tables' "CIoU"."""
    return (cious.double() >= threshold).double().mean().item()


def auc(cious: Tensor) -> float:
    """Area under the success rate over the thresholds 0, 0.05, ..., 1, by trapezoids."""
    rates = torch.tensor([success(cious, 0.05 * i) for i in range(21)], dtype=torch.float64)
    thresholds = torch.tensor([0.05 * i for i in range(21)], dtype=torch.float64)
    return torch.trapezoid(rates, thresholds).item()


def pointing(maps: Tensor, gt: Tensor) -> Tensor:
    """Whether the highest pixel of each map [B, S, S] lies in what anybody marked, bool [B]; of several, the first."""
    return gt.flatten(1).gather(1, maps.flatten(1).argmax(dim=1, keepdim=True)).squeeze(1) > 0


def rank_objects(heatmap: Tensor, boxes: Sequence[Sequence[float]], sounding: int = 0) -> int:
    """The rank (1 = first) of the sounding object among all in view, by the mean of a map [S, S] inside each box.

    Args:
        boxes: of all objects, normalised, K x 4; every one needs a pixel.
        sounding: which of them sounds. A tie counts against it.
    """
    means = []
    for box in boxes:
        inside = heatmap[_pixels(box)]
        if not inside.numel():
            raise ValueError(f"box {tuple(box)} holds no pixel of {FRAME_SIZE} x {FRAME_SIZE}: give x0 < x1, y0 < y1")
        means.append(inside.double().mean())
    return 1 + sum(bool(mean >= means[sounding]) for i, mean in enumerate(means) if i != sounding)


def auc_parts(cious: Tensor) -> Tensor:
    """What each image adds to `auc`, float64 [B]: their mean is the area."""
    thresholds = torch.tensor([0.05 * i for i in range(21)], dtype=torch.float64)
    return torch.trapezoid((cious.double().unsqueeze(1) >= thresholds).double(), thresholds, dim=1)


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What AP and F1 are computed from: N images, with and without a sounding object in view."""

    is_positive: Tensor  # bool [N], whether something in view sounds
    ciou: Tensor  # float [N], of negatives never looked at
    confidence: Tensor  # float [N]

    def take(self, rows: Tensor) -> "Detections":
        """Some of them, bool [N] or int64 [M]; the same one may come again."""
        return Detections(**{name: values[rows] for name, values in vars(self).items()})


def max_f1(detections: Detections) -> float:
    """The best F1 over all confidences; recall is among all positives. 0 where nothing is positive."""
    positives = int(detections.is_positive.sum())
    if not positives:
        return 0.0
    hits, found = _by_confidence(detections)
    return float((2 * hits / (found + positives)).max())


def average_precision(detections: Detections) -> float:
    """AP of detection without interpolation: sum of precision times the step of recall over all confidences.

    Recall is among all positives, wherever they were found; so this is scikit-learn's average_precision_score of the
    hits, times the share of positives that are hits. 0 where nothing is positive.
    """
    positives = int(detections.is_positive.sum())
    if not positives:
        return 0.0
    hits, found = _by_confidence(detections)
    steps = torch.diff(hits, prepend=torch.zeros(1, dtype=torch.float64))
    return float((hits / found * steps).sum() / positives)


def _by_confidence(detections: Detections) -> tuple[Tensor, Tensor]:
    """For each distinct confidence, falling: hits among those at least as sure, and how many these are, float64."""
    order = detections.confidence.double().argsort(descending=True, stable=True)
    values = detections.confidence.double()[order]
    hits = (detections.is_positive & (detections.ciou >= HIT))[order].double().cumsum(0)
    last_of_tie = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)])
    found = torch.arange(1, len(values) + 1, dtype=torch.float64)[last_of_tie]
    return hits[last_of_tie], found
