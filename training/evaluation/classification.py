"""Classification with a fine-tuned model: mAP on AudioSet, accuracy on VGGSound (the paper's Table 1).

`python evaluate.py classification --data EVAL --checkpoint FINETUNING_RUN`
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from shards_spec.errors import UserError
from training.evaluation.class_tables import class_names, score_columns, scored, tables_of
from training.evaluation.classification_metrics import notes_on_scores, prior_metrics
from training.evaluation.frames import FrameReader
from training.evaluation.keys import Chosen
from training.evaluation.metadata import sample_keys
from training.evaluation.options import EvaluationOptions, publish
from training.evaluation.results import Result, Rows, result_path
from training.evaluation.row_cache import PIECE, cached_rows
from training.finetune.classifier import LoadedClassifier, load_classifier
from training.finetune.labels import Labels, check_single, class_list_hash, read_labels
from training.stream.index import DatasetIndex
from training.stream.loader import count_valid_frames, load
from training.stream.order import Numbers
from training.stream.shares import Share

# B samples, N in all, C classes, D features, F frames of a sample, S pixels a side.
_MEASURES = {"multilabel": "mAP over classes (AST, CAV-MAE)", "singlelabel": "top-1 accuracy (CAV-MAE)"}
ROWS = {"a": "audio", "v": "image", "av": "audio + image"}
_PAPER: dict[str, dict[str, Rows]] = {  # CrossMAE, ViT-B: Table 1; supplement, Table 6
    "multilabel": {
        "a": {
            "CrossMAE, AudioSet-20K, A": {"mAP": 39.2},
            "CrossMAE, AudioSet-2M, A": {"mAP": 47.1},
            "... + teacher-student, strong augmentation": {"mAP": 49.8},
        },
        "v": {
            "CrossMAE, AudioSet-20K, V": {"mAP": 20.4},
            "CrossMAE, AudioSet-2M, V": {"mAP": 27.2},
            "... + teacher-student, strong augmentation": {"mAP": 30.6},
        },
        "av": {
            "CrossMAE, AudioSet-20K, A-V": {"mAP": 48.2},
            "CrossMAE, AudioSet-2M, A-V": {"mAP": 55.3},
            "... + teacher-student, strong augmentation": {"mAP": 59.1},
        },
    },
    "singlelabel": {
        "a": {"CrossMAE, VGGSound, A": {"top-1": 61.1}},
        "v": {"CrossMAE, VGGSound, V": {"top-1": 48.2}},
        "av": {"CrossMAE, VGGSound, A-V": {"top-1": 67.0}},
    },
}


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(EvaluationOptions):
    """Classification with a fine-tuned checkpoint: mAP, AUC and d', or accuracy (the paper's Table 1)."""

    frames: Literal["all", "middle"] = "all"
    """Where the dataset has several frames a sample (make-shards --frames N): the mean over the predictions with each
    of them, as CAV-MAE with 10; or the middle frame alone, as the paper pre-trains."""
    cache_features: Literal["none"] = "none"
    """Nothing is kept: scores are computed each time."""

    def run(self) -> Result:
        """Evaluates and prints the table.

        Raises:
            UserError: the checkpoint was not fine-tuned, or for other classes, or there is no place for the result.
        """
        accelerator = self.join()
        loaded = load_classifier(self.checkpoint, accelerator.device)
        index = self.open_data(self.data, accelerator, looks="v" in loaded.inputs)
        default = result_path(loaded.checkpoint, "classification", index)
        out = self.result_file(accelerator, loaded.checkpoint, default)
        labels, chosen = read_labels(index), self.chosen(index)
        self.check_classes(loaded, index)
        check_single(loaded.task, labels, index)
        scores, frames = self.scores(loaded, index, chosen.numbers, accelerator)
        result = self._result(loaded, index, labels, chosen, scores, frames)
        truth = labels.matrix(chosen.numbers).astype(bool)
        names = class_names(index.classes)
        publish(result, out, accelerator)
        self.save(accelerator, score_columns(sample_keys(index, chosen.numbers), scores.numpy(), truth, names))
        return result

    def scores(
        self, loaded: LoadedClassifier, index: DatasetIndex, chosen: Numbers, accelerator: Accelerator
    ) -> tuple[Tensor, FrameReader | None]:
        """`predict`, and what reads the frames over which it averages; None where it takes one frame."""
        frames = FrameReader(index) if self.frames == "all" and "v" in loaded.inputs else None
        if frames is not None and not frames.count:
            frames = None
        return self.predict(loaded, index, chosen, frames, accelerator), frames

    def predict(
        self,
        loaded: LoadedClassifier,
        index: DatasetIndex,
        chosen: Numbers,
        frames: FrameReader | None,
        accelerator: Accelerator,
    ) -> Tensor:
        """Scores of samples, float64 [N, C]: of the middle frame, or probabilities averaged over frames."""
        precision = self.precision == "bf16" or (self.precision == "auto" and accelerator.device.type == "cuda")
        size = min(self.batch_size, PIECE)

        def compute(shares: Iterable[Share]) -> Iterator[tuple[Numbers, dict[str, Tensor]]]:
            for batch in load(index, shares, seed=0, batch_size=size, workers=self.workers):
                numbers = batch.numbers.numpy()
                views = batch.image if frames is None else torch.from_numpy(frames.read(numbers))
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=precision):
                    scores = classify(loaded, views, batch.fbank)
                if not scores.isfinite().all():
                    bad = batch.keys[int((~scores.isfinite().all(dim=1)).nonzero()[0])]
                    raise UserError(f"{loaded.checkpoint}: the scores of sample {bad} are not finite")
                yield numbers, {"scores": scores.cpu()}

        rows = cached_rows(chosen, compute, folder=None, batch_size=size, accelerator=accelerator, title="classify")
        return rows["scores"]

    def check_classes(self, loaded: LoadedClassifier, index: DatasetIndex) -> None:
        """Raises UserError where the model was fine-tuned for other classes than the dataset's."""
        if loaded.class_list != class_list_hash(index.classes):
            raise UserError(
                f"{self.data} has another class list than the dataset that {loaded.checkpoint} was fine-tuned on:"
                " use the same --class-labels for both"
            )

    def _result(
        self,
        loaded: LoadedClassifier,
        index: DatasetIndex,
        labels: Labels,
        chosen: Chosen,
        scores: Tensor,
        reader: FrameReader | None,
    ) -> Result:
        """The result of scores [N, C]."""
        is_positive = labels.matrix(chosen.numbers).astype(bool)
        row = ROWS[loaded.inputs]
        found = scored(loaded.task, scores.numpy(), is_positive, class_names(index.classes))
        averaged = f"mean of the weights after {loaded.averaged} steps" if loaded.averaged else "last weights"
        views = views_of(reader)
        return Result(
            task="classification",
            data=", ".join(map(str, index.folders)),
            dataset_fingerprint=index.fingerprint,
            checkpoint=str(loaded.checkpoint),
            step=loaded.step,
            pool=len(chosen.numbers),
            pool_rule=chosen.rule,
            protocol_name=f"{_MEASURES[loaded.task]}, {views if 'v' in loaded.inputs else 'sound alone'}",
            protocol=(
                f"{loaded.task}, fine-tuned; {averaged}; unmasked"
                + (f"; {views}" if "v" in loaded.inputs else "")
                + ("; means over the classes that occur" if loaded.task == "multilabel" else "")
            ),
            metrics={row: found.metrics},
            baselines={"class prior": prior_metrics(loaded.task, labels.per_class, is_positive)},
            paper=_PAPER[loaded.task][loaded.inputs],
            notes=(*notes_on_scores(loaded.task, scores.numpy(), is_positive), *chosen.notes),
            **tables_of({row: found}),
        )


