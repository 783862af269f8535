"""Fine-tuning for the loop: `accelerate launch train.py finetune --data DIR --out RUN --init PRETRAINING_RUN`."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shards_spec.errors import UserError
from training.config import OptimizerConfig
from training.finetune.augment import augment, mixed_frames
from training.finetune.balanced import BalancedStream, sample_weights
from training.finetune.classifier import Classifier, copy_fixed, follow, load_encoders
from training.finetune.config import FinetuneConfig
from training.finetune.labels import Labels, check_single, choose_task, class_list_hash, read_labels
from training.first_stage import fbank_scale
from training.loop import Loop
from training.methods.interface import Inputs
from training.optimizer import Groups, build_optimizer, decayed
from training.stream.index import DatasetIndex, open_index
from training.stream.order import SampleStream
from training.trained import FbankScale

# B samples, C classes.


def make_finetune_loop(config: FinetuneConfig, accelerator: Accelerator) -> Loop:
    """The loop of a fine-tuning run, ready to go.

    Raises:
        UserError: the dataset has no labels, or not such ones; what `Loop` raises.
    """
    looks = "v" in config.inputs
    index = open_index(*config.data, cache_dir=config.cache_dir, cache_size=config.cache_size, looks=looks)
    labels = read_labels(index)
    config = resolve(config, index, labels)
    return Loop(config, accelerator, index, make_stream(config, index, labels), Finetuning(config, labels))


def resolve(config: FinetuneConfig, index: DatasetIndex, labels: Labels) -> FinetuneConfig:
    """The configuration with what only the dataset can say: task, loss, classes, normalisation.

    Raises:
        UserError: the labels do not fit --task or --loss.
    """
    task = config.task or choose_task(labels)
    check_single(task, labels, index)
    if task == "multilabel" and config.loss == "ce":
        raise UserError("--loss ce needs samples with exactly one class each: this dataset has others, use --loss bce")
    scale = fbank_scale(config, index)
    return replace(
        config,
        task=task,
        loss=config.loss or ("ce" if task == "singlelabel" else "bce"),
        classes=labels.classes,
        class_list=class_list_hash(index.classes),
        fbank_mean=scale.mean,
        fbank_std=scale.std,
    )


def make_stream(config: FinetuneConfig, index: DatasetIndex, labels: Labels) -> SampleStream:
    """The order of samples: every one once an epoch, or by the weight of its classes."""
    if config.balanced:
        return BalancedStream(sample_weights(labels), seed=config.seed)
    return SampleStream(index.counts, seed=config.seed, window=config.shuffle_window, weights=config.weight_list)


class Finetuning:
    """A classifier and its loss, for the loop."""

    identity: tuple[str, ...] = ("model", "finetune")
    needs_all_pieces = False

    def __init__(self, config: FinetuneConfig, labels: Labels) -> None:
        """
        Args:
            config: as `resolve` gives it.
        """
        self.config, self.labels = config, labels
        torch.manual_seed(config.seed)
        self.weights = Classifier(
            config.encoder,
            inputs=config.inputs,
            classes=config.classes,
            pool=config.pool,
            recompute=config.checkpoint_activations,
            keep_average=config.average_from is not None,
        )
        self._counts: list[int] | None = None  # steps done and averaged: unknown until a checkpoint may be loaded

    def initialise(self, scale: FbankScale) -> list[str]:
        """The encoders of --init."""
        if self.config.init is None:
            return [f"no --init: the encoders ({self.config.inputs}) start from scratch"]
        said = load_encoders(self.weights, self.config.init, scale)
        if self.weights.average is not None:
            copy_fixed(self.weights)
        return said

    def make_optimizer(self, options: OptimizerConfig) -> torch.optim.Optimizer:
        """Adam, with a rate for each layer."""
        groups = parameter_groups(self.weights, replace(self.config, optimizer=options))
        return build_optimizer(groups, options, fused=True)

    def prepare(self, inputs: Inputs) -> Inputs:
        """As it is: `losses` augments, which mixes targets too."""
        return inputs

    def look_ahead(self, pieces: list[Inputs]) -> None:
        """Not needed."""

    def losses(self, model: nn.Module, inputs: Inputs, piece: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The classification loss of a piece, augmented."""
        config = self.config
        assert config.fbank_mean is not None and config.fbank_std is not None and inputs.valid_frames is not None
        targets = torch.from_numpy(self.labels.matrix(inputs.numbers.numpy()))
        if inputs.image.is_cuda:  # a copy from memory that is not page-locked would wait for the device
            targets = targets.pin_memory()
        targets = targets.to(inputs.image.device, non_blocking=True)
        image, fbank, targets = augment(
            inputs.image[:, 0],
            inputs.fbank,
            targets,
            inputs.seeds,
            config.augment,
            mean=config.fbank_mean,
            std=config.fbank_std,
        )
        targets = smooth(targets, config.label_smoothing)
        scores = model(image, fbank, mixed_frames(inputs.valid_frames, inputs.seeds, config.augment)).float()
        if config.loss == "ce":
            return F.cross_entropy(scores, targets), {}
        return F.binary_cross_entropy_with_logits(scores, targets), {}

    def after_step(self, done: float, in_all: float) -> None:
        """Moves the mean of the weights on, in the steps that come later than --average-from."""
        if self.config.average_from is None:
            return
        if self._counts is None:
            self._counts = [int(self.weights.get_buffer(name)) for name in ("steps_done", "steps_averaged")]
        self._counts[0] += 1
        self.weights.get_buffer("steps_done").fill_(self._counts[0])
        if done > int(self.config.average_from * in_all):
            self._counts[1] += 1
            follow(self.weights, steps_averaged=self._counts[1])

    def diagnose(self, inputs: Inputs) -> dict[str, Tensor]:
        """Nothing: the loss says it."""
        return {}

    def flops_per_sample(self) -> int | None:
        """Not counted."""
        return None


def smooth(targets: Tensor, smoothing: float) -> Tensor:
    """Targets [B, C] with a share of each spread over all classes, as CAV-MAE's: (1 - s) y + s / C."""
    return (1 - smoothing) * targets + smoothing / targets.shape[1]


def parameter_groups(classifier: Classifier, config: FinetuneConfig) -> Groups:
    """Groups for the optimizer; the loop multiplies the rate of a step by a group's `lr_scale`.

    The first group is one at the plain rate where there is any: its rate is the one that is logged.
    """
    both, with_decay = config.inputs == "av", decayed(classifier, config.optimizer)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = config.head_lr if name.startswith("head.") else layer_scale(name, config)
        if both and name.startswith("image_encoder."):
            scale *= config.video_lr
        decay = config.optimizer.weight_decay if id(parameter) in with_decay else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda group: abs(np.log(group[0][0])))
    return [{"params": params, "lr_scale": scale, "weight_decay": decay} for (scale, decay), params in ordered]


def layer_scale(name: str, config: FinetuneConfig) -> float:
    """MAE's layer-wise decay: 1 for the last norm, one power more a block down, and one for the embedding."""
    depth = config.encoder.depth
    part = name.split(".")[1:]
    layer = int(part[1]) + 1 if part[0] == "blocks" else 0 if part[0] in ("patch_embed", "cls_token") else depth + 1
    return float(config.layer_decay ** (depth + 1 - layer))
