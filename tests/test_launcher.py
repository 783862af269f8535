"""What the launcher and its config files ask for: it is there, or one line says that it is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config import config_args

from shards_spec.cores import usable_cores
from shards_spec.errors import UserError
from tests.datasets import make_dataset
from tests.models import told
from tests.runs import ROOT, SMALL, environment, mistake
from training.launcher import (
    Launch,
    _launcher_arguments,
    check_devices,
    check_processes,
    check_ways,
    find_launch,
    passed_over,
    read_launch,
)
from training.processes import (
    _SIGNALS,
    StopRequest,
    join_processes,
    lay_out_gradients,
    start_processes,
    threads_of_a_process,
)
from training.recipes import parse_arguments

LAUNCH = ROOT / "docs" / "launch"
TWO_ON_CPU = "distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\nnum_machines: 1\n"
ONE_AS_ANSWERED = "distributed_type: 'NO'\nuse_cpu: false\ngpu_ids: all\nnum_processes: 1\nnum_machines: 1\n"
SCRIPT = ["train.py", "--data", "d", "--num_processes", "9"]


@pytest.fixture
def users_own(tmp_path, monkeypatch):
    """The config file of the user, which does not exist yet."""
    path = tmp_path / "default_config.yaml"
    monkeypatch.setattr(config_args, "default_config_file", str(path))
    return path


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("/v/bin/python /v/bin/accelerate launch --cpu train.py --data launch", "--cpu train.py --data launch"),
        ("/v/bin/python /v/bin/accelerate-launch train.py", "train.py"),
        ("python -m accelerate.commands.launch --cpu train.py", "--cpu train.py"),
        ("python -m accelerate.commands.accelerate_cli launch train.py", "train.py"),
        ("python launch.py accelerate", None),
        ("/v/bin/python /v/bin/torchrun train.py", None),
        ("bash -c accelerate", None),
        ("", None),
    ],
)
def test_the_launcher_is_known_by_its_command_line(line, arguments):
    assert _launcher_arguments(line.split()) == (None if arguments is None else arguments.split())


def test_the_launcher_is_the_parent_process(tmp_path):
    """Its command line and its folder, as the system tells them."""
    (tmp_path / "two.yaml").write_text(TWO_ON_CPU)
    child = "from training.launcher import find_launch; print(find_launch().processes_asked_by)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    (tmp_path / "accelerate").write_text(parent)
    said = subprocess.run(
        [sys.executable, "accelerate", "launch", "--config_file=two.yaml", *SCRIPT],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"num_processes: 2 of {tmp_path / 'two.yaml'}\n"
    assert find_launch() == Launch()  # pytest's own parent is none


def test_processes_asked_for_by_words_or_by_a_file(tmp_path, users_own):
    named = tmp_path / "two.yaml"
    named.write_text(TWO_ON_CPU)
    for words, expected in (
        (["--cpu", "--num_processes", "2"], 2),
        (["--num-processes=3"], 3),
        (["--cpu"], None),
        ([f"--config_file={named}"], 2),
        (["--config_file", "two.yaml", "--num_processes=4"], 4),
    ):
        assert read_launch([*words, *SCRIPT], tmp_path).processes == expected, words
    users_own.write_text(TWO_ON_CPU)
    assert read_launch(SCRIPT, tmp_path).processes == 2
    assert read_launch(["--cpu", *SCRIPT], tmp_path).processes is None  # the launcher does not read it then


def test_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "two.yaml").write_text(TWO_ON_CPU)
    launch = read_launch(["--config_file=two.yaml", *SCRIPT], tmp_path)
    check_processes(launch, started=2)
    with pytest.raises(UserError, match=r"asked for 2 processes and started 1 \(num_processes: 2 of .*two.yaml\): on"):
        check_processes(launch, started=1)
    monkeypatch.setenv("WORLD_SIZE", "1")  # a launcher that counts
    check_processes(launch, started=1)


@pytest.mark.parametrize("name", ["one_gpu", "one_node_8_gpus", "four_nodes_8_gpus"])
def test_a_launch_file_for_gpus_needs_one(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch = read_launch(["--config_file", str(LAUNCH / f"{name}.yaml"), *SCRIPT], Path())
    with pytest.raises(UserError, match=rf"{name}.yaml is for GPUs, and torch finds none here .*: give --device cpu"):
        check_devices(launch, "auto")
    check_devices(launch, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_devices(launch, "auto")


def test_what_is_not_for_gpus_needs_none(tmp_path, users_own, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "two.yaml").write_text(TWO_ON_CPU)
    users_own.write_text(ONE_AS_ANSWERED)  # no to "on CPU only?" is what most answer
    for words in (["--config_file=two.yaml"], [], ["--multi_gpu", "--num_processes=2"]):
        check_devices(read_launch([*words, *SCRIPT], tmp_path), "auto")
    users_own.write_text(ONE_AS_ANSWERED.replace("'NO'", "MULTI_GPU"))
    with pytest.raises(UserError, match=r"default_config.yaml is for GPUs"):
        check_devices(read_launch(SCRIPT, tmp_path), "auto")
    with pytest.raises(UserError, match=r"--device cuda: torch finds no GPU here"):
        check_devices(Launch(), "cuda")


def test_another_loop_is_refused(monkeypatch):
    check_ways()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"asked for FSDP \(ACCELERATE_USE_FSDP\)"):
        check_ways()


def test_the_environment_changes_nothing_in_the_loop(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = join_processes()
    assert accelerator.gradient_accumulation_steps == 1
    assert accelerator.state.dynamo_plugin.backend == "NO"
    weight = torch.ones(1, requires_grad=True)
    accelerator.backward(2 * weight.sum())
    assert weight.grad is not None and weight.grad.item() == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("warning: ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is passed over: --device-batch-size")
    assert said[1].startswith("warning: ACCELERATE_DYNAMO_BACKEND=INDUCTOR is passed over: --compile")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert passed_over() == []


def test_half_precision_on_the_cpu_is_refused(tmp_path, monkeypatch, capsys):
    """It would be computed in float32."""
    dataset = make_dataset(tmp_path / "data", (2,))
    told = [*SMALL, f"--data={dataset}", f"--out={tmp_path / 'run'}", "--device=cpu"]
    expected = "train.py: error: fp16 needs a GPU, and this run is on the CPU: give --mixed-precision bf16, or no\n"
    reset_accelerate()
    assert mistake(capsys, *told, "--mixed-precision=fp16") == expected
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    reset_accelerate()
    assert mistake(capsys, *told) == expected
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert "accelerate launch was told mixed_precision fp8: give --mixed-precision" in mistake(capsys, *told)
    reset_accelerate()
    assert start_processes(parse_arguments([*told, "--mixed-precision=bf16"])).mixed_precision == "bf16"
    reset_accelerate()


def reset_accelerate():
    """Its state is one of the process, with the precision that was asked for first."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


