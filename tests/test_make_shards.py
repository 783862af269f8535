"""make-shards from the outside: every clip accounted for, bytes that do not depend on how the run went."""

import contextlib
import fcntl
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import webdataset

from pipeline import make_shards
from pipeline.decoder_process import DecoderDefectError, DecoderProcess, Failure, _attempt, start_fork_server
from pipeline.encode_sample import Encoded
from pipeline.make_shards import MakeShardsConfig, main
from shards_spec.dataset import read_dataset
from shards_spec.errors import UserError
from shards_spec.sample import decode_fbank, member_column
from tests.fake_samples import fake_sample, leaking_sample, make, reasons, rows, ten_files, write_csv, write_files, ytid
from tools.media import encode_clip

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT.parent / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no fixture folder {FIXTURES}")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Ten files, and a space in the path."""
    return ten_files(tmp_path / "raw files")


@pytest.fixture(scope="session")
def real_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-six small clips with picture and sound, one of them without sound."""
    raw = tmp_path_factory.mktemp("real") / "raw"
    raw.mkdir()
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (5, 48, 64, 3), np.uint8)
    sound = generator.normal(0, 0.1, (1, 8000)).astype(np.float32)
    whole = encode_clip(raw / f"{ytid(0)}_30.mp4", frames, sound, fps=10, sample_rate=16_000)
    encode_clip(raw / f"{ytid(1)}_30.mp4", frames, None, fps=10)
    for i in range(2, 36):
        (raw / f"{ytid(i)}_30.mp4").hardlink_to(whole)
    return raw


# What a dataset holds.


def test_every_clip_is_accounted_for(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(raw, {f"{ytid(3)}_30.mp4": "no_audio", f"{ytid(4)}_30.mp4": "x" * 100, "unasked.mp4": "x"})
    csv = write_csv(tmp_path / "a.csv", [*range(7), 99, 2])
    csv.write_text(csv.read_text() + "#NAME?, 30.000, 40.000, /m/1\n")
    labels = tmp_path / "labels.csv"
    labels.write_text("index,mid,display_name\n" + "".join(f"{i},/m/{i},name {i}\n" for i in range(99)))
    dataset = make(raw, tmp_path / "out", segments=csv, class_labels=labels)
    assert (dataset.samples, dataset.failed) == (6, 4)
    assert dataset.failures == {"missing": 1, "no_audio": 1, "bad_segment": 1, "duplicate": 1}
    assert [(s.samples, s.failed) for s in dataset.shards] == [(3, 1), (3, 1), (0, 2)]
    assert len(dataset.classes) == 99
    found = rows(tmp_path / "out")
    assert [row["key"] for row in found[:9]] == [f"{ytid(i)}_30000" for i in [*range(7), 99, 2]]
    assert found[9]["detail"].startswith("line 10: '#NAME?' is no video id")
    assert found[8]["detail"] == "line 9 asks for the clip again"
    assert [row["label_ids"] for row in found[:3]] == [[0], [1], [2]]
    said = capsys.readouterr()
    assert f"warning: labels that are not in {labels} get no index: 1, as '/m/99'" in said.err
    assert "10 clips asked for" in said.out
    assert f"{ytid(3)}_30.mp4: no audio stream" in said.out


def test_statistics_are_those_of_the_stored_values(tmp_path: Path, raw: Path) -> None:
    dataset = make(raw, tmp_path / "out")
    values = []
    for row in rows(tmp_path / "out"):
        with (tmp_path / "out" / f"shard-{row['shard']:06d}.tar").open("rb") as tar:
            tar.seek(row[member_column("fbank.npy", "offset")])
            values.append(decode_fbank(tar.read(row[member_column("fbank.npy", "length")]))[: row["valid_frames"]])
    stored = np.concatenate(values).astype(np.float64)
    assert dataset.mean == pytest.approx(stored.mean(), rel=1e-12)
    assert dataset.std == pytest.approx(stored.std(), rel=1e-12)


def test_plain_webdataset_reads_it(tmp_path: Path, real_raw: Path) -> None:
    out = tmp_path / "out"
    assert main([str(real_raw), "--out", str(out), "--limit", "3", "--keep-audio", "--frames", "2"]) == 0
    samples = list(webdataset.WebDataset(str(out / "shard-000000.tar"), shardshuffle=False).decode("rgb8"))
    assert [s["__key__"] for s in samples] == [f"{ytid(0)}_30", f"{ytid(2)}_30"]
    own = rows(out)[0]
    tar = (out / "shard-000000.tar").read_bytes()
    place, length = (own[member_column("fbank.npy", field)] for field in ("offset", "length"))
    assert np.array_equal(samples[0]["fbank.npy"], decode_fbank(tar[place : place + length]))
    assert samples[0]["jpg"].shape == samples[0]["frame01.jpg"].shape == (224, 224, 3)
    assert samples[0]["flac"][:4] == b"fLaC"
    facts = samples[0]["json"]
    fields = "key ytid start end labels label_ids source file_start duration fps width height sample_rate channels"
    assert set(fields.split()) | {"frame_time", "valid_frames", "decoder"} <= facts.keys()
    assert (facts["source"], facts["width"], facts["sample_rate"]) == (f"{ytid(0)}_30.mp4", 64, 16_000)
    assert facts["valid_frames"] == own["valid_frames"] == 48


def test_hostile_names(tmp_path: Path) -> None:
    names = ["-x.mp4", "a b.mp4", "q'\"`$(id).mp4", "[1]*?{}.mp4", "new\nline.mp4", "sub/a..mp4.mp4", "ü&=.mp4"]
    raw = write_files(tmp_path / "raw", {name: name for name in names})
    os.close(os.open(os.fsencode(raw) + b"/caf\xe9.mp4", os.O_CREAT))
    dataset = make(raw, tmp_path / "out")
    assert (dataset.samples, dataset.failures) == (7, {"unreadable": 1})
    assert {row["key"] for row in rows(tmp_path / "out") if row["status"] == "ok"} == {
        "-x", "a_b", "q_____id_", "_1_____", "new_line", "a__mp4", "___",
    }  # fmt: skip
    make(raw, tmp_path / "out")  # the same request, also for the name that is no text


def test_names_of_one_key(tmp_path: Path) -> None:
    raw = write_files(tmp_path / "raw", {"a.mkv": "1", "a.mp4": "2", "b/a.mp4": "3", "a .mp4": "4", "a_.mp4": "5"})
    make(raw, tmp_path / "out")
    expected = {"a.mkv": None, "a.mp4": "duplicate", "b/a.mp4": "duplicate", "a .mp4": None, "a_.mp4": None}
    assert reasons(tmp_path / "out") == expected
    make(raw, tmp_path / "paths", key="path")
    assert reasons(tmp_path / "paths") == expected | {"b/a.mp4": None}
    keys = {row["source"]: row["key"] for row in rows(tmp_path / "paths")}
    assert (keys["b/a.mp4"], keys["a_.mp4"], keys["a .mp4"]) == ("b_a", "a_", "a_-6583dcd6056f")


def test_names_in_other_scripts(tmp_path: Path) -> None:
    """Keys are of the names alone: the same in any order of coming, and for good."""
    names = ["视频一.mp4", "视频二.mp4", "音频三.mp4", "ドラマ.mp4"]
    out, raw = tmp_path / "out", write_files(tmp_path / "raw", {name: name for name in names[:1]})
    assert make(raw, out).samples == 1
    write_files(raw, {name: name for name in names})
    assert make(raw, out).samples == make(raw, out).samples == 4
    assert make(raw, tmp_path / "new").samples == 4
    grown, new = ({row["source"]: row["key"] for row in rows(path)} for path in (out, tmp_path / "new"))
    assert grown["视频一.mp4"] == "___"  # of a time when no other name had it
    assert all(key.startswith("___-") for key in new.values())
    assert {name: grown[name] for name in names[1:]} == {name: new[name] for name in names[1:]}
    csv = tmp_path / "a.csv"
    csv.write_text("".join(f"{name},x\n" for name in reversed(names)))
    listed = make(raw, tmp_path / "listed", segments=csv)
    assert listed.samples == make(raw, tmp_path / "listed", segments=csv, retry_failed=True).samples == 4
    assert {row["source"]: row["key"] for row in rows(tmp_path / "listed")} == new


@needs_fixtures
def test_real_clips(tmp_path: Path) -> None:
    assert main([str(FIXTURES / "clips"), "--out", str(tmp_path / "out"), "--shard-size", "13"]) == 0
    found = rows(tmp_path / "out")
    # Two pairs of files share their stem, which is the key.
    assert Counter(row["reason"] for row in found) == {None: 24, "duplicate": 2}
    assert len(found) == len(list((FIXTURES / "clips").iterdir()))


@needs_fixtures
def test_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(FIXTURES / "broken"), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert (
        "28 of 29 clips that have a file, or a row that is damaged or asks for a key again, failed, more than" in said
    )
    assert not (out / "dataset.json").exists()
    found = reasons(out)
    files = [path for path in (FIXTURES / "broken").rglob("*") if path.is_file()]
    assert found.keys() == {str(path.relative_to(FIXTURES / "broken")) for path in files}
    assert found.pop("unreadable/result.webm") == "empty_file"
    assert found.pop("no_video/ac3.ts") == "duplicate"  # of no_video/ac3.mkv
    assert found.pop("damaged/corrupted.mp4") == "no_audio"
    assert found.pop("damaged/weird_aspect.small.mpg") is None
    assert all(reason == source.split("/")[0] for source, reason in found.items())


# What happens to the run.


@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_do_not_depend_on_the_workers(tmp_path: Path, raw: Path, workers: int) -> None:
    one, many = make(raw, tmp_path / "one", workers=1), make(raw, tmp_path / "many", workers=workers)
    assert one.fingerprint == many.fingerprint
    for path in (tmp_path / "one").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes()


def test_bytes_do_not_depend_on_the_threads_that_the_user_allows(tmp_path: Path, real_raw: Path) -> None:
    """BLAS with more threads adds up in another order: decoder processes are told to have one."""
    for count in ("1", "4"):
        threads = {"OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
        words = command(real_raw, tmp_path / count, "--limit", "4")
        subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)} | threads, check=True, capture_output=True)
    assert read_dataset(tmp_path / "1").fingerprint == read_dataset(tmp_path / "4").fingerprint


def test_accidents_cost_one_clip_each(tmp_path: Path, raw: Path) -> None:
    accidents = {1: "hang", 2: "abort", 3: "segfault", 4: "exit", 6: "hang"}
    write_files(raw, {f"{ytid(i)}_30.mp4": content for i, content in accidents.items()})
    dataset = make(raw, tmp_path / "out", clip_timeout=0.7, shard_size=10)
    assert dataset.samples == 5
    found = [(row["reason"], row["detail"]) for row in rows(tmp_path / "out")]
    assert found[1] == found[6] == ("timeout", "took longer than 0.7 s")
    assert found[2] == ("crashed", "the decoder process was killed by SIGABRT")
    assert found[3] == ("crashed", "the decoder process was killed by SIGSEGV")
    assert found[4] == ("crashed", "the decoder process ended with status 3")
    assert {found[i] for i in (0, 5, 7, 8, 9)} == {(None, None)}


def test_decoder_processes_are_free_of_torch(tmp_path: Path, real_raw: Path) -> None:
    """Importing it costs each of them 0.5 GB. As they are in a real run, after a real clip, with either decoder."""
    words = [sys.executable, "-c", "import sys, pipeline.decoder_process; print('torch' in sys.modules)"]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"
    for decoder in ("pyav", "decord"):
        words = ["--out", str(tmp_path / decoder), "--limit", "1", "--decoder", decoder, "--workers", "1"]
        program = f"import sys\nsys.argv[1:] = {[str(real_raw), *words]}\n{TELLS_MODULES}"
        (tmp_path / "program.py").write_text(program)
        words = [sys.executable, str(tmp_path / "program.py")]
        subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
        (row,) = rows(tmp_path / decoder)
        modules = set((tmp_path / decoder / "modules.txt").read_text().split())
        assert row["status"] == "ok" and {"numpy", "av"} <= modules
        assert ("decord" in modules) == (decoder == "decord")
        assert not modules & {"torch", "torchaudio", "torchvision"}


TELLS_MODULES = """
from pathlib import Path
from pipeline import encode_sample, make_shards

