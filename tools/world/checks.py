"""Trivial answers to localization, linear models on features that should say little, and what codecs change.

N clips, C classes, F features, S pixels a side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from pipeline.fbank import fbank
from shards_spec.errors import UserError
from shards_spec.sample import FBANK_SHAPE, FRAME_SIZE
from tools.world.annotations import Box, objects_of, sounding_boxes
from tools.world.picture import draw_frame
from tools.world.request import World
from tools.world.scene import MIDDLE, Owners, Scene
from tools.world.sound import render_sound
from training.evaluation import localization as metrics
from training.evaluation.metadata import all_numbers, read_metadata
from training.evaluation.retrieval import class_chance
from training.stream.index import DatasetIndex, open_index
from training.stream.reader import SampleReader

Floats = npt.NDArray[np.float64]

_GRID = 14  # of the image tokens, on which a model's answer would lie
_RIDGE = 1e-2  # of the features' variance
_PARTS = 8  # principal components of the mean spectrum
_COLOURS = slice(5, 11)  # of the rivals' features: mean and deviation of the colours
_RANK = 10
_BATCH = 64  # maps of all clips would take gigabytes
_LOUD = 8.0  # log-mel values, 35 dB
_TOLD = ("start", "end", "labels", "label_ids", "boxes", "valid_frames", "frame_time")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of N clips.

    Attributes:
        boxes, largest: of the sounding objects; of the object with the largest box.
        cover: float32 [N, 14, 14], share of each token in which a sounding object is seen.
        heard: bool [N, C], the sounding classes.
        colour, spectrum: [N, F], mean and deviation of the frame's colours; mean of the fbank over time.
        rivals: [R, F], for scenes of which one of two large objects sounds: place, size and colour of the first one
            minus those of the second, in random order.
        pairs: [R], which clips these are.
        is_first: bool [R], whether the first one sounds.
    """

    boxes: list[list[Box]]
    largest: list[Box]
    cover: npt.NDArray[np.float32]
    heard: npt.NDArray[np.bool_]
    colour: Floats
    spectrum: Floats
    rivals: Floats
    pairs: npt.NDArray[np.int64]
    is_first: npt.NDArray[np.bool_]

    @property
    def label(self) -> npt.NDArray[np.int64]:
        """The first sounding class, [N]."""
        return self.heard.argmax(1)


def gather_facts(world: World, split: str, count: int) -> Facts:
    """Draws `count` clips."""
    boxes, largest, cover, colour, spectrum, rivals, pairs, is_first = [], [], [], [], [], [], [], []
    heard = np.zeros((count, len(world.classes)), np.bool_)
    for index in tqdm(range(count), desc="draw", unit="clip", disable=None):
        scene = world.scene(split, index)
        drawn = draw_frame(scene, MIDDLE, FRAME_SIZE, FRAME_SIZE)
        objects = objects_of(scene, drawn.owners)
        boxes.append(sounding_boxes(objects))
        largest.append(max((item["box"] for item in objects), key=_area))
        heard[index, list(scene.name.label_ids)] = True
        cover.append(_cover(scene, drawn.owners))
        pixels = drawn.picture.reshape(-1, 3) / 255
        colour.append(np.concatenate([pixels.mean(0), pixels.std(0)]))
        rows, valid = fbank(render_sound(scene))
        spectrum.append(rows[:valid].astype(np.float64).mean(0))
        large = [item for item in objects if item["is_large"]]
        if len(large) == 2 and sum(item["is_sounding"] for item in large) == 1:
            first, second = large if index % 2 else large[::-1]  # else the order in depth would show
            parts = [_appearance(drawn.picture, item["box"]) for item in (first, second)]
            rivals.append(parts[0] - parts[1])
            pairs.append(index)
            is_first.append(first["is_sounding"])
    return Facts(
        boxes=boxes,
        largest=largest,
        cover=np.stack(cover),
        heard=heard,
        colour=np.stack(colour),
        spectrum=np.stack(spectrum),
        rivals=np.stack(rivals),
        pairs=np.array(pairs),
        is_first=np.array(is_first),
    )


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _cover(scene: Scene, owners: Owners) -> npt.NDArray[np.float32]:
    """Share of each token in which a sounding object is seen."""
    mask = np.isin(owners.number, [number for number, actor in enumerate(scene.actors) if actor.is_sounding])
    side = FRAME_SIZE // _GRID
    return mask.reshape(_GRID, side, _GRID, side).mean((1, 3), dtype=np.float32)


