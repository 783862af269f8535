"""The processes of a run: how many there are, how they agree to stop, and the trackers that the first one tells."""

import atexit
import importlib
import json
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, cast

import psutil
import torch
import torch._dynamo
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker, WandBTracker
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils.dataclasses import KwargsHandler
from torch import nn

from shards_spec.atomic import new_file
from shards_spec.errors import UserError
from training.config import RunConfig

_TENSORBOARD_FOLDER = "tracker"
_WANDB_PROJECT = "crossmae"
_WANDB_ID_FILE = "wandb-id.txt"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# NCCL's own 10 minutes would end a run one of whose processes waits for shards that come slowly.
WAIT_FOR_OTHERS = timedelta(minutes=30)


def start_processes(config: RunConfig) -> Accelerator:
    """Joins the processes that the launcher started: one, several on GPUs, or several on the CPU (gloo).

    Raises:
        UserError: the launcher was asked for another number of processes than there are; a tracker is not installed.
    """
    for tracker in config.report_to:
        if find_spec(tracker) is None:
            raise UserError(f"--report-to {tracker}: it is not installed: pip install 'crossmae[trackers]'")
    return join_processes(
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        mixed_precision=config.mixed_precision,
    )


def join_processes(*handlers: KwargsHandler, **options: Any) -> Accelerator:
    """An Accelerator over the processes that the launcher started.

    Raises:
        UserError: the launcher was asked for another number of processes than there are.
    """
    handlers = (InitProcessGroupKwargs(timeout=WAIT_FOR_OTHERS), *handlers)
    # Without `cpu`, several CPU processes do not find each other.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=list(handlers), **options)
    asked = _processes_asked_for()
    if asked is not None and asked != accelerator.num_processes:
        raise UserError(
            f"accelerate launch was asked for {asked} processes and started {accelerator.num_processes}:"
            f" on the CPU put `accelerate launch --multi_gpu --num_processes {asked}`"
            f" or `torchrun --nproc-per-node {asked}` before the program"
        )
    return accelerator


def compiled(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """torch.compile of the whole model, for DistributedDataParallel to wrap.

    DDP would have the graph split where its buckets end, to send gradients while others are computed. torch 2.11 loses
    gradients there: a piece that ends within the targets' no_grad gives none to what else is in it. So they are sent
    after the backward pass.
    """
    torch._dynamo.config.optimize_ddp = False
    return cast(nn.Module, torch.compile(model, backend=backend))


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


def start_trackers(accelerator: Accelerator, config: RunConfig, step: int) -> None:
    """Starts what --report-to names, in the process of rank 0; `accelerator.log` tells them from then on.

    TensorBoard writes into RUN/tracker; what it was told of steps after `step`, which a resumed run takes again, is
    hidden. wandb gets a run of the run folder's name, which a resumed run continues; of a step that is taken again it
    keeps what it was told first.

    Raises:
        UserError: wandb cannot begin, as where nobody is logged in.
    """
    if not accelerator.is_main_process:
        return
    for name in config.report_to:
        tracker = _start_tensorboard(config.out, step) if name == "tensorboard" else _start_wandb(config.out)
        accelerator.trackers.append(tracker)
        tracker.store_init_configuration(_flat(config.to_dict()))


def _start_tensorboard(run: Path, step: int) -> TensorBoardTracker:
    tracker = TensorBoardTracker(_TENSORBOARD_FOLDER, run, purge_step=step + 1)
    tracker.start()
    return tracker


def _start_wandb(run: Path) -> WandBTracker:
    # The id goes with the folder: wandb takes two starts with one id for the same run.
    new_file(run / _WANDB_ID_FILE, secrets.token_hex(8).encode())
    wandb_id = (run / _WANDB_ID_FILE).read_text()
    tracker = WandBTracker(_WANDB_PROJECT, name=run.resolve().name, id=wandb_id, resume="allow", dir=str(run))
    try:
        tracker.start()
    except importlib.import_module("wandb").Error as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"--report-to wandb: {said} (with WANDB_MODE=offline it needs neither login nor network)"
        ) from error
    return tracker


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys, lists as JSON: trackers take numbers, strings, truth values and None."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value) if isinstance(value, (list, tuple)) else value
    return flat


@contextmanager
def signals_given_back() -> Iterator[None]:
    """What the process did on the signals of a StopRequest before the block, it does again after it."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it is not Python's, which cannot set it again
                signal.signal(number, handler)


class StopRequest:
    """SIGTERM, SIGUSR1 (Slurm's warning before preemption) or Ctrl-C, agreed on by all processes.

    A signal reaches the processes at different steps. Each step the flags are combined in the background, over
    the CPU, and read a step later: no process waits for another, and all stop after the same step.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._group = dist.new_group(backend="gloo", timeout=WAIT_FOR_OTHERS) if dist.is_initialized() else None
        for number in _SIGNALS:
            signal.signal(number, self._receive)
        # As it ends, Python hands signals back to the system, which would make a failure of a run that has ended well.
        atexit.register(signal.signal, signal.SIGUSR1, signal.SIG_IGN)

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
