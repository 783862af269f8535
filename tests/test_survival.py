"""make-shards killed at random moments, again and again: what is there stays, and the end is the same to the byte."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards_spec.dataset import read_dataset
from shards_spec.tables import read_table
from tests.clips import make_clip, tones
from tests.runs import ROOT

KILLS = int(os.environ.get("SURVIVAL_KILLS", "6"))  # 100 of them take some minutes
CLIPS, SHARD_SIZE = 200, 8


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """200 names of a few clips, two of them broken."""
    made = tmp_path_factory.mktemp("made")
    files = [
        make_clip(made / "a.mp4"),
        make_clip(made / "b.mkv"),
        make_clip(made / "c.webm", video_codec="vp8", audio_codec="opus"),
        make_clip(made / "d.mp4", waveform=tones(3), seconds=3),
    ]
    cut = made / "cut.mp4"
    cut.write_bytes(files[0].read_bytes()[:2000])
    (made / "empty.mp4").touch()
    files += [cut, made / "empty.mp4"]
    raw = made / "raw"
    raw.mkdir()
    for number in range(CLIPS):
        source = files[number % len(files)]
        (raw / f"clip {number:03d}{source.suffix}").hardlink_to(source)
    return raw


def start(raw: Path, out: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "pipeline.make_shards", str(raw), "--out", str(out), "--workers=2", "--max-failed=1"]
    return subprocess.Popen(
        [*words, f"--shard-size={SHARD_SIZE}"], cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL
    )


def committed(out: Path) -> dict[str, str]:
    """What a reader sees: every shard with a table must have the whole tar that the table describes."""
    found = {}
    for parquet in sorted(out.glob("shard-*.parquet")):
        _, facts = read_table(parquet)
        tar = parquet.with_suffix(".tar")
        assert tar.stat().st_size == facts["bytes"] and hashlib.sha256(tar.read_bytes()).hexdigest() == facts["sha256"]
        found[tar.name] = facts["sha256"]
    return found


def test_killed_again_and_again(raw, tmp_path):
    whole = tmp_path / "whole"
    assert start(raw, whole).wait() == 0
    expected = {shard.name: shard.sha256 for shard in read_dataset(whole).shards}
    assert len(expected) == CLIPS // SHARD_SIZE

    moments = random.Random(0)
    out, before = tmp_path / "killed 0", {}
    for kill in range(KILLS):
        process = start(raw, out)
        time.sleep(moments.uniform(0.3, 4.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = committed(out) if out.is_dir() else {}
        assert now.items() >= before.items(), "a finished shard was lost or changed"
        assert now.items() <= expected.items()
        before = now
        if (out / "dataset.json").is_file():  # done between two kills: verify, and begin anew
            assert read_dataset(out) == read_dataset(whole)
            out, before = tmp_path / f"killed {kill + 1}", {}
    assert start(raw, out).wait() == 0
    assert read_dataset(out) == read_dataset(whole)
    assert committed(out) == expected
    assert {path.name for path in out.iterdir()} - {path.name for path in whole.iterdir()} == set()
