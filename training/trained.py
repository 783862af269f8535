"""The one reader of what a run has trained: its config.json and the weights beside it.

Evaluation, fine-tuning, --init and --teacher, the report and from_pretrained go through it, whatever the method.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards_spec.errors import UserError
from training.checkpoint import (
    CONFIG_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    find_checkpoint,
    load_weights,
    read_config,
    read_state,
)
from training.methods import Method, method_of
from training.methods.interface import Model
from training.stream.loader import Normalise


@dataclass(frozen=True, kw_only=True)
class FbankScale:
    """What a model's fbanks are normalised with: (fbank - mean) / std."""

    mean: float
    std: float

    def __str__(self) -> str:
        return f"mean {self.mean:.6g} and std {self.std:.6g}"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What lies in a checkpoint, or in a folder of `save_pretrained`."""

    folder: Path
    told: dict[str, Any]  # the whole config.json
    method: Method
    model: Any  # the method's config; of a fine-tuned run its encoders alone are described
    scale: FbankScale

    @property
    def is_finetuned(self) -> bool:
        """Whether it is a classifier."""
        return "finetune" in self.told

    @property
    def step(self) -> int:
        """Optimizer steps behind the weights; 0 where the folder does not say, as that of `save_pretrained`."""
        return read_state(self.folder).step if (self.folder / STATE_FILE).is_file() else 0

    def fresh(self) -> Model:
        """The model with the weights that the run's seed drew, as train.py draws them.

        Raises:
            UserError: config.json describes no model that can be built.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.told.get("seed", 0))
                return self.method.build(self.model)
        except (ValueError, TypeError, RuntimeError) as error:  # the last of torch, for what is no number
            raise UserError(f"{self.folder / CONFIG_FILE} describes no model of this program: {error!r}") from error

    def load(self) -> Model:
        """The model with its trained weights.

        Raises:
            UserError: they are damaged, or of another model.
        """
        model = self.fresh()
        load_weights(self.folder, model)
        return model

    def normalise(self) -> Normalise:
        """What makes inputs of stored values, as it was trained."""
        return Normalise(self.scale.mean, self.scale.std)


def read_trained(path: Path) -> Trained:
    """What a checkpoint, a run folder (its newest) or a folder of `save_pretrained` tells of its model.

    Raises:
        UserError: there is none, or it is none of this program.
    """
    folder = path if (path / WEIGHTS_FILE).is_file() else find_checkpoint(path)
    told = read_config(folder)
    try:
        method = method_of(told)
        # Of a fine-tuning run only the encoders are described.
        values = {"encoder": told["model"]["encoder"]} if "finetune" in told else told["model"]
        scale = FbankScale(mean=float(told["fbank_mean"]), std=float(told["fbank_std"]))
        return Trained(folder=folder, told=told, method=method, model=method.config_from_dict(values), scale=scale)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{folder / CONFIG_FILE} describes no model of this program: {error!r}") from error
