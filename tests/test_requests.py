"""Requests as benchmarks come: class folders, JSON lists, MSR-VTT's CSV, minutes cut into clips."""

import json
from pathlib import Path

import pytest

from pipeline.segments import read_segments
from shards_spec.errors import UserError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_speech_commands(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{word}/{name}_nohash_0.wav" for word in ("bed", "bird") for name in ("0a7c2a8d", "1bb574f9")))
    touch(tmp_path / "_background_noise_" / "pink_noise.wav", tmp_path / "bed" / ".hidden.wav", tmp_path / "LICENSE")
    (tmp_path / "validation_list.txt").write_text("bird/1bb574f9_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("bed/0a7c2a8d_nohash_0.wav\nbed/00f0204f_nohash_9.wav\n")
    read = {
        split: read_segments(tmp_path, clip_seconds=10.0, key_of="path", split=split)
        for split in ("train", "validation", "test", "train,validation,test")
    }
    assert [(s.key, s.path, s.labels) for s in read["train"].rows] == [
        ("bed_1bb574f9_nohash_0", "bed/1bb574f9_nohash_0.wav", ("bed",)),
        ("bird_0a7c2a8d_nohash_0", "bird/0a7c2a8d_nohash_0.wav", ("bird",)),
    ]
    assert [s.path for s in read["validation"].rows] == ["bird/1bb574f9_nohash_0.wav"]
    assert [s.path for s in read["test"].rows] == ["bed/00f0204f_nohash_9.wav", "bed/0a7c2a8d_nohash_0.wav"]
    assert all(table.labels == {"bed", "bird"} for table in read.values())
    with pytest.raises(UserError, match="say which with --split"):
        read_segments(tmp_path, clip_seconds=10.0, key_of="path")
    with pytest.raises(
        UserError, match=r"several files of one name, as 'bed/0a7c.*' and 'bird/0a7c.*': give --key path"
    ):
        read_segments(tmp_path, clip_seconds=10.0, split="train,validation,test")


def test_class_folders_without_lists(tmp_path: Path) -> None:
    touch(tmp_path / "dog" / "a.mp4", tmp_path / "cat" / "b.wav", tmp_path / "cat" / "notes.txt")
    found = read_segments(tmp_path, clip_seconds=10.0)
    assert [(s.key, s.labels) for s in found.rows] == [("b", ("cat",)), ("a", ("dog",))]
    with pytest.raises(UserError, match="has no folder with media files"):
        read_segments(tmp_path / "dog", clip_seconds=10.0)


def test_esc50(tmp_path: Path) -> None:
    path = tmp_path / "esc50.csv"
    path.write_text(
        "filename,fold,target,category,esc10,src_file,take\n1-1791-A-26.wav,1,0,dog,True,1791,A\n"
        "5-9-A-40.wav,5,1,clock_tick,True,9,A\n5-9-B-40.wav,,1,clock_tick,True,9,A\n"
    )
    first, damaged = read_segments(path, clip_seconds=10.0, split="1").rows
    assert (first.key, first.path, first.labels, first.end) == ("1-1791-A-26", "1-1791-A-26.wav", ("dog",), 10.0)
    assert damaged.problem == "line 4: the row names no split"
    with pytest.raises(UserError, match=r"holds several splits, 1 \(1 rows\), 5 \(1 rows\)"):
        read_segments(path, clip_seconds=10.0)


def test_cav_maes_lists(tmp_path: Path) -> None:
    path = tmp_path / "vgg_test.json"
    entries = [
        {"video_id": "D--zKrFWV8M_000030", "wav": "/data/D--zKrFWV8M.wav", "video_path": "/x/", "labels": "/m/vgg_1"},
        {"video_id": "-0nqfRcnAYE", "wav": "/x/a.flac", "video_path": "/x/", "labels": "/m/04brg2,/m/09x0r"},
        {"video_id": "video7010", "wav": "/x/video7010.wav", "video_path": "/x/", "labels": ""},
        {"wav": "/x/a.flac"},
    ]
    path.write_text(json.dumps({"data": entries}))
    vgg, audioset, msrvtt, damaged = read_segments(path, clip_seconds=10.0).rows
    assert (vgg.key, vgg.ytid, vgg.start, vgg.end, vgg.labels) == (
        "D--zKrFWV8M_30000", "D--zKrFWV8M", 30.0, 40.0, ("/m/vgg_1",),
    )  # fmt: skip
    assert (audioset.key, audioset.stem, audioset.labels) == ("-0nqfRcnAYE", "-0nqfRcnAYE", ("/m/04brg2", "/m/09x0r"))
    assert (msrvtt.key, msrvtt.stem, msrvtt.labels) == ("video7010", "video7010", ())
    assert damaged.problem == "line 4: the entry has no video_id, or labels that are no text"


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no JSON"), ("[]", "is no list of CAV-MAE's: expected"), ('{"data": 3}', "is no list of CAV-MAE's")],
)
def test_a_list_that_is_none_is_a_mistake(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_segments(path, clip_seconds=10.0)


def test_msr_vtt(tmp_path: Path) -> None:
    path = tmp_path / "MSRVTT_JSFUSION_test.csv"
    path.write_text(
        "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person is connecting something\n"
        'ret1,msr9771,video9771,"a little girl, and more"\nret2,msr7020,video7020,a woman, unquoted\n'
    )
    rows = read_segments(path, clip_seconds=10.0).rows
    assert [(s.key, s.stem, s.labels, s.problem) for s in rows] == [
        (name, name, (), "") for name in ("video9770", "video9771", "video7020")
    ]
    path.write_text("video_id\nvideo0\nvideo12\n")  # MSRVTT_train.9k.csv
    assert [s.key for s in read_segments(path, clip_seconds=10.0).rows] == ["video0", "video12"]
    path.write_text("video_id\n-0nqfRcnAYE\n")  # what starts where?
    with pytest.raises(UserError, match="no column says when a clip of a video id starts"):
        read_segments(path, clip_seconds=10.0)
