"""Benchmarks whose videos are prepared with make-shards alone: MSR-VTT's retrieval, MUSIC-AVQA's minutes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.make_shards import main
from tests.checkpoints import make_checkpoint
from tests.clips import make_clip
from tests.fake_samples import rows
from training.evaluate import main as evaluate
from training.evaluation.avqa import find_videos
from training.evaluation.heads.avqa_questions import Question
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.metadata import sample_keys
from training.stream.index import open_index


def test_msr_vtt_retrieval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TestVideo/video9770.mp4 ..., of which one has no file; the videos of a CAV-MAE list are the pool."""
    videos, csv, out = tmp_path / "TestVideo", tmp_path / "MSRVTT_JSFUSION_test.csv", tmp_path / "msrvtt"
    videos.mkdir()
    names = ["video9770", "video9771", "video7020", "video9773"]
    for number, name in enumerate(names[:3]):
        make_clip(videos / f"{name}.mp4", 2 + number)
    lines = [f"ret{i},msr{name[5:]},{name},a man, and a dog" for i, name in enumerate(names)]
    csv.write_text("\n".join(["key,vid_key,video_id,sentence", *lines, ""]))
    assert main([str(videos), "--segments", str(csv), "--out", str(out), "--workers", "1"]) == 0
    assert {row["key"]: row["reason"] for row in rows(out) if row["reason"]} == {"video9773": "missing"}
    run, pool = make_checkpoint(tmp_path / "run"), tmp_path / "msrvtt_test.json"
    pool.write_text(json.dumps({"data": [{"video_id": name} for name in (names[0], names[2], names[3])]}))
    options = ["--workers=0", "--cache-features=none"]
    evaluate(["retrieval", f"--data={out}", f"--checkpoint={run}", f"--pool=keys:{pool}", *options])
    result = json.loads((run / "evaluation" / "retrieval-msrvtt.json").read_text())
    assert result["pool"] == 2 and "lacks 1 of 3" in result["pool_rule"]
    assert result["metrics"]["audio -> image"]["R@5"] == 100


def test_a_minute_of_music_avqa_is_several_samples_of_one_video(tmp_path: Path) -> None:
    """As docs/evaluation.md cuts them: a row for each 10 s of each video; those after its end are too short."""
    videos, csv, out = tmp_path / "videos", tmp_path / "minutes.csv", tmp_path / "avqa"
    videos.mkdir()
    make_clip(videos / "00000272.mp4", 25)
    starts = range(0, 60, 10)
    csv.write_text("path,start,end\n" + "".join(f"00000272.mp4,{start},{start + 10}\n" for start in starts))
    options = ["--segments", str(csv), "--out", str(out), "--workers", "1", "--max-failed", "1"]
    assert main([str(videos), *options]) == 0
    index = open_index(str(out))
    assert sample_keys(index, np.arange(3)) == ["00000272_0", "00000272_10000", "00000272_20000"]
    failed = {row["key"]: row["reason"] for row in rows(out) if row["reason"]}
    assert failed == dict.fromkeys([f"00000272_{1000 * start}" for start in (30, 40, 50)], "too_short")

    question = Question(video_id="00000272", words=("which",), answer="piano", kind=("Audio", "Counting"))
    asked = {split: [question] for split in ("train", "val", "test")}
    _, samples = find_videos(SimpleNamespace(index=index), asked, LeftOut())  # type: ignore[arg-type]
    assert samples == {"00000272": [0, 1, 2]}
