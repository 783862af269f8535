"""What a fine-tuning run can be told. The command line of `train.py finetune` is generated from this."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from shards_spec.command_line import parse
from training.config import RunConfig, checkpoint_of_run
from training.finetune.augment import AugmentConfig
from training.finetune.classifier import InputKind, Pool
from training.finetune.labels import Task
from training.finetune.recipes import DatasetRecipe, Recipe, recipe
from training.first_stage import read_first_stage
from training.methods.crossmae.config import PRESETS, Preset
from training.methods.shared.encoder import EncoderConfig

Loss = Literal["bce", "ce"]
# Fields that a checkpoint must agree in with the run that resumes it: config.json's "finetune".
_IDENTITY = ("inputs", "task", "loss", "pool", "label_smoothing", "layer_decay", "head_lr", "video_lr", "average_from")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Fine-tunes pre-trained encoders for classification: accelerate launch train.py finetune --data DIR --out RUN."""

    recipe: Recipe = "crossmae"
    """The paper's setting, CAV-MAE's, or MAViL's (docs/finetune.md): defaults for what follows."""
    dataset_recipe: DatasetRecipe = "as20k"
    """Whose figures of the recipe."""
    init: Path | None = None
    """Pre-training run, or a checkpoint of it, whose encoders to begin with. Default: from scratch.
    The encoders' size, and the fbank mean and std, are its own unless told otherwise."""
    preset: Preset = "crossmae-base"
    """Size of the encoders from scratch."""
    inputs: InputKind = "av"
    """Audio, video (the frame), or both."""
    task: Task | None = None
    """Several classes a sample, or exactly one. Default: one where every sample of the dataset has exactly one."""
    loss: Loss | None = None
    """Binary or plain cross-entropy. Default: ce for --task singlelabel, else bce, as CAV-MAE (MAViL: always bce)."""
    pool: Pool = "mean"
    """Features of an encoder: the mean of its patch tokens, as CAV-MAE, or [CLS]. The paper does not say."""
    balanced: bool = False
    """Draw samples with replacement, by the sum of 1000 / (count + 0.01) over their classes (AST, CAV-MAE, MAViL)."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes; 0.1 in CAV-MAE."""
    layer_decay: float = 1.0
    """Each block, from the last down to the embedding, has this times the rate of the one above (AudioMAE: 0.75)."""
    head_lr: float = 1.0
    """The head's rate as a multiple of the encoders'; 100, 50 and 10 in CAV-MAE."""
    video_lr: float = 1.0
    """The image encoder's rate as a multiple of the audio encoder's where both are trained; 0.5 in MAViL."""
    average_from: float | None = None
    """Take the mean of the weights from this share of the run on, which evaluation then uses. None: the last ones."""
    checkpoint_activations: bool = False
    """Keep only the input of each block for the backward pass: less memory, more time, the same values."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    classes: tyro.conf.Suppress[int] = 0  # of the dataset, once it is open
    class_list: tyro.conf.Suppress[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task == "multilabel" and self.loss == "ce":
            raise ValueError("--loss ce needs --task singlelabel: samples with several classes take bce")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"--label-smoothing is a share, 0 to below 1, got {self.label_smoothing}")
        for name in ("layer_decay", "head_lr", "video_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be a finite number above 0, got {getattr(self, name)}"
                )
        if self.average_from is not None and not 0 <= self.average_from < 1:
            raise ValueError(f"--average-from is a share of the steps, 0 to below 1, got {self.average_from}")
        if self.augment.shift and self.encoder.padding == "left_out":
            raise ValueError(
                f"--augment.shift {self.augment.shift} rolls the padding in among the rows of sound, where"
                " --encoder.padding left_out does not find it: give --augment.shift 0, or --encoder.padding counted"
            )
        if self.balanced and (self.shuffle == "block" or self.weights is not None):
            raise ValueError(
                "--balanced draws from all samples: it goes neither with --shuffle block nor with --weights"
            )

    @property
    def order(self) -> dict[str, Any]:
        """What, beside the data and the seed, decides the order of samples."""
        return super().order | {"balanced": self.balanced}

    @property
    def note_on_pieces(self) -> str | None:
        """What is to be known where a batch is taken in several pieces."""
        return "mixup takes partners from the same piece" if self.augment.mixup else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values of every field, as config.json holds them."""
        plain = super().to_dict()
        told = {name: plain.pop(name) for name in (*_IDENTITY, "classes", "class_list")}
        del plain["encoder"], plain["augment"]
        model = {"encoder": asdict(self.encoder)}
        return plain | {"finetune": told | {"augment": asdict(self.augment)}, "model": model}


def parse_finetune(arguments: Sequence[str]) -> FinetuneConfig:
    """The configuration that the command line asks for.

    --recipe and --dataset-recipe choose defaults, and so does --init for the encoders and the normalisation; where
    neither it nor --preset is given and the run goes on from a checkpoint, its encoders are taken. Every other flag
    overrides them.

    Raises:
        UserError: unknown options, malformed or contradictory values; --init is no checkpoint.
        SystemExit: --help was asked for.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="crossmae", nargs="?")  # without a value tyro says so
    first.add_argument("--dataset-recipe", default="as20k", nargs="?")
    first.add_argument("--preset", nargs="?")
    first.add_argument("--init", type=Path, nargs="?")
    chosen, _ = first.parse_known_args(arguments)
    defaults: dict[str, Any] = {}
    if chosen.recipe in get_args(Recipe) and chosen.dataset_recipe in get_args(DatasetRecipe):
        defaults |= recipe(chosen.recipe, chosen.dataset_recipe)  # else tyro names the allowed ones
    if chosen.init is not None and str(chosen.init) != "None":
        begun = read_first_stage(chosen.init, "--init")
        defaults |= {"encoder": begun.model.encoder, "fbank_mean": begun.scale.mean, "fbank_std": begun.scale.std}
    elif chosen.preset is None and (checkpoint := checkpoint_of_run(arguments)) is not None:
        defaults["encoder"] = read_first_stage(checkpoint, "--out").model.encoder
    elif (preset := chosen.preset or "crossmae-base") in PRESETS:
        defaults["encoder"] = PRESETS[preset]().encoder
    default = FinetuneConfig(data=tyro.MISSING, out=tyro.MISSING, **defaults)
    return parse(FinetuneConfig, arguments, prog="train.py finetune", default=default)
