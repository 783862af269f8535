"""Trivial answers to localization, and linear models on features that should say little.

N clips, F features, S pixels a side.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from pipeline.fbank import fbank
from shards_spec.sample import FRAME_SIZE
from tools.world.annotations import Box, objects_of, sounding_boxes
from tools.world.picture import draw_frame
from tools.world.request import World
from tools.world.scene import MIDDLE
from tools.world.sound import render_sound
from training.evaluation import localization as metrics

Floats = npt.NDArray[np.float64]

_GRID = 14  # of the image tokens, on which a model's answer would lie
_RIDGE = 1e-2  # of the features' variance


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of N clips.

    Attributes:
        boxes, largest: of the sounding objects; of the object with the largest box.
        label: [N], the first sounding class.
        colour, spectrum: [N, F], mean and deviation of the frame's colours; mean of the fbank over time.
        rivals: [R, F], for scenes of which one of two large objects sounds: place, size and colour of the first one
            minus those of the second, in random order.
        is_first: bool [R], whether the first one sounds.
    """

    boxes: list[list[Box]]
    largest: list[Box]
    label: npt.NDArray[np.int64]
    colour: Floats
    spectrum: Floats
    rivals: Floats
    is_first: npt.NDArray[np.bool_]


def gather_facts(world: World, split: str, count: int) -> Facts:
    """Draws `count` clips."""
    boxes, largest, label, colour, spectrum, rivals, is_first = [], [], [], [], [], [], []
    for index in tqdm(range(count), desc="draw", unit="clip", disable=None):
        scene = world.scene(split, index)
        drawn = draw_frame(scene, MIDDLE, FRAME_SIZE, FRAME_SIZE)
        objects = objects_of(scene, drawn.owners)
        boxes.append(sounding_boxes(objects))
        largest.append(max((item["box"] for item in objects), key=_area))
        label.append(min(item["label_id"] for item in objects if item["is_sounding"]))
        pixels = drawn.picture.reshape(-1, 3) / 255
        colour.append(np.concatenate([pixels.mean(0), pixels.std(0)]))
        rows, valid = fbank(render_sound(scene))
        spectrum.append(rows[:valid].astype(np.float64).mean(0))
        large = [item for item in objects if item["is_large"]]
        if len(large) == 2 and sum(item["is_sounding"] for item in large) == 1:
            first, second = large if index % 2 else large[::-1]  # else the order in depth would show
            parts = [_appearance(drawn.picture, item["box"]) for item in (first, second)]
            rivals.append(parts[0] - parts[1])
            is_first.append(first["is_sounding"])
    return Facts(
        boxes=boxes,
        largest=largest,
        label=np.array(label),
        colour=np.stack(colour),
        spectrum=np.stack(spectrum),
        rivals=np.stack(rivals),
        is_first=np.array(is_first),
    )


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _appearance(picture: npt.NDArray[np.uint8], box: Box) -> Floats:
    """Place, size and colour of what is in a box."""
    x0, y0, x1, y1 = (round(value * FRAME_SIZE) for value in box)
    pixels = picture[y0:y1, x0:x1].reshape(-1, 3) / 255
    return np.concatenate([box, [_area(box)], pixels.mean(0), pixels.std(0)])


# Localization.


