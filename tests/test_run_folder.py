"""A run folder that cannot be used, and one that is further on than was asked; damaged lines of its logs."""

import json

import pytest

from shards_spec.errors import UserError
from tests.datasets import make_dataset
from tests.refusals import forbidden, longest_file
from tests.runs import SMALL, mistake
from tools.reporting.runs import read_metrics
from training.run_folder import StepLog, lock_run, read_step_log
from training.train import main


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: None], ids=["a file", "/proc"])
def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path, make, capsys):
    data, out = make_dataset(tmp_path / "d", (4,)), tmp_path / "out"
    make(out)
    out = out if out.is_file() else "/proc/run"
    said = mistake(capsys, *SMALL, f"--data={data}", f"--out={out}", "--batch-size=4", "--steps=1")
    assert said.startswith(f"train.py: error: --out {out} ")
    assert (
        "is a file: give a folder" in said or "cannot be written to (No such file or directory): give another" in said
    )


def test_a_run_folder_that_may_not_be_written_to(tmp_path):
    (tmp_path / "run").mkdir()
    with forbidden(tmp_path / "run"), pytest.raises(UserError, match=r"run cannot be written to \(Permission denied"):
        lock_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"cannot be written to \(Not a directory\)"):
        (tmp_path / "file").write_text("")
        lock_run(tmp_path / "file" / "run")


WHOLE = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


@pytest.mark.parametrize(
    ("damaged", "line"),
    [
        (bytes(200), 3),  # what a power cut leaves
        (bytes(200) + b"\n", 3),
        (b'{"step": 3, "lo', 3),
        (b'{"step": 3, "lo\n{"step": 3, "loss": 0.5}\n', 3),
        (b"[3]\n", 3),
        (b'{"loss": 3}\n', 3),
        (b'{"step": "3"}\n', 3),
        (b"\xff\xfe\n", 3),
        (b"[" * 100_000 + b"\n", 3),
    ],
    ids=range(9),
)
def test_a_damaged_line_is_left_out_with_a_warning(tmp_path, damaged, line, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE + damaged)
    log = StepLog(path, last_step=2)
    assert capsys.readouterr().err == f"warning: {path}: left out, damaged: line {line}\n"
    log.write({"step": 3, "loss": 0.25})
    log.close()
    assert [line["loss"] for line in read_step_log(path)] == [2.0, 1.0, 0.25]
    notices = []
    assert len(read_metrics(path, notices)) == 3 and not notices


def test_many_damaged_lines_are_one_warning(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\0\n" * 50 + WHOLE)
    StepLog(path, last_step=2).close()
    assert capsys.readouterr().err.endswith("left out, damaged: line 1, 2, 3, ...\n")


def test_a_log_that_cannot_be_continued_stays_as_it_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE)
    with longest_file(10), pytest.raises(OSError, match="File too large") as refused:
        StepLog(path, last_step=2)
    assert refused.value.filename == str(path)
    assert path.read_bytes() == WHOLE and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_run_that_is_past_its_steps_says_so_and_changes_nothing(tmp_path, capsys):
    data, run = make_dataset(tmp_path / "d", (4,)), tmp_path / "run"
    told = [*SMALL, f"--data={data}", f"--out={run}", "--batch-size=4", "--workers=0", "--save-every=1"]
    main([*told, "--steps=2"])
    main([*told, "--steps=2"])
    before = json.loads((run / "config.json").read_text())
    capsys.readouterr()
    assert f"{run} is at step 2, past --steps 1: give more --steps" in mistake(capsys, *told, "--steps=1")
    assert json.loads((run / "config.json").read_text()) == before
    main([*told, "--steps=1", f"--resume={run / 'checkpoints' / 'step-00000001'}"])


def test_a_run_needs_data(tmp_path, capsys):
    for command in ([], ["finetune"]):
        assert "--data is missing: give the folder that make-shards wrote" in mistake(
            capsys, *command, f"--out={tmp_path / 'run'}"
        )