def tell(path, row, *, options):
    encoded = encode_sample.make_sample(path, row, options=options)
    Path(sys.argv[3], "modules.txt").write_text(" ".join(sys.modules))
    return encoded

make_shards.make_sample = tell
if __name__ == "__main__":
    sys.exit(make_shards.main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_clip_that_eats_memory_costs_one_clip(tmp_path: Path, raw: Path) -> None:
    """Whether the kernel refuses the memory, or the parent sees it taken."""
    hoards = {1: "hoard", 3: "hoard what no limit of the kernel counts"}
    write_files(raw, {f"{ytid(i)}_30.mp4": content for i, content in hoards.items()})
    dataset = make(raw, tmp_path / "out", worker_memory=500_000_000, shard_size=10)
    assert dataset.samples == 8
    found = [(row["reason"], row["detail"]) for row in rows(tmp_path / "out")]
    assert {found[i] for i in hoards} == {("crashed", "needs more memory than --worker-memory 0.5GB")}
    assert {found[i] for i in range(10) if i not in hoards} == {(None, None)}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_has_grown_is_replaced(raw: Path) -> None:
    """Between two clips, before the limit is met."""
    jobs = [(path, {"key": path.stem}) for path in sorted(raw.iterdir())]
    for path, _ in jobs:
        path.write_text("110")
    start_fork_server()
    sizes = []
    with DecoderProcess(leaking_sample, timeout=60, memory=2_000_000_000, stop=threading.Event()) as process:
        for outcome in process.outcomes(jobs):
            assert isinstance(outcome, Encoded)
            sizes.append(process.resident / 1e6)
    assert len(sizes) == 10
    assert max(sizes) < 110 * 4 + 200  # the clip that was waiting when the third was done still goes to the old one
    assert sum(later < earlier for earlier, later in itertools.pairwise(sizes)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_memory_left_by_others_is_not_the_clips_fault(tmp_path: Path, raw: Path) -> None:
    """The third clip meets the limit; in a new process it does not."""
    for path in raw.iterdir():
        path.write_text("140")
    config = MakeShardsConfig(raw=(raw,), out=tmp_path / "out", workers=1, worker_memory=500_000_000)
    assert make_shards.run(config, make=leaking_sample) == 0
    assert read_dataset(tmp_path / "out").samples == 10


def test_a_mistake_of_ours_is_no_failed_clip(tmp_path: Path, raw: Path) -> None:
    write_files(raw, {f"{ytid(1)}_30.mp4": "defect"})
    with pytest.raises(DecoderDefectError, match=r"(?s)clip .*KeyError: 'a mistake of ours'"):
        make(raw, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_exceptions_of_decoders_are_the_clips_fault(tmp_path: Path) -> None:
    def decode(path: Path, row: dict[str, Any]) -> Any:
        av.open(str(path))

    garbage = write_files(tmp_path, {"a.mp4": "garbage"}) / "a.mp4"
    failure = _attempt(decode, garbage, {})
    assert isinstance(failure, Failure)
    assert failure.reason == "decode_error"
    assert failure.detail.startswith("InvalidDataError: ")


def command(raw: Path, out: Path, *more: str) -> list[str]:
    options = ["--out", str(out), "--shard-size", "3", "--workers", "2"]
    return [sys.executable, "-m", "pipeline.make_shards", str(raw), *options, *more]


@contextlib.contextmanager
def started(words: list[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a session of its own, which is gone afterwards."""
    process = subprocess.Popen(
        words,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        text=True,
        stderr=-1,
        stdout=-1,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def in_session(session: int) -> list[str]:
    """The processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(stat.parent.name)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_at_any_point_it_gives_the_same_bytes(tmp_path: Path, real_raw: Path) -> None:
    """Three ends: the whole group killed, the parent alone killed, SIGTERM. Then a run to the end."""
    assert main([str(real_raw), "--out", str(tmp_path / "whole"), "--shard-size", "3", "--workers", "1"]) == 0
    out = tmp_path / "out"
    for group, number in [(True, signal.SIGKILL), (False, signal.SIGKILL), (False, signal.SIGTERM)]:
        shards = max(1, len(list(out.glob("*.parquet"))))  # the plan, and what the last run left
        with started(command(real_raw, out), tmp_path) as process:
            wait_for(lambda wanted=shards: len(list(out.glob("*.parquet"))) > wanted)
            time.sleep(random.random() * 0.05)
            (os.killpg if group else os.kill)(process.pid, number)
            process.wait(20)
            wait_for(lambda session=process.pid: not in_session(session), 10)  # no orphans
            if number == signal.SIGTERM:
                assert process.returncode == 128 + number
                assert process.stderr is not None
                assert "stopped by SIGTERM; finished shards are kept" in process.stderr.read()
    assert main([str(real_raw), "--out", str(out), "--shard-size", "3"]) == 0
    assert read_dataset(out) == read_dataset(tmp_path / "whole")
    assert not list(out.glob("*.tmp"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_children_that_hang_die_with_their_parent(tmp_path: Path, raw: Path) -> None:
    write_files(raw, {f"{ytid(i)}_30.mp4": "hang" for i in range(10)})
    program = f"""
from pathlib import Path
from pipeline.make_shards import MakeShardsConfig, run
from tests.fake_samples import fake_sample, make, reasons, rows, ten_files, write_csv, write_files, ytid
run(MakeShardsConfig(raw=(Path({str(raw)!r}),), out=Path("out"), workers=2, shard_size=2), make=fake_sample)
"""
    with started([sys.executable, "-c", program], tmp_path) as process:
        wait_for(lambda: len(in_session(process.pid)) == 5)  # it, multiprocessing's two servers, two that hang
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: not in_session(process.pid), 20)


def test_a_full_disk_is_one_line_and_a_rerun_completes(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_shards, "make_sample", fake_sample_with_options)
    words = [str(raw), "--out", str(tmp_path / "out"), "--shard-size", "4", "--workers", "1"]
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    try:
        assert main(words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    said = capsys.readouterr().err
    assert "out/shard-000000.tar: File too large; finished shards are kept" in said
    assert "Traceback" not in said
    assert main(words) == 0
    assert read_dataset(tmp_path / "out").fingerprint == make(raw, tmp_path / "other").fingerprint


def fake_sample_with_options(path: Path, row: dict[str, Any], *, options: object) -> Any:
    return fake_sample(path, row)


def test_a_second_run_at_the_same_time_is_refused(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".make-shards.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another make-shards is writing"):
            make(raw, tmp_path / "out")
    make(raw, tmp_path / "out")


def test_lost_and_cut_shards_are_built_again(tmp_path: Path, raw: Path) -> None:
    out = tmp_path / "out"
    before = make(raw, out)
    (out / "shard-000000.parquet").unlink()
    os.truncate(out / "shard-000001.tar", 1000)
    (out / "shard-000002.tar").unlink()
    assert make(raw, out) == before
    (out / "dataset.json").write_text("{")
    assert make(raw, out) == before
    untouched = [(path.name, path.stat().st_mtime_ns) for path in sorted(out.iterdir())]
    assert make(raw, out) == before
    assert [(path.name, path.stat().st_mtime_ns) for path in sorted(out.iterdir())][1:] == untouched[1:]
