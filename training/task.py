"""What the loop asks of what it trains; and pre-training, of any method."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shards_spec.errors import UserError
from training.augment import augment
from training.config import OptimizerConfig, TrainConfig
from training.flops import flops_per_sample
from training.grad_cache import cache_contrast
from training.methods import METHODS
from training.methods.interface import CachedLoss, Inputs
from training.optimizer import make_optimizer
from training.start import start_from
from training.trained import FbankScale


class Task(Protocol):
    """What the loop trains. Pre-training is one, fine-tuning another (finetune.py)."""

    @property
    def weights(self) -> nn.Module:
        """The model as it is saved: all that inference and resuming need of it."""

    @property
    def identity(self) -> tuple[str, ...]:
        """Keys of config.json in which a checkpoint must agree with the run that resumes it."""

    @property
    def needs_all_pieces(self) -> bool:
        """Whether `look_ahead` must see all pieces of a step before the first is taken."""

    def initialise(self, scale: FbankScale) -> list[str]:
        """Prepares the weights of a run that does not resume; what it did, in lines to print.

        `scale` is what fbanks are normalised with.
        """

    def make_optimizer(self, options: OptimizerConfig) -> torch.optim.Optimizer:
        """The optimizer; a group's `lr_scale` multiplies the rate of the step."""

    def prepare(self, inputs: Inputs) -> Inputs:
        """A piece of the batch as the model shall see it; whatever is random in it follows from the seeds."""

    def look_ahead(self, pieces: list[Inputs]) -> None:
        """Called before the first piece of a step where `needs_all_pieces`."""

    def losses(self, model: nn.Module, inputs: Inputs, piece: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a piece of the batch, and its parts, scalars without gradient."""

    def after_step(self, done: float, in_all: float) -> None:
        """Called after each optimizer step, of which there are `done` of `in_all`, as `learning_rate` counts them."""

    def diagnose(self, inputs: Inputs) -> dict[str, Tensor]:
        """What tells learning from collapse: scalars on the device."""

    def flops_per_sample(self) -> int | None:
        """Floating-point operations of a step for a sample, forward and backward; None where nobody counted them."""


class Pretraining:
    """A method's model and its loss, for the loop."""

    identity: tuple[str, ...] = ("method", "model")

    def __init__(self, config: TrainConfig[Any], *, world: int = 1) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.weights = METHODS[config.method].build(config.model)
        pieces = config.micro_steps(world)
        self.needs_all_pieces = config.contrast_cache and pieces > 1  # a single piece sees all
        try:
            self.weights.check_batch(config.batch_size if config.contrast_cache else config.batch_size // pieces)
        except ValueError as error:
            raise UserError(str(error)) from error
        self._cached: list[dict[str, CachedLoss]] = []

    def initialise(self, scale: FbankScale) -> list[str]:
        """Weights from --init and its like; what is left is drawn from the seed."""
        said = start_from(self.weights, self.config, scale)
        self.weights.after_start()
        return said

    def make_optimizer(self, options: OptimizerConfig) -> torch.optim.Optimizer:
        """Adam, one rate for all."""
        return make_optimizer(self.weights, options, fused=True)

    def prepare(self, inputs: Inputs) -> Inputs:
        """Augmented."""
        return augment(inputs, self.config.augment)

    def look_ahead(self, pieces: list[Inputs]) -> None:
        """The contrastive losses of the whole batch, for --contrast-cache."""
        self._cached = cache_contrast(self.weights, pieces)

    def losses(self, model: nn.Module, inputs: Inputs, piece: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's loss and its parts."""
        output = model(inputs, self._cached[piece] if self.needs_all_pieces else None)
        return output.loss, output.parts

    def after_step(self, done: float, in_all: float) -> None:
        """What the method does then."""
        self.weights.after_step()

    def diagnose(self, inputs: Inputs) -> dict[str, Tensor]:
        """What the method lists."""
        return self.weights.diagnose(inputs)

    def flops_per_sample(self) -> int | None:
        """Of the whole model, counted."""
        return flops_per_sample(self.config.method, self.config.model)