def _appearance(picture: npt.NDArray[np.uint8], box: Box) -> Floats:
    """Place, size and colour of what is in a box."""
    x0, y0, x1, y1 = (round(value * FRAME_SIZE) for value in box)
    pixels = picture[y0:y1, x0:x1].reshape(-1, 3) / 255
    return np.concatenate([box, [_area(box)], pixels.mean(0), pixels.std(0)])


# Localization.


def trivial_regions(facts: Facts) -> dict[str, torch.Tensor]:
    """Answers that need no model, bool [N, S, S] each; the first two know which object sounds.

    Who says exactly where the object is seen scores low: it covers less than half of the tokens, so the median of the
    map is 0, and everything is at or above it. The distance to its box has no such ties.
    """
    count, size = len(facts.boxes), FRAME_SIZE
    centre, left = torch.zeros(2, size, size, dtype=torch.bool)
    margin = round((1 - 0.5**0.5) / 2 * size)
    centre[margin : size - margin, margin : size - margin] = True
    left[:, : size // 2] = True
    noise = torch.rand(count, _GRID, _GRID, generator=torch.Generator().manual_seed(0))
    return {
        "half nearest the sounding box": _nearest_halves(facts.boxes),
        "mask of the sounding object": _regions(torch.from_numpy(facts.cover)),
        "half nearest the largest box": _nearest_halves([[box] for box in facts.largest]),
        "whole image": torch.ones(size, size, dtype=torch.bool).expand(count, -1, -1),
        "centre box, half the area": centre.expand(count, -1, -1),
        "left half": left.expand(count, -1, -1),
        "random map": _regions(noise),
    }


def _regions(maps: torch.Tensor) -> torch.Tensor:
    """What the evaluator makes of maps of tokens, bool [N, S, S]; a few at a time."""
    return torch.cat([metrics.predicted_region(metrics.min_max(metrics.upsample(part))) for part in maps.split(_BATCH)])


def _nearest_halves(boxes: list[list[Box]]) -> torch.Tensor:
    """The half of each image that lies deepest in its boxes or nearest to them: of a map of distances, by token."""
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
    parts = range(0, len(facts.boxes), _BATCH)
    found = {}
    for name, region in trivial_regions(facts).items():
        cious = torch.cat([metrics.ciou(region[i : i + _BATCH], _truth(facts.boxes[i : i + _BATCH])) for i in parts])
        found[name] = 100 * metrics.success(cious), 100 * metrics.auc(cious)
    return found


def _truth(boxes: list[list[Box]]) -> torch.Tensor:
    """The ground truths of some clips, float32 [B, S, S]."""
    return torch.stack([metrics.ground_truth([(b[0], b[1], b[2], b[3]) for b in group], "vggss") for group in boxes])


def localization_lines(facts: Facts) -> list[str]:
    """The table of trivial answers."""
    rows = [f"  {name:<30}{ciou:>6.1f}{auc:>8.1f}" for name, (ciou, auc) in scores(facts).items()]
    return [f"localization, {len(facts.boxes):,} clips{'CIoU':>19}{'AUC':>8}", *rows]


# Shortcuts.


@dataclass(frozen=True, kw_only=True)
class Share:
    """How often a model is right, in %, of `count` tries; `chance` without it."""

    name: str
    value: float
    chance: float
    count: int

    @property
    def error(self) -> float:
        """One standard error, were the tries independent."""
        return (self.value * (100 - self.value) / self.count) ** 0.5

    def __str__(self) -> str:
        share = f"{self.value:6.1f}% ± {self.error:.1f}"
        return f"  {self.name:<46}{share}   (chance {self.chance:.1f}; {self.count:,} tried)"


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


def bilinear_accuracy(features: Floats, sound: Floats, is_first: npt.NDArray[np.bool_]) -> float:
    """Accuracy, in %, of ridge regression on `features` and their products with the main directions of `sound`.

    Scored on the last third of the clips. The products say which look goes with which sound.
    """
    fit = len(features) - len(features) // 3
    standard = features / features[:fit].std(0)  # differences of two objects: 0 stays 0
    centred = sound - sound[:fit].mean(0)
    directions = np.linalg.svd(centred[:fit], full_matrices=False)[2][:_PARTS]
    products = standard[:, :, None] * (centred @ directions.T)[:, None, :]
    pairs = np.concatenate([standard, products.reshape(len(products), -1)], 1)
    return linear_accuracy(pairs, is_first.astype(np.int64), 2)


def class_matched(facts: Facts) -> list[Share]:
    """Retrieval by two linear classifiers, of mean spectra and of frames' colours: their classes' scores are compared.

    The classes are told while fitting, which a contrastive loss is not.
    """
    heard = facts.heard.astype(np.float64)
    similar = _ridge(facts.spectrum, heard) @ _ridge(facts.colour, heard).T
    tested = len(similar)
    held = torch.from_numpy(facts.heard[-tested:])
    shared = (held.float() @ held.float().T > 0).numpy()
    at_random = {f"R@{_RANK}": 100 * _RANK / tested, "class R@1": 100 * class_chance(held, 1)}
    found = []
    for arrow, scores, relevant in (("A->V", similar, shared), ("V->A", similar.T, shared.T)):
        ranks = (scores >= scores.diagonal()[:, None]).sum(1)
        values = {f"R@{_RANK}": (ranks <= _RANK), "class R@1": relevant[np.arange(tested), scores.argmax(1)]}
        for name, is_hit in values.items():
            value = 100 * float(is_hit.mean())
            title = f"matched by class, {arrow} {name}"
            found.append(Share(name=title, value=value, chance=at_random[name], count=tested))
    return found


def _ridge(features: Floats, target: Floats) -> Floats:
    """Predictions for the last third of the clips, of a model fitted to the others."""
    fit = len(features) - len(features) // 3
    standard = (features - features[:fit].mean(0)) / (features[:fit].std(0) + 1e-9)
    offset = target[:fit].mean(0)
    gram = standard[:fit].T @ standard[:fit] + _RIDGE * fit * np.eye(standard.shape[1])
    weights: Floats = np.linalg.solve(gram, standard[:fit].T @ (target[:fit] - offset))
    return standard[fit:] @ weights + offset


def shortcuts(facts: Facts) -> list[Share]:
    """What models that only know colours, place, size and the mean spectrum make of them."""
    classes = facts.heard.shape[1]
    tested, pairs = len(facts.heard) // 3, len(facts.rivals) // 3
    spectrum, first = facts.spectrum[facts.pairs], facts.is_first
    found = {
        "place, size, colours": linear_accuracy(facts.rivals, first.astype(np.int64), 2),
        "place, size, colours, spectrum": bilinear_accuracy(facts.rivals, spectrum, first),
        "colours, spectrum": bilinear_accuracy(facts.rivals[:, _COLOURS], spectrum, first),
    }
    by_class = {
        "class from colours": linear_accuracy(facts.colour, facts.label, classes),
        "class from mean spectrum": linear_accuracy(facts.spectrum, facts.label, classes),
    }
    at_random = 100 * _RANK / tested
    retrieved = linear_retrieval(facts.spectrum, facts.colour)
    return [
        *(Share(name=name, value=value, chance=100 / classes, count=tested) for name, value in by_class.items()),
        *(Share(name=f"sounding rival: {n}", value=v, chance=50.0, count=pairs) for n, v in found.items()),
        Share(name=f"colours from mean spectrum, R@{_RANK}", value=retrieved, chance=at_random, count=tested),
        *class_matched(facts),
    ]


def shortcut_lines(facts: Facts) -> list[str]:
    """The table of shortcuts."""
    tested = len(facts.heard) // 3
    first = np.array([group[0] for group in facts.boxes])
    place = np.stack([first[:, [0, 2]].mean(1), first[:, [1, 3]].mean(1)], 1)
    place_r2 = linear_r2(np.concatenate([facts.colour, facts.spectrum], 1), place)
    return [
        f"linear models, fitted to {len(facts.heard) - tested:,} clips, scored on {tested:,}, ± one standard error",
        *(str(share) for share in shortcuts(facts)),
        f"  {'place from colours, mean spectrum: R squared':<46}{place_r2:6.1f}%   (nothing to learn: 0 or less)",
    ]


# Files and shards.


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two datasets of one world, side by side: K clips in both.

    Attributes:
        clips: of the first and of the second dataset.
        told_apart: keys of clips whose labels, boxes or times differ.
        differences: by name [K] each.
    """

    clips: tuple[int, int]
    told_apart: list[str]
    differences: dict[str, Floats]


def compare(first: Path, second: Path) -> Agreement:
    """Compares the samples that two datasets have in common, by key.

    Raises:
        UserError: one is no complete dataset, or they have no clip in common.
    """
    indexes = [open_index(str(folder)) for folder in (first, second)]
    told_first, told_second = ({t["key"]: t for t in read_metadata(i, all_numbers(i))} for i in indexes)
    common = [key for key in told_first if key in told_second]
    if not common:
        raise UserError(
            f"{first} and {second} have no clip in common: make both of one split, --seed, --classes and --level"
        )
    told_apart = [key for key in common if any(told_first[key][name] != told_second[key][name] for name in _TOLD)]
    found: dict[str, list[float]] = {}
    pairs = zip(_samples(indexes[0], common), _samples(indexes[1], common), strict=True)
    for key, ((image, rows), (other_image, other_rows)) in zip(common, pairs, strict=True):
        valid = min(told_first[key]["valid_frames"], told_second[key]["valid_frames"])
        away, loudest = np.abs(rows - other_rows)[:valid], np.maximum(rows, other_rows)[:valid]
        off = image - other_image
        for name, value in (
            ("log-mel: mean", away.mean()),
            ("log-mel: 99th percentile", np.quantile(away, 0.99)),
            ("log-mel, 35 dB below the loudest and above: mean", away[loudest > loudest.max() - _LOUD].mean()),
            ("frame, of 255: mean", np.abs(off).mean()),
            ("frame: PSNR in dB", 10 * np.log10(255**2 / max(np.square(off).mean(), 1e-9))),
        ):
            found.setdefault(name, []).append(float(value))
    return Agreement(
        clips=(len(told_first), len(told_second)),
        told_apart=told_apart,
        differences={name: np.array(values) for name, values in found.items()},
    )


def _samples(index: DatasetIndex, keys: list[str]) -> Iterator[tuple[Floats, Floats]]:
    """Frame and fbank of each of these samples."""
    reader = SampleReader(index.tars)
    places = {place.key: place for place in index.places(all_numbers(index))}
    for key in keys:
        image, rows = np.empty((FRAME_SIZE, FRAME_SIZE, 3), np.uint8), np.empty(FBANK_SHAPE, np.float16)
        reader.read_into(places[key], image[None], rows)
        yield image.astype(np.float64), rows.astype(np.float64)
    reader.close()


def agreement_lines(found: Agreement) -> list[str]:
    """The table of differences."""
    lines = [
        f"{len(next(iter(found.differences.values()))):,} clips in both, of {found.clips[0]:,} and {found.clips[1]:,}"
    ]
    lines.append(
        f"  labels, boxes or times differ in {len(found.told_apart):,}{''.join(f' {k}' for k in found.told_apart[:3])}"
    )
    lines.append(f"{'absolute differences of a clip':<52}{'median':>8}{'least':>8}{'most':>8}")
    for name, values in found.differences.items():
        lines.append(f"  {name:<50}{np.median(values):8.3f}{values.min():8.3f}{values.max():8.3f}")
    return lines
