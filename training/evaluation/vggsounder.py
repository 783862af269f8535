"""VGGSounder: what can be heard and seen in the clips of VGGSound's test set, scored with a model of one label a clip.

`python evaluate.py vggsounder --data VGGSOUND_TEST --annotations vggsounder.csv --checkpoint FINETUNING_RUN`

A clip has several labels, each of them heard (A), seen (V) or both (AV). The model's K best classes are its answer, and
each row of the result asks for the labels of some of these kinds, as VGGSounder's own benchmark.py does.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from shards_spec.errors import UserError
from training.evaluation.class_tables import class_names, score_columns
from training.evaluation.classification import ROWS, ClassificationConfig, views_of
from training.evaluation.classification_metrics import Scores, Targets, multilabel_metrics
from training.evaluation.frames import FrameReader
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.heads.vggsounder_labels import MODALITIES, read_vggsounder
from training.evaluation.intervals import Intervals, draws, spread
from training.evaluation.metadata import all_numbers, sample_keys
from training.evaluation.options import publish
from training.evaluation.predictions import joined
from training.evaluation.results import Result, Rows, result_path
from training.finetune.classifier import LoadedClassifier, load_classifier
from training.stream.index import DatasetIndex
from training.stream.order import Numbers

# N clips, C classes.
KINDS = {  # row -> the kinds of labels that it asks for
    "heard (A, AV)": ("A", "AV"),
    "seen (V, AV)": ("V", "AV"),
    "heard and seen (AV)": ("AV",),
    "only heard (A)": ("A",),
    "only seen (V)": ("V",),
    "all labels": MODALITIES,
}
_THEIR_ROWS = {  # those in which the benchmark scores a model of these inputs
    "a": ("heard (A, AV)", "only heard (A)"),
    "v": ("seen (V, AV)", "only seen (V)"),
    "av": ("heard and seen (AV)",),
}
_RANKS = (1, 3, 5, 10)

Counts = npt.NDArray[np.int64]  # [N]
ModalityIds = npt.NDArray[np.int8]  # [N, C]: 1 + the place in MODALITIES of a clip's label; 0: it has not this label


@dataclass(frozen=True, kw_only=True)
class VggsounderConfig(ClassificationConfig):
    """VGGSounder's several labels a clip, by modality, with a classifier fine-tuned on VGGSound."""

    annotations: Path
    """VGGSounder's vggsounder.csv, or vggsounder+background-music.csv. Samples are found by video id and start."""

    def run(self) -> Result:
        """Evaluates and prints the table.

        Raises:
            UserError: the checkpoint was not fine-tuned, or for other classes; the CSV cannot be used, or the dataset
                has none of its clips; or there is no place for the result.
        """
        accelerator = self.join()
        left_out = LeftOut()
        clips = read_vggsounder(self.annotations, left_out)
        loaded = load_classifier(self.checkpoint, accelerator.device)
        index = self.open_data(self.data, accelerator, looks="v" in loaded.inputs)
        out = self.result_file(accelerator, loaded.checkpoint, result_path(loaded.checkpoint, "vggsounder", index))
        self.check_classes(loaded, index)
        chosen = self.chosen(index)
        modalities = modality_ids(clips, index, chosen.numbers, left_out)
        if not modalities.any():
            raise UserError(
                f"{self.data} has no clip of {self.annotations} with a label of its class list: its keys must be "
                f"VIDEO_ID_MILLISECONDS, as {next(iter(clips))}{''.join(f'; {note}' for note in left_out.notes())}"
            )
        scores, reader = self.scores(loaded, index, chosen.numbers, accelerator)
        answers = probabilities(scores, loaded, reader).numpy()
        metrics = score(answers, modalities)
        result = Result(
            task="vggsounder",
            data=", ".join(map(str, index.folders)),
            dataset_fingerprint=index.fingerprint,
            checkpoint=str(loaded.checkpoint),
            step=loaded.step,
            pool=int(modalities.any(axis=1).sum()),
            pool_rule=f"clips of {self.annotations.name}" + (f"; {chosen.rule}" if self.keys else ""),
            protocol_name=f"VGGSounder (Hit@K, F1@K, exact@1), {ROWS[loaded.inputs]}",
            protocol=_protocol(loaded, reader),
            metrics=metrics,
            baselines={f"most frequent, {name}": row for name, row in score(None, modalities).items()},
            paper={},
            notes=(*left_out.notes(), *chosen.notes),
            intervals=intervals(answers, modalities),
        )
        publish(result, out, accelerator)
        table = prediction_columns(sample_keys(index, chosen.numbers), answers, modalities, class_names(index.classes))
        self.save(accelerator, table)
        return result


def modality_ids(
    clips: dict[str, dict[str, str]], index: DatasetIndex, numbers: Numbers, left_out: LeftOut
) -> ModalityIds:
    """Which labels each of the samples `numbers` has, and of which kind.

    Args:
        left_out: is told of clips that the dataset lacks, of samples without a row, and of labels that are no class.
    """
    classes = {spelled(c["name"]): number for number, c in enumerate(index.classes)}
    ids = np.zeros((len(numbers), len(classes)), np.int8)
    there = set(sample_keys(index, all_numbers(index)))
    for key in clips:
        if key not in there:
            left_out.add("clips that the dataset does not have", key)
    for row, key in enumerate(sample_keys(index, numbers)):
        if key not in clips:
            left_out.add("samples without a row in the CSV", key)
        for label, modality in clips.get(key, {}).items():
            if spelled(label) in classes:
                ids[row, classes[spelled(label)]] = 1 + MODALITIES.index(modality)
            else:
                left_out.add("labels that are not in the class list", repr(label))
    return ids


