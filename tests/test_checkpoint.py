"""Checkpoints under misfortune: killed while saving, a full disk, files that are gone, a run that goes back."""

import io
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from shards_spec.errors import UserError
from tests.datasets import make_dataset
from tests.refusals import longest_file
from tests.runs import SMALL, mistake, signal_in_each_step, train
from training import checkpoint
from training.checkpoint import (
    TO_RESUME,
    TrainState,
    checkpoint_folder,
    checkpoints,
    find_checkpoint,
    load_optimizer,
    load_weights,
    read_json,
    read_state,
    save_checkpoint,
    set_later_aside,
)
from training.recipes import parse_arguments
from training.resume import checkpoint_to_resume
from training.train import main


def save(run, step, *, keep=9, resumed=None, model=None, optimizer=None):
    """A checkpoint whose weight is its step."""
    if model is None:
        model = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(model.weight, step)
    optimizer = {"moment": torch.full((1000,), float(step))} if optimizer is None else optimizer
    state = TrainState(step=step, fingerprint="", seed=0, epoch=0, cursor=0, next_shard="", next_offset=0)
    return save_checkpoint(
        run, state, model=model, optimizer=optimizer, config={"step": step}, keep=keep, resumed=resumed
    )


def assert_whole(folder, step):
    """Everything in it is that of its step."""
    model = torch.nn.Linear(1, 1)
    load_weights(folder, model)
    assert model.weight.item() == read_state(folder).step == read_json(folder / "config.json")["step"] == step
    assert torch.equal(load_optimizer(folder)["moment"], torch.full((1000,), float(step)))


def resumed_from(run, resume="auto"):
    return checkpoint_to_resume(parse_arguments([*SMALL, "--data=nowhere", f"--out={run}", f"--resume={resume}"]))


def steps(run):
    return [int(path.name.removeprefix("step-")) for path in checkpoints(run)]


def other_names(run):
    """What lies beside the checkpoints."""
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path not in checkpoints(run))


def test_a_run_that_goes_back_keeps_what_it_saves(tmp_path):
    for step in (500, 550, 1000, 1500):
        save(tmp_path, step)
    resumed = checkpoint_folder(tmp_path, 500)
    later = [checkpoint_folder(tmp_path, step) for step in (550, 1000, 1500)]
    assert set_later_aside(tmp_path, 500) == later
    for step, kept in ((600, [500, 600]), (700, [500, 600, 700]), (800, [500, 700, 800])):
        save(tmp_path, step, keep=2, resumed=resumed)
        assert steps(tmp_path) == kept
        assert_whole(resumed_from(tmp_path), step)
    aside = [f"{path.name}.abandoned" for path in later]
    assert other_names(tmp_path) == aside
    for name in aside:
        assert_whole(resumed_from(tmp_path, tmp_path / "checkpoints" / name), int(name[5:13]))
    assert set_later_aside(tmp_path, 600) == [checkpoint_folder(tmp_path, step) for step in (700, 800)]
    save(tmp_path, 1000)
    assert set_later_aside(tmp_path, 999) == [checkpoint_folder(tmp_path, 1000)]
    assert "step-00001000.2.abandoned" in other_names(tmp_path)


def test_train_goes_back_and_says_what_it_sets_aside(tmp_path):
    data, run = make_dataset(tmp_path / "shards", (7, 6)), tmp_path / "run"
    told = [f"--data={data}", f"--out={run}", "--steps=4", "--batch-size=4", "--save-every=1", "--keep=9"]
    train(*told)
    said = train(*told, f"--resume={run / 'checkpoints' / 'step-00000002'}").stdout
    assert f"goes on from: step-00000003, step-00000004 of {run} (now .abandoned)" in said
    assert steps(run) == [1, 2, 3, 4]
    assert other_names(run) == ["step-00000003.abandoned", "step-00000004.abandoned"]


def test_what_a_stopped_run_says_of_how_to_go_on_is_so(tmp_path, monkeypatch, capsys):
    data, run = make_dataset(tmp_path / "shards", (7, 6)), tmp_path / "run"
    told = [*SMALL, f"--data={data}", f"--out={run}", "--steps=6", "--batch-size=4", "--save-every=9", "--workers=0"]

    def stopped(*options):
        """Of a run that takes one step and saves."""
        with pytest.raises(SystemExit, match="75"):
            main([*told, *options])
        return capsys.readouterr().out

    signal_in_each_step(monkeypatch)
    path = f"--resume={run / 'checkpoints' / 'step-00000001'}"
    assert "; the same command with --resume auto goes on: step 1 of 6" in stopped("--resume=never")
    assert "use --resume auto" in mistake(capsys, *told, "--resume=never")
    assert "; the same command goes on: step 2 of 6" in stopped()
    for _ in range(2):  # a path goes back each time
        assert "; the same command with --resume auto goes on: step 2 of 6" in stopped(path)
    assert "; the same command goes on: step 3 of 6" in stopped("--resume=auto")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.loop.save_checkpoint", full)
    for options in ([], [path]):  # nothing new: from where it was before
        with pytest.raises(SystemExit, match="1"):
            main([*told, *options])
        assert "make room; the same command goes on\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", TO_RESUME)
