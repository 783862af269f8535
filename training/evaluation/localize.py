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
from shards_spec.sample import file_key
from training.evaluation import localization as metrics
from training.evaluation import slavc
from training.evaluation.boxes import Annotated, read_annotations
from training.evaluation.features import DenseBatch, LoadedModel, Pooling, cache_folder, check_finite, dense_features
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.intervals import Intervals, of_means
from training.evaluation.localization import Benchmark, Box, Detections
from training.evaluation.localization_rows import (
    Scores,
    beside_negatives,
    detection_intervals,
    detection_row,
    pair_table,
    sample_table,
)
from training.evaluation.options import EvaluationOptions, Session, make_writable
from training.evaluation.overlays import Overlay, write_overlays
from training.evaluation.pairs import Pair, in_rounds, read_pairs
from training.evaluation.results import Result, Rows
from training.evaluation.row_cache import Rows as TensorRows
from training.evaluation.row_cache import cached_rows
from training.evaluation.trivial_maps import other_sounds, random_maps, trivial_regions
from training.methods.shared.patches import IMAGE_GRID
from training.stream.index import DatasetIndex
from training.stream.loader import load
from training.stream.order import Numbers
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
    " AP (ours) and max-F1 (ours): detection by SLAVC's confidence, beside negatives that are ours, too."
)
SLAVC_PROTOCOL = (
    " Rows SLAVC: its EvaluatorFull on its list of pairs, map bicubic, with --relative_prediction, without its object"
    " saliency; sizes and `visible` hold no negatives."
)
_README_ROW = "SLAVC's README (precision: visible)"
_README: Rows = {  # github.com/stoneMo/SLAVC, trained on VGG-Sound 144k, with object saliency
    "flickr": {"AP@50": 51.63, "max-F1@50": 59.10, "precision@50": 83.60},
    "vggss": {"AP@50": 32.95, "max-F1@50": 40.00, "precision@50": 37.79},
}
_CHUNK = 32  # images scored at once, 200 kB each
_NAMED = 3  # samples named in a message


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
    """For AP and max-F1 (ours). other-sound: each frame with another clip's sound; unboxed: samples without boxes."""
    pairs: Path | None = None
    """SLAVC's list of pairs, flickr_test_plus_silent.csv or vggss_test_plus_silent.csv: also scores its protocol."""
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
        chosen = self.chosen(session.index)
        annotated = read_annotations(session.index, chosen.numbers)
        if not len(annotated.numbers):
            first = f": {annotated.left_out[0]}" if annotated.left_out else ""
            raise UserError(f"no sample of {self.data} has a usable box{first}: give make-shards --boxes")
        left_out, pairs = LeftOut(), list[Pair]()
        if self.pairs is not None:
            pairs = read_pairs(self.pairs, session.index, set(annotated.numbers.tolist()), left_out)
        partners = other_sounds(annotated.labels)
        own, rows, intervals = self._model_rows(session, session.loaded, annotated, partners)
        baselines = self._baselines(session, annotated, partners, rows)
        own_scores = self._score(own, annotated.boxes)
        metrics_rows: Rows = {"model": rows["model"]}
        tables = [sample_table(annotated, own_scores)]
        if pairs:
            detections, areas = self._detect(session, session.loaded, annotated, pairs)
            metrics_rows |= {f"SLAVC, {name}": row for name, row in slavc.rows(detections, areas).items()}
            intervals["SLAVC, all"] = slavc.intervals(detections)
            tables.append(pair_table(session.index, pairs, detections))
        result = session.finish(
            pool=len(annotated.numbers),
            pool_rule="those with boxes" + (f" among {chosen.rule}" if self.keys else ""),
            protocol_name=f"EZ-VSL, {self.benchmark}" + ("; rows SLAVC: SLAVC, extended" if pairs else ""),
            protocol=f"{PROTOCOL}{SLAVC_PROTOCOL if pairs else ''} {self._choices()}",
            metrics=metrics_rows,
            baselines=baselines,
            paper=PAPER[self.benchmark] | ({_README_ROW: _README[self.benchmark]} if pairs else {}),
            notes=(*self._notes(annotated), *_pair_notes(pairs), *left_out.notes(), *chosen.notes),
            intervals=intervals,
        )
        self.save(session.accelerator, *tables)
        if session.is_main:
            self._write_samples(session, annotated, own_scores)
            self._draw(session, annotated, own)
        return result

    # ---------------------------------------------------------------- rows

    def _model_rows(
        self, session: Session, loaded: LoadedModel, annotated: Annotated, partners: list[int] | None
    ) -> tuple[Tensor, Rows, Intervals]:
        """The maps [N, 14, 14] of a model, its rows with each sample's own sound and with another clip's; intervals."""
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
        ends = of_means(own.parts())
        if unheard is not None:
            detections = beside_negatives(own, unheard)
            rows["model"] |= detection_row(detections)
            ends |= detection_intervals(detections, together=self.negatives == "other-sound")
        return maps["own"], rows, {"model": ends}

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
        partners: Any,
    ) -> TensorRows:
        """A map [N, 14, 14] of each sample for each kind of sound, float [N, D]; out of the cache where it has them.

        `partners` tells the cache whose sounds these are.
        """

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

    def _detect(
        self, session: Session, loaded: LoadedModel, annotated: Annotated, pairs: list[Pair]
    ) -> tuple[Detections, Tensor]:
        """SLAVC's detections of its pairs, and how many pixels each was to find."""
        rounds = in_rounds(pairs)
        frames = np.array(sorted(rounds[0]), np.int64)
        heard = np.unique(np.array([pair.sound for pair in pairs], np.int64))
        audio = session.embed(np.union1d(frames, heard), loaded=loaded, pool=self.features)
        sound_of = {number: row for row, number in enumerate(audio.numbers.tolist())}
        sounds = [[one[n].sound if n in one else n for n in frames.tolist()] for one in rounds]  # else its own
        vectors = {f"round {i}": audio.audio[[sound_of[n] for n in numbers]] for i, numbers in enumerate(sounds)}
        maps = self._maps(session, loaded, frames, vectors, sounds)
        boxes = dict(zip(annotated.numbers.tolist(), annotated.boxes, strict=True))
        place = {number: row for row, number in enumerate(frames.tolist())}
        round_of = {pair: i for i, one in enumerate(rounds) for pair in one.values()}
        of_pairs = torch.stack([maps[f"round {round_of[pair]}"][place[pair.image]] for pair in pairs])
        truths = [boxes[pair.image] if pair.is_sounding else [] for pair in pairs]
        return slavc.detect(of_pairs, [metrics.ground_truth(found, self.benchmark) for found in truths])

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

    def _choices(self) -> str:
        return f"Map: {self.heatmap}, features: {self.features}, benchmark: {self.benchmark}."

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

    def _write_samples(self, session: Session, annotated: Annotated, scores: Scores) -> None:
        """A CSV beside the JSON: what became of each sample."""
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


def confidences(maps: Tensor) -> Tensor:
    """SLAVC's confidence of maps [N, 14, 14], float64 [N]."""
    return torch.cat([metrics.confidence(metrics.upsample(part)).double() for part in maps.split(_CHUNK)])


def cls_maps(loaded: LoadedModel, batch: DenseBatch) -> Tensor:
    """The attention of [CLS] as maps, float [B, 14, 14].

    Raises:
        UserError: the method has no [CLS].
    """
    if batch.image.attention is None:
        raise UserError(f"--heatmap cls-attention: {loaded.method} has no [CLS] token, take --heatmap cosine")
    return batch.image.attention.float().unflatten(1, IMAGE_GRID).cpu()


def _pair_notes(pairs: Sequence[Pair]) -> Iterator[str]:
    if pairs:
        sounding = sum(pair.is_sounding for pair in pairs)
        yield f"rows SLAVC: {sounding:,} sounding and {len(pairs) - sounding:,} non-sounding pairs"