# -------------------------------------------------------------------- cores


def test_each_process_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [threads_of_a_process(cores, 0) for cores in (1, 2, 16)] == [1, 2, 16]
    assert [threads_of_a_process(cores, 2) for cores in (1, 2, 16)] == [1, 1, 15]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [threads_of_a_process(cores, 2) for cores in (2, 16)] == [1, 3]


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_threads_are_chosen_where_the_user_has_not(variable, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr("training.processes.usable_cores", lambda: 6)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    join_processes(device="cpu", workers=1)
    assert chosen == [5]
    monkeypatch.setenv(variable, "3")
    join_processes(device="cpu", workers=1)
    assert chosen == [5]


def test_a_container_has_as_many_cores_as_it_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert usable_cores(tmp_path) == 64
    for text, expected in (("150000 100000", 2), ("max 100000", 64), ("20000 100000", 1), ("9900000 100000", 64)):
        (tmp_path / "cpu.max").write_text(f"{text}\n")
        assert usable_cores(tmp_path) == expected, text
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    for name, value in (("quota", "300000"), ("period", "100000")):
        (tmp_path / "cpu" / f"cpu.cfs_{name}_us").write_text(value)
    assert usable_cores(tmp_path) == 3
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    assert usable_cores(tmp_path) == 64


# -------------------------------------------------------------------- signals, gradients, users without a name


def test_a_terminal_that_closes_stops_a_run_unless_it_ignores_that():
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        StopRequest()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        request = StopRequest()
        os.kill(os.getpid(), signal.SIGHUP)
        assert request.agreed() and request.signal == signal.SIGHUP
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_gradients_are_laid_out_as_their_parameters():
    """The [CLS] tokens of a batch of one are cut out of the gradient of the whole sequence."""
    from training.task import Pretraining

    task = Pretraining(parse_arguments([*SMALL, "--data=d", "--out=o", "--variant=cl-av"]))
    image, fbank, seeds = torch.randn(1, 3, 224, 224), torch.randn(1, 1024, 128), torch.zeros(1, dtype=torch.int64)
    inputs = told(image, fbank, seeds)

    def gradients():
        task.weights.zero_grad()
        task.losses(task.weights, inputs, 0)[0].backward()
        return {name: p.grad.clone(memory_format=torch.preserve_format) for name, p in task.weights.named_parameters()}

    before = gradients()
    lay_out_gradients(task.weights)
    after = gradients()
    assert all(torch.equal(before[name], after[name]) for name in before)
    differing = [n for n, p in task.weights.named_parameters() if p.grad is not None and p.grad.stride() != p.stride()]
    assert differing == []


NAMELESS = """import os, pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
import training
import torch._dynamo
import getpass
assert getpass.getuser() == str(os.getuid())
"""


def test_a_user_without_a_name_can_train():
    """docker run --user 54321: torch._dynamo, which Accelerate and the optimizers import, wants one."""
    nameless = {k: v for k, v in environment().items() if k not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    subprocess.run([sys.executable, "-c", NAMELESS], cwd=ROOT, env=nameless, check=True)
