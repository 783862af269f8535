"""verify_shards finds every flipped byte and says where it is; a whole dataset passes."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.make_shards import main as make_shards
from shards_spec.dataset import read_dataset, write_dataset
from shards_spec.sample import JSON_FIELDS, encode_fbank, encode_json, member_column, member_names
from shards_spec.tables import PLAN_SCHEMA, plan_path, read_table, shard_schema, write_table
from tests.fake_samples import ytid
from tests.whole_samples import whole_dataset
from tools.media import encode_clip
from tools.verify.damage import MOST_LISTED, Findings
from tools.verify.sample import problems_of
from tools.verify_shards import main

SHARD = "shard-000001"
MEMBERS = member_names()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_dataset(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "dataset"))


def ok_rows(dataset: Path, shard: str = SHARD) -> list[dict[str, Any]]:
    return [row for row in read_table(dataset / f"{shard}.parquet")[0].to_pylist() if row["status"] == "ok"]


def flip(path: Path, offset: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def rewrite(path: Path, change: Any, **facts: Any) -> None:
    """A table with changed rows, written whole: what no checksum of the file can tell."""
    table, old = read_table(path)
    rows = table.to_pylist()
    change(rows)
    schema = PLAN_SCHEMA if path == plan_path(path.parent) else shard_schema(MEMBERS)
    write_table(path, rows, schema, {k: v for k, v in old.items() if k != "spec_version"} | facts)


def checked(dataset: Path, capsys: pytest.CaptureFixture[str], status: int = 1, workers: int = 1) -> list[str]:
    """The lines printed."""
    capsys.readouterr()
    assert main([str(dataset), "--workers", str(workers)]) == status
    return capsys.readouterr().out.splitlines()


def damage(dataset: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The only finding."""
    line, verdict, *_ = checked(dataset, capsys)
    assert "DAMAGED: 1 finding," in verdict, verdict
    return line


# Whole ones.


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_dataset_passes(whole: Path, capsys: pytest.CaptureFixture[str], workers: int) -> None:
    (line,) = checked(whole, capsys, status=0, workers=workers)
    assert "whole: 7 samples and 3 failed clips in 3 shards, 1.9 MB" in line


