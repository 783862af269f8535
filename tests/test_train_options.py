"""What train.py can be told beside the plain run: targets, precision, pieces, trackers, and a disk that is full."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from shards_spec.errors import UserError
from tests.datasets import make_dataset
from tests.runs import SMALL, command_line, environment, run_to_end, train, train_command
from training.checkpoint import TrainState, checkpoints, read_state, save_checkpoint
from training.config import OptimizerConfig
from training.optimizer import gradient_norms, learning_rate, make_optimizer
from training.recipes import parse_arguments
from training.resume import check_same_run
from training.run_folder import StepLog, read_step_log
from training.task import Pretraining
from training.train import main
from training.trained import FbankScale

SCALE = FbankScale(mean=-4.0, std=4.0)  # of the datasets of tests/datasets.py
COMMON = ["--steps=6", "--batch-size=4", "--save-every=2", "--log-every=1", "--optimizer.lr=1e-3"]

GOLDEN = [6.25726, 5.77090, 5.52965, 5.24534, 5.38242, 5.03415, 5.00397, 4.73224, 4.91758, 4.82040]
GOLDEN += [4.61805, 4.77500, 4.54224, 4.44774, 4.72857, 4.54986, 4.48173, 4.60284, 4.29144, 4.49664]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "shards", (7, 6))


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A run with everything that has a state of its own: a teacher, pieces, bf16; and a tracker beside it."""
    run = tmp_path_factory.mktemp("run") / "whole"
    options = ["--device-batch-size=2", "--contrast-cache", "--mixed-precision=bf16", "--model.embedding.targets=ema"]
    options += ["--keep=9", "--diagnose-every=2", "--report-to=tensorboard"]
    arguments = [f"--data={dataset}", *COMMON, *options]
    train(*arguments, f"--out={run}")
    return run, arguments


def losses(run):
    return [line["loss"] for line in read_step_log(run / "metrics.jsonl")]


def test_the_losses_of_20_steps_are_what_they_were(dataset, tmp_path):
    """Recorded with torch 2.11. Kernels for other processors change the sixth digit."""
    told = ["--preset=crossmae-tiny", f"--data={dataset}", f"--out={tmp_path / 'run'}"]
    told += ["--steps=20", "--batch-size=4", "--log-every=1", "--optimizer.lr=2e-4"]
    run_to_end(command_line("train.py", *told))
    assert losses(tmp_path / "run") == pytest.approx(GOLDEN, rel=1e-4)


def test_resumes_to_the_bit_with_a_teacher_in_pieces_and_bf16(finished, tmp_path):
    whole, arguments = finished
    run = tmp_path / "resumed"
    shutil.copytree(whole / "checkpoints" / "step-00000002", run / "checkpoints" / "step-00000002")
    assert "step-00000002 at step 2 of 6" in train(*arguments, f"--out={run}").stdout
    assert losses(run) == losses(whole)[2:]
    first, second = (load_file(checkpoints(r)[-1] / "model.safetensors") for r in (whole, run))
    assert any(name.startswith("teacher.") for name in first)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert [path.name[-1] for path in checkpoints(run)] == ["2", "4", "6"]


def test_the_teacher_follows(finished):
    whole, _ = finished
    before, after = (load_file(path / "model.safetensors") for path in checkpoints(whole)[:2])
    name = "image_encoder.blocks.0.mlp.fc1.weight"
    assert not torch.equal(before[f"teacher.{name}"], after[f"teacher.{name}"])
    assert not torch.equal(after[f"teacher.{name}"], after[name])


def test_metrics_and_the_tracker_hold_the_same(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole, _ = finished
    lines = read_step_log(whole / "metrics.jsonl")
    assert all(("grad_norm/image_encoder" in line) == (line["step"] % 2 == 0) for line in lines)
    events = EventAccumulator(str(next(whole.rglob("events.out.*")).parent))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])


