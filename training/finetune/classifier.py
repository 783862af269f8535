"""Pre-trained encoders, unmasked, their pooled features, and a linear head ("randomly initialized linear
classification heads", Sec. 4.3). Beside them, where asked for, the running mean of the weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shards_spec.errors import UserError
from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_weights, read_config
from training.finetune.labels import Task
from training.first_stage import read_first_stage
from training.methods.shared.blocks import without_autocast
from training.methods.shared.encoder import Encoder, EncoderConfig, Features
from training.methods.shared.padding import valid_tokens
from training.methods.shared.patches import FBANK_SHAPE, IMAGE_CHANNELS, IMAGE_SHAPE
from training.stream.loader import Normalise
from training.tensor_files import check_types, read_safetensors
from training.trained import FbankScale, read_trained

# B samples, C classes, D features of an encoder.
InputKind = Literal["a", "v", "av"]
Pool = Literal["mean", "cls"]
_HEAD_STD = 2e-5  # MAE's fine-tuning: the head begins at scores of nearly 0


class Classifier(nn.Module):
    """Encoders of the inputs that are used, and a linear layer on their features side by side. No other is built."""

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        inputs: InputKind,
        classes: int,
        pool: Pool = "mean",
        recompute: bool = False,
        keep_average: bool = False,
    ) -> None:
        """
        Args:
            inputs: audio, video (the frame), or both.
            recompute: of activations in the backward pass: less memory, more time.
            keep_average: whether to hold the running mean of the weights too.
        """
        super().__init__()
        self.encoder, self.pool = encoder, pool
        again = {"recompute": recompute}
        self.audio_encoder = Encoder(encoder, shape=FBANK_SHAPE, channels=1, **again) if "a" in inputs else None
        self.image_encoder = (
            Encoder(encoder, shape=IMAGE_SHAPE, channels=IMAGE_CHANNELS, **again) if "v" in inputs else None
        )
        self.head = nn.Linear(encoder.dim * len(inputs), classes)
        nn.init.trunc_normal_(self.head.weight, std=_HEAD_STD)
        nn.init.zeros_(self.head.bias)
        self.average = None
        if keep_average:
            self.average = Classifier(encoder, inputs=inputs, classes=classes, pool=pool).requires_grad_(False)
            self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
            self.register_buffer("steps_averaged", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor, fbank: Tensor, valid_frames: Tensor | None = None) -> Tensor:
        """Scores before the sigmoid or softmax, float [B, C], of images [B, 3, 224, 224] and fbanks [B, 1024, 128].

        valid_frames as of `audio_features`.
        """
        audio = None if self.audio_encoder is None else self.audio_features(fbank, valid_frames)
        video = None if self.image_encoder is None else self.image_features(image)
        return self.classify(audio, video)

    def audio_features(self, fbank: Tensor, valid_frames: Tensor | None = None) -> Tensor:
        """Pooled features [B, D] of fbanks [B, 1024, 128], normalised.

        valid_frames int64 [B], their rows before padding, are looked at with encoder.padding `left_out` alone.
        """
        assert self.audio_encoder is not None
        is_valid = valid_tokens(self.encoder.padding, valid_frames)
        return self._pooled(self.audio_encoder(fbank.unsqueeze(1), None, is_valid))

    def image_features(self, image: Tensor) -> Tensor:
        """Pooled features [B, D] of images [B, 3, 224, 224], normalised."""
        assert self.image_encoder is not None
        return self._pooled(self.image_encoder(image))

    def classify(self, audio: Tensor | None, video: Tensor | None) -> Tensor:
        """Scores float32 [B, C] of pooled features [B, D] each; None for what the model does not take.

        In float32 also under autocast: bf16 has so few values that classes would tie.
        """
        pooled = torch.cat([part for part in (audio, video) if part is not None], dim=1)
        with without_autocast(pooled):
            return self.head(pooled.to(self.head.weight.dtype))

    def _pooled(self, features: Features) -> Tensor:
        return features.pooled if self.pool == "mean" else features.cls


@torch.no_grad()
def follow(classifier: Classifier, *, steps_averaged: int) -> None:
    """Moves the running mean of the weights on, to that after `steps_averaged` optimizer steps, this one included.

    Mean and count are in the classifier's state, so a resumed run has the same mean to the bit.
    """
    assert classifier.average is not None
    own = dict(classifier.named_parameters())
    mean, now = zip(*((p, own[name]) for name, p in classifier.average.named_parameters()), strict=True)
    torch._foreach_lerp_(mean, now, 1.0 / steps_averaged)
    classifier.get_buffer("steps_averaged").fill_(steps_averaged)


def copy_fixed(classifier: Classifier) -> None:
    """Gives the mean what no step changes: the positions, which files of other layouts bring along."""
    assert classifier.average is not None
    for name, buffer in classifier.average.named_buffers():
        buffer.copy_(classifier.get_buffer(name))


def load_encoders(classifier: Classifier, init: Path, scale: FbankScale) -> list[str]:
    """Gives a classifier the encoders of a pre-training run or checkpoint, every weight of them.

    Args:
        scale: what the classifier's fbanks are normalised with.

    Returns:
        What was loaded, in lines to print.

    Raises:
        UserError: there is no checkpoint, or its encoders are others.
    """
    first = read_first_stage(init, "--init")
    first.check_encoders(classifier.encoder, option="--init", flag="--encoder")
    path = first.folder / WEIGHTS_FILE
    weights = first.to_scale(read_safetensors(path, "use another checkpoint"), scale)
    said = []
    for name in ("audio_encoder", "image_encoder"):
        encoder = getattr(classifier, name)
        if encoder is None:
            continue
        state = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        check_types(state, encoder.state_dict(), path)
        try:
            encoder.load_state_dict(state)
        except RuntimeError as error:
            first_line = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise UserError(f"--init: {path} holds no such {name} as its config.json says: {first_line}") from error
        said.append(f"{name}: {len(state)} tensors of {first.folder}")
        if name == "audio_encoder":
            said += first.said_of_scale(scale)
    return [*said, f"head: new, {classifier.head.in_features} features to {classifier.head.out_features} classes"]


@dataclass(frozen=True, kw_only=True)
class LoadedClassifier:
    """A fine-tuned checkpoint, ready to classify."""

    classifier: Classifier
    normalise: Normalise
    checkpoint: Path
    step: int
    inputs: InputKind
    task: Task
    class_list: str  # labels.class_list_hash of the dataset that it was trained on
    averaged: int  # steps over whose weights the mean was taken; 0 for the last weights themselves


def is_classifier(checkpoint: Path) -> bool:
    """Whether a checkpoint comes of fine-tuning."""
    return "finetune" in read_config(checkpoint)


def load_classifier(checkpoint: Path, device: torch.device) -> LoadedClassifier:
    """Loads a fine-tuned checkpoint (or a run's newest): the mean of the late weights where there is one.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it does not come of fine-tuning.
    """
    trained = read_trained(checkpoint)
    if not trained.is_finetuned:
        raise UserError(
            f"{trained.folder} was not fine-tuned: give a run of `train.py finetune`, or use `evaluate.py probe`"
        )
    try:
        told = trained.told["finetune"]
        classifier = Classifier(
            trained.model.encoder,
            inputs=told["inputs"],
            classes=told["classes"],
            pool=told["pool"],
            keep_average=told["average_from"] is not None,
        )
        facts: dict[str, Any] = {name: told[name] for name in ("inputs", "task", "class_list")}
    except (KeyError, ValueError, TypeError, RuntimeError) as error:  # the last of torch, for what is no number
        where = trained.folder / CONFIG_FILE
        raise UserError(f"{where} describes no classifier of this program: {error!r}") from error
    load_weights(trained.folder, classifier)
    averaged = 0
    if classifier.average is not None:
        averaged = int(classifier.get_buffer("steps_averaged"))
        classifier = classifier.average if averaged else classifier
    return LoadedClassifier(
        classifier=classifier.eval().to(device),
        normalise=trained.normalise().to(device),
        checkpoint=trained.folder,
        step=trained.step,
        averaged=averaged,
        **facts,
    )