def trivial_regions(facts: Facts) -> dict[str, torch.Tensor]:
    """Answers that need no model, bool [N, S, S] each."""
    count, size = len(facts.boxes), FRAME_SIZE
    centre, left = torch.zeros(2, size, size, dtype=torch.bool)
    margin = round((1 - 0.5**0.5) / 2 * size)
    centre[margin : size - margin, margin : size - margin] = True
    left[:, : size // 2] = True
    noise = torch.rand(count, _GRID, _GRID, generator=torch.Generator().manual_seed(0))
    return {
        "oracle: nearest half": _nearest_halves(facts.boxes),
        "the largest object": _nearest_halves([[box] for box in facts.largest]),
        "whole image": torch.ones(size, size, dtype=torch.bool).expand(count, -1, -1),
        "centre box, half the area": centre.expand(count, -1, -1),
        "left half": left.expand(count, -1, -1),
        "random map": _regions(noise),
    }


def _regions(maps: torch.Tensor) -> torch.Tensor:
    """What the evaluator makes of maps of tokens, bool [N, S, S]; a few at a time."""
    return torch.cat([metrics.predicted_region(metrics.min_max(metrics.upsample(part))) for part in maps.split(64)])


def _nearest_halves(boxes: list[list[Box]]) -> torch.Tensor:
    """The half of each image that lies deepest in its boxes or nearest to them, as a map of tokens would say it."""
    centres = (np.arange(_GRID) + 0.5) / _GRID
    x, y = np.meshgrid(centres, centres)
    maps = []
    for group in boxes:
        depths = []
        for x0, y0, x1, y1 in group:
            across, down = np.minimum(x - x0, x1 - x), np.minimum(y - y0, y1 - y)  # < 0 outside
            away = np.hypot(np.minimum(across, 0), np.minimum(down, 0))
            depths.append(np.where(away > 0, -away, np.minimum(across, down)))
        maps.append(np.max(depths, axis=0))
    return _regions(torch.from_numpy(np.stack(maps)))


def scores(facts: Facts) -> dict[str, tuple[float, float]]:
    """CIoU@0.5 and AUC, in %, of each trivial answer."""
    gt = torch.stack(
        [metrics.ground_truth([(b[0], b[1], b[2], b[3]) for b in group], "vggss") for group in facts.boxes]
    )
    found = {}
    for name, region in trivial_regions(facts).items():
        cious = metrics.ciou(region, gt)
        found[name] = 100 * metrics.success(cious), 100 * metrics.auc(cious)
    return found


def localization_lines(facts: Facts) -> list[str]:
    """The table of trivial answers."""
    rows = [f"  {name:<28}{ciou:>6.1f}{auc:>8.1f}" for name, (ciou, auc) in scores(facts).items()]
    return [f"localization, {len(facts.boxes):,} clips{'CIoU':>17}{'AUC':>8}", *rows]


# Shortcuts.


def linear_accuracy(features: Floats, label: npt.NDArray[np.int64], classes: int) -> float:
    """Top-1 accuracy, in %, of ridge regression to one-hot labels on the last third of the clips."""
    predicted = _ridge(features, np.eye(classes)[label])
    return 100 * float((predicted.argmax(1) == label[-len(predicted) :]).mean())


def linear_r2(features: Floats, target: Floats) -> float:
    """R squared, in %, of ridge regression on the last third of the clips; below 0 it is worse than the mean."""
    predicted = _ridge(features, target)
    truth = target[-len(predicted) :]
    return 100 * float(1 - np.square(truth - predicted).sum() / np.square(truth - truth.mean(0)).sum())


def linear_retrieval(features: Floats, candidates: Floats, rank: int = 10) -> float:
    """R@`rank`, in %, where ridge regression predicts the candidate's features, on the last third of the clips."""
    mean, std = candidates.mean(0), candidates.std(0)
    predicted = _ridge(features, (candidates - mean) / std)
    pool = ((candidates - mean) / std)[-len(predicted) :]
    away = np.square(predicted[:, None] - pool[None]).sum(2)
    return 100 * float(((away <= away.diagonal()[:, None]).sum(1) <= rank).mean())


def _ridge(features: Floats, target: Floats) -> Floats:
    """Predictions for the last third of the clips, of a model fitted to the others."""
    fit = len(features) - len(features) // 3
    standard = (features - features[:fit].mean(0)) / (features[:fit].std(0) + 1e-9)
    offset = target[:fit].mean(0)
    gram = standard[:fit].T @ standard[:fit] + _RIDGE * fit * np.eye(standard.shape[1])
    weights: Floats = np.linalg.solve(gram, standard[:fit].T @ (target[:fit] - offset))
    return standard[fit:] @ weights + offset


def shortcut_lines(facts: Facts, classes: int) -> list[str]:
    """What linear models make of features that should say little."""
    count = len(facts.label)
    tested = count // 3
    first = np.array([group[0] for group in facts.boxes])
    place = np.stack([first[:, [0, 2]].mean(1), first[:, [1, 3]].mean(1)], 1)
    both = np.concatenate([facts.colour, facts.spectrum], 1)
    who = linear_accuracy(facts.rivals, facts.is_first.astype(np.int64), 2)
    return [
        f"linear models, fitted to {count - tested:,} clips, scored on {tested:,}",
        f"  class from colours           {linear_accuracy(facts.colour, facts.label, classes):6.1f}%"
        f"   (chance {100 / classes:.1f})",
        f"  class from mean spectrum     {linear_accuracy(facts.spectrum, facts.label, classes):6.1f}%"
        f"   (chance {100 / classes:.1f})",
        f"  place from colours, spectrum {linear_r2(both, place):6.1f}%   (R squared; nothing to learn: 0 or less)",
        f"  which rival sounds, from place, size, colours {who:6.1f}%   (chance 50, {len(facts.rivals):,} pairs)",
        f"  frame from sound, R@10       {linear_retrieval(facts.spectrum, facts.colour):6.1f}%"
        f"   (mean spectrum to colours; chance {100 * 10 / tested:.1f})",
    ]
