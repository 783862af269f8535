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
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, cast, get_args

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker, WandBTracker
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs
from accelerate.utils.dataclasses import KwargsHandler
from torch import Tensor, nn

from shards_spec.atomic import new_file
from shards_spec.cores import usable_cores
from shards_spec.errors import UserError
from shards_spec.messages import warn
from training.config import Device, MixedPrecision, RunConfig
from training.launcher import check_devices, check_processes, check_ways, find_launch, passed_over

_TENSORBOARD_FOLDER = "tracker"
_WANDB_PROJECT = "crossmae"
_WANDB_ID_FILE = "wandb-id.txt"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # where the user, or the launcher, has said how many
# NCCL's own 10 minutes would end a run one of whose processes waits for shards that come slowly.
WAIT_FOR_OTHERS = timedelta(minutes=30)


def start_processes(config: RunConfig) -> Accelerator:
    """Joins the processes that the launcher started: one, several on GPUs, or several on the CPU (gloo).

    Raises:
        UserError: the launcher was asked for what is not there; a tracker is not installed; the precision is none that
            the device computes in.
    """
    for tracker in config.report_to:
        if find_spec(tracker) is None:
            raise UserError(f"--report-to {tracker}: it is not installed: pip install 'crossmae[trackers]'")
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if config.mixed_precision is None and told not in get_args(MixedPrecision):
        raise UserError(
            f"accelerate launch was told mixed_precision {told}: give --mixed-precision, one of"
            f" {', '.join(get_args(MixedPrecision))}"
        )
    accelerator = join_processes(
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        device=config.device,
        workers=config.workers,
        mixed_precision=config.mixed_precision,
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("fp16 needs a GPU, and this run is on the CPU: give --mixed-precision bf16, or no")
    return accelerator


def join_processes(*handlers: KwargsHandler, device: Device = "auto", workers: int = 0, **options: Any) -> Accelerator:
    """An Accelerator over the processes that the launcher started.

    Args:
        device: as --device.
        workers: as --workers.

    Raises:
        UserError: the launcher was asked for other processes or devices than there are, or for another loop than ours.
    """
    check_ways()
    launch = find_launch()
    check_devices(launch, device)
    accelerator = Accelerator(
        # Without `cpu`, several CPU processes do not find each other.
        cpu=device == "cpu" or not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT_FOR_OTHERS), *handlers],
        # Said here, or the environment says it: the loop has pieces and a compiled model of its own.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        **options,
    )
    check_processes(launch, accelerator.num_processes)
    if accelerator.is_main_process:
        for line in passed_over():
            warn(line)
    if accelerator.device.type == "cpu" and not any(name in os.environ for name in _THREADS):
        torch.set_num_threads(min(torch.get_num_threads(), threads_of_a_process(usable_cores(), workers)))
    return accelerator


def threads_of_a_process(cores: int, workers: int) -> int:
    """How many threads compute in each of the processes that share a machine's cores, with a core for its loader.

    A step waits for each of its threads many times. Those for which there is no core of their own make it wait for the
    scheduler, and it takes several times as long.
    """
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, share - (workers > 0))


def compiled(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """torch.compile of the whole model, for DistributedDataParallel to wrap.

    DDP would have the graph split where its buckets end, to send gradients while others are computed. torch 2.11 loses
    gradients there: a piece that ends within the targets' no_grad gives none to what else is in it. So they are sent
    after the backward pass.
    """
    importlib.import_module("torch._dynamo").config.optimize_ddp = False
    return cast(nn.Module, torch.compile(model, backend=backend))


def lay_out_gradients(model: nn.Module) -> None:
    """Has each gradient laid out as its parameter, as DistributedDataParallel wants it in its buckets.

    Autograd sees to that but for the strides of dimensions of size 1, which tell nothing. So the gradient of a [CLS]
    token, of one sample, came with the stride of the whole sequence that it was cut out of.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(partial(_laid_out, stride=parameter.stride()))


def _laid_out(gradient: Tensor, *, stride: tuple[int, ...]) -> Tensor:
    if gradient.stride() == stride:
        return gradient
    return torch.empty_strided(gradient.shape, stride, dtype=gradient.dtype, device=gradient.device).copy_(gradient)


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
    """SIGTERM, SIGUSR1 (Slurm's warning before preemption), Ctrl-C or SIGHUP, agreed on by all processes.

    SIGHUP comes where the terminal is closed or the connection breaks, unless it is ignored, as under nohup.

    A signal reaches the processes at different steps. Each step the flags are combined in the background, over
    the CPU, and read a step later: no process waits for another, and all stop after the same step.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._group = dist.new_group(backend="gloo", timeout=WAIT_FOR_OTHERS) if dist.is_initialized() else None
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
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
