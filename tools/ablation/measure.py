"""What a checkpoint knows of the world: retrieval, localization, linear probe, each beside what it is read against.

    python -m tools.ablation.measure --checkpoint RUN --train WORLD/train --test WORLD/test --out RUN/world.json

Shares are in %. All of the test clips are one pool; where two objects sound, both count as right.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards_spec.atomic import atomic_path
from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import UserError
from training.evaluation.features import LoadedModel, dense_features, embed_dataset, load_model
from training.evaluation.localization import auc, ciou, ground_truth, heatmaps, pointing, predicted_region, rank_objects
from training.evaluation.metadata import all_numbers, label_ids, read_metadata
from training.evaluation.probe import linear_probe
from training.evaluation.retrieval import RANKS, class_retrieval, label_matrix, retrieval
from training.stream.index import DatasetIndex, open_index

# B clips, D features, S = 224.
Metrics = dict[str, float]
VERSION = 2  # of what is measured: figures of another version are not compared with these, but taken again
_ROW = {"audio_to_image": "A->V", "image_to_audio": "V->A"}


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Measures a checkpoint on the synthetic world."""

    checkpoint: Path
    """A checkpoint, or a run folder (its newest checkpoint is taken)."""
    train: Path
    """The clips that the linear probe learns from."""
    test: Path
    """The clips that everything is measured on."""
    out: Path
    """JSON file to write."""
    untrained: bool = False
    """The run's initial weights instead, as its seed drew them."""
    probe_clips: int = 4000
    """The most clips that the linear probe learns from."""
    batch_size: int = 64
    """Clips encoded at once."""
    workers: int = 1
    """Loader processes."""


def measure(config: MeasureConfig) -> dict[str, Any]:
    """All figures of a checkpoint: {"version", "step", "fingerprint", "metrics": {name: value}}."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(config.checkpoint, device, untrained=config.untrained)
    test = open_index(str(config.test))
    train = open_index(str(config.train))
    dense = localize(test, loaded, config)
    metrics = (
        score_retrieval(test, dense.audio, dense.image) | dense.metrics | probe(train, test, loaded, dense, config)
    )
    return {"version": VERSION, "step": loaded.step, "fingerprint": loaded.fingerprint, "metrics": metrics}


# -------------------------------------------------------------------- retrieval


def score_retrieval(index: DatasetIndex, audio: Tensor, image: Tensor) -> Metrics:
    """Instance and class level, both ways, of pooled features [N, D]."""
    found = retrieval(audio, image)
    labels = label_matrix(label_ids(index, all_numbers(index)))
    by_class = class_retrieval(audio, image, labels)
    metrics: Metrics = {}
    for name, arrow in _ROW.items():
        recall = getattr(found, name).recall
        metrics |= {f"retrieval {arrow}/R@{k}": recall[k] for k in RANKS}
    for arrow, name in (("A->V", "audio -> image"), ("V->A", "image -> audio")):
        metrics[f"retrieval {arrow}/class R@1"] = by_class[name][1]
    return metrics


# -------------------------------------------------------------------- localization


@dataclass(frozen=True, kw_only=True)
class Localized:
    """What the test clips give: pooled features [N, D] of both modalities, and the figures."""

    audio: Tensor
    image: Tensor
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What the world knows of a clip."""

    gt: Tensor  # float [S, S], union of the sounding objects' boxes
    labels: frozenset[int]  # the classes that are heard
    in_view: frozenset[int] = frozenset()  # the classes of all objects in view, those that sound and those that do not
    has_rivals: bool = False  # two large objects are in view
    boxes: list[list[float]]  # of all objects in view
    sounding_boxes: list[list[float]]
    sounding: int | None  # which of them sounds; None where two do, or it is alone


def read_clips(index: DatasetIndex) -> list[Clip]:
    """The truth about all clips of a dataset of the world.

    Raises:
        UserError: the dataset is not of make_world.
    """
    clips = []
    for found in read_metadata(index, all_numbers(index)):
        if "objects" not in found:
            raise UserError(
                f"sample {found['key']} names no objects: the dataset must come from tools.make_world --direct"
            )
        objects = [o for o in found["objects"] if o["box"] is not None]
        sounding = [i for i, o in enumerate(objects) if o["is_sounding"]]
        clips.append(
            Clip(
                gt=ground_truth([tuple(box) for box in found["boxes"]], "vggss"),
                labels=frozenset(found["label_ids"]),
                in_view=frozenset(o["label_id"] for o in objects),
                has_rivals=sum(o["is_large"] for o in objects) > 1,
                boxes=[o["box"] for o in objects],
                sounding_boxes=found["boxes"],
                sounding=sounding[0] if len(sounding) == 1 and len(objects) > 1 else None,
            )
        )
    return clips