def test_a_checkpoint_that_lacks_a_file_is_passed_over(tmp_path, name, capsys):
    for step in (1, 2):
        save(tmp_path, step)
    damaged = checkpoint_folder(tmp_path, 2)
    (damaged / name).unlink()
    assert steps(tmp_path) == [1]
    assert resumed_from(tmp_path) == resumed_from(tmp_path, tmp_path) == checkpoint_folder(tmp_path, 1)
    assert capsys.readouterr().err == f"warning: {damaged} lacks {name}: passed over\n" * 2
    with pytest.raises(UserError) as refused:
        assert_whole(resumed_from(tmp_path, damaged), 2)
    assert str(damaged) in str(refused.value) and "\n" not in str(refused.value)
    assert set_later_aside(tmp_path, 1) == [damaged]
    save(tmp_path, 2, resumed=checkpoint_folder(tmp_path, 1))
    assert_whole(resumed_from(tmp_path), 2)
    assert capsys.readouterr().err == ""


def test_where_no_checkpoint_is_whole_nothing_begins_again(tmp_path):
    assert resumed_from(tmp_path) is None
    (save(tmp_path, 1) / "optimizer.pt").unlink()
    for resume in ("auto", "never", tmp_path):
        with pytest.raises(UserError, match=r"has no whole checkpoint \(.*step-00000001 lacks optimizer.pt\): take"):
            resumed_from(tmp_path, resume)
    assert find_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 1)  # to evaluate it, it has everything


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def while_the_model_is_written():
    def write_half(tensors, path):
        path.write_bytes(b"half")
        die()

    checkpoint.write_safetensors = write_half


def while_the_optimizer_is_written():
    whole = torch.save

    def save_half(values, file):
        buffer = io.BytesIO()
        whole(values, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        die()

    torch.save = save_half


def while_the_state_is_written():
    def write_json(path, values):
        path.write_text(json.dumps(values)[:-5])
        if path.name == "state.json":
            die()

    checkpoint.write_json = write_json


def before_rename(number):
    """A function that lets the process die before the rename `number` (from 1 on) of a save."""

    def prepare():
        rename, done = Path.rename, []

        def rename_or_die(path, target):
            done.append(path)
            return die() if len(done) == number else rename(path, target)

        Path.rename = rename_or_die

    return prepare


def while_a_folder_is_removed():
    def remove_half(folder, ignore_errors=False):
        (folder / "model.safetensors").unlink()
        die()

    shutil.rmtree = remove_half


def killed(prepare, *arguments, **options):
    """`save` in a process of its own, that dies where `prepare` says."""

    def run():
        prepare()
        save(*arguments, **options)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("prepare", "left"),
    [
        (while_the_model_is_written, [1, 2, 3]),
        (while_the_optimizer_is_written, [1, 2, 3]),
        (while_the_state_is_written, [1, 2, 3]),
        (before_rename(1), [1, 2, 3]),  # of the new checkpoint, whole under its temporary name
        (before_rename(2), [1, 2, 3, 4]),  # of the first that is to be removed
        (while_a_folder_is_removed, [2, 3, 4]),
    ],
)
def test_killed_while_saving_leaves_whole_checkpoints(tmp_path, prepare, left):
    for earlier in (1, 2, 3):
        save(tmp_path, earlier)
    killed(prepare, tmp_path, 4, keep=2, resumed=checkpoint_folder(tmp_path, 3))
    assert steps(tmp_path) == left
    for path in checkpoints(tmp_path):
        assert_whole(path, int(path.name[-1]))
    newest = resumed_from(tmp_path)
    assert_whole(newest, left[-1])
    save(tmp_path, 5, keep=2, resumed=newest)
    assert steps(tmp_path) == [left[-1], 5]
    assert_whole(resumed_from(tmp_path), 5)
    assert other_names(tmp_path) == []


def test_killed_in_the_first_save_of_all(tmp_path):
    killed(while_the_optimizer_is_written, tmp_path, 1)
    assert checkpoints(tmp_path) == [] and other_names(tmp_path) == ["step-00000001.tmp"]
    assert resumed_from(tmp_path) is None


@pytest.mark.parametrize(
    "large",
    [
        {"optimizer": {"one": torch.zeros(100_000)}},
        {"optimizer": {number: torch.zeros(1000) for number in range(100)}},
        {"optimizer": {"text": "a" * 200_000}},
        {"model": torch.nn.Linear(300, 300)},
    ],
    ids=["one tensor", "many tensors", "no tensor", "model"],
)
def test_a_full_disk_is_told_and_the_older_ones_stay(tmp_path, large):
    save(tmp_path, 1)
    with longest_file(100_000), pytest.raises(OSError, match="File too large"):
        save(tmp_path, 2, keep=1, **large)
    assert steps(tmp_path) == [1] and other_names(tmp_path) == []
    assert_whole(resumed_from(tmp_path), 1)


def test_another_error_while_saving_is_none_of_the_disk(tmp_path):
    class Lost(torch.nn.Linear):
        def state_dict(self, *_, **__):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    class Unreadable:
        def __reduce__(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    save(tmp_path, 1)
    for told in ({"model": Lost(1, 1)}, {"optimizer": {"moment": [torch.zeros(9), Unreadable()]}}):
        with pytest.raises(RuntimeError, match="CUDA error"):
            save(tmp_path, 2, keep=1, **told)
        assert steps(tmp_path) == [1]
