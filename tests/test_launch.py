"""The files in docs/launch: what Accelerate reads, and the Slurm script with stand-ins for Slurm's commands."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from tests.datasets import make_dataset
from tests.runs import ROOT, SMALL, environment
from training.checkpoint import checkpoints
from training.run_folder import read_step_log

LAUNCH = ROOT / "docs" / "launch"

# Runs its command once for each node, all on this machine. On USR1 it signals what SIGNALLED names: only the tasks, or,
# as Slurm does, every process that descends from them, launchers and loader workers included. As since Slurm 22.05, a
# task has one core where SRUN_CPUS_PER_TASK does not say more, whatever SLURM_CPUS_PER_TASK says.
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
echo "${SRUN_CPUS_PER_TASK:-1}" > "$STUBS/cores"
below() { for child in $(pgrep -P $1); do echo $child; below $child; done; }
hand_on() {
    targets=(${pids[@]})
    if [ $SIGNALLED = all ]; then for pid in ${pids[@]}; do targets+=($(below $pid)); done; fi
    kill -USR1 ${targets[@]}
}
trap hand_on USR1
for ((i = 0; i < SLURM_NNODES; i++)); do SLURM_NODEID=$i "$@" & pids+=($!); done
status=0
for pid in ${pids[@]}; do
    while kill -0 $pid 2> /dev/null; do wait $pid; done
    wait $pid || status=$?
done
exit $status
"""
# A launcher as Accelerate's for what matters here: its child saves on USR1, it gives no signal on, its status is 1.
ACCELERATE = """#!/bin/bash
python -S -c '
import os, pathlib, signal, sys, time
def save(*_):
    pathlib.Path("run/checkpoints/step-00000002").mkdir(parents=True, exist_ok=True)
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
pathlib.Path("up-" + os.environ["SLURM_NODEID"]).touch()
time.sleep(25)' &
wait $! || exit 1
"""
SCONTROL = """#!/bin/bash
case "$1" in
    show) echo 127.0.0.1 ;;
    requeue) echo "$2" >> "$STUBS/requeued" ;;
esac
"""

needs_procps = pytest.mark.skipif(
    not (shutil.which("pkill") and shutil.which("pgrep")), reason="pkill or pgrep is not installed (procps)"
)


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("one_gpu", DistributedType.NO, 1, 1),
        ("one_node_8_gpus", DistributedType.MULTI_GPU, 1, 8),
        ("four_nodes_8_gpus", DistributedType.MULTI_GPU, 4, 32),
    ],
)
def test_accelerate_reads_the_configurations(name, kind, machines, processes):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))  # unknown keys are an error there
    assert config.distributed_type == kind and config.mixed_precision == "bf16"
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert not config.use_cpu


def test_documented_commands_for_gpus_train_in_bf16_and_compile():
    """The configurations say bf16 (see above), and the Slurm script takes one of them."""
    files = [ROOT / "docs" / "launch.md", *LAUNCH.iterdir()]
    commands = [line for path in files for line in path.read_text().splitlines() if "--data " in line]
    on_cpu = [line for line in commands if line.startswith("| the CPU |")]
    assert len(on_cpu) == 1
    for command in set(commands) - set(on_cpu):
        assert "--compile" in command, command
    alone = [line for line in commands if "python train.py" in line and line not in on_cpu]
    assert len(alone) == 1 and "--mixed-precision bf16" in alone[0]