def spelled(label: str) -> str:
    """A label as file names spell it, `bird_chirping_tweeting`: class lists have it in both ways."""
    return re.sub(r"[ ,]+", "_", label)


def probabilities(scores: Tensor, loaded: LoadedClassifier, reader: FrameReader | None) -> Tensor:
    """Scores [N, C] as probabilities, so that those of different clips can be compared; of several frames they are."""
    if reader is not None and reader.count > 1:
        return scores
    return scores.softmax(dim=1) if loaded.task == "singlelabel" else scores.sigmoid()


def score(answers: Scores | None, modalities: ModalityIds) -> Rows:
    """A row for each of KINDS that a clip has labels of. A clip without one of the kind is left out of the row.

    Args:
        answers: [N, C]; None: the classes that are most frequent in the row, the same for each clip.
    """
    rows: Rows = {}
    for name, has_any, truth in _of_kinds(modalities):
        said = np.broadcast_to(_frequency_ranks(truth), truth.shape) if answers is None else answers[has_any]
        rows[name] = {"clips": float(len(truth)), **top_metrics(said, truth), **multilabel_metrics(said, truth)}
    return rows


def _of_kinds(modalities: ModalityIds) -> Iterator[tuple[str, Targets, Targets]]:
    """For each of KINDS that a clip has labels of: its name, which clips have one, and the labels of these clips."""
    for name, kinds in KINDS.items():
        is_positive: Targets = np.isin(modalities, [1 + MODALITIES.index(kind) for kind in kinds])
        has_any = np.asarray(is_positive.any(axis=1))
        if has_any.any():
            yield name, has_any, is_positive[has_any]


def intervals(answers: Scores, modalities: ModalityIds) -> Intervals:
    """Bootstrap intervals of the columns of `top_metrics`, in each row of `score`."""
    rows: Intervals = {}
    for name, has_any, truth in _of_kinds(modalities):
        shares = _shares(answers[has_any], truth)
        rows[name] = spread(
            {column: 100 * float(drawn @ part / (drawn @ whole)) for column, (part, whole) in shares.items()}
            for drawn in draws(len(truth))
        )
    return rows


def _frequency_ranks(truth: Targets) -> Scores:
    """The higher the more clips have a class, float64 [C], no two the same."""
    return truth.sum(axis=0).argsort(kind="stable").argsort().astype(np.float64)


def top_metrics(scores: Scores, is_positive: Targets) -> dict[str, float | None]:
    """How well the K best classes of each clip are its labels, in %, for each K. Every clip has a label.

    Hit@K: the share of clips with a label among them. F1@K: micro-averaged, 2 TP / (2 TP + FP + FN) over all clips.
    exact@1: the share of clips whose labels are just the best class. A class that scores as much as a label ranks
    before it.
    """
    shares = _shares(scores, is_positive)
    return {column: 100 * float(part.sum() / whole.sum()) for column, (part, whole) in shares.items()}


def _shares(scores: Scores, is_positive: Targets) -> dict[str, tuple[Counts, Counts]]:
    """What the columns of `top_metrics` are the shares of: for each clip, how much of how much."""
    order = np.lexsort((is_positive, -scores), axis=-1)  # of equal scores the labels come last
    labels = is_positive.sum(axis=1)
    one = np.ones_like(labels)
    shares: dict[str, tuple[Counts, Counts]] = {}
    for k in _RANKS:
        best = order[:, :k]
        right = np.take_along_axis(is_positive, best, axis=1).sum(axis=1)
        shares[f"Hit@{k}"] = ((right > 0).astype(np.int64), one)
        shares[f"F1@{k}"] = (2 * right, best.shape[1] + labels)
        if k == 1:
            shares["exact@1"] = (((right == 1) & (labels == 1)).astype(np.int64), one)
    return shares


def prediction_columns(
    keys: list[str], answers: Scores, modalities: ModalityIds, names: Sequence[str]
) -> dict[str, Any]:
    """The table of --save-predictions: that of `score_columns`, and how each label of the truth is perceived."""
    columns = score_columns(keys, answers, modalities > 0, names)
    return columns | {"modality": [joined([MODALITIES[m - 1] for m in row[row > 0].tolist()]) for row in modalities]}


def _protocol(loaded: LoadedClassifier, reader: FrameReader | None) -> str:
    averaged = f"mean of the weights after {loaded.averaged} steps" if loaded.averaged else "last weights"
    views = f"; {views_of(reader)}" if "v" in loaded.inputs else ""
    theirs = " and ".join(f'"{name}"' for name in _THEIR_ROWS[loaded.inputs])
    return (
        f"{ROWS[loaded.inputs]}, {loaded.task}, fine-tuned; {averaged}; unmasked{views}. Each row asks for the labels"
        " of its kinds, of the clips that have one. VGGSounder's benchmark scores a model of these inputs in the row"
        f" {theirs}. mAP, AUC: means over the classes that occur in the row, of probabilities. Baseline: the classes"
        " that are most frequent in the row."
    )
