"""What make-shards is asked for: CSVs, class lists, keys, names, and what no longer passes as done."""

import os
from pathlib import Path

import pytest

from pipeline.make_shards import MakeShardsConfig, run
from shards_spec.dataset import read_dataset
from shards_spec.errors import UserError
from shards_spec.tables import plan_path, read_table, write_table
from tests.fake_samples import fake_sample, make, rows, write_files, ytid


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def names(out: Path) -> list[str]:
    return [c["name"] for c in read_dataset(out).classes]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Four files of ordinary names."""
    return write_files(tmp_path / "raw", {f"clip {i}.mp4": f"clip {i}" for i in range(4)})


def test_times_and_labels_of_ones_own_csv(tmp_path: Path, raw: Path) -> None:
    text = "path,start,end,label\nclip 0.mp4,0,4.5,dog\nclip 0.mp4,5,9,cat\nclip 0.mp4,5,10,cat\nraw/clip 1.mp4,,,cow\n"
    make(raw, tmp_path / "out", segments=write(tmp_path / "a.csv", text))
    found = rows(tmp_path / "out")
    assert [(row["source"], row["start"], row["end"], row["labels"]) for row in found] == [
        ("clip 0.mp4", 0.0, 4.5, ["dog"]),
        ("clip 0.mp4", 5.0, 9.0, ["cat"]),
        ("clip 0.mp4", 5.0, 10.0, ["cat"]),
        ("clip 1.mp4", 0.0, 10.0, ["cow"]),
    ]
    assert [row["label_ids"] for row in found] == [[2], [0], [0], [1]]
    first, second, third, last = (row["key"] for row in found)
    assert (first, last) == ("clip_0_0", "clip_1")
    assert second.startswith("clip_0_5000-")
    assert third.startswith("clip_0_5000-")
    assert second != third
    starts = read_table(plan_path(tmp_path / "out"))[0]["named_start"].to_pylist()
    assert starts == [0.0, 0.0, 0.0, None]  # times are places in the file, however long it is


def test_a_name_that_may_be_several_files_is_refused(tmp_path: Path) -> None:
    raw = write_files(tmp_path / "raw", {"cats/1.mp4": "cat", "dogs/1.mp4": "dog", "dogs/2.mp4": "dog"})
    csv = write(tmp_path / "a.csv", "path,label\n2.mp4,dog\n1.mp4,dog\n")
    with pytest.raises(UserError, match=r"line 3 .* '1.mp4' may be 'cats/1.mp4' or 'dogs/1.mp4': give its path below"):
        make(raw, tmp_path / "out", segments=csv)
    write(csv, "path,label\n2.mp4,dog\ndogs/1.mp4,dog\ncats/1.mp4,cat\nmice/1.mp4,mouse\n")
    make(raw, tmp_path / "out", segments=csv, key="path")
    assert [(row["key"], row["source"], row["reason"]) for row in rows(tmp_path / "out")] == [
        ("2", "dogs/2.mp4", None),
        ("dogs_1", "dogs/1.mp4", None),
        ("cats_1", "cats/1.mp4", None),
        ("mice_1", None, "missing"),
    ]
    with pytest.raises(UserError, match="--key was path, now stem"):
        make(raw, tmp_path / "out", segments=csv)


def test_labels_are_the_class_list(tmp_path: Path) -> None:
    raw = write_files(tmp_path / "raw", {f"{ytid(i)}_1.mp4": f"clip {i}" for i in range(4)})
    csv = tmp_path / "vggsound.csv"
    lines = [f"{ytid(i)},1,{label},{split}\n" for i, (label, split) in enumerate([("cow", "train"), ("ant", "test")])]
    write(csv, "".join(lines))
    with pytest.raises(UserError, match="several splits"):
        make(raw, tmp_path / "train", segments=csv)
    for split in ("train", "test"):
        assert make(raw, tmp_path / split, segments=csv, split=split).samples == 1
        assert names(tmp_path / split) == ["ant", "cow"]  # the same of both splits
    assert [row["label_ids"] for row in rows(tmp_path / "train")] == [[1]]
    lines += [f"{ytid(2)},1,bee,train\n"]
    assert make(raw, tmp_path / "train", segments=write(csv, "".join(lines)), split="train").samples == 2
    assert names(tmp_path / "train") == ["ant", "cow", "bee"]  # indices that are there stay
    assert [row["label_ids"] for row in rows(tmp_path / "train")] == [[1], [2]]


def test_a_dataset_begun_without_classes_stays_without(tmp_path: Path, raw: Path) -> None:
    out, csv = tmp_path / "out", write(tmp_path / "a.csv", "clip 0.mp4,dog\nclip 1.mp4,cat\n")
    make(raw, out, segments=csv)
    table, facts = read_table(plan_path(out))
    old = table.drop_columns("name").append_column("label_ids_", table["label_ids"]).drop_columns("label_ids_")
    facts["recipe"]["class_labels"], facts["classes"] = "none", []
    write_table(plan_path(out), old, old.schema.remove_metadata(), facts)  # as plans were before
    write(csv, csv.read_text() + "clip 2.mp4,dog\n")
    assert make(raw, out, segments=csv).samples == 3
    assert names(out) == []
    assert read_table(plan_path(out))[0]["name"].to_pylist() == [None, None, "clip 2"]


def test_mids_give_no_class_list(tmp_path: Path, raw: Path) -> None:
    make(raw, tmp_path / "out", segments=write(tmp_path / "a.csv", "clip 0.mp4,/m/09x0r\n"))
    assert names(tmp_path / "out") == []


def test_damaged_rows_are_no_success(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "".join(f"clip {i}.mp4,{i},x\n" for i in range(3))
    text = f"path,start,end\n{bad}clip 0.mp4,0,1\nclip 1.mp4,0,1\n"
    config = MakeShardsConfig(raw=(raw,), out=tmp_path / "out", segments=write(tmp_path / "a.csv", text))
    assert run(config, make=fake_sample) == 1
    said = capsys.readouterr().err
    assert "3 of 5 clips that have a file, or a row that is damaged or asks for a key again, failed, more than" in said
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert make(raw, tmp_path / "out", segments=tmp_path / "a.csv", max_failed=0.6, shard_size=512).failures == {
        "bad_segment": 3
    }


def test_files_of_equal_names_are_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_files(tmp_path / "raw", {f"{i}/clip.mp4": f"clip {i}" for i in range(4)})
    assert run(MakeShardsConfig(raw=(raw,), out=tmp_path / "out"), make=fake_sample) == 1
    said = capsys.readouterr()
    assert "3 of 4" in said.err
    assert "with --key path, files of different folders have keys of their own" in said.out
    assert make(raw, tmp_path / "paths", key="path").samples == 4


def test_a_folder_that_looks_like_a_url(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw.rename(tmp_path / "exp:1")
    assert make(Path("exp:1"), Path("s3:out")).samples == 4
    assert len(rows(Path("s3:out"))) == 4
    assert make(Path("exp:1"), Path("s3:out")).samples == 4


def test_folders_whose_names_are_no_utf8(tmp_path: Path, raw: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    raw.rename(odd)
    assert make(odd, tmp_path / os.fsdecode(b"\xff out"), segments=None).samples == 4