def test_what_make_shards_writes_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With every kind of member, through the real decoder."""
    generator = np.random.default_rng(0)
    frames, sound = generator.integers(0, 256, (5, 48, 64, 3), np.uint8), generator.normal(0, 0.1, (1, 8000))
    (tmp_path / "raw").mkdir()
    long_name = tmp_path / "raw" / f"{'a' * 150}.mp4"  # its tar headers are of several blocks
    encode_clip(long_name, frames, sound.astype(np.float32), fps=10, sample_rate=16_000)
    shutil.copy(long_name, tmp_path / "raw" / "b.mp4")
    boxes = tmp_path / "boxes.json"
    boxes.write_text('[{"file": "b", "bbox": [[0.25, 0, 1.01, 0.5]]}]')
    out = tmp_path / "out"
    options = ["--keep-audio", "--frames", "2", "--boxes", str(boxes)]
    assert make_shards([str(tmp_path / "raw"), "--out", str(out), *options]) == 0
    checked(out, capsys, status=0)
    row = ok_rows(out, "shard-000000")[1]
    tar = (out / "shard-000000.tar").read_bytes()
    said = json.loads(tar[row["json_offset"] : row["json_offset"] + row["json_length"]])
    assert said["boxes"] == [[0.25, 0.0, 1.0, 0.5]]
    for member in ("flac", "frame01.jpg"):
        place = row[member_column(member, "offset")]
        flip(out / "shard-000000.tar", place + 20)
        assert f"shard-000000.tar, sample b, byte {place}: its {member} " in damage(out, capsys)
        flip(out / "shard-000000.tar", place + 20)


# Flipped bytes, cut and missing files.


@pytest.mark.parametrize("member", MEMBERS)
def test_a_flipped_byte_in_a_payload(dataset: Path, capsys: pytest.CaptureFixture[str], member: str) -> None:
    row = ok_rows(dataset)[1]
    offset, length = (row[member_column(member, field)] for field in ("offset", "length"))
    for place in (offset, offset + length // 2, offset + length - 1):
        flip(dataset / f"{SHARD}.tar", place)
        line = damage(dataset, capsys)
        assert line.startswith(f"{SHARD}.tar, sample {row['key']}, byte {offset}: its {member} ({length:,} bytes) has")
        flip(dataset / f"{SHARD}.tar", place)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_flipped_byte_in_a_header(dataset: Path, capsys: pytest.CaptureFixture[str], member: str) -> None:
    row = ok_rows(dataset)[1]
    header = row[member_column(member, "offset")] - 512
    for place in (0, 130, 153, 300):  # name, size, checksum, a field that nobody reads
        flip(dataset / f"{SHARD}.tar", header + place)
        line = damage(dataset, capsys)
        assert line == f"{SHARD}.tar, sample {row['key']}, byte {header}: the tar header of its {member} is damaged"
        flip(dataset / f"{SHARD}.tar", header + place)
    flip(dataset / f"{SHARD}.tar", header + 155)  # a byte that even the header's own checksum leaves out
    assert f"{SHARD}.tar, sample {row['key']}, byte {header + 155}: a byte of a tar header" in damage(dataset, capsys)


def test_a_flipped_byte_between_payloads(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = ok_rows(dataset)[1]
    padding = row["json_offset"] + row["json_length"]
    flip(dataset / f"{SHARD}.tar", padding)
    assert f"{SHARD}.tar, sample {row['key']}, byte {padding}: " in damage(dataset, capsys)
    flip(dataset / f"{SHARD}.tar", padding)
    size = (dataset / f"{SHARD}.tar").stat().st_size
    flip(dataset / f"{SHARD}.tar", size - 1)
    assert damage(dataset, capsys) == f"{SHARD}.tar, byte {size - 1}: the end mark holds a byte that is not zero"


def test_flipped_bytes_in_a_table(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Anywhere: it is found, or what the table says has not changed but for the versions that it names."""
    for name in (f"{SHARD}.parquet", "plan.parquet"):
        path = dataset / name
        whole, content = read_table(path), path.read_bytes()
        for offset in range(0, len(content), 191):
            flip(path, offset)
            if main([str(dataset), "--workers=1"]) == 1:
                assert name in capsys.readouterr().out
            else:
                table, facts = read_table(path)
                assert table.equals(whole[0]) and facts | {"versions": 0} == whole[1] | {"versions": 0}
            path.write_bytes(content)


