"""Everything a training run can be told. The command line of train.py is generated from this.

RunConfig          what every run of the loop takes; `optimizer` is nested
TrainConfig        what pre-training takes beside it; `model` is nested

The presets, and the command line that they begin, are in recipes/.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from shards_spec.errors import UserError
from training.augment import AugmentConfig
from training.checkpoint import STATE_FILE, checkpoints
from training.stream.cache_folder import DEFAULT_SIZE, parse_size

MixedPrecision = Literal["no", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam as the paper's section A.3 gives it; what it leaves open follows MAE."""

    kind: Literal["adamw", "adam_l2"] = "adamw"
    """AdamW (decoupled decay, as MAE), or Adam, whose decay is L2 in the gradient (A.3 by its letter; CAV-MAE)."""
    lr: float = 2e-5
    """Peak learning rate, absolute ("a learning rate set to 2e-5")."""
    scale_lr: bool = False
    """Read lr as MAE's base rate: the peak is lr x batch / 256."""
    weight_decay: float = 0.05
    """Of what `decay_on` names."""
    decay_on: Literal["layers", "tokens", "all"] = "layers"
    """The weights of layers alone; learned tokens, positions and queries as well (MAE decays [CLS] and mask tokens in
    pre-training); or everything, biases and norms too (CAV-MAE)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """As MAE pre-training."""
    warmup: float = 0.05
    """Share of the run in which the rate rises linearly from 0."""
    schedule: Literal["cosine", "halving"] = "cosine"
    """After it: a half cosine down to `least_lr`, or constant but for the epochs in which it is halved."""
    least_lr: float = 0.0
    """Where the half cosine ends."""
    halve_after: tuple[int, ...] = ()
    """Epochs after which the rate is halved (CAV-MAE: 10, 15, 20)."""
    clip_grad: float | None = None
    """Largest norm of the gradient, None for no limit."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--optimizer.lr must be a finite number above 0, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"--optimizer.weight-decay must be a finite number, at least 0, got {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"--optimizer.betas must be numbers from 0 to below 1, got {' '.join(map(str, self.betas))}"
            )
        if not 0 <= self.least_lr <= self.lr:
            raise ValueError(f"--optimizer.least-lr must be from 0 to --optimizer.lr, got {self.least_lr}")
        if any(epoch < 1 for epoch in self.halve_after):
            raise ValueError(
                f"--optimizer.halve-after are epochs from 1 on, got {' '.join(map(str, self.halve_after))}"
            )
        if self.halve_after and self.schedule != "halving":
            raise ValueError("--optimizer.halve-after needs --optimizer.schedule halving")
        if self.least_lr and self.schedule != "cosine":
            raise ValueError("--optimizer.least-lr needs --optimizer.schedule cosine")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"--optimizer.warmup is a share of the steps, 0 to 1, got {self.warmup}")
        if self.clip_grad is not None and not 0 < self.clip_grad < math.inf:
            raise ValueError(
                f"--optimizer.clip-grad must be a finite number above 0, or None for no limit, got {self.clip_grad}"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run can be told."""

    data: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Dataset folder, complete, or its URL (https://, s3://, gs://, ...); given several times, they are mixed."""
    out: Path
    """Run folder; continued where it stopped if it holds checkpoints (see --resume)."""
    steps: int | None = None
    """Optimizer steps in all, whatever the batch size; the rate then goes by steps. Default: as many as --epochs needs,
    and the rate goes by samples."""
    epochs: float = 30
    """Passes over the dataset, unless --steps is given (the paper: 30)."""
    batch_size: int = 512
    """Samples a step over all processes (the paper: 512)."""
    device_batch_size: int | None = None
    """Samples a process takes at once; its share of the batch is accumulated from pieces of this size.
    Default: the whole share."""
    workers: int = 2
    """Loader processes of each training process; 0 loads in the training process."""
    seed: int = 0
    """Of weights, order of samples, and every random choice for a sample."""
    weights: str | None = None
    """Of several datasets, whole numbers, as 3,1: three samples of the first for each of the second.
    Default: every sample of every dataset once an epoch."""
    shuffle: Literal["global", "block"] = "global"
    """block permutes shards, then samples within --window shards: for slow disks and object stores."""
    window: int = 16
    """Shards mixed at a time with --shuffle block."""
    cache_dir: Path | None = None
    """Where shards of remote datasets are kept, for any number of runs. Default: ~/.cache/crossmae."""
    cache_size: str = DEFAULT_SIZE
    """The most that --cache-dir holds, as 200GB or 1.5T: what was used longest ago goes."""
    on_bad_sample: Literal["stop", "skip"] = "stop"
    """A sample whose bytes are damaged stops the run, or the next good one of the order takes its place."""
    resume: Literal["auto", "never"] | Path = "auto"
    """auto: from the newest whole checkpoint in --out, if any; never: refuse a run folder in use; or a checkpoint,
    from which every start begins again."""
    save_every: int = 500
    """Steps between checkpoints; one more is written at the end."""
    keep: int = 3
    """Checkpoints kept."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    trace_keys: bool = False
    """Write the keys of every step to keys-rankN.jsonl."""
    mixed_precision: MixedPrecision | None = None
    """Default: what `accelerate launch` was told, else no."""
    device: Device = "auto"
    """auto: GPUs, where there are any; cpu: the CPU, whatever there is and whatever the launcher was told; cuda: GPUs,
    or none of it."""
    compile: bool = False
    """torch.compile the model."""
    fbank_mean: float | None = None
    """For normalising fbanks; it stays what it was when a run began. Default: the dataset's own, from dataset.json."""
    fbank_std: float | None = None
    diagnose_every: int = 200
    """Steps between looks at what tells learning from collapse (docs/model.md); 0 for never."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers that get what metrics.jsonl gets (pip install 'crossmae[trackers]')."""
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data is missing: give the folder that make-shards wrote")
        for name in ("steps", "batch_size", "device_batch_size", "save_every", "keep", "log_every", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("workers", "diagnose_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"--epochs must be a finite number above 0, got {self.epochs}")
        if self.fbank_mean is not None and not math.isfinite(self.fbank_mean):
            raise ValueError(f"--fbank-mean must be a finite number, got {self.fbank_mean}")
        if self.fbank_std is not None and not 0 < self.fbank_std < math.inf:
            raise ValueError(f"--fbank-std must be a finite number above 0, got {self.fbank_std}")
        parse_size(self.cache_size)
        if self.weights is not None and len(self.weight_list or ()) != len(self.data):
            raise ValueError(
                f"--weights {self.weights} names {len(self.weight_list or ())} of {len(self.data)} datasets"
            )

    def micro_steps(self, world: int) -> int:
        """How many pieces each of `world` processes takes its share of the batch in.

        Raises:
            UserError: the batch does not divide evenly.
        """
        if self.batch_size % world:
            raise UserError(
                f"--batch-size {self.batch_size} cannot be divided among {world} processes: give a multiple of {world}"
            )
        share = self.batch_size // world
        piece = self.device_batch_size or share
        if share % piece:
            raise UserError(
                f"--device-batch-size {piece} does not divide a process's share of {share}"
                f" (--batch-size {self.batch_size} over {world} processes)"
            )
        return share // piece

    @property
    def note_on_pieces(self) -> str | None:
        """What is to be known where a batch is taken in several pieces."""
        return None

    @property
    def weight_list(self) -> list[int] | None:
        """--weights as numbers."""
        if self.weights is None:
            return None
        words = self.weights.split(",")
        if not all(word.isdecimal() and 0 < int(word) <= 1000 for word in words):
            raise ValueError(f"--weights are whole numbers from 1 to 1000 with commas between, got {self.weights}")
        return [int(word) for word in words]

    @property
    def order(self) -> dict[str, Any]:
        """What, beside the data and the seed, decides the order of samples."""
        return {"shuffle": self.shuffle, "window": self.shuffle_window, "weights": self.weight_list}

    @property
    def shuffle_window(self) -> int | None:
        """Shards mixed at a time; None for all of them."""
        return self.window if self.shuffle == "block" else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values of every field, as config.json holds them."""
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}
        lists = {"data": list(self.data), "report_to": list(self.report_to)}
        optimizer = asdict(self.optimizer)
        optimizer = {name: list(value) if isinstance(value, tuple) else value for name, value in optimizer.items()}
        return plain | lists | {"order": self.order, "optimizer": optimizer}


Model = TypeVar("Model")  # a method's config


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig, Generic[Model]):
    """Pre-trains a method on a dataset that make-shards wrote: train.py --preset PRESET --data DIR --out RUN."""

    preset: str = "crossmae-base"
    """A whole run of a method (training/recipes): model, optimizer, batch, epochs, augmentation."""
    variant: str = "crossmae"
    """The method's own: of CrossMAE a row of the paper's Table 2, of CAV-MAE a model of its section 3."""
    method: tyro.conf.Suppress[tyro.conf.Fixed[str]] = "crossmae"  # of the preset
    init: Path | None = None
    """Start from the weights of another run or checkpoint: every part of the same name, shape and heads."""
    init_visual: Path | None = None
    """Start the image encoder from this file, and the image decoder where it holds one that fits: MAE, CAV-MAE, or
    safetensors (docs/checkpoints.md)."""
    init_audio: Path | None = None
    """The same for audio: AudioMAE, CAV-MAE, MAE (its RGB kernel summed), or safetensors."""
    teacher: Path | None = None
    """With --model.embedding.targets teacher: the run or checkpoint of the first stage, whose encoders give the targets
    (supplement, Table 6, "+Teacher-student stage")."""
    contrast_cache: bool = False
    """With --device-batch-size: the contrastive loss of the whole batch all the same (GradCache, Gao et al. 2021),
    for one more forward pass of both encoders. Without it the loss sees the pieces only."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: Model

    def __post_init__(self) -> None:
        super().__post_init__()
        model: Any = self.model
        model.check_new_run()
        if self.contrast_cache and not model.has_contrast:
            raise ValueError(
                "--contrast-cache is given, but the model has no contrastive loss: leave it out, or take a --variant"
                " that has one"
            )

    @property
    def note_on_pieces(self) -> str | None:
        """What is to be known where a batch is taken in several pieces."""
        model: Any = self.model
        if self.contrast_cache or not model.has_contrast:
            return None
        return "the contrastive loss sees the samples of one piece, not of the whole batch (--contrast-cache does)"

    def to_dict(self) -> dict[str, Any]:
        """JSON values of every field, as config.json holds them."""
        model: Any = self.model
        return super().to_dict() | {"model": asdict(model), "augment": asdict(self.augment)}


def checkpoint_of_run(arguments: Sequence[str] | None) -> Path | None:
    """The checkpoint from which a run with this command line goes on; None where it begins, or cannot."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--out", type=Path, nargs="?")  # without a value tyro says so
    first.add_argument("--resume", default="auto", nargs="?", const="never")
    told, _ = first.parse_known_args(arguments)
    folder = told.out if told.resume == "auto" else Path(told.resume)
    if folder is None or told.resume == "never":
        return None
    found = [folder] if (folder / STATE_FILE).is_file() else checkpoints(folder)
    return found[-1] if found else None