def views_of(reader: FrameReader | None) -> str:
    """What is seen of a sample, in words."""
    return "one frame" if reader is None else f"probabilities averaged over {reader.count} frames {reader.times}"


@torch.no_grad()
def classify(loaded: LoadedClassifier, frames: Tensor, fbank: Tensor) -> Tensor:
    """Scores float64 [B, C] of samples as stored: frames uint8 [B, F, S, S, 3] and fbanks float16 [B, 1024, 128].

    Of one frame they are the model's own, before the sigmoid or softmax. Of several the probabilities are averaged, as
    CAV-MAE does.
    """
    model, device = loaded.classifier, loaded.normalise.fbank_mean.device
    fbank = fbank.to(device)
    audio: Tensor | None = None
    scores: list[Tensor] = []
    for frame in frames.unbind(dim=1):
        pixels, values = loaded.normalise(frame.to(device), fbank)
        if model.audio_encoder is not None and audio is None:
            audio = model.audio_features(values, count_valid_frames(fbank))
        video = None if model.image_encoder is None else model.image_features(pixels)
        scores.append(model.classify(audio, video).double())
    if len(scores) == 1:
        return scores[0]
    together = torch.stack(scores)  # [F, B, C]
    return (together.softmax(dim=2) if loaded.task == "singlelabel" else together.sigmoid()).mean(dim=0)
