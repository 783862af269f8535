"""train.py as users run it: killed, resumed, on several processes, and with mistakes in its arguments."""

import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.datasets import make_dataset
from tests.runs import (
    SMALL,
    command_line,
    environment,
    mistake,
    run_to_end,
    signal_in_each_step,
    train,
    train_command,
)
from tests.test_model_step import Waits
from tools.make_world import main as make_world
from training.checkpoint import checkpoints
from training.evaluate import main as evaluate
from training.loop import Window
from training.out_of_memory import out_of_memory_told
from training.processes import StopRequest, signals_given_back, start_processes
from training.recipes import parse_arguments
from training.run_folder import read_step_log
from training.task import Pretraining
from training.train import main, make_loop

COMMON = ["--steps=8", "--batch-size=4", "--save-every=2", "--log-every=1", "--trace-keys", "--optimizer.lr=1e-3"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data set") / "shards", (7, 6))  # 13 samples: nothing divides them


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "whole"
    train(f"--data={dataset}", f"--out={run}", *COMMON)
    return run


def weights(run):
    return load_file(checkpoints(run)[-1] / "model.safetensors")


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def keys(run, world=1):
    """The global order of keys: (step, keys) with the ranks' shares put together."""
    ranks = [read_step_log(run / f"keys-rank{rank}.jsonl") for rank in range(world)]
    return [(lines[0]["step"], [key for line in lines for key in line["keys"]]) for lines in zip(*ranks, strict=True)]


def losses(run):
    return {line["step"]: line["loss"] for line in read_step_log(run / "metrics.jsonl")}


def test_a_run_leaves_what_the_readme_says(dataset, uninterrupted):
    assert [path.name for path in checkpoints(uninterrupted)] == ["step-00000004", "step-00000006", "step-00000008"]
    assert json.loads((uninterrupted / "config.json").read_text())["batch_size"] == 4
    state = json.loads((checkpoints(uninterrupted)[-1] / "state.json").read_text())
    assert (state["step"], state["epoch"], state["cursor"]) == (8, 2, 6)  # 32 samples = 2 epochs of 13 and 6 more
    assert state["next_shard"] in {"shard-000000.tar", "shard-000001.tar"}
    assert len((checkpoints(uninterrupted)[-1] / "state.json").read_bytes()) < 400
    lines = read_step_log(uninterrupted / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    line = lines[-1]
    assert line["loss"] == pytest.approx(
        0.1 * line["contrast"] + sum(line[p] for p in ("cdt_audio", "cdt_visual", "emb_audio", "emb_visual")), rel=1e-5
    )
    seen = [key for _, step_keys in keys(uninterrupted) for key in step_keys]
    assert len(set(seen[:13])) == len(set(seen[13:26])) == 13


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"ended before {path.name} was there"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_and_resumed_equals_uninterrupted_to_the_bit(dataset, uninterrupted, tmp_path):
    run = tmp_path / "killed"
    arguments = [f"--data={dataset}", f"--out={run}", *COMMON]
    for until in ("step-00000002", "step-00000006"):
        process = subprocess.Popen(train_command(*arguments), env=environment(), start_new_session=True)
        wait_for(run / "checkpoints" / until, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # Another worker count, which must not matter either.
    assert "resuming" in train(*arguments, "--workers=0").stdout
    assert keys(run) == keys(uninterrupted)
    assert losses(run) == losses(uninterrupted)
    assert_same_weights(run, uninterrupted)


def test_sigterm_saves_and_the_same_command_goes_on(dataset, uninterrupted, tmp_path):
    run = tmp_path / "stopped"
    arguments = [f"--data={dataset}", f"--out={run}", *COMMON]
    process = subprocess.Popen(
        train_command(*arguments, "--save-every=100"), env=environment(), stdout=subprocess.PIPE, text=True
    )
    wait_for(run / "metrics.jsonl", process)
    while not read_step_log(run / "metrics.jsonl"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stopped on a signal" in output
    assert 1 <= int(checkpoints(run)[-1].name.removeprefix("step-")) < 8
    train(*arguments)
    assert keys(run) == keys(uninterrupted)
    assert_same_weights(run, uninterrupted)


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_take_the_same_samples_and_agree_in_loss(processes, dataset, uninterrupted, tmp_path):
    run = tmp_path / "several"
    result = train(f"--data={dataset}", f"--out={run}", *COMMON, processes=processes)
    assert f"{processes} processes" in result.stdout
    assert keys(run, world=processes) == keys(uninterrupted)
    # Sums are taken in another order; eight steps of AdamW at a rate of 1e-3 let round-off grow to some 1e-5.
    assert losses(run) == pytest.approx(losses(uninterrupted), rel=2e-4)


def test_pieces_with_the_contrast_cached_agree_in_loss(dataset, uninterrupted, tmp_path):
    run = tmp_path / "pieces"
    arguments = [f"--data={dataset}", f"--out={run}", *COMMON, "--device-batch-size=1", "--contrast-cache"]
    assert "of one piece" not in train(*arguments).stdout
    assert losses(run) == pytest.approx(losses(uninterrupted), rel=2e-4)


def test_another_world_size_goes_on_in_the_middle_of_an_epoch(dataset, uninterrupted, tmp_path):
    run = tmp_path / "elastic"
    step_4 = "checkpoints/step-00000004"  # 16 samples: 3 of the second epoch
    shutil.copytree(uninterrupted / step_4, run / step_4)
    train(f"--data={dataset}", f"--out={run}", *COMMON, processes=2)
    assert keys(run, world=2) == keys(uninterrupted)[4:]
    assert losses(run) == pytest.approx({s: loss for s, loss in losses(uninterrupted).items() if s > 4}, rel=2e-4)


def test_accumulating_takes_the_same_samples(dataset, uninterrupted, tmp_path):
    run = tmp_path / "pieces"
    train(f"--data={dataset}", f"--out={run}", *COMMON, "--device-batch-size=2", "--variant=selfmae")
    pieces = read_step_log(run / "keys-rank0.jsonl")
    together = [[key for line in pieces if line["step"] == step for key in line["keys"]] for step in range(1, 9)]
    assert together == [step_keys for _, step_keys in keys(uninterrupted)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=absent"], "dataset absent does not exist"),
        (["--batch-size=0"], "--batch-size must be at least 1, got 0"),
        (["--device-batch-size=3"], "--device-batch-size 3 does not divide a process's share of 4"),
        (["--resume=never"], "holds checkpoints up to step-00000008: use --resume auto or another --out"),
        (["--resume=nowhere"], "nowhere is no checkpoint and no run folder"),
        (["--seed=1"], "was trained with --seed 0, not 1"),
        (["--model.encoder.depth=3"], "holds another model: model.encoder.depth is 2, asked for 3"),
        (["--variant=selfmae"], "holds another model: "),
        (["--model.mask.image-ratio=1.5"], "mask.image_ratio is 1.5"),
    ],
)
def test_a_mistake_gets_one_line(dataset, uninterrupted, arguments, message, capsys):
    told = [f"--data={dataset}", f"--out={uninterrupted}", *COMMON, *arguments]
    assert mistake(capsys, *SMALL, *told).count(message) == 1


def test_a_batch_that_the_processes_do_not_divide_is_refused(dataset, tmp_path):
    result = train(
        f"--data={dataset}", f"--out={tmp_path / 'run'}", *COMMON, "--batch-size=5", processes=2, status=1
    )  # 1 is torchrun's
    assert "--batch-size 5 cannot be divided among 2 processes" in result.stderr


def test_a_checkpoint_of_another_dataset_is_refused(uninterrupted, tmp_path, capsys):
    other = make_dataset(tmp_path / "other", (7, 6), seed=1)
    told = [f"--data={other}", f"--out={uninterrupted}", *COMMON]
    assert "was trained on another dataset" in mistake(capsys, *SMALL, *told)


@pytest.fixture
def damaged(tmp_path):
    """A dataset, and its tar in which a byte of a sample is another."""
    dataset = make_dataset(tmp_path / "damaged", (7, 6))
    tar = dataset / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    return dataset, tar


def test_a_damaged_sample_stops_the_run_and_is_named(damaged, tmp_path):
    dataset, tar = damaged
    result = train(f"--data={dataset}", f"--out={tmp_path / 'run'}", *COMMON, status=1)
    assert "train.py: stopped: " in result.stderr and f"{tar}: sample clip01" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_that_a_loss_stops_has_told_what_it_skipped(damaged, tmp_path):
    dataset, tar = damaged
    told = ["--optimizer.lr=1e30", "--log-every=100", "--on-bad-sample=skip", "--steps=12"]
    result = train(f"--data={dataset}", f"--out={tmp_path / 'run'}", *COMMON, *told, status=1)
    skipped, _, stopped = result.stderr.partition("train.py: stopped: the loss of step")
    assert f"skipped: {tar}: sample clip01" in skipped and "is not finite" in stopped


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(dataset, tmp_path):
    run = tmp_path / "run"
    told = ["--optimizer.lr=1e30", "--log-every=4", "--diagnose-every=2"]
    result = train(f"--data={dataset}", f"--out={run}", *COMMON, *told, status=1)
    assert "is not finite" in result.stderr and "its samples: clip" in result.stderr
    assert "Traceback" not in result.stderr
    step = int(result.stderr.split("the loss of step ")[1].split()[0])
    expected = dict(keys(run))[step]
    assert result.stderr.strip().endswith(" ".join(expected))
    assert all(torch.isfinite(t).all() for t in weights(run).values()) if checkpoints(run) else True


def test_every_loss_that_can_falls_on_a_made_world(tmp_path):
    """The contrastive loss takes hundreds of steps (docs/ablation.md); the others begin at once."""
    make_world([str(tmp_path / "world"), "--direct", "--seed=0", "--classes=25", "--level=easy", "--splits=train:32"])
    told = ["--preset=world-tiny", f"--data={tmp_path / 'world' / 'train'}", f"--out={tmp_path / 'run'}"]
    run_to_end(command_line("train.py", *told, "--steps=14", "--batch-size=8", "--log-every=1", "--optimizer.lr=1e-3"))
    lines = read_step_log(tmp_path / "run" / "metrics.jsonl")
    for part in ("cdt_audio", "cdt_visual", "emb_audio", "emb_visual"):
        first, last = (sum(line[part] for line in some) / 3 for some in (lines[:3], lines[-3:]))
        assert last < 0.95 * first, part


@pytest.mark.parametrize("told", [[], ["--optimizer.clip-grad=1.0"], ["--device-batch-size=1", "--contrast-cache"]])
def test_a_step_of_the_loop_never_waits_for_the_device(told, dataset, tmp_path):
    config = parse_arguments([*SMALL, f"--data={dataset}", f"--out={tmp_path / 'run'}", *COMMON, "--workers=0", *told])
    loop, window = make_loop(config, start_processes(config)), Window(first_step=0)
    with signals_given_back():
        batches = loop._batches(StopRequest())
    with Waits() as waits:
        loop._one_step(batches, window)
    assert waits.found == []


@pytest.mark.parametrize("told", [[], ["--optimizer.clip-grad=1.0"]])
def test_a_gradient_that_is_not_finite_is_never_saved(told, dataset, tmp_path, monkeypatch, capsys):
    """The loss may be finite all the same: one overflow in a backward pass would spoil every weight."""
    real = Pretraining.losses

    def losses(self, *arguments):
        if len(checkpoints(tmp_path / "run")) == 2:  # in the third step
            self.weights.image_encoder.cls_token.register_hook(lambda gradient: gradient * torch.inf)
        return real(self, *arguments)

    monkeypatch.setattr("training.train.Pretraining.losses", losses)
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, f"--data={dataset}", f"--out={tmp_path / 'run'}", *COMMON, "--save-every=1", *told])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "train.py: stopped: the gradient of step 3 is not finite (loss " in said and "its samples: clip" in said
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000001", "step-00000002"]
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run").values())


LATE = """import os, signal, sys
from training.train import main

class Late:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGUSR1):  # as Python takes its modules apart
        kill(process, number)

late = Late()
main()
for number in (signal.SIGUSR1, signal.SIGTERM):
    os.kill(os.getpid(), number)
"""


def test_a_warning_that_comes_after_the_end_changes_nothing(dataset, tmp_path):
    told = [f"--data={dataset}", f"--out={tmp_path / 'run'}", *COMMON, "--steps=1"]
    said = run_to_end([sys.executable, "-c", LATE, *SMALL, *told]).stdout  # Slurm's, before the exit
    assert "done: step 1 of 1" in said


def test_a_program_that_trains_has_its_signals_back_afterwards(dataset, tmp_path, monkeypatch):
    """A notebook, say, or these tests: Ctrl-C."""
    signal_in_each_step(monkeypatch)
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, f"--data={dataset}", f"--out={tmp_path / 'run'}", *COMMON, "--workers=0"])
    assert ended.value.code == 75
    assert [signal.getsignal(number) for number in numbers] == before


