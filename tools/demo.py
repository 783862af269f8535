"""The whole way of the data on clips made for it: `make demo`, or `python -m tools.demo [--out demo]`.

    make_world ──> files, CSV, boxes ──> make-shards ──> accelerate launch train.py (stopped, resumed)
      ──> evaluate.py retrieval, localization ──> report

Before the shards are made some clips are spoilt, as downloads are: what fails is counted, with its reason. Every step
is the command that a user would type, printed before it runs.
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
from shards_spec.sample import audioset_key
from training.checkpoint import checkpoints
from training.run_folder import METRICS_FILE, read_step_log

_SPOILT = 4  # clips

ROOT = Path(__file__).resolve().parent.parent
_LAUNCH = ["--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Runs the whole way of the data on clips made for it."""

    out: Path = Path("demo")
    """Folder for everything; what an earlier demo left there is replaced."""
    clips: int = 64
    """Good clips to make; four that are spoilt come on top."""
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
    download = out / "download"
    make = ("python", "-m", "tools.make_world", str(download), "--classes=25", "--masks=none")
    run("make clips", *make, f"--splits=clips:{config.clips + _SPOILT}")
    spoil(download / "clips", download / "clips.csv")
    run(
        "raw clips -> shards",
        *("make-shards", str(download / "clips"), "--out", shards),
        *("--segments", str(download / "clips.csv")),
        *("--class-labels", str(download / "class_labels_indices.csv")),
        *("--boxes", str(download / "boxes.json")),
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
    evaluated = ("--data", shards, "--checkpoint", str(trained))
    run("evaluate: which image belongs to this sound?", "python", "evaluate.py", "retrieval", *evaluated)
    where = ("localization", "--benchmark", "vggss", *evaluated)
    run("evaluate: where does it come from?", "python", "evaluate.py", *where)
    run("report", "python", "-m", "tools.report", str(trained))
    _summary(out, stopped_at, time.monotonic() - began)


def spoil(clips: Path, segments: Path) -> None:
    """Spoils the last four clips of a download: one is not there, one is cut, one is empty, one has lost its id."""
    *head, missing, cut, empty, nameless = segments.read_text().splitlines()
    _file(clips, missing).unlink()
    path = _file(clips, cut)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    _file(clips, empty).write_bytes(b"")
    nameless = "#NAME?" + nameless[nameless.index(",") :]  # what a spreadsheet makes of an id like -Abc...
    segments.write_text("\n".join([*head, missing, cut, empty, nameless]) + "\n")
    print(f"\n4 clips of {clips} are spoilt: one is missing, one cut, one empty, one has no id", flush=True)


def _file(clips: Path, row: str) -> Path:
    """The file of a row of the segment CSV."""
    ytid, start = row.split(", ")[:2]
    return clips / f"{audioset_key(ytid, float(start))}.mp4"


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
    found = out / "run" / "evaluation"
    result, places = (json.loads((found / f"{t}-shards.json").read_text()) for t in ("retrieval", "localization"))
    failures = ", ".join(f"{count} {reason}" for reason, count in sorted(dataset.failures.items()))
    recall, chance = result["metrics"]["audio -> image"]["R@10"], result["baselines"]["chance"]["R@10"]
    hit, centre = places["metrics"]["model"]["CIoU"], places["baselines"]["centre box, half the area"]["CIoU"]
    print(
        f"""
== done in {seconds:.0f} s
  shards      {out / "shards"}: {dataset.samples} samples in {len(dataset.shards)} shards; failed: {failures}
  training    {out / "run"}: stopped at {stopped_at}, resumed, {lines[-1]["step"]} steps;
              loss {lines[0]["loss"]:.3f} -> {lines[-1]["loss"]:.3f}
  retrieval   audio -> image R@10 {recall:.1f}% of {result["pool"]} (chance {chance:.1f}%)
  localized   CIoU {hit:.1f} (a box in the centre: {centre:.1f}); pictures: {found / "localization-shards"}
  report      {out / "run" / "report.html"}""",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("python -m tools.demo"):
        demo(parse(DemoConfig, arguments))


if __name__ == "__main__":
    main()
