"""Runs train.py and its sisters as users do: in processes of their own."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from training.task import Pretraining
from training.train import main

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


def command_line(script: str, *arguments: str, processes: int = 1) -> list[str]:
    """Runs a script of the project's root, as it is or by `accelerate launch` in several processes on the CPU."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
        launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    return [*launcher, str(ROOT / script), *arguments]


def train_command(*arguments: str, processes: int = 1) -> list[str]:
    """The command line of a small training run."""
    return command_line("train.py", *SMALL, *arguments, processes=processes)


def environment() -> dict[str, str]:
    """One thread a process: results do not depend on the machine's load, and processes do not fight for cores."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONFAULTHANDLER": "1"}


def run_to_end(command: list[str], status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command and checks its exit status. One that hangs tells where, and leaves no process behind."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), **options
    )
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        hanging = [process, *psutil.Process(process.pid).children(recursive=True)]
        for member in hanging:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGABRT)  # faulthandler prints every thread's frames
        out, err = process.communicate(timeout=30)
        pytest.fail(f"not done after 240 s: {command}\n{out[-2000:]}\n{err[-8000:]}")
    assert process.returncode == status, f"exit {process.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    return subprocess.CompletedProcess(command, status, out, err)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What train.py, called in this process, says of a mistake on stderr: one line."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("train.py: error: ") and said.count("\n") == 1
    return said


def train(*arguments: str, processes: int = 1, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs train.py to its end and checks its exit status."""
    return run_to_end(train_command(*arguments, processes=processes), status)


def signal_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pre-training in this process gets SIGTERM in each of its steps: it takes one, saves and ends."""
    real = Pretraining.losses

    def losses(self: Pretraining, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(Pretraining, "losses", losses)