def test_too_little_memory_is_told_in_two_lines(dataset, tmp_path, monkeypatch, capsys):
    def losses(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("training.train.Pretraining.losses", losses)
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, f"--data={dataset}", f"--out={tmp_path / 'run'}", *COMMON])
    assert ended.value.code == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "train.py: stopped: CUDA out of memory. Tried to allocate 20.00 MiB."
    assert second.startswith("train.py: a smaller --device-batch-size needs less memory")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (
            lambda: torch.empty(1 << 45),
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 140737488355328",
        ),
        (lambda: mmap.mmap(-1, 1 << 50), "[Errno 12] Cannot allocate memory"),
        (lambda: bytearray(1 << 60), "out of memory"),
    ],
)
def test_the_memory_of_the_machine_gets_the_same_lines(ask, said, capsys):
    with pytest.raises(SystemExit) as ended, out_of_memory_told("less needs less"):
        ask()
    first, second = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and first.startswith(f"stopped: {said}") and second == "less needs less"


def test_other_errors_are_not_taken_for_memory():
    for error in (RuntimeError("shapes differ"), OSError(28, "No space left on device")):
        with pytest.raises(type(error)), out_of_memory_told(""):
            raise error


def test_evaluate_retrieval_names_pool_and_chance(dataset, uninterrupted, tmp_path, capsys):
    out = tmp_path / "retrieval.json"
    evaluate(["retrieval", f"--data={dataset}", f"--checkpoint={uninterrupted}", f"--out={out}", "--workers=1"])
    result = json.loads(out.read_text())
    assert (result["pool"], result["step"]) == (13, 8) and "retrieval: 13 samples" in capsys.readouterr().out
    assert result["baselines"]["chance"]["R@1"] == pytest.approx(100 / 13)
    for direction in ("audio -> image", "image -> audio"):
        recall = result["metrics"][direction]
        assert 0 <= recall["R@1"] <= recall["R@5"] <= recall["R@10"] <= 100


def test_evaluate_ends_in_one_line_on_damage(uninterrupted, tmp_path, capsys):
    dataset = make_dataset(tmp_path / "damaged", (7, 6))
    data = bytearray((dataset / "shard-000001.tar").read_bytes())
    data[len(data) // 2] ^= 1
    (dataset / "shard-000001.tar").write_bytes(data)
    with pytest.raises(SystemExit) as ended:
        common = ["retrieval", f"--data={dataset}", f"--checkpoint={uninterrupted}", "--workers=0"]
        evaluate([*common, "--cache-features=none"])  # an equal dataset may have been encoded before
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert said[-1].startswith("evaluate.py: stopped: ") and "shard-000001.tar: sample clip01" in said[-1]
