"""What the figures of a world are read against: answers that need no model, and answers that know the truth."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shards_spec.sample import FRAME_SIZE
from tools.ablation.measure import Clip, Metrics, ScoresByRivals, read_clips
from training.evaluation.localization import min_max, upsample
from training.evaluation.metadata import all_numbers, label_ids
from training.evaluation.retrieval import RANKS, class_chance, label_matrix
from training.methods.shared.patches import IMAGE_GRID
from training.stream.index import DatasetIndex

_BATCH = 64
Answer = Callable[[Clip], Tensor]  # a map [S, S] for a clip


def baselines(test: DatasetIndex) -> dict[str, Metrics]:
    """Rows of the table, by name; shares in %. `localization among rivals` is of clips with two large objects in view.

    The first two maps know which objects sound. The one that says where their boxes are and no more, as a share of each
    token, scores low: boxes often cover less than half of the frame, so the median of the map is 0, and the predicted
    region, all that is at or above it, is the whole image. Nearness falls everywhere: half of it is the highest half.
    """
    clips = read_clips(test)
    labels = label_matrix(label_ids(test, all_numbers(test)))
    answers: dict[str, Answer] = {
        "where: near the sounding boxes": lambda clip: _nearness(clip.sounding_boxes),
        "where: in the sounding boxes": lambda clip: _cover(clip.gt),
        "where: near an object at random": _random_object(),
        "where: near the largest object": lambda clip: _nearness([max(clip.boxes, key=_area)]),
        "where: near the centre": lambda clip: _nearness([[0.25, 0.25, 0.75, 0.75]]),
    }
    rows = {"chance": _chance(clips, labels), "class known": _class_known(labels)}
    return rows | {name: _located(clips, answer) for name, answer in answers.items()}


def _chance(clips: list[Clip], labels: Tensor) -> Metrics:
    n = len(clips)
    single = labels[labels.sum(dim=1) == 1].double().mean(dim=0)
    among = [clip for clip in clips if clip.has_rivals]
    firsts = {"localization": _first_by_chance(clips), "localization among rivals": _first_by_chance(among)}
    row = {f"retrieval {arrow}/R@{k}": 100 * min(k / n, 1.0) for arrow in ("A->V", "V->A") for k in RANKS}
    row |= {f"retrieval {arrow}/class R@1": 100 * class_chance(labels, 1) for arrow in ("A->V", "V->A")}
    row |= {f"probe/{name}": 100 * float(single.max()) for name in ("audio", "image", "both")}
    generator = torch.Generator().manual_seed(0)
    row |= _located(clips, lambda clip: torch.rand(FRAME_SIZE, FRAME_SIZE, generator=generator))
    return row | {f"{name}/sounding first": value for name, value in firsts.items() if f"{name}/CIoU" in row}


def _first_by_chance(clips: list[Clip]) -> float:
    shares = [1 / len(clip.boxes) for clip in clips if clip.sounding is not None]
    return 100 * float(np.mean(shares)) if shares else float("nan")


def _class_known(labels: Tensor) -> Metrics:
    """R@K of who knows the sounding classes and nothing else, in expectation.

    Clips with exactly the classes of the query come first, in random order; the own partner is one of these m, so it is
    among the first K with a probability of min(K / m, 1). A candidate is right in class where it shares one with the
    query: the first one always does.
    """
    _, group, sizes = labels.unique(dim=0, return_inverse=True, return_counts=True)
    equal = sizes[group].double()
    row: Metrics = {}
    for arrow in ("A->V", "V->A"):
        row |= {f"retrieval {arrow}/R@{k}": 100 * float((k / equal).clamp_max(1).mean()) for k in RANKS}
        row[f"retrieval {arrow}/class R@1"] = 100.0
    return row


# -------------------------------------------------------------------- where it sounds


def _located(clips: list[Clip], answer: Answer) -> Metrics:
    """The localization figures of `answer(clip)`, a map [S, S]."""
    scores = ScoresByRivals()
    for start in range(0, len(clips), _BATCH):
        batch = clips[start : start + _BATCH]
        scores.add(torch.stack([answer(clip) for clip in batch]), batch)
    return scores.metrics()


def _random_object() -> Answer:
    generator = np.random.default_rng(0)
    return lambda clip: _nearness([clip.boxes[generator.integers(len(clip.boxes))]])


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _cover(gt: Tensor) -> Tensor:
    """A map [S, S] of what is marked in `gt`, [S, S], as tokens would say it: the share of each."""
    tokens = F.adaptive_avg_pool2d(gt[None], IMAGE_GRID)
    return min_max(upsample(tokens))[0]


def _nearness(boxes: list[list[float]]) -> Tensor:
    """A map [S, S] that falls from the middle of the nearest box outwards, in units of its half sides."""
    at = (torch.arange(FRAME_SIZE) + 0.5) / FRAME_SIZE
    maps = []
    for x0, y0, x1, y1 in boxes:
        across = (at - (x0 + x1) / 2).abs() / max((x1 - x0) / 2, 1e-6)
        down = (at - (y0 + y1) / 2).abs() / max((y1 - y0) / 2, 1e-6)
        maps.append(-torch.maximum(across[None, :], down[:, None]))
    return torch.stack(maps).amax(dim=0)
