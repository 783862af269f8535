"""Pre-training: `accelerate launch train.py --data DIR --out RUN`. The loop is in loop.py, the models in methods/."""

import sys
from contextlib import nullcontext

from accelerate import Accelerator

from shards_spec.command_line import one_line_errors
from shards_spec.errors import DamagedSampleError
from shards_spec.messages import tell
from training.config import TrainConfig
from training.finetune.config import FinetuneConfig, parse_finetune
from training.finetune.finetune import make_finetune_loop
from training.loop import Loop, NonFiniteLossError, NotSavedError
from training.out_of_memory import out_of_memory_told
from training.processes import signals_given_back, start_processes
from training.recipes import parse_arguments
from training.stream.cache_folder import FetchError
from training.stream.index import open_index
from training.stream.order import SampleStream
from training.stream.ring import WorkerError
from training.task import Pretraining

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
    task = Pretraining(config, world=accelerator.num_processes)
    reads = task.weights.reads
    index = open_index(*config.data, cache_dir=config.cache_dir, cache_size=config.cache_size, reads=reads)
    stream = SampleStream(index.counts, seed=config.seed, window=config.shuffle_window, weights=config.weight_list)
    return Loop(config, accelerator, index, stream, task)


if __name__ == "__main__":
    main()
