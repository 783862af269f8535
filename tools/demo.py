"""The whole way of the data on clips made for it: `make demo`, or `python -m tools.demo [--out demo]`.

    demo_clips ──> raw/ + CSVs ──> make-shards ──> accelerate launch train.py (stopped, resumed) ──> evaluate ──> report

Every step is the command that a user would type, printed before it runs.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from shards_spec.command_line import one_line_errors, parse
from shards_spec.dataset import read_dataset
from shards_spec.errors import UserError
from training.checkpoint import checkpoints
from training.run_folder import METRICS_FILE, read_step_log

ROOT = Path(__file__).resolve().parent.parent
_LAUNCH = ["--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Runs the whole way of the data on clips made for it."""

    out: Path = Path("demo")
    """Folder for everything; what an earlier demo left there is replaced."""
    clips: int = 64
    """Good clips to make."""
    steps: int = 60
    """Training steps."""


def run(title: str, *command: str) -> None:
    """Prints and runs one command of this environment.

    Raises:
        UserError: it failed.
    """
    announce(title, *command)
    status = subprocess.run(_located(command), cwd=ROOT).returncode
    if status:
        raise UserError(f"`{shlex.join(command)}` ended with status {status}")


def announce(title: str, *command: str) -> None:
    """A headline and the command as it would be typed."""
    print(f"\n== {title}\n$ {shlex.join(command)}", flush=True)


def _located(command: tuple[str, ...]) -> list[str]:
    """The command with its program found beside this Python: the environment need not be activated."""
    return [str(Path(sys.executable).with_name(command[0])), *command[1:]]


def stop_midway(command: tuple[str, ...], metrics: Path, step: int) -> None:
    """Starts a run, sends its processes SIGTERM once `step` steps are logged, and waits for their end."""
    announce(f"train, and stop it (SIGTERM) after step {step}", *command)
    process = subprocess.Popen(_located(command), cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stopped = False
    for line in process.stdout:  # ends when the last process of the run has ended, not only the launcher
        print(line, end="", flush=True)
        if not stopped and any(entry["step"] >= step for entry in read_step_log(metrics)):
            os.killpg(process.pid, signal.SIGTERM)
            stopped = True
    process.wait()
    if not stopped:
        raise UserError(f"training ended with status {process.returncode} before it could be stopped")


def demo(config: DemoConfig) -> None:
    """Runs every step and prints what it did."""
    began = time.monotonic()
    out = config.out.resolve()
    _clear(out)
    shards, trained = str(out / "shards"), out / "run"
    run("make clips", "python", "-m", "tools.demo_clips", str(out / "download"), f"--clips={config.clips}")
    download = out / "download"
    run(
        "raw clips -> shards",
        *("make-shards", str(download / "raw"), "--out", shards),
        *("--segments", str(download / "segments.csv")),
        *("--class-labels", str(download / "class_labels_indices.csv")),
        *("--shard-size", "16", "--workers", "2"),
    )
    training = (
        *("accelerate", "launch", *_LAUNCH, "train.py", "--data", shards, "--out", str(trained)),
        *("--preset", "crossmae-tiny", "--steps", str(config.steps), "--batch-size", "16"),
        *("--optimizer.lr", "1e-3", "--log-every", "5", "--workers", "1"),
    )
    stop_midway(training, trained / METRICS_FILE, config.steps // 2)
    stopped_at = checkpoints(trained)[-1].name
    run("the same command goes on", *training)
    retrieved = trained / "retrieval.json"
    evaluation = ("--data", shards, "--checkpoint", str(trained), "--out", str(retrieved))
    run("evaluate", "python", "evaluate.py", "retrieval", *evaluation)
    run("report", "python", "-m", "tools.report", str(trained))
    _summary(out, stopped_at, time.monotonic() - began)


def _clear(out: Path) -> None:
    """Removes an earlier demo; a folder with anything else in it is left alone."""
    ours = {"download", "shards", "run"}
    if out.exists():
        foreign = sorted({path.name for path in out.iterdir()} - ours)
        if foreign:
            raise UserError(f"{out} holds {foreign[0]}, which no demo made: give another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)


def _summary(out: Path, stopped_at: str, seconds: float) -> None:
    dataset = read_dataset(out / "shards")
    lines = read_step_log(out / "run" / METRICS_FILE)
    result = json.loads((out / "run" / "retrieval.json").read_text())
    failures = ", ".join(f"{count} {reason}" for reason, count in sorted(dataset.failures.items()))
    recall = result["audio_to_image"]["recall"]["10"]
    print(
        f"""
== done in {seconds:.0f} s
  shards      {out / "shards"}: {dataset.samples} samples in {len(dataset.shards)} shards; failed: {failures}
  training    {out / "run"}: stopped at {stopped_at}, resumed, {lines[-1]["step"]} steps;
              loss {lines[0]["loss"]:.3f} -> {lines[-1]["loss"]:.3f}
  retrieval   audio -> image R@10 {recall:.1f}% of {result["pool"]} (chance {result["chance"]["10"]:.1f}%)
  report      {out / "run" / "report.html"}""",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("demo"):
        demo(parse(DemoConfig, arguments, prog="python -m tools.demo"))


if __name__ == "__main__":
    main()
