"""evaluate.py localization: heatmaps against the boxes of Flickr-SoundNet or VGG-SS, beside trivial answers."""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from shards_spec.atomic import atomic_path
from shards_spec.errors import UserError
from shards_spec.messages import say
from shards_spec.sample import FRAME_SIZE, file_key
from training.evaluation import localization as metrics
from training.evaluation.features import DenseBatch, LoadedModel, Pooling, cache_folder, check_finite, dense_features
from training.evaluation.localization import Benchmark, Box, Detections
from training.evaluation.metadata import all_numbers, read_metadata, sample_keys
from training.evaluation.options import EvaluationOptions, Session, make_writable
from training.evaluation.overlays import Overlay, write_overlays
from training.evaluation.results import Result, Rows
from training.evaluation.row_cache import Rows as TensorRows
from training.evaluation.row_cache import cached_rows
from training.methods.shared.patches import IMAGE_GRID, IMAGE_TOKENS
from training.stream.index import DatasetIndex
from training.stream.loader import load
from training.stream.order import Numbers, sample_seeds
from training.stream.shares import Share

# N samples with boxes, S pixels a side.
Heatmap = Literal["cosine", "cls-attention"]
Negatives = Literal["other-sound", "unboxed", "none"]

PAPER: dict[Benchmark, Rows] = {
    "flickr": {"CrossMAE ViT-B": {"CIoU": 73.20, "AUC": 42.61}},
    "vggss": {"CrossMAE ViT-B": {"CIoU": 39.80, "AUC": 27.13}},
}
PROTOCOL = (
    "EZ-VSL's evaluator: map of 14 x 14, bilinear to 224 x 224 with aligned corners, min-max, predicted region = at or"
    " above the median; cIoU = sum(pred * gt) / (sum(gt) + sum(pred where gt = 0)); CIoU = share of images with cIoU >="
    " 0.5; AUC over thresholds 0, 0.05, ..., 1. pointing = share of images whose highest pixel lies in a box."
    " AP (SLAVC) and max-F1 as SLAVC's evaluator; AP without its quirks. They count negatives."
)
_CHUNK = 32  # images scored at once, 200 kB each
_NAMED = 3  # samples named in a message
_LOOK_AHEAD = 256  # samples among which one with other labels is sought
_SEED = 0  # of the random maps


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """The samples of a dataset by their boxes."""

    numbers: Numbers  # int64 [N], with a usable box: these are scored
    keys: list[str]
    boxes: list[list[Box]]
    labels: list[list[str]]
    unboxed: Numbers  # int64, without any box
    spoilt: list[str]  # keys of samples whose boxes are all damaged
    left_out: list[str]  # a line for each damaged box


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What became of each of N images."""

    ciou: Tensor  # float64 [N]
    pointing: Tensor  # bool [N]
    confidence: Tensor  # float64 [N]

    def row(self) -> dict[str, float | None]:
        """The columns that need no negatives, in %."""
        return {
            "CIoU": 100 * metrics.success(self.ciou),
            "AUC": 100 * metrics.auc(self.ciou),
            "mean cIoU": 100 * self.ciou.mean().item(),
            "pointing": 100 * self.pointing.double().mean().item(),
        }


@dataclass(frozen=True, kw_only=True)
class LocalizationConfig(EvaluationOptions):
    """Sound-source localization on Flickr-SoundNet or VGG-SS (the paper's Table 3), beside trivial answers."""

    benchmark: Benchmark
    """How boxes become ground truth. flickr: consensus of the annotators; vggss: union of the objects."""
    heatmap: Heatmap = "cosine"
    """cosine of the pooled sound with each image token, or the attention of the image's [CLS], which hears nothing."""
    features: Pooling = "mean"
    """The sound's vector: the mean of its patch tokens, or [CLS]."""
    negatives: Negatives = "other-sound"
    """For AP and max-F1. other-sound: each frame with another clip's sound; unboxed: the samples without boxes."""
    no_untrained: bool = False
    """Leave out the run's initial weights, which are evaluated as a baseline."""
    pictures: Path | None = None
    """Folder for pictures. Default: beside the JSON, under its name."""
    picture_count: int = 32
    """Pictures, evenly spaced over the samples; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.picture_count < 0:
            raise ValueError(f"--picture-count must be at least 0, got {self.picture_count}")

    def run(self) -> Result:
        """Evaluates, prints the table, writes the JSON, a line a sample, and pictures."""
        session = self.begin("localization")
        if session.is_main and self.pictures is not None:
            make_writable(self.pictures, "--pictures DIR")
        annotated = read_annotations(session.index)
        if not len(annotated.numbers):
            first = f": {annotated.left_out[0]}" if annotated.left_out else ""
            raise UserError(f"no sample of {self.data} has a usable box{first}: give make-shards --boxes")
        partners = other_sounds(annotated.labels)
        own, rows = self._model_rows(session, session.loaded, annotated, partners)
        baselines = self._baselines(session, annotated, partners, rows)
        result = session.finish(
            pool=len(annotated.numbers),
            pool_rule="those with boxes",
            protocol=f"{PROTOCOL} Map: {self.heatmap}, features: {self.features}, benchmark: {self.benchmark}.",
            metrics={"model": rows["model"]},
            baselines=baselines,
            paper=PAPER[self.benchmark],
            notes=tuple(self._notes(annotated)),
        )
        if session.is_main:
            self._write_samples(session, annotated, own)
            self._draw(session, annotated, own)
        return result

    # ---------------------------------------------------------------- rows

    def _model_rows(
        self, session: Session, loaded: LoadedModel, annotated: Annotated, partners: list[int] | None
    ) -> tuple[Tensor, Rows]:
        """The maps [N, 14, 14] of a model, and its rows with each sample's own sound and with another clip's."""
        audio = session.embed(annotated.numbers, loaded=loaded, pool=self.features).audio
        sounds = {"own": audio} | ({} if partners is None else {"other": audio[partners]})
        maps = self._maps(session, loaded, annotated.numbers, sounds, partners)
        own = self._score(maps["own"], annotated.boxes)
        rows: Rows = {"model": own.row()}
        unheard: Tensor | None = None  # confidences of the negatives
        if partners is not None:
            other = self._score(maps["other"], annotated.boxes)
            rows["other"] = other.row()
            unheard = other.confidence if self.negatives == "other-sound" else None
        if self.negatives == "unboxed" and len(annotated.unboxed):
            silent = session.embed(annotated.unboxed, loaded=loaded, pool=self.features).audio
            found = self._maps(session, loaded, annotated.unboxed, {"own": silent}, None)
            unheard = confidences(found["own"])
        if unheard is not None:
            rows["model"] |= detection_row(own, unheard)
        return maps["own"], rows

    def _baselines(self, session: Session, annotated: Annotated, partners: list[int] | None, rows: Rows) -> Rows:
        baselines: Rows = {}
        if partners is not None:
            baselines["another clip's sound"] = rows["other"]
        if not self.no_untrained:
            baselines["untrained"] = self._model_rows(session, session.untrained(), annotated, partners)[1]["model"]
        baselines["random map"] = self._score(random_maps(annotated.keys), annotated.boxes).row()
        for name, region in trivial_regions().items():
            baselines[name] = self._score_region(region, annotated.boxes)
        return baselines

    def _maps(
        self,
        session: Session,
        loaded: LoadedModel,
        numbers: Numbers,
        sounds: dict[str, Tensor],
        partners: list[int] | None,
    ) -> TensorRows:
        """A map [N, 14, 14] of each sample for each kind of sound, float [N, D]; out of the cache where it has them."""

        def compute(shares: Iterable[Share]) -> Iterator[tuple[Numbers, TensorRows]]:
            options = {"batch_size": self.batch_size, "workers": self.workers}
            for batch in dense_features(session.index, loaded, shares, with_audio=False, **options):
                places = torch.from_numpy(np.searchsorted(numbers, batch.numbers))
                maps = {
                    name: cls_maps(loaded, batch)
                    if self.heatmap == "cls-attention"
                    else metrics.cosine_maps(batch.image.tokens, sound[places].to(loaded.device)).cpu()
                    for name, sound in sounds.items()
                }
                check_finite(loaded, maps, batch.keys)
                yield batch.numbers, maps

        pairs = hashlib.sha256(repr((numbers.tolist(), partners)).encode()).hexdigest()
        options = {"kind": "maps", "heatmap": self.heatmap, "pool": self.features, "pairs": pairs}
        return cached_rows(
            numbers,
            compute,
            folder=cache_folder(session.cache, loaded, session.index, options),
            batch_size=self.batch_size,
            accelerator=session.accelerator,
            title="localize" if loaded.is_trained else "localize, untrained",
        )

    # ---------------------------------------------------------------- scores

    def _score(self, maps: Tensor, boxes: Sequence[list[Box]]) -> Scores:
        """Scores maps [N, 14, 14] against the boxes of their samples."""
        parts = []
        for gt, start in self._ground_truths(boxes):
            raw = metrics.upsample(maps[start : start + len(gt)])
            scaled = metrics.min_max(raw)
            region = metrics.predicted_region(scaled)
            parts.append((metrics.ciou(region, gt), metrics.pointing(scaled, gt), metrics.confidence(raw).double()))
        ciou, pointing, confidence = map(torch.cat, zip(*parts, strict=True))
        return Scores(ciou=ciou, pointing=pointing, confidence=confidence)

    def _score_region(self, region: Tensor, boxes: Sequence[list[Box]]) -> dict[str, float | None]:
        """The row of one region, bool [S, S], for all samples. It points at random inside itself."""
        cious, pointing = [], []
        for gt, _ in self._ground_truths(boxes):
            cious.append(metrics.ciou(region.expand_as(gt), gt))
            pointing.append((gt > 0)[:, region].double().mean(dim=1))
        scores = Scores(ciou=torch.cat(cious), pointing=torch.cat(pointing), confidence=torch.empty(0))
        return scores.row()

    def _ground_truths(self, boxes: Sequence[list[Box]]) -> Iterator[tuple[Tensor, int]]:
        for start in range(0, len(boxes), _CHUNK):
            yield torch.stack([metrics.ground_truth(b, self.benchmark) for b in boxes[start : start + _CHUNK]]), start

    # ---------------------------------------------------------------- what it writes

    def _notes(self, annotated: Annotated) -> Iterator[str]:
        if annotated.left_out:
            yield f"damaged boxes are left out: {len(annotated.left_out):,} ({'; '.join(annotated.left_out[:_NAMED])})"
        if annotated.spoilt:
            named = ", ".join(annotated.spoilt[:_NAMED])
            count = len(annotated.spoilt)
            yield f"samples whose boxes are all damaged are neither scored nor negatives: {count:,} ({named})"
        unboxed = len(annotated.unboxed)
        if self.negatives == "unboxed":
            yield f"negatives: the samples without boxes, {unboxed:,}"
        elif unboxed:
            yield f"samples without boxes are left out: {unboxed:,}"
        if self.negatives == "other-sound":
            yield "negatives: each scored frame with the sound of a following clip, of other labels where possible"
        yield "centre and whole image point at random inside themselves; pointing of the whole image is chance"

    def _write_samples(self, session: Session, annotated: Annotated, maps: Tensor) -> None:
        """A CSV beside the JSON: what became of each sample."""
        scores = self._score(maps, annotated.boxes)
        path = session.out.with_suffix(".samples.csv")
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["key", "boxes", "ciou", "pointing", "confidence"])
            for i, key in enumerate(annotated.keys):
                ciou, sure = f"{scores.ciou[i]:.6f}", f"{scores.confidence[i]:.6f}"
                writer.writerow([key, len(annotated.boxes[i]), ciou, int(scores.pointing[i]), sure])

    def _draw(self, session: Session, annotated: Annotated, maps: Tensor) -> None:
        count = min(self.picture_count, len(annotated.numbers))
        if not count:
            return
        chosen = np.linspace(0, len(annotated.numbers) - 1, count).round().astype(int)
        scores = self._score(maps[chosen], [annotated.boxes[i] for i in chosen])
        scaled = metrics.min_max(metrics.upsample(maps[chosen]))
        frames = _frames(session.index, annotated.numbers[chosen])
        overlays = [
            Overlay(
                key=annotated.keys[i],
                frame=frames[place],
                heatmap=scaled[place].numpy(),
                region=metrics.predicted_region(scaled[place : place + 1])[0].numpy(),
                boxes=annotated.boxes[i],
                ciou=float(scores.ciou[place]),
                labels=", ".join(annotated.labels[i]),
            )
            for place, i in enumerate(chosen.tolist())
        ]
        folder = session.out.with_suffix("") if self.pictures is None else self.pictures
        names = [file_key(annotated.keys[i]) for i in chosen.tolist()]
        say(f"{count} pictures and {write_overlays(folder, overlays, names)[-1]}")


def _frames(index: DatasetIndex, numbers: Numbers) -> list[Any]:
    """The frames of samples, uint8 [S, S, 3] each."""
    shares = [Share(numbers=numbers[i : i + 1], epochs=np.zeros(1, np.int64)) for i in range(len(numbers))]
    return [batch.image[0, 0].numpy().copy() for batch in load(index, shares, seed=0, batch_size=1, workers=0)]


def read_annotations(index: DatasetIndex) -> Annotated:
    """Sorts the samples of a dataset by the `boxes` of their JSON. Damaged boxes are left out, and named."""
    numbers = all_numbers(index)
    keys = sample_keys(index, numbers)
    scored, boxes, labels, unboxed, spoilt, left_out = [], [], [], [], [], []
    for number, metadata in zip(numbers.tolist(), read_metadata(index, numbers), strict=True):
        if not metadata.get("boxes"):
            unboxed.append(number)
            continue
        found = metrics.usable_boxes(metadata["boxes"])
        left_out += [f"{keys[number]}: {line}" for line in found.left_out]
        if not found.boxes:
            spoilt.append(keys[number])
            continue
        scored.append(number)
        boxes.append(found.boxes)
        names = metadata.get("labels")
        labels.append([str(name) for name in names] if isinstance(names, list) else [])
    return Annotated(
        numbers=np.array(scored, np.int64),
        keys=[keys[number] for number in scored],
        boxes=boxes,
        labels=labels,
        unboxed=np.array(unboxed, np.int64),
        spoilt=spoilt,
        left_out=left_out,
    )


def other_sounds(labels: Sequence[Sequence[str]]) -> list[int] | None:
    """For each of N samples the place of another one, whose sound stands in for its own; None where N is 1.

    It is the next one (the first follows the last) that shares no label; where there is none among the next
    _LOOK_AHEAD, or no labels are known, the next one. So every sample's sound serves, nearly, once.
    """
    n = len(labels)
    if n < 2:
        return None
    known = [set(names) for names in labels]

    def other(i: int) -> int:
        following = ((i + step) % n for step in range(1, min(n, _LOOK_AHEAD + 1)))
        return next((j for j in following if not known[i] & known[j]), (i + 1) % n)

    return [other(i) for i in range(n)]


def random_maps(keys: Sequence[str]) -> Tensor:
    """A map of noise for each sample, float [N, 14, 14], from its key alone."""
    seeds = sample_seeds(_SEED, np.zeros(len(keys), np.int64), keys)
    generator = torch.Generator()
    maps = [torch.rand(IMAGE_TOKENS, generator=generator.manual_seed(int(seed))) for seed in seeds]
    return torch.stack(maps).unflatten(1, IMAGE_GRID)


def trivial_regions() -> dict[str, Tensor]:
    """Answers that need no model, bool [S, S] each. Half the area is what every map is cut to."""
    return {
        "whole image": torch.ones(FRAME_SIZE, FRAME_SIZE, dtype=torch.bool),
        "centre box, half the side": _centre(0.5),
        "centre box, half the area": _centre(0.5**0.5),
    }


def _centre(side: float) -> Tensor:
    margin = round((1 - side) / 2 * FRAME_SIZE)
    region = torch.zeros(FRAME_SIZE, FRAME_SIZE, dtype=torch.bool)
    region[margin : FRAME_SIZE - margin, margin : FRAME_SIZE - margin] = True
    return region


def confidences(maps: Tensor) -> Tensor:
    """SLAVC's confidence of maps [N, 14, 14], float64 [N]."""
    return torch.cat([metrics.confidence(metrics.upsample(part)).double() for part in maps.split(_CHUNK)])


def detection_row(scores: Scores, negatives: Tensor) -> dict[str, float | None]:
    """AP and max-F1 in %, of N positives and the confidences of M negatives, float [M]."""
    n, m = len(scores.ciou), len(negatives)
    detections = Detections(
        is_positive=torch.cat([torch.ones(n, dtype=torch.bool), torch.zeros(m, dtype=torch.bool)]),
        ciou=torch.cat([scores.ciou, torch.zeros(m, dtype=torch.float64)]),
        confidence=torch.cat([scores.confidence, negatives]),
    )
    return {
        "AP": 100 * metrics.average_precision(detections),
        "AP (SLAVC)": 100 * metrics.slavc_ap(detections),
        "max-F1": 100 * metrics.max_f1(detections),
    }


def cls_maps(loaded: LoadedModel, batch: DenseBatch) -> Tensor:
    """The attention of [CLS] as maps, float [B, 14, 14].

    Raises:
        UserError: the method has no [CLS].
    """
    if batch.image.attention is None:
        raise UserError(f"--heatmap cls-attention: {loaded.method} has no [CLS] token, take --heatmap cosine")
    return batch.image.attention.float().unflatten(1, IMAGE_GRID).cpu()