def test_a_tracker_that_is_not_installed_is_named(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.processes.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main([f"--data={dataset}", f"--out={tmp_path / 'run'}", "--report-to=wandb"])
    message = "train.py: error: --report-to wandb: it is not installed: pip install 'crossmae[trackers]'"
    assert ended.value.code == 2 and capsys.readouterr().err.splitlines() == [message]


def test_frozen_targets_of_a_first_stage(finished, dataset, tmp_path):
    whole, _ = finished
    arguments = [*SMALL, f"--data={dataset}", f"--out={tmp_path}", "--model.embedding.targets=teacher"]
    with pytest.raises(UserError, match="needs --teacher RUN, the run of the first stage"):
        Pretraining(parse_arguments(arguments)).initialise(SCALE)
    task = Pretraining(parse_arguments([*arguments, f"--teacher={whole}"]))
    assert task.initialise(SCALE) == [f"the embedding targets are those of {checkpoints(whole)[-1]}"]
    first_stage = load_file(checkpoints(whole)[-1] / "model.safetensors")
    own = task.weights.state_dict()
    for name in ("image_encoder.cls_token", "audio_encoder.blocks.1.attn.qkv.weight"):
        assert torch.equal(own[f"teacher.{name}"], first_stage[name]) and not torch.equal(own[name], first_stage[name])
    other = [*arguments, f"--teacher={whole}", "--model.encoder.dim=64"]
    with pytest.raises(UserError, match=r"--teacher: the encoders of .* have dim 32, this run's have dim 64: give"):
        Pretraining(parse_arguments(other)).initialise(SCALE)


def test_a_run_starts_from_another_one(finished, dataset, tmp_path):
    whole, _ = finished
    task = Pretraining(
        parse_arguments([*SMALL, f"--data={dataset}", f"--out={tmp_path}", f"--init={whole}", "--variant=selfmae"])
    )
    assert task.initialise(SCALE)
    other, own = load_file(checkpoints(whole)[-1] / "model.safetensors"), task.weights.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own if name.startswith(("image_encoder", "audio_enc")))


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_is_reported_and_the_run_goes_on(dataset, tmp_path):
    run = tmp_path / "run"
    command = train_command(f"--data={dataset}", f"--out={run}", *COMMON)
    result = run_to_end(command, status=1, preexec_fn=limit_file_size)
    assert "Traceback" not in result.stderr
    assert result.stderr.count("going on to the next save") == 2
    assert "train.py: stopped: the checkpoint of step 6 could not be written" in result.stderr
    assert "File too large" in result.stderr and "there is no checkpoint yet" in result.stderr
    assert [line["step"] for line in read_step_log(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert list((run / "checkpoints").iterdir()) == []
    train(f"--data={dataset}", f"--out={run}", *COMMON)
    assert [path.name for path in checkpoints(run)] == ["step-00000002", "step-00000004", "step-00000006"]


def test_a_log_line_that_does_not_fit_leaves_no_piece_behind(tmp_path, monkeypatch, capsys):
    class FullDisk:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[:5])

        def __getattr__(self, name):
            return getattr(self.file, name)

    log = StepLog(tmp_path / "metrics.jsonl", 0)
    log.write({"step": 1})
    whole, log._file = log._file, FullDisk(log._file)
    log.write({"step": 2})
    assert "no line for step 2: [Errno 28] No space left on device" in capsys.readouterr().err
    log._file = whole
    log.write({"step": 3})
    log.close()
    assert [line["step"] for line in read_step_log(tmp_path / "metrics.jsonl")] == [1, 3]


def test_the_checkpoint_that_a_run_began_from_is_kept(tmp_path):
    def save(step, resumed=None):
        place = {"fingerprint": "", "seed": 0, "epoch": 0, "cursor": 0, "next_shard": "", "next_offset": 0}
        state = TrainState(step=step, **place)
        model = torch.nn.Linear(1, 1)
        return save_checkpoint(tmp_path, state, model=model, optimizer={}, config={}, keep=2, resumed=resumed)

    first = save(1)
    for step in (2, 3, 4):
        save(step, resumed=first)
    assert [path.name[-1] for path in checkpoints(tmp_path)] == ["1", "3", "4"]


def test_adam_l2_puts_the_decay_into_the_gradient():
    """By hand: Adam's first step is lr x sign(gradient + decay x weight) where betas and eps play no role."""
    model = torch.nn.Linear(1, 1, bias=False)
    for kind, expected in (("adamw", 2 - 0.1 * 0.5 * 2 + 0.1), ("adam_l2", 2 - 0.1)):
        with torch.no_grad():
            model.weight.fill_(2.0)
        config = OptimizerConfig(kind=kind, lr=0.1, weight_decay=0.5)
        optimizer = make_optimizer(model, config, fused=False)
        model.weight.grad = torch.tensor([[-0.5]])  # plus the decay, 1.0: the sign turns
        optimizer.step()
        assert model.weight.item() == pytest.approx(expected, abs=1e-6)


def test_the_base_rate_grows_with_the_batch():
    config = OptimizerConfig(lr=1e-4, warmup=0.0)
    assert learning_rate(0, 10, config, 1024) == 1e-4
    assert learning_rate(0, 10, replace(config, scale_lr=True), 1024) == pytest.approx(4e-4)


def test_gradient_norms_by_hand():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(1, 1), "none": torch.nn.ReLU()})
    model["a"].weight.grad, model["a"].bias.grad = torch.tensor([[1.0, 2.0]]), torch.tensor([2.0])
    assert {name: norm.item() for name, norm in gradient_norms(model).items()} == {"grad_norm/a": 3.0}