def test_a_cut_tar(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dataset / f"{SHARD}.tar"
    content, rows = path.read_bytes(), ok_rows(dataset)
    path.write_bytes(content[: rows[1]["jpg_offset"] + 5])
    line = damage(dataset, capsys)
    assert line.startswith(f"{SHARD}.tar, sample {rows[1]['key']}, byte {rows[1]['offset']}: is cut: ")
    assert line.endswith(f"of {len(content):,} bytes; this sample is not whole, and 1 behind it are gone")
    path.write_bytes(content[:-1])
    assert "only its end mark is gone" in damage(dataset, capsys)
    path.write_bytes(b"")
    assert f"sample {rows[0]['key']}, byte 0: is cut: 0 of" in damage(dataset, capsys)
    path.write_bytes(content + b"x")
    assert f"{SHARD}.tar, byte {len(content)}: has 1 bytes too many" in damage(dataset, capsys)


def test_a_missing_tar_and_a_missing_table(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / f"{SHARD}.tar").unlink()
    line = damage(dataset, capsys)
    assert line.startswith(f"{SHARD}.tar, sample {ytid(4)}_30000, byte 0: is missing, with its 3 samples")
    (dataset / f"{SHARD}.parquet").unlink()
    lines = checked(dataset, capsys)
    assert f"{SHARD}.parquet: is missing" in lines and f"{SHARD}.tar: is missing" in lines


def test_all_damage_is_listed(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in ("shard-000000", SHARD):
        for row in ok_rows(dataset, shard):
            flip(dataset / f"{shard}.tar", row["jpg_offset"] + 99)
            flip(dataset / f"{shard}.tar", row["fbank_offset"] - 512)
    *lines, verdict, mend = checked(dataset, capsys, workers=2)
    assert len(lines) == 14 and [line[:12] for line in lines] == 8 * ["shard-000000"] + 6 * [SHARD]
    assert "DAMAGED: 14 findings, in shard-000000.tar, shard-000001.tar" in verdict
    assert "remove its .tar and .parquet and run the same make-shards command again" in mend


def test_the_list_is_bounded() -> None:
    found = Findings()
    for number in range(1000):
        found.add("a\nfile", "what", key=f"\x1b{number}", offset=number)
    assert (len(found.listed), found.count) == (MOST_LISTED, 1000)
    assert str(found.listed[1]) == "a?file, sample ?1, byte 1: what"


# Files that agree with themselves, and not with each other.


def test_tables_that_differ(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def other_labels(rows: list[dict[str, Any]]) -> None:
        rows[1]["label_ids"] = [0]

    rewrite(dataset / f"{SHARD}.parquet", other_labels)
    lines = checked(dataset, capsys)
    key = f"{ytid(5)}_30000"
    assert f"{SHARD}.parquet, sample {key}: label_ids is '[0]', the plan says '[2, 3]'" in lines
    assert any(f"{SHARD}.tar, sample {key}, byte " in line and "its json says label_ids" in line for line in lines)


def test_rows_that_vanished(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(dataset / "shard-000002.parquet", list.pop)
    lines = checked(dataset, capsys)
    assert "shard-000002.parquet: has 1 clips, the plan has 2 of this shard" in lines
    assert "shard-000002.parquet: says it has 0 samples and 2 failed clips, and has 0 and 1" in lines
    assert any(line.startswith("dataset.json: says failures") for line in lines)


def test_what_dataset_json_says(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = read_dataset(dataset)
    changes: dict[str, Any] = {"samples": 8, "failed": 9, "failures": {"missing": 3}, "mean": 0.0, "std": 9.0}
    changes |= {"fingerprint": "0", "classes": []}
    for name, value in changes.items():
        write_dataset(dataset, replace(said, **{name: value}))
        assert damage(dataset, capsys).startswith(f"dataset.json: says {name} {value}, "), name
    write_dataset(dataset, replace(said, recipe=said.recipe | {"decoder": "decord"}))
    assert damage(dataset, capsys) == "dataset.json: says recipe decoder decord, plan.parquet auto"
    write_dataset(dataset, replace(said, shards=[replace(s, sha256="0") for s in said.shards]))
    lines = checked(dataset, capsys)
    assert sum("differs from dataset.json: sha256" in line for line in lines) == 3
    (dataset / "dataset.json").write_text("{")
    assert "dataset.json is damaged" in damage(dataset, capsys)


def test_files_that_do_not_belong(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["shard-000001.tar.tmp", "shard-000007.tar", "shard-1.tar", "notes.txt"]
    for name in [*names, ".hidden"]:
        (dataset / name).write_text("x")
    *lines, _, _ = checked(dataset, capsys)
    assert sorted(line.split(":")[0] for line in lines) == sorted(names)


def test_a_clip_planned_twice(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def twice(rows: list[dict[str, Any]]) -> None:
        rows[1]["key"] = rows[0]["key"]

    rewrite(plan_path(dataset), twice)
    assert f"plan.parquet, sample {ytid(0)}_30000: plans this clip 2 times" in checked(dataset, capsys)


def test_no_plan(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_path(dataset).unlink()
    assert damage(dataset, capsys) == "plan.parquet: is missing: nobody can say what was asked for"


# Datasets that are not finished, and mistakes.


def test_an_unfinished_dataset(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "dataset.json").unlink()
    (dataset / "shard-000002.parquet").unlink()
    (dataset / "shard-000002.tar.1234.tmp").write_text("half")
    lines = checked(dataset, capsys, status=3)
    assert "not there yet: 1 of 3 shards: shard-000002" in lines[0]
    assert "whole so far: 7 samples and 1 failed clips in 2 shards" in lines[1]
    flip(dataset / f"{SHARD}.tar", 5000)
    assert any(line.startswith(f"{SHARD}.tar, sample ") for line in checked(dataset, capsys))


def test_mistakes_are_answered_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        ([str(tmp_path / "gone")], "gone does not exist"),
        ([str(tmp_path)], "is no dataset"),
        ([str(tmp_path), "--workers=0"], "--workers must be at least 1"),
        ([], "required"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        assert ended.value.code == 2 and said in printed.err and printed.err.count("\n") == 1 and not printed.out


# What a payload must be, when its bytes are as they were written.


def problem(member: str, payload: bytes, **row: Any) -> str:
    (found,) = problems_of(member, memoryview(payload), row)
    return found


def picture(mode: str = "RGB", size: int = 224) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((size, size), 50).convert(mode).save(file, "JPEG")
    return file.getvalue()


def test_frames() -> None:
    assert problems_of("jpg", memoryview(picture()), {}) == []
    assert problem("jpg", picture("L")) == "is 224x224 Gray, expected 224x224 YCbCr"
    assert problem("jpg", picture(size=100)) == "is 100x100 YCbCr, expected 224x224 YCbCr"
    assert "does not decode" in problem("frame00.jpg", picture()[:3000])
    assert "does not decode" in problem("jpg", b"GIF89a")


def test_fbanks() -> None:
    fbank = np.zeros((1024, 128), np.float16)
    fbank[:10] = 1
    sums = {"valid_frames": 10, "fbank_sum": 1280.0, "fbank_sumsq": 1280.0}
    assert problems_of("fbank.npy", memoryview(encode_fbank(fbank)), sums) == []
    assert "fbank_sumsq 1280, the table says 1" in problem(
        "fbank.npy", encode_fbank(fbank), **sums | {"fbank_sumsq": 1}
    )
    fbank[12, 3] = 1
    assert problem("fbank.npy", encode_fbank(fbank), **sums) == "is not zero in row 12, after its 10 valid ones"
    fbank[12, 3], fbank[7, 5] = 0, np.inf
    assert problem("fbank.npy", encode_fbank(fbank), **sums) == "has 1 values that are not finite, the first in row 7"
    assert "not an .npy file" in problem("fbank.npy", encode_fbank(fbank)[:-2], **sums)
    assert "has 0 valid rows" in problem("fbank.npy", encode_fbank(fbank), **sums | {"valid_frames": 0})


def test_metadata() -> None:
    row = {"key": "a", "source": "a.mp4", "start": 0.0, "end": 9.0, "valid_frames": 9, "labels": None, "label_ids": [1]}
    said = dict.fromkeys(JSON_FIELDS) | row | {"labels": [], "frame_time": 1.0, "decoder": "pyav"}
    assert problems_of("json", memoryview(encode_json(said)), row) == []
    assert problem("json", encode_json(said | {"key": "b"}), **row) == "says key 'b', the table 'a'"
    assert problem("json", encode_json({k: v for k, v in said.items() if k != "fps"}), **row) == "lacks fps"
    assert "has boxes" in problem("json", encode_json(said | {"boxes": [[0, 0, 2, 1]]}), **row)
    assert "is no JSON" in problem("json", b'{"key": ', **row)
    assert "is no JSON object" in problem("json", b"[1]", **row)


def test_waveforms() -> None:
    assert "does not decode" in problem("flac", b"fLaC and nothing more")
