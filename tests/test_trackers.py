"""--report-to: what TensorBoard and wandb are told by a run that stops and goes on. wandb is a stand-in."""

import json
import logging
import shutil
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shards_spec.errors import UserError
from tests.datasets import make_dataset
from tests.runs import train
from training.checkpoint import checkpoints
from training.processes import start_trackers
from training.recipes import parse_arguments
from training.run_folder import read_step_log

# What Accelerate calls of wandb, and the error that wandb.init raises.
WANDB = """
import json
import os
from pathlib import Path

def note(**line):
    with Path(os.environ["TOLD"]).open("a") as file:
        file.write(json.dumps(line) + "\\n")

class Error(Exception):
    pass

class config:
    def update(values, allow_val_change):
        note(config=values)

class Run:
    def log(self, values, step):
        note(step=step, values=values)

    def finish(self):
        note(finished=True)

def init(**options):
    note(init=options)
    return Run()
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "shards", (7, 6))


def test_a_resumed_run_goes_on_where_it_was_told_of(dataset, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(WANDB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("TOLD", str(tmp_path / "told.jsonl"))
    run = tmp_path / "runs" / "first try"
    arguments = [f"--data={dataset}", f"--out={run}", "--steps=4", "--batch-size=4", "--save-every=2", "--log-every=1"]
    arguments += ["--report-to", "tensorboard", "wandb"]
    train(*arguments)
    shutil.rmtree(checkpoints(run)[-1])  # as a run that was killed after step 4, before it saved
    train(*arguments)

    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    first, second = (line["init"] for line in told if "init" in line)
    assert first == second and len(first.pop("id")) == 16
    assert first == {"project": "crossmae", "name": "first try", "resume": "allow", "dir": str(run)}
    assert [line["step"] for line in told if "step" in line] == [1, 2, 3, 4, 3, 4]
    lines = read_step_log(run / "metrics.jsonl")
    assert [line["values"] | {"step": line["step"]} for line in told if "step" in line][-2:] == lines[-2:]
    assert [list(line) for line in told if "step" not in line] == [["init"], ["config"], ["finished"]] * 2
    config = next(line["config"] for line in told if "config" in line)
    assert config["model.pixel.dim"] == 32 and config["model.contrast.enabled"] is True
    assert config["optimizer.lr"] == 2e-5 and config["optimizer.betas"] == "[0.9, 0.95]"
    assert all(value is None or isinstance(value, (bool, int, float, str)) for value in config.values())

    events = EventAccumulator(str(run / "tracker"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("seconds")] == pytest.approx([line["seconds"] for line in lines])


@pytest.fixture
def wandb(monkeypatch):
    """The stand-in in this process; the options of each wandb.init."""
    started = []
    module = SimpleNamespace(
        init=lambda **options: started.append(options) or SimpleNamespace(),
        config=SimpleNamespace(update=lambda values, allow_val_change: None),
        Error=type("Error", (Exception,), {}),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("accelerate.tracking.logger", logging.getLogger(__name__))  # its own wants an Accelerator
    return module, started


def start(run, *, is_main=True):
    run.mkdir(parents=True, exist_ok=True)
    config = parse_arguments(["--data=x", f"--out={run}", "--report-to=wandb"])
    accelerator = SimpleNamespace(is_main_process=is_main, trackers=[])
    start_trackers(accelerator, config, 0)
    return accelerator.trackers


def test_wandb_knows_a_run_by_its_folder(tmp_path, wandb):
    _, started = wandb
    start(tmp_path / "a")
    start(tmp_path / "a" / ".." / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    start(tmp_path / "b")
    start(tmp_path / "elsewhere" / "b")
    shutil.rmtree(tmp_path / "b")
    start(tmp_path / "b")
    assert [options["name"] for options in started] == ["a", "a", "b", "b", "b"]
    first, again, moved, other, anew = (options["id"] for options in started)
    assert first == again == moved and len({first, other, anew}) == 3


def test_only_the_first_process_tells_trackers(tmp_path, wandb):
    assert start(tmp_path, is_main=False) == [] and list(tmp_path.iterdir()) == []
    assert len(start(tmp_path)) == 1


def test_what_wandb_misses_is_told_in_one_line(tmp_path, wandb):
    module, _ = wandb

    def fail(**options):
        raise module.Error("No API key configured.\nSee the manual.")

    module.init = fail
    with pytest.raises(UserError) as told:
        start(tmp_path)
    said = "No API key configured. See the manual. (with WANDB_MODE=offline it needs neither login nor network)"
    assert str(told.value) == f"--report-to wandb: {said}"
