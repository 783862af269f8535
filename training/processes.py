"""The processes of a run: how many there are, and how they agree to stop."""

import importlib.util
import os
import signal
from types import FrameType
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from shards_spec.errors import UserError
from training.config import RunConfig


def start_processes(config: RunConfig) -> Accelerator:
    """Joins the processes that the launcher started: one, several on GPUs, or several on the CPU (gloo).

    Raises:
        UserError: the launcher was asked for another number of processes than there are; a tracker is not installed.
    """
    for tracker in config.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(f"--report-to {tracker}: it is not installed: pip install 'crossmae[trackers]'")
    return join_processes(
        mixed_precision=config.mixed_precision,
        log_with=list(config.report_to) or None,
        project_dir=config.out,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def join_processes(**options: Any) -> Accelerator:
    """An Accelerator over the processes that the launcher started.

    Raises:
        UserError: the launcher was asked for another number of processes than there are.
    """
    # Without `cpu`, several CPU processes do not find each other.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), **options)
    asked = _processes_asked_for()
    if asked is not None and asked != accelerator.num_processes:
        raise UserError(
            f"accelerate launch was asked for {asked} processes and started {accelerator.num_processes}:"
            f" on the CPU put `accelerate launch --multi_gpu --num_processes {asked}`"
            f" or `torchrun --nproc-per-node {asked}` before the program"
        )
    return accelerator


def _processes_asked_for() -> int | None:
    """--num_processes of the `accelerate launch` above us, None where it does not say.

    `accelerate launch --cpu --num_processes 2` silently starts one process, and tells it nothing.
    """
    if "WORLD_SIZE" in os.environ:  # a launcher that knows how many it started
        return None
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent is not None else []
    if "launch" not in words:
        return None
    for i, word in enumerate(words):
        name, _, value = word.replace("_", "-").partition("=")
        if name == "--num-processes":
            value = value or "".join(words[i + 1 : i + 2])
            return int(value) if value.isdigit() else None
        if word.endswith(".py"):  # from here on the words are the script's
            return None
    return None


class StopRequest:
    """SIGTERM, SIGUSR1 (Slurm's warning before preemption) or Ctrl-C, agreed on by all processes.

    A signal reaches the processes at different steps. Each step the flags are combined in the background, over
    the CPU, and read a step later: no process waits for another, and all stop after the same step.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def interrupts(self) -> bool:
        """Whether a wait for data should be broken off: one process may stop at any time, the state is that after its
        last step. Several go on waiting: others may be in the step already and wait for this process there.
        """
        return self._group is None and self.signal is not None

    def agreed(self) -> bool:
        """Whether to stop after this step. Every process must call this once a step."""
        if self._group is None:
            return self.signal is not None
        stop = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            stop = bool(flag.item())
        flag = torch.tensor(int(self.signal is not None))
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, flag)
        return stop
