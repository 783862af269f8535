"""What the launcher above this process was asked for: what a run would otherwise not have, and nobody would say so."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.commands.config import config_args
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from shards_spec.errors import UserError

# What Accelerate would do in place of DistributedDataParallel, by the variable in which its launcher says so.
_OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
# What Accelerate would do beside the loop, and the option here that does it. join_processes keeps it from that.
_BESIDE_THE_LOOP = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "--device-batch-size takes a batch in pieces"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "--compile compiles the model"),
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What `accelerate launch` was asked for, by its command line or by the config file that it read."""

    processes: int | None = None
    processes_asked_by: str = ""
    gpus_asked_by: Path | None = None  # the config file that is for GPUs


def find_launch() -> Launch:
    """The `accelerate launch` that started this process; an empty one where none did."""
    parent = psutil.Process().parent()
    try:
        words = parent.cmdline() if parent is not None else []
        folder = Path(parent.cwd()) if parent is not None else Path()
    except psutil.Error:  # it has ended, or is another user's
        return Launch()
    told = _launcher_arguments(words)
    return Launch() if told is None else read_launch(told, folder)


def _launcher_arguments(words: list[str]) -> list[str] | None:
    """The words of a command line after `accelerate launch`, in any of its forms; None where it is something else."""
    for i, word in enumerate(words[:4]):  # python -m accelerate.commands.accelerate_cli launch
        name = Path(word).name
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return words[i + 1 :]
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and words[i + 1 : i + 2] == ["launch"]:
            return words[i + 2 :]
    return None


def read_launch(arguments: list[str], folder: Path) -> Launch:
    """What these arguments of `accelerate launch` ask for, given in `folder`.

    As the launcher does, the config file of the user counts where none is named, unless --cpu is given.
    """
    told = launch_command_parser().parse_args(arguments)
    default = Path(config_args.default_config_file)
    file = None
    if told.config_file is not None:
        file = folder / told.config_file
    elif default.is_file() and not told.cpu:
        file = default
    config: Any = None if file is None else config_args.load_config_from_file(str(file))
    if told.num_processes is not None or config is None:
        return Launch(
            processes=told.num_processes,
            processes_asked_by=f"--num_processes {told.num_processes}",
            gpus_asked_by=_for_gpus(file, config, told),
        )
    return Launch(
        processes=config.num_processes,
        processes_asked_by=f"num_processes: {config.num_processes} of {file}",
        gpus_asked_by=_for_gpus(file, config, told),
    )


def _for_gpus(file: Path | None, config: Any, told: Any) -> Path | None:
    """The config file, where it is for GPUs. The user's own says so by MULTI_GPU alone: most have been made by answers
    to questions, of which that on the CPU is answered with no."""
    kinds = {DistributedType.MULTI_GPU} | ({DistributedType.NO} if told.config_file is not None else set())
    is_for_gpus = config is not None and not (told.cpu or config.use_cpu) and config.distributed_type in kinds
    return file if is_for_gpus else None


def check_devices(launch: Launch, device: str) -> None:
    """Refuses to begin without the GPUs that were asked for.

    Raises:
        UserError: there is none.
    """
    if device == "cpu" or torch.cuda.is_available():
        return
    if device == "cuda":
        raise UserError("--device cuda: torch finds no GPU here (nvidia-smi tells whether there is one)")
    if launch.gpus_asked_by is not None:
        raise UserError(
            f"{launch.gpus_asked_by} is for GPUs, and torch finds none here (nvidia-smi tells whether there is one):"
            " give --device cpu to work on the CPU all the same"
        )


def check_processes(launch: Launch, started: int) -> None:
    """Refuses to begin with another number of processes than were asked for.

    `accelerate launch` silently starts a single one on the CPU, unless it is told --multi_gpu.

    Raises:
        UserError: there are more or fewer.
    """
    knows = "WORLD_SIZE" in os.environ  # a launcher that starts several, and counts them
    asked = launch.processes
    if asked is not None and asked != started and not knows:
        raise UserError(
            f"accelerate launch was asked for {asked} processes and started {started} ({launch.processes_asked_by}):"
            f" on the CPU put `accelerate launch --multi_gpu --num_processes {asked}`"
            f" or `torchrun --nproc-per-node {asked}` before the program"
        )


def check_ways() -> None:
    """Refuses what takes another loop than ours.

    Raises:
        UserError: Accelerate was asked for it.
    """
    for variable, name in _OTHER_WAYS.items():
        if os.environ.get(variable, "").lower() in ("true", "1", "yes", "on"):
            raise UserError(
                f"accelerate launch was asked for {name} ({variable}), which this program does not work with:"
                " leave it out of the command and of the config file, or give --config_file docs/launch/..."
            )


def passed_over() -> list[str]:
    """What Accelerate was asked to do beside the loop, and will not do, in lines to print."""
    lines = []
    for variable, (usual, instead) in _BESIDE_THE_LOOP.items():
        value = os.environ.get(variable, usual)
        if value.lower() not in (usual, ""):
            lines.append(f"{variable}={value} is passed over: {instead}")
    return lines