def test_a_checkpoint_of_an_older_version_is_taken(finished, tmp_path):
    """Options that came later have their defaults; what only saves memory may change on the way."""
    whole, arguments = finished
    run = tmp_path / "older"
    shutil.copytree(whole / "checkpoints" / "step-00000006", run / "checkpoints" / "step-00000006")
    path = run / "checkpoints" / "step-00000006" / "config.json"
    config = json.loads(path.read_text())
    del config["model"]["checkpoint_activations"], config["model"]["embedding"]["ema_momentum"]
    del config["model"]["encoder"]["padding"]
    path.write_text(json.dumps(config))
    run_config = parse_arguments([*SMALL, *arguments, f"--out={run}", "--model.checkpoint-activations"])
    fingerprint = read_state(run / "checkpoints" / "step-00000006").fingerprint
    check_same_run(path.parent, run_config, fingerprint, ("order", "model"))
    config["model"]["embedding"]["depth"] = 7
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"holds another model: model.embedding.depth is 7, asked for 1"):
        check_same_run(path.parent, run_config, fingerprint, ("order", "model"))


def test_a_signal_ends_the_wait_for_a_server_that_hangs(server, tmp_path):
    """The shards of the first steps come, the next ones do not: the run saves what it did and stops."""
    run = tmp_path / "run"
    told = [
        f"--data={server.url}",
        f"--out={run}",
        f"--cache-dir={tmp_path / 'cache'}",
        "--shuffle=block",
        "--window=1",
    ]
    told += ["--steps=8", "--batch-size=2", "--log-every=1", "--workers=1"]
    server.rate = 400_000  # half a second and more for a shard
    process = subprocess.Popen(train_command(*told), env=environment(), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not read_step_log(run / "metrics.jsonl"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    server.hangs = True
    steps = -1
    while (now := len(read_step_log(run / "metrics.jsonl"))) != steps:  # until what was fetched is used up
        steps = now
        time.sleep(3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped on a signal" in output
    assert [path.name for path in checkpoints(run)] == [f"step-{steps:08d}"] and 1 <= steps < 8


PATIENCE = """import torch.distributed as dist
from training.processes import StopRequest, join_processes

def telling(make):
    def made(**options):
        print("patience", options["timeout"])
        return make(**options)
    return made

dist.init_process_group, dist.new_group = telling(dist.init_process_group), telling(dist.new_group)
join_processes()
StopRequest()
dist.destroy_process_group()
"""


def test_processes_wait_for_shards_that_come_slowly(monkeypatch):
    """A process in a step waits there for another one that still fetches."""
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    said = run_to_end([sys.executable, "-c", PATIENCE]).stdout.splitlines()
    assert [line for line in said if line.startswith("patience")] == ["patience 0:30:00"] * 2


def test_two_runs_at_once_in_one_folder(dataset, tmp_path):
    run = tmp_path / "run"
    told = [f"--data={dataset}", f"--out={run}", *COMMON]
    first = subprocess.Popen(
        train_command(*told, "--steps=10000", "--save-every=9999"), env=environment(), stdout=subprocess.DEVNULL
    )
    while not read_step_log(run / "metrics.jsonl"):
        assert first.poll() is None
        time.sleep(0.02)
    refused = train(*told, status=2).stderr
    assert f"{run} is in use by process {first.pid} on " in refused and refused.count("\n") == 1
    first.kill()
    first.wait()
    train(*told)  # at once: the lock went with the process, whatever its loader's processes do
    assert checkpoints(run)[-1].name == "step-00000006"
