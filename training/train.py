"""Pre-training: `accelerate launch train.py --data DIR --out RUN`. The loop is in loop.py, the model in model/."""

import sys
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shards_spec.command_line import one_line_errors
from shards_spec.errors import DamagedSampleError, UserError
from shards_spec.messages import tell
from training.config import OptimizerConfig, TrainConfig, parse_arguments
from training.contrast_cache import cache_contrast
from training.finetune.config import FinetuneConfig, parse_finetune
from training.finetune.finetune import make_finetune_loop
from training.first_stage import FbankScale
from training.flops import flops_per_sample
from training.initial_weights import initialise, initialise_from_run, take_teacher
from training.loop import Inputs, Loop, NonFiniteLossError, NotSavedError
from training.methods.crossmae.diagnostics import diagnose
from training.methods.crossmae.model import CrossMAE
from training.methods.shared.contrast import CachedContrast
from training.optimizer import make_optimizer
from training.out_of_memory import out_of_memory_told
from training.processes import signals_given_back, start_processes
from training.stream.cache_folder import FetchError
from training.stream.index import open_index
from training.stream.order import SampleStream
from training.stream.ring import WorkerError

_NEEDS_LESS_MEMORY = "a smaller --device-batch-size needs less memory, and so does activation checkpointing (--help)"
EXIT_STOPPED = 75  # saved and stopped on a signal, to be continued (EX_TEMPFAIL of sysexits.h)


def main(arguments: list[str] | None = None) -> None:
    """The command train.py. Exit status: 0 done, 1 stopped by what the message says, 2 a user's mistake, 75
    stopped on a signal after saving.

    Args:
        arguments: from another program, which has its signal handlers back afterwards. None: those of the command
            line; a signal that comes after the end then changes nothing.
    """
    with one_line_errors("train.py"), nullcontext() if arguments is None else signals_given_back():
        config: TrainConfig | FinetuneConfig
        words = sys.argv[1:] if arguments is None else arguments
        is_finetuning = words[:1] == ["finetune"]
        config = parse_finetune(words[1:]) if is_finetuning else parse_arguments(words)
        accelerator = start_processes(config)
        try:
            with out_of_memory_told(_NEEDS_LESS_MEMORY):
                loop = (
                    make_loop(config, accelerator)
                    if isinstance(config, TrainConfig)
                    else make_finetune_loop(config, accelerator)
                )
                finished = loop.train()
        except (DamagedSampleError, WorkerError, NonFiniteLossError, FetchError, NotSavedError) as error:
            tell(f"stopped: {error}")
            raise SystemExit(1) from None
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
        accelerator.state.destroy_process_group()  # never after an error: it would wait for the other processes
    if not finished:
        raise SystemExit(EXIT_STOPPED)


def make_loop(config: TrainConfig, accelerator: Accelerator) -> Loop:
    """The loop of a pre-training run, ready to go."""
    index = open_index(*config.data, cache_dir=config.cache_dir, cache_size=config.cache_size)
    stream = SampleStream(index.counts, seed=config.seed, window=config.shuffle_window, weights=config.weight_list)
    return Loop(config, accelerator, index, stream, Pretraining(config, world=accelerator.num_processes))


class Pretraining:
    """CrossMAE and its loss, for the loop."""

    identity: tuple[str, ...] = ("model",)

    def __init__(self, config: TrainConfig, *, world: int = 1) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.weights = CrossMAE(config.model)
        self.needs_all_pieces = config.contrast_cache and config.micro_steps(world) > 1  # a single piece sees all
        self._cached: list[CachedContrast] = []

    def initialise(self, scale: FbankScale) -> list[str]:
        """Weights from --init, --init-visual and --init-audio, and the teacher; what is left is drawn from the seed."""
        config, said = self.config, []
        if config.init is not None:
            said += initialise_from_run(self.weights, config.init, scale)
        if config.init_visual is not None or config.init_audio is not None:
            said += initialise(self.weights, visual=config.init_visual, audio=config.init_audio, scale=scale)
        if config.teacher is not None:
            said += take_teacher(self.weights, config.teacher, scale)
        elif config.model.embedding.enabled and config.model.embedding.targets == "teacher":
            raise UserError("--model.embedding.targets teacher needs --teacher RUN, the run of the first stage")
        self.weights.reset_teacher()
        return said

    def make_optimizer(self, options: OptimizerConfig) -> torch.optim.Optimizer:
        """AdamW, one rate for all."""
        return make_optimizer(self.weights, options, fused=True)

    def look_ahead(self, pieces: list[Inputs]) -> None:
        """The contrastive loss of the whole batch, for --contrast-cache."""
        self._cached = cache_contrast(self.weights, pieces)

    def losses(self, model: nn.Module, inputs: Inputs, piece: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 13 and its parts."""
        cached = self._cached[piece] if self.needs_all_pieces else None
        output = model(inputs.image, inputs.fbank, inputs.seeds, cached, inputs.valid_frames)
        return output.loss, output.parts

    def after_step(self, done: float, in_all: float) -> None:
        """Moves the running mean of the encoders, where that gives the targets; holds a learned temperature."""
        self.weights.update_teacher()
        if self.weights.contrast is not None:
            self.weights.contrast.hold_temperature()

    def diagnose(self, inputs: Inputs) -> dict[str, Tensor]:
        """What docs/model.md lists."""
        return diagnose(self.weights, inputs.image, inputs.fbank, inputs.seeds, inputs.valid_frames)

    def flops_per_sample(self) -> int | None:
        """Of the whole model, counted."""
        return flops_per_sample(self.config.model)


if __name__ == "__main__":
    main()
