"""make-shards given again: with other options, a grown CSV, repaired files; and given wrongly."""

import functools
import json
from pathlib import Path

import pytest

from pipeline.make_shards import MakeShardsConfig, main, run
from shards_spec.errors import UserError
from tests.fake_samples import fake_sample, make, rows, ten_files, write_csv, write_files, ytid


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Ten files, and a space in the path."""
    return ten_files(tmp_path / "raw files")


# Reruns with something else.


def test_another_recipe_is_refused_and_named(tmp_path: Path, raw: Path) -> None:
    make(raw, tmp_path / "out")
    message = r"--frame-fit was resize, now crop; --frames was 1, now 8; --shard-size was 4, now 5: give"
    with pytest.raises(UserError, match=message):
        make(raw, tmp_path / "out", frame_fit="crop", frames=8, shard_size=5)
    with pytest.raises(UserError, match="--segments was none, now CSV"):
        make(raw, tmp_path / "out", segments=write_csv(tmp_path / "a.csv", [1]))


def test_where_frames_lie_is_part_of_the_recipe_where_it_is_told(tmp_path: Path, raw: Path) -> None:
    assert "frame_times" not in make(raw, tmp_path / "out", frames=2).recipe  # datasets of before go on
    with pytest.raises(UserError, match="--frame-times was middles, now starts"):
        make(raw, tmp_path / "out", frames=2, frame_times="starts")
    with pytest.raises(UserError, match="--frame-times places the frames of --frames N"):
        MakeShardsConfig(raw=(raw,), out=tmp_path / "other", frame_times="starts").check()


def test_a_grown_csv_adds_shards(tmp_path: Path, raw: Path) -> None:
    csv, out = tmp_path / "a.csv", tmp_path / "out"
    before = make(raw, out, segments=write_csv(csv, [1, 3, 5, 7, 9]))
    after = make(raw, out, segments=write_csv(csv, [0, 1, 2, 3, 5, 7, 9, 9, 6]))
    assert after.shards[:2] == before.shards
    assert [(s.samples, s.failed) for s in after.shards] == [(4, 0), (1, 0), (3, 1)]
    expected = [1, 3, 5, 7, 9, 0, 2, 9, 6]
    assert [row["key"] for row in rows(out)] == [f"{ytid(i)}_30000" for i in expected]
    with pytest.raises(UserError, match=f"1 clips of the plan are no longer asked for, the first is {ytid(3)}_30000"):
        make(raw, out, segments=write_csv(csv, [0, 1, 2, 5, 7, 9, 9, 6]))
    with pytest.raises(UserError, match="no longer asked for"):
        make(raw, out, segments=csv, limit=3)


def test_new_files_add_shards(tmp_path: Path, raw: Path) -> None:
    before = make(raw, tmp_path / "out", limit=6)
    after = make(raw, tmp_path / "out")
    assert after.shards[:2] == before.shards
    assert [s.samples for s in after.shards] == [4, 2, 4]


def test_retry_failed(tmp_path: Path, raw: Path) -> None:
    """After repairs and --retry-failed, the bytes are those of a run that never met the failures."""
    csv = write_csv(tmp_path / "a.csv", [*range(10), 11])
    whole = make(raw, tmp_path / "whole", segments=csv)
    out = tmp_path / "out"
    (raw / f"{ytid(1)}_30.mp4").rename(tmp_path / "1")
    (raw / f"{ytid(2)}_30.mp4").rename(tmp_path / "2")
    write_files(raw, {f"{ytid(2)}_30.mp4": "abort", f"{ytid(9)}_30.mp4": "no_audio"})
    assert make(raw, out, segments=csv).failures == {"missing": 2, "no_audio": 1, "crashed": 1}
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert make(raw, out, segments=csv, retry_failed=True).failed == 4  # nothing has changed
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")} == times
    (tmp_path / "1").rename(raw / f"{ytid(1)}_30.mp4")
    (tmp_path / "2").rename(raw / f"{ytid(2)}_30.mp4")
    (raw / f"{ytid(0)}_30.mp4").unlink()  # its sample is there already
    repaired = make(raw, out, segments=csv, retry_failed=True)
    assert repaired.failures == {"missing": 1, "no_audio": 1}
    assert repaired.shards[0] == whole.shards[0]
    changed = {name for name, before in times.items() if (out / name).stat().st_mtime_ns != before}
    assert changed == {"shard-000000.tar", "shard-000000.parquet"}


def test_retry_finds_files_by_name(tmp_path: Path) -> None:
    csv, raw = tmp_path / "a.csv", write_files(tmp_path / "raw", {"b.mp4": "b"})
    csv.write_text("my video (1).mp4,cat\nb.mp4,dog\n")
    assert make(raw, tmp_path / "out", segments=csv).failures == {"missing": 1}
    write_files(raw, {"sub/my video (1).mp4": "a"})
    assert make(raw, tmp_path / "out", segments=csv).samples == 1  # without being told, nothing is looked for
    assert make(raw, tmp_path / "out", segments=csv, retry_failed=True).samples == 2
    assert [(row["key"], row["labels"]) for row in rows(tmp_path / "out")] == [
        ("my_video__1_", ["cat"]),
        ("b", ["dog"]),
    ]


def test_retry_refuses_a_damaged_shard(tmp_path: Path, raw: Path) -> None:
    write_files(raw, {f"{ytid(0)}_30.mp4": "abort"})
    make(raw, tmp_path / "out")
    write_files(raw, {f"{ytid(0)}_30.mp4": "good"})
    with (tmp_path / "out" / "shard-000000.tar").open("r+b") as tar:
        tar.seek(5000)
        tar.write(b"damage")
    with pytest.raises(UserError, match=r"fbank.npy of sample .* is damaged: remove shard-000000.parquet"):
        make(raw, tmp_path / "out", retry_failed=True)


# Mistakes in the command.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "out"),
        (["{raw}"], "--out"),
        (["--out", "{out}"], "no raw folder given"),
        (["{raw}/gone", "--out", "{out}"], "gone is no folder"),
        (["{raw}", "--out", "{out}", "--frame-fit", "squash"], "squash"),
        (["{raw}", "--out", "{out}", "--frames", "0"], "--frames must be at least 1, got 0"),
        (["{raw}", "--out", "{out}", "--clip-timeout", "nan"], "--clip-timeout must be above 0, got nan"),
        (["{raw}", "--out", "{out}", "--worker-memory", "much"], "'much' is no size such as 2GB"),
        (["{raw}", "--out", "{out}", "--worker-memory", "9MB"], "--worker-memory must be at least 0.5GB, got 0.009GB"),
        (["{raw}", "--out", "{out}", "--max-failed", "3"], "--max-failed is a share, 0 to 1, got 3.0"),
        (["{raw}", "--out", "{out}", "--segments", "gone.csv"], "cannot read gone.csv: No such file"),
        (["{raw}", "--out", "{out}", "--segments", "{raw}/none.csv"], "none of the 1 clips has a file"),
        (["{raw}/empty", "--out", "{out}"], "no media file below"),
        (["{raw}", "--out", "{raw}/none.csv"], "is no folder"),
        (["{raw}", "--out", "{out}", "--wrong"], "--wrong"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, raw: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "empty").mkdir()
    write_csv(raw / "none.csv", [77])
    with pytest.raises(SystemExit) as ended:
        main([word.format(raw=raw, out=tmp_path / "out") for word in words])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("make-shards: error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out" / "plan.parquet").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(raw), "--out", str(tmp_path / "file" / "out")]) == 1
    assert "file/out: Not a directory" in capsys.readouterr().err


def test_shards_without_a_plan_are_not_taken_over(tmp_path: Path, raw: Path) -> None:
    make(raw, tmp_path / "out")
    (tmp_path / "out" / "plan.parquet").unlink()
    with pytest.raises(UserError, match=r"holds shard-00000\d.parquet but no plan.parquet"):
        make(raw, tmp_path / "out")


def test_no_sample_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_files(tmp_path / "raw", {"a.mp4": "no_audio"})
    config = MakeShardsConfig(raw=(raw,), out=tmp_path / "out", max_failed=1.0)
    assert run(config, make=functools.partial(fake_sample)) == 1
    assert "no clip gave a sample" in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_dataset_json_names_what_made_it(tmp_path: Path, raw: Path) -> None:
    make(raw, tmp_path / "out", keep_audio=False)
    facts = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert facts["recipe"]["shard_size"] == 4
    assert {"av", "decord", "numpy", "python"} <= facts["versions"].keys()