def localize(index: DatasetIndex, loaded: LoadedModel, config: MeasureConfig) -> Localized:
    """Where the model looks for each clip's own sound, and for another clip's, of no class that is in view."""
    clips = read_clips(index)
    others = torch.tensor(strangers(clips))
    pooled = embed_dataset(index, loaded, batch_size=config.batch_size, workers=config.workers)
    own, other = ScoresByRivals(), Scores()
    batches = dense_features(index, loaded, batch_size=config.batch_size, workers=config.workers, with_audio=False)
    for batch in batches:
        numbers, truth = torch.from_numpy(batch.numbers), [clips[number] for number in batch.numbers]
        maps, other_maps = (
            heatmaps(batch.image.tokens, pooled.audio[heard].to(loaded.device)).cpu()
            for heard in (numbers, others[numbers])
        )
        own.add(maps, truth)
        other.add(other_maps, truth)
    metrics = own.metrics() | {f"with another sound/{key}": value for key, value in other.metrics().items()}
    return Localized(audio=pooled.audio, image=pooled.image, metrics=metrics)


def strangers(clips: list[Clip]) -> list[int]:
    """For each clip the number of one drawn from all in which no class is heard that the clip shows or sounds.

    The same clips always get the same ones.

    Raises:
        UserError: a clip has none.
    """
    generator = np.random.default_rng(0)
    found = []
    for clip in clips:
        known = clip.labels | clip.in_view
        possible = [number for number, other in enumerate(clips) if known.isdisjoint(other.labels)]
        if not possible:
            raise UserError(
                f"of {len(clips)} test clips none sounds of a class that is not in view in the one with the classes"
                f" {sorted(known)}: make a world with more test clips"
            )
        found.append(int(generator.choice(possible)))
    return found


class Scores:
    """Localization figures, collected over batches of maps [B, S, S] and what is true of them."""

    def __init__(self) -> None:
        self.cious: list[Tensor] = []
        self.points: list[Tensor] = []
        self.firsts: list[bool] = []

    def add(self, maps: Tensor, clips: list[Clip]) -> None:
        """Counts a batch."""
        gt = torch.stack([clip.gt for clip in clips])
        self.cious.append(ciou(predicted_region(maps), gt))
        self.points.append(pointing(maps, gt))
        for heatmap, clip in zip(maps, clips, strict=True):
            if clip.sounding is not None:
                self.firsts.append(rank_objects(heatmap, clip.boxes, clip.sounding) == 1)

    def metrics(self) -> Metrics:
        """In %: CIoU, AUC, pointing, and how often the sounding object ranks first among those in view."""
        cious = torch.cat(self.cious)
        return {
            "CIoU": 100 * float((cious >= 0.5).double().mean()),
            "AUC": 100 * auc(cious),
            "pointing": 100 * float(torch.cat(self.points).double().mean()),
            "sounding first": 100 * float(np.mean(self.firsts)) if self.firsts else float("nan"),
        }


class ScoresByRivals:
    """Localization figures of all clips, and of those with two large objects in view."""

    def __init__(self) -> None:
        self._scores = {"localization": Scores(), "localization among rivals": Scores()}

    def add(self, maps: Tensor, clips: list[Clip]) -> None:
        """Counts a batch of maps [B, S, S]."""
        self._scores["localization"].add(maps, clips)
        if rivals := [i for i, clip in enumerate(clips) if clip.has_rivals]:
            self._scores["localization among rivals"].add(maps[rivals], [clips[i] for i in rivals])

    def metrics(self) -> Metrics:
        """Those of `Scores`, after the name of the clips; without the rivals where no clip has any."""
        scores = {name: of.metrics() for name, of in self._scores.items() if of.cious}
        return {f"{name}/{key}": value for name, of in scores.items() for key, value in of.items()}


# -------------------------------------------------------------------- linear probe


def probe(
    train: DatasetIndex, test: DatasetIndex, loaded: LoadedModel, dense: Localized, config: MeasureConfig
) -> Metrics:
    """Top-1 of the sounding class by a linear layer on frozen pooled features; clips with one sounding class only."""
    fit, held = (_single(index) for index in (train, test))
    chosen = np.array(sorted(fit))[: config.probe_clips]
    seen = embed_dataset(train, loaded, numbers=chosen, batch_size=config.batch_size, workers=config.workers)
    rows = np.array(sorted(held))
    classes = 1 + max(*fit.values(), *held.values())
    train_y, test_y = (
        _one_hot([of[int(n)] for n in numbers], classes) for of, numbers in ((fit, chosen), (held, rows))
    )
    inputs = {
        "audio": (seen.audio, dense.audio[rows]),
        "image": (seen.image, dense.image[rows]),
        "both": (torch.cat([seen.audio, seen.image], dim=1), torch.cat([dense.audio, dense.image], dim=1)[rows]),
    }
    metrics: Metrics = {}
    for name, (train_x, test_x) in inputs.items():
        found = linear_probe(train_x, train_y, test_x, test_y, task="singlelabel")
        top_1 = found.metrics["top-1"]
        assert top_1 is not None
        metrics[f"probe/{name}"] = top_1
    return metrics


def _single(index: DatasetIndex) -> dict[int, int]:
    """Sample number -> class, of the clips with one sounding class."""
    labels = label_ids(index, all_numbers(index))
    return {number: ids[0] for number, ids in enumerate(labels) if len(ids) == 1}


def _one_hot(labels: list[int], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).bool()


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("python -m tools.ablation.measure"):
        config = parse(MeasureConfig, arguments)
        result = measure(config)
        with atomic_path(config.out) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
