"""Runs train.py as a user does: in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# crossmae-tiny, shrunk further: a step of 8 samples takes a tenth of a second.
SMALL = [
    "--preset=crossmae-tiny",
    "--model.encoder.dim=32",
    "--model.encoder.depth=2",
    "--model.encoder.heads=2",
    "--model.pixel.dim=32",
    "--model.pixel.depth=1",
    "--model.pixel.heads=2",
    "--model.embedding.dim=32",
    "--model.embedding.depth=1",
    "--model.embedding.heads=2",
]


def train_command(*arguments: str, processes: int = 1) -> list[str]:
    """The command line of a training run on this machine's CPU."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
        launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    return [*launcher, str(ROOT / "train.py"), *SMALL, *arguments]


def environment() -> dict[str, str]:
    """One thread a process: results do not depend on the machine's load, and processes do not fight for cores."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def train(*arguments: str, processes: int = 1, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs train.py to its end and checks its exit status."""
    command = train_command(*arguments, processes=processes)
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
    assert result.returncode == status, f"exit {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result
