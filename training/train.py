"""Pre-training: `accelerate launch train.py --data DIR --out RUN`. The loop is in loop.py, the model in model/."""

import sys

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shards_spec.command_line import one_line_errors
from shards_spec.errors import DamagedSampleError
from training.config import TrainConfig, parse_arguments
from training.loop import Inputs, Loop, NonFiniteLossError, NotSavedError
from training.model.crossmae import CrossMAE
from training.optimizer import make_optimizer
from training.processes import start_processes
from training.stream.cache_folder import FetchError
from training.stream.index import open_index
from training.stream.order import SampleStream
from training.stream.ring import WorkerError

EXIT_STOPPED = 75  # saved and stopped on a signal, to be continued (EX_TEMPFAIL of sysexits.h)


def main(arguments: list[str] | None = None) -> None:
    """The command train.py. Exit status: 0 done, 2 a user's mistake, 75 stopped on a signal after saving."""
    with one_line_errors("train.py"):
        config = parse_arguments(arguments)
        accelerator = start_processes(config)
        try:
            finished = make_loop(config, accelerator).train()
        except (DamagedSampleError, WorkerError, NonFiniteLossError, FetchError, NotSavedError) as error:
            print(f"train.py: stopped: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        finally:
            accelerator.end_training()
    if not finished:
        raise SystemExit(EXIT_STOPPED)


def make_loop(config: TrainConfig, accelerator: Accelerator) -> Loop:
    """The loop of a pre-training run, ready to go."""
    index = open_index(*config.data, cache_dir=config.cache_dir, cache_size=config.cache_size)
    stream = SampleStream(index.counts, seed=config.seed, window=config.shuffle_window, weights=config.weight_list)
    return Loop(config, accelerator, index, stream, Pretraining(config))


class Pretraining:
    """CrossMAE and its loss, for the loop."""

    identity: tuple[str, ...] = ("model",)
    needs_all_pieces = False

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.weights: nn.Module = CrossMAE(config.model)

    def initialise(self) -> list[str]:
        """Nothing: the weights are drawn from the seed."""
        return []

    def make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW, one rate for all."""
        return make_optimizer(self.weights, self.config.optimizer, fused=True)

    def look_ahead(self, pieces: list[Inputs]) -> None:
        """Not needed."""

    def losses(self, model: nn.Module, inputs: Inputs, piece: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 13 and its parts."""
        output = model(inputs.image, inputs.fbank, inputs.seeds)
        return output.loss, output.parts

    def after_step(self) -> None:
        """Nothing to do."""

    def diagnose(self, inputs: Inputs) -> dict[str, Tensor]:
        """Nothing yet."""
        return {}
