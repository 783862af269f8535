"""What the figures of a world are read against: answers that need no model, and answers that know the truth."""

from collections.abc import Callable
from math import comb

import numpy as np
import torch
from torch import Tensor

from shards_spec.sample import FRAME_SIZE
from tools.ablation.measure import Clip, Metrics, Scores, read_clips
from training.evaluation.metadata import all_numbers, label_ids
from training.evaluation.retrieval import RANKS, class_chance, label_matrix
from training.stream.index import DatasetIndex

_BATCH = 64
Answer = Callable[[Clip], Tensor]  # a map [S, S] for a clip


def baselines(test: DatasetIndex) -> dict[str, Metrics]:
    """Rows of the table, by name; shares in %."""
    clips = read_clips(test)
    labels = label_matrix(label_ids(test, all_numbers(test)))
    rows = {
        "chance": _chance(clips, labels),
        "class known": _class_known(labels),
        "where: the sounding boxes": _located(clips, lambda clip: _nearness(clip.sounding_boxes)),
        "where: an object at random": _located(clips, _random_object()),
        "where: the largest object": _located(clips, lambda clip: _nearness([max(clip.boxes, key=_area)])),
        "where: the centre": _located(clips, lambda clip: _nearness([[0.25, 0.25, 0.75, 0.75]])),
    }
    return rows


def _chance(clips: list[Clip], labels: Tensor) -> Metrics:
    n = len(clips)
    single = labels[labels.sum(dim=1) == 1].double().mean(dim=0)
    firsts = [1 / len(clip.boxes) for clip in clips if clip.sounding is not None]
    row = {f"retrieval {arrow}/R@{k}": 100 * min(k / n, 1.0) for arrow in ("A->V", "V->A") for k in RANKS}
    row |= {f"retrieval {arrow}/class R@1": 100 * class_chance(labels, 1) for arrow in ("A->V", "V->A")}
    row |= {f"probe/{name}": 100 * float(single.max()) for name in ("audio", "image", "both")}
    generator = torch.Generator().manual_seed(0)
    row |= _located(clips, lambda clip: torch.rand(FRAME_SIZE, FRAME_SIZE, generator=generator))
    return row | {"localization/sounding first": 100 * float(np.mean(firsts))}


def _class_known(labels: Tensor) -> Metrics:
    """R@K of who knows the sounding classes and nothing else: clips of the same classes come first, in any order."""
    known = labels.double()
    shared = known @ known.T
    own = shared.diagonal().unsqueeze(1)
    equal = (shared == own).sum(dim=1)  # nobody shares more labels with a clip than it has
    row = {}
    for arrow in ("A->V", "V->A"):
        for k in RANKS:
            hit = [1 - comb(int(m) - 1, min(k, int(m))) / comb(int(m), min(k, int(m))) for m in equal]
            row[f"retrieval {arrow}/R@{k}"] = 100 * float(np.mean(hit))
        row[f"retrieval {arrow}/class R@1"] = 100.0
    return row


# -------------------------------------------------------------------- where it sounds


def _located(clips: list[Clip], answer: Answer) -> Metrics:
    """The localization figures of `answer(clip)`, a map [S, S]."""
    scores = Scores()
    for start in range(0, len(clips), _BATCH):
        batch = clips[start : start + _BATCH]
        scores.add(torch.stack([answer(clip) for clip in batch]), batch)
    return {f"localization/{name}": value for name, value in scores.metrics().items()}


def _random_object() -> Answer:
    generator = np.random.default_rng(0)
    return lambda clip: _nearness([clip.boxes[generator.integers(len(clip.boxes))]])


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _nearness(boxes: list[list[float]]) -> Tensor:
    """A map [S, S] that falls from the middle of the nearest box outwards, in units of its half sides."""
    at = (torch.arange(FRAME_SIZE) + 0.5) / FRAME_SIZE
    maps = []
    for x0, y0, x1, y1 in boxes:
        across = (at - (x0 + x1) / 2).abs() / max((x1 - x0) / 2, 1e-6)
        down = (at - (y0 + y1) / 2).abs() / max((y1 - y0) / 2, 1e-6)
        maps.append(-torch.maximum(across[None, :], down[:, None]))
    return torch.stack(maps).amax(dim=0)
