"""make-shards on more than one machine: whatever builds the shards, and wherever they lie, the bytes are the same."""

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import make_shards
from pipeline.array_task import Share, ranges, slurm_share
from pipeline.encode_sample import Encoded
from pipeline.make_shards import MakeShardsConfig, main, run
from shards_spec.dataset import Dataset, read_dataset
from shards_spec.errors import UserError
from shards_spec.storage import Place
from tests.fake_samples import fake_sample, hashes, make, thirty_files, write_files, ytid

ROOT = Path(__file__).resolve().parents[1]
SHARD_SIZE, SHARDS = 4, 8


def slow_sample(path: Path, row: dict[str, Any]) -> Encoded:
    time.sleep(0.25)
    return fake_sample(path, row)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thirty_files(tmp_path_factory.mktemp("executors") / "raw")


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The dataset that one process makes."""
    return make(raw, tmp_path_factory.mktemp("expected") / "out", workers=1)


def config(raw: Place, out: Place, **options: Any) -> MakeShardsConfig:
    return MakeShardsConfig(raw=(raw,), out=out, **{"shard_size": SHARD_SIZE, "workers": 1} | options)


# Processes.


def test_two_processes(tmp_path: Path, raw: Path, expected: Dataset) -> None:
    assert make(raw, tmp_path / "out", workers=2) == expected
    assert hashes(tmp_path / "out") == [shard.sha256 for shard in expected.shards]
    assert len(expected.shards) == SHARDS
    assert expected.failures == {"no_audio": 1, "crashed": 1}


# Job arrays.

TASK = """
import sys
from pathlib import Path
from pipeline import make_shards
from tests.fake_samples import fake_sample_with_options
make_shards.make_sample = fake_sample_with_options
sys.exit(make_shards.main(sys.argv[1:]))
"""


def test_five_tasks_at_the_same_time(
    tmp_path: Path, raw: Path, expected: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """One by the variables of Slurm in a process of its own, three more at the same time, the last one later."""
    out = tmp_path / "the shards"
    words = [str(raw), "--out", str(out), "--shard-size", str(SHARD_SIZE), "--workers", "1"]
    slurm = {"SLURM_ARRAY_TASK_COUNT": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "5"}
    process = subprocess.Popen(
        [sys.executable, "-c", TASK, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SLURM_ARRAY_TASK_ID": "1"} | slurm,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ThreadPoolExecutor(3) as pool:
        tasks = [config(raw, out, task_index=index, task_count=5) for index in (1, 2, 3)]
        assert list(pool.map(lambda task: run(task, make=fake_sample), tasks)) == [0, 0, 0]
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "shards to build: 2 of 8 (task 0 of 5)" in said
    assert not (out / "dataset.json").exists()
    assert main(["--out", str(out), "--finalize", "--task-count", "5"]) == 1
    assert "1 of 8 shards are missing, numbers 4: run tasks 4 of 5 again" in capsys.readouterr().err
    assert run(config(raw, out, task_index=4, task_count=5), make=fake_sample) == 0
    _, _, told = capsys.readouterr().err.partition(
        "task 4 of 5: its 1 of 8 shards are there; when all tasks are done: "
    )
    assert main(shlex.split(told)[1:]) == 0
    assert read_dataset(out) == expected
    assert hashes(out) == [shard.sha256 for shard in expected.shards]
    assert not [path.name for path in out.iterdir() if path.suffix == ".tmp" or "planning" in path.name]


def test_the_plan_is_made_once(tmp_path: Path, raw: Path, expected: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    request = make_shards.agreed_plan.__globals__["plan_request"]

    def slow_request(*words: Any, **options: Any) -> Any:
        made.append(threading.get_ident())
        time.sleep(0.5)
        return request(*words, **options)

    monkeypatch.setitem(make_shards.agreed_plan.__globals__, "plan_request", slow_request)
    tasks = [config(raw, tmp_path / "out", task_index=index, task_count=3) for index in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda task: run(task, make=fake_sample), tasks)) == [0, 0, 0]
    assert len(made) == 1
    assert run(config(raw, tmp_path / "out", finalize=True)) == 0
    assert read_dataset(tmp_path / "out") == expected


def test_who_may_be_at_work_together(tmp_path: Path, raw: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def task(index: int, count: int, **options: Any) -> int:
        return run(config(raw, out, task_index=index, task_count=count, **options), make=fake_sample)

    with (out / ".make-shards.lock").open("a") as whole:
        fcntl.flock(whole, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another make-shards is writing"):
            task(0, 2)
        fcntl.flock(whole, fcntl.LOCK_SH)  # as a task holds it
        with pytest.raises(UserError, match="another make-shards is writing"):
            run(config(raw, out), make=fake_sample)
        with (out / ".make-shards.task-0-of-2.lock").open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(UserError, match=r"task 0 of 2 is at work in .* already"):
                task(0, 2)
            with pytest.raises(UserError, match="task 0 of 2 of an array is at work"):
                task(1, 3)
            assert task(1, 2) == 0
            with pytest.raises(UserError, match="another make-shards is writing"):
                run(config(raw, out, finalize=True))
    assert run(config(raw, out), make=fake_sample) == 0
    assert not list(out.glob(".make-shards.task*"))


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        ({}, None),
        ({"ID": "3", "COUNT": "5"}, Share(3, 5)),
        ({"ID": "3", "COUNT": "5", "MIN": "1", "MAX": "5", "STEP": "1"}, Share(2, 5)),
        ({"ID": "12", "COUNT": "3", "MIN": "10", "MAX": "14", "STEP": "2"}, Share(1, 3)),
    ],
)
def test_slurm(variables: dict[str, str], share: Share | None) -> None:
    assert slurm_share({f"SLURM_ARRAY_TASK_{name}": value for name, value in variables.items()}) == share


def test_a_slurm_array_with_gaps_must_say_its_size() -> None:
    variables = {"ID": "7", "COUNT": "2", "MIN": "3", "MAX": "7", "STEP": "1"}
    with pytest.raises(UserError, match="with gaps: give --task-index 7 and the whole array's --task-count"):
        slurm_share({f"SLURM_ARRAY_TASK_{name}": value for name, value in variables.items()})


def test_ranges() -> None:
    assert ranges([9, 1, 2, 3, 7, 10]) == "1-3,7,9-10"
    assert ranges(range(0, 100, 2), most=2) == "0,2,..."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{raw}", "--task-index", "1"], "--task-index and --task-count belong together"),
        (["{raw}", "--task-index", "5", "--task-count", "5"], "--task-index must be 0 to 4, got 5"),
        (["{raw}", "--task-index", "0", "--task-count", "5", "--retry-failed"], "run it outside of a job array"),
        (["--finalize", "--retry-failed"], "--finalize builds nothing"),
        (["--finalize"], "holds no plan.parquet"),
        (["{raw}", "--ray-address", "auto"], "--ray-address is for --executor ray"),
        (["{raw}", "--executor", "spark"], "spark"),
        (["https://host/raw"], "can be neither listed nor written"),
        (["what://host/raw"], "what:// is unknown"),
    ],
)
def test_mistakes(
    tmp_path: Path, raw: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*(word.format(raw=raw) for word in words), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("make-shards: error: ")
    assert message in said
    assert said.count("\n") == 1


def test_ray_that_is_not_installed(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main([str(raw), "--out", str(tmp_path / "out"), "--executor", "ray"])
    assert capsys.readouterr().err == (
        "make-shards: error: --executor ray needs Ray, which is not installed: pip install ray, on every node\n"
    )


def test_a_raw_folder_that_is_not_mounted(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mounted = write_files(tmp_path / "raw", {f"{ytid(i)}_30.mp4": f"clip {i}" for i in range(2)})
    csv = tmp_path / "a.csv"
    csv.write_text("".join(f'{ytid(i)}, 30.000, 40.000, "/m/{i}"\n' for i in range(2)))
    words = [str(mounted), "--out", str(tmp_path / "out"), "--segments", str(csv)]

    def end(*_: object, **__: object) -> None:
        raise OSError("planned, and no more")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_shards, "run_local", end)
        assert main(words) == 1
    for path in mounted.iterdir():
        path.unlink()
    assert main(words) == 1
    assert "raw: the raw folder is empty on" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))


# Ray.


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster, [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    finally:
        cluster.shutdown()


def test_ray_with_a_node_that_dies(tmp_path: Path, raw: Path, expected: Dataset) -> None:
    out = tmp_path / "out"
    family: list[psutil.Process] = []  # of the node that dies: Ray's worker, the fork server, the decoder process
    left: list[int] = []
    with two_nodes() as (cluster, (node, _)):

        def at_work() -> bool:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            family[:] = raylet.children(recursive=True)
            with contextlib.suppress(psutil.Error):
                return sum("multiprocessing.forkserver" in " ".join(process.cmdline()) for process in family) == 2
            return False

        def kill_it_half_way() -> None:
            while not left:
                time.sleep(0.02)
                done = len(list(out.glob("shard-*.parquet")))
                if done >= SHARDS // 4 and at_work():
                    left.append(SHARDS - done)
                    cluster.remove_node(node, allow_graceful=False)

        killer = threading.Thread(target=kill_it_half_way, daemon=True)
        killer.start()
        options = {"executor": "ray", "ray_address": cluster.address, "workers": None}
        assert run(config(raw, out, max_failed=1.0, **options), make=slow_sample) == 0
        killer.join(1)
        assert left[0] > 1, "the node died too late"
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
    assert read_dataset(out) == expected
    assert hashes(out) == [shard.sha256 for shard in expected.shards]
