"""Labels, class list and boxes that come later: the bytes of a fresh run, and nothing is decoded."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import build_shard
from pipeline.encode_sample import Encoded
from pipeline.make_shards import MakeShardsConfig, run
from shards_spec import storage
from shards_spec.dataset import DATASET_FILE, read_dataset
from shards_spec.errors import UserError
from tests.fake_samples import write_files, ytid
from tests.whole_samples import rewrite_as_before, whole_sample
from tools.verify_shards import main as verify

Options = dict[str, Any]


def no_sample(path: Path, row: dict[str, Any]) -> Encoded:
    """Takes the place of a decoder where nothing may be decoded."""
    raise AssertionError(f"{path} was decoded")


def make(folder: Path, out: Path, options: Options, *, decode: Any = whole_sample, **more: Any) -> dict[str, bytes]:
    """The files of a dataset, by name."""
    settings: Options = {"raw": (folder / "raw",), "segments": folder / "plain.csv", "shard_size": 4, "max_failed": 1}
    config = MakeShardsConfig(out=out, workers=1, **settings | options | more)
    assert run(config, make=decode) == 0
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw clips, one of which gives no sample; two CSVs of them, a class list, boxes; `plain`, made without these."""
    folder = tmp_path_factory.mktemp("later")
    write_files(folder / "raw", {f"{ytid(i)}_30.mp4": "silent" if i == 2 else f"clip {i}" for i in range(9)})
    for name, label in (("plain", "/m/{}"), ("better", "/m/{0},/m/longer{0}")):
        rows = [f'{ytid(i)}, 30.000, 40.000, "{label.format(i % 3)}"\n' for i in (*range(9), 77, 1)]
        (folder / f"{name}.csv").write_text("".join(rows) + "#NAME?, 1, 2, /m/1\n")
    (folder / "classes.csv").write_text("index,mid,display_name\n0,/m/0,Cat\n1,/m/1,Dog\n2,/m/longer1,Ox\n")
    (folder / "boxes.json").write_text(f'[{{"file": "{ytid(5)}_000030", "bbox": [[0.25, 0, 0.5, 1]]}}]')
    make(folder, folder / "plain", {})
    return folder


@pytest.fixture(scope="module")
def later(folder: Path) -> Options:
    """Everything that may come later."""
    return {
        "segments": folder / "better.csv",
        "class_labels": folder / "classes.csv",
        "boxes": folder / "boxes.json",
    }


@pytest.fixture(scope="module")
def fresh(folder: Path, later: Options) -> dict[str, bytes]:
    """What a run with everything makes at once."""
    return make(folder, folder / "fresh", later)


@pytest.fixture
def out(folder: Path, tmp_path: Path) -> Path:
    """A copy of `plain`."""
    return Path(shutil.copytree(folder / "plain", tmp_path / "out"))


def test_what_comes_later_gives_the_bytes_of_a_fresh_run(
    folder: Path, later: Options, fresh: dict[str, bytes], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_dataset(out)
    assert make(folder, out, later, decode=no_sample) == fresh
    said = capsys.readouterr().err
    assert "labels, class indices or boxes of 11 of 12 planned clips are new" in said  # not of the damaged row
    assert "to write again without decoding: 3" in said
    assert read_dataset(out).fingerprint != before.fingerprint
    assert verify([str(out), "--workers", "1"]) == 0
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    make(folder, out, later, decode=no_sample)
    assert times == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_one_thing_at_a_time_and_only_shards_that_it_concerns(folder: Path, later: Options, out: Path) -> None:
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    make(folder, out, {"boxes": later["boxes"]}, decode=no_sample)
    changed = {name for name, time in times.items() if (out / name).stat().st_mtime_ns != time}
    assert changed == {"shard-000001.tar", "shard-000001.parquet"}
    with pytest.raises(UserError, match=r"--boxes was [0-9a-f]{12}, now none"):
        make(folder, out, {})


def test_the_raw_files_may_be_gone(folder: Path, later: Options, fresh: dict[str, bytes], out: Path) -> None:
    empty = folder / "unmounted"
    empty.mkdir(exist_ok=True)
    assert make(folder, out, later, decode=no_sample, raw=(empty,)) == fresh


def test_failed_clips_get_their_try_at_the_same_time(folder: Path, later: Options, out: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "raw", tmp_path / "raw")
    (tmp_path / "raw" / f"{ytid(2)}_30.mp4").write_text("mended")
    renewed = make(folder, out, later, raw=(tmp_path / "raw",), retry_failed=True)
    assert renewed == make(folder, tmp_path / "whole", later, raw=(tmp_path / "raw",))


def killed_at(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, name: str) -> None:
    """Lets the program end where it calls a function for a file of this name: that is not done any more."""
    original: Callable[..., Any] = getattr(module, function)

    @functools.wraps(original)
    def ending(place: Path, *given: Any) -> Any:
        if place.name == name:
            raise OSError(5, "killed")
        return original(place, *given)

    monkeypatch.setattr(module, function, ending)


@pytest.mark.parametrize(
    ("module", "function", "name"),
    [
        (build_shard, "write_table", "shard-000000.next.tmp"),  # tar and table are the old ones
        (build_shard, "write_table", "shard-000000.parquet"),  # the tar is new
        (storage, "remove", "shard-000000.next.tmp"),  # both are new
        (build_shard, "write_table", "shard-000001.next.tmp"),
        (build_shard, "write_table", "shard-000002.parquet"),
    ],
)
def test_killed_at_any_moment(
    folder: Path,
    later: Options,
    fresh: dict[str, bytes],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: Any,
    function: str,
    name: str,
) -> None:
    with monkeypatch.context() as patched:
        killed_at(patched, module, function, name)
        with pytest.raises(OSError, match="killed"):
            make(folder, out, later, decode=no_sample)
    assert not (out / DATASET_FILE).exists()
    if name == "shard-000000.parquet":
        assert verify([str(out), "--workers", "1"]) == 1
        assert "make-shards was killed while it replaced a shard: run the same command again" in capsys.readouterr().out
    assert make(folder, out, later, decode=no_sample) == fresh


def test_killed_before_the_tar_was_replaced(folder: Path, fresh: dict[str, bytes], out: Path) -> None:
    before = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}
    (out / "shard-000001.next.tmp").write_bytes(fresh["shard-000001.parquet"])
    assert make(folder, out, {}, decode=no_sample) == before


def test_a_job_array_knows_what_is_left(
    folder: Path, later: Options, fresh: dict[str, bytes], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: Options = {"shard_size": 4, "max_failed": 1, "workers": 1, "task_count": 2} | later

    def task(**more: Any) -> int:
        return run(MakeShardsConfig(raw=(folder / "raw",), out=out, **settings | more), make=no_sample)

    assert task(task_index=0) == 0
    assert task(finalize=True) == 1
    assert "1 of 3 shards are missing or out of date, numbers 1: run tasks 1 of 2 again" in capsys.readouterr().err
    assert task(task_index=1) == 0
    assert task(finalize=True) == 0
    assert {name: (out / name).read_bytes() for name in fresh} == fresh


def test_shards_of_earlier_versions(folder: Path, later: Options, fresh: dict[str, bytes], out: Path) -> None:
    for path in out.glob("shard-*.parquet"):
        rewrite_as_before(path)
    before = {path.name: path.read_bytes() for path in out.glob("shard-*")}
    after = make(folder, out, {}, decode=no_sample)
    assert before == {name: content for name, content in after.items() if name.startswith("shard-")}
    assert verify([str(out), "--workers", "1"]) == 0
    assert make(folder, out, later, decode=no_sample) == fresh