@pytest.fixture
def slurm(tmp_path):
    """Stand-ins for srun and scontrol on PATH, and what Slurm tells a job of two nodes with a GPU each."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    stub(stubs / "srun", SRUN)
    stub(stubs / "scontrol", SCONTROL)
    path = f"{stubs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}
    job |= {"SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_PER_TASK": "64"}
    return environment() | job | {"SIGNALLED": "all", "STUBS": str(stubs), "PATH": path}


def stub(path, text):
    path.write_text(text)
    path.chmod(0o755)


def start(slurm, folder, *arguments):
    """The script as the job that `slurm` describes."""
    return subprocess.Popen(
        ["bash", str(LAUNCH / "pretrain.slurm"), *arguments],
        cwd=folder,
        env=slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def requeued(slurm):
    """The jobs that were put back in the queue."""
    log = Path(slurm["STUBS"]) / "requeued"
    return log.read_text().split() if log.exists() else []


def wait_until(condition, job):
    deadline = time.monotonic() + 120
    while not condition():
        assert job.poll() is None, job.stdout.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_procps
def test_a_signalled_job_saves_comes_back_and_goes_on(tmp_path, slurm):
    """With Accelerate and train.py: two nodes, a process each."""
    run, dataset = tmp_path / "run", make_dataset(tmp_path / "data", (7, 6))
    arguments = [str(run), *SMALL, f"--data={dataset}", "--steps=60", "--batch-size=4", "--save-every=100"]
    arguments += ["--log-every=1", "--mixed-precision=no", "--workers=1", "--device=cpu"]
    job = start(slurm, ROOT, *arguments)
    wait_until(lambda: read_step_log(run / "metrics.jsonl"), job)
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=120)
    assert job.returncode != 0 and "2 processes" in said and "stopped on a signal" in said, said[-3000:]
    assert len(checkpoints(run)) == 1 and checkpoints(run)[0].name < "step-00000060"
    assert requeued(slurm) == [slurm["SLURM_JOB_ID"]]

    job = start(slurm, ROOT, *arguments)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0 and "resuming" in said, said[-3000:]
    assert checkpoints(run)[-1].name == "step-00000060"
    assert [line["step"] for line in read_step_log(run / "metrics.jsonl")] == list(range(1, 61))
    assert requeued(slurm) == [slurm["SLURM_JOB_ID"]]


@needs_procps
@pytest.mark.parametrize("reach", ["all", "tasks"])
@pytest.mark.parametrize(("number", "comes_back"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_the_signal_reaches_the_training_processes_of_each_node(tmp_path, slurm, reach, number, comes_back):
    stub(Path(slurm["STUBS"]) / "accelerate", ACCELERATE)
    if comes_back:  # for the warning alone, though it gets no further
        (tmp_path / "run" / "checkpoints" / "step-00000003").mkdir(parents=True)
    job = start(slurm | {"SIGNALLED": reach}, tmp_path, "run", "--data", "x")
    wait_until(lambda: (tmp_path / "up-0").exists() and (tmp_path / "up-1").exists(), job)
    time.sleep(0.5)  # the script sets its traps right after it has started these
    job.send_signal(number)
    job.communicate(timeout=30)
    assert job.returncode == 1 and (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()
    assert (Path(slurm["STUBS"]) / "cores").read_text() == "64\n"
    assert requeued(slurm) == ([slurm["SLURM_JOB_ID"]] if comes_back else [])


@pytest.mark.parametrize(
    ("srun", "status", "comes_back"),
    [
        ("exit 0", 0, False),
        ("exit 1", 1, False),
        ("mkdir -p run/checkpoints/step-00000002; exit 1", 1, False),  # no further than before
        ("mkdir -p run/checkpoints/step-00000003.tmp; exit 1", 1, False),
        ("mkdir -p run/checkpoints/step-00000003; exit 1", 1, True),
        ("mkdir -p run/checkpoints/step-100000000; exit 1", 1, True),
        ("mkdir -p run/checkpoints/step-00000003; exit 0", 0, False),
    ],
)
def test_a_job_that_failed_comes_back_if_it_got_further(tmp_path, slurm, srun, status, comes_back):
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    stub(Path(slurm["STUBS"]) / "srun", f"#!/bin/bash\n{srun}\n")
    job = start(slurm, tmp_path, "run", "--data", "x")
    job.communicate(timeout=30)
    assert job.returncode == status
    assert requeued(slurm) == ([slurm["SLURM_JOB_ID"]] if comes_back else [])


def test_without_cpus_per_task_srun_is_told_none(tmp_path, slurm):
    """It refuses an empty number."""
    stub(Path(slurm["STUBS"]) / "srun", '#!/bin/bash\n[ "${SRUN_CPUS_PER_TASK-none}" = none ]\n')
    job = start({k: v for k, v in slurm.items() if k != "SLURM_CPUS_PER_TASK"}, tmp_path, "run", "--data", "x")
    assert job.wait(timeout=30) == 0


@pytest.mark.parametrize("words", [["--resume", "run/checkpoints/step-00000001"], ["--resume=never"]])
def test_a_job_that_would_go_back_at_every_start_is_refused(tmp_path, slurm, words):
    stub(Path(slurm["STUBS"]) / "srun", "#!/bin/bash\ntouch started\n")
    job = start(slurm, tmp_path, "run", "--data", "x", *words)
    said, _ = job.communicate(timeout=30)
    assert job.returncode == 2 and not (tmp_path / "started").exists()
    assert said.startswith("pretrain.slurm: --resume") and "--resume auto" in said and said.count("\n") == 1


def test_a_node_that_could_not_be_warned_starts_nothing(tmp_path, slurm):
    """One without pkill: on its PATH is only what else the script needs."""
    stubs = Path(slurm["STUBS"])
    stub(stubs / "accelerate", "#!/bin/bash\n: > started\n")
    for name in ("bash", "head", "tail"):
        (stubs / name).symlink_to(shutil.which(name))
    job = start(slurm | {"PATH": str(stubs), "SLURM_NNODES": "1"}, tmp_path, "run", "--data", "x")
    said, _ = job.communicate(timeout=30)
    assert job.returncode == 2 and not (tmp_path / "started").exists()
    assert said.startswith("pretrain.slurm: ") and "has no pkill (install procps)" in said and said.count("\n") == 1
    assert requeued(slurm) == []
