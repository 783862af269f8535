"""Silent, near-silent and short clips: counted, shown, warned of, and left out on request."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from pipeline.encode_sample import Encoded
from pipeline.fbank import fbank
from pipeline.make_shards import main as make_shards
from shards_spec.dataset import DATASET_FILE, read_dataset, write_dataset
from shards_spec.quiet import FLOOR, Quiet, kind_of, loudest, rows_of
from shards_spec.sample import encode_fbank
from shards_spec.tables import read_table, write_table
from tests.checkpoints import make_checkpoint
from tests.clips import RATE, make_clip, tones
from tests.datasets import make_dataset
from tests.fake_samples import reasons, rows
from tests.pages import Page
from tests.runs import SMALL
from tests.whole_samples import rewrite_as_before
from tools.inspect_shards import main as inspect
from tools.verify_shards import main as verify
from training.evaluate import main as evaluate
from training.stream.index import open_index
from training.train import main as train


def tone(decibels: float) -> npt.NDArray[np.float32]:
    """3 s of 1 kHz, its peak so far below full scale."""
    return (10 ** (decibels / 20) * np.sin(2 * np.pi * 1000 * np.arange(3 * RATE) / RATE)).astype(np.float32)


def noise(decibels: float) -> npt.NDArray[np.float32]:
    """3 s of white noise, its RMS so far below full scale."""
    return (10 ** (decibels / 20) * np.random.default_rng(0).standard_normal(3 * RATE)).astype(np.float32)


def click() -> npt.NDArray[np.float32]:
    """Silence but for 20 ms."""
    return np.where(np.abs(np.arange(3 * RATE) - RATE) < 160, tone(-10), 0).astype(np.float32)


@pytest.mark.parametrize(
    ("waveform", "kind"),
    [
        (np.zeros(3 * RATE, np.float32), "silent"),
        (np.full(3 * RATE, 0.3, np.float32), "silent"),  # a constant is no sound
        (noise(-120), "silent"),
        (noise(-90), "near-silent"),  # the last bit of 16
        (tone(-60), "near-silent"),
        (noise(-70), "near-silent"),
        (tone(-50), None),
        (noise(-60), None),
        (click(), None),
    ],
)
def test_kinds_of_sound(waveform: npt.NDArray[np.float32], kind: str | None) -> None:
    stored, valid = fbank(waveform)
    assert kind_of(loudest(encode_fbank(stored), valid)) == kind


def test_rows_of_a_time() -> None:
    assert [rows_of(seconds) for seconds in (0, 0.02, 0.025, 0.034, 0.035, 1.0, 10.0)] == [0, 0, 1, 1, 2, 98, 998]
    assert fbank(tones(1.0)[0])[1] == rows_of(1.0)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips: three with next to no sound, one of which is short too."""
    raw = tmp_path_factory.mktemp("quiet") / "raw"
    raw.mkdir()
    sounds = {"loud": tones(3)[0], "faint": noise(-75), "silent": 0 * tone(0), "short": tones(0.1)[0]}
    sounds["short_and_silent"] = np.zeros(RATE // 10, np.float32)
    for name, waveform in sounds.items():
        make_clip(raw / f"{name}.mkv", len(waveform) / RATE, waveform=waveform[None], audio_codec="pcm_s16le")
    return raw


@pytest.fixture(scope="module")
def out(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quiet") / "out"
    assert make_shards([str(raw), "--out", str(out), "--workers", "1"]) == 0
    return out


def test_they_are_samples_and_are_counted(out: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_dataset(out).quiet == Quiet(silent=2, near_silent=1, short=2)
    assert json.loads((out / DATASET_FILE).read_text())["quiet"] == {"silent": 2, "near_silent": 1, "short": 2}
    table, _ = read_table(out / "shard-000000.parquet")
    loud = dict(zip(table["key"].to_pylist(), table["fbank_max"].to_pylist(), strict=True))
    assert loud["silent"] == loud["short_and_silent"] == FLOOR < loud["faint"] < -6 < loud["short"]
    capsys.readouterr()
    assert make_shards([str(raw), "--out", str(out), "--workers", "1"]) == 0
    assert "of these 2 silent, 1 near-silent, 2 shorter than 1 s" in capsys.readouterr().out
    assert verify([str(out), "--workers", "1"]) == 0


def contact_sheet(dataset: Path, *options: str) -> Page:
    page = dataset.parent / "page.html"
    inspect([str(dataset), "--out", str(page), *options])
    return Page(page.read_text(encoding="utf-8"))


def test_the_contact_sheet_shows_them_and_has_a_filter(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = contact_sheet(out, "--samples", "1")
    assert "next to no sound: 2 silent, 1 near-silent, 2 shorter than 1 s\n" in capsys.readouterr().out
    cards = {card["data-text"].split()[0]: card["data-quiet"] for card in found.all("article", "card")}
    assert cards == {"faint": "near-silent", "silent": "silent", "short": "short", "short_and_silent": "silent short"}
    assert [option["value"] for option in found.all("option")] == ["", "silent", "near-silent", "short"]
    assert "1 evenly spaced samples. Of those with next to no sound, 3 more." in found.text
    brightest = [pixels[..., :3].sum(axis=-1).max() for alt, pixels in found.images() if alt == "spectrogram"]
    assert brightest[0] < 400 < brightest[1]  # near-silent sound is dark, whatever its own range
    assert "Silent (2)" in found.text and "Near-silent (1)" in found.text and "Shorter than 1 s (2)" in found.text


def test_the_contact_sheet_of_tables_of_earlier_versions(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = Path(shutil.copytree(out, tmp_path / "older"))
    rewrite_as_before(dataset / "shard-000000.parquet")
    found = contact_sheet(dataset)
    assert "next to no sound: 2 silent, 1 near-silent, 2 shorter than 1 s\n" in capsys.readouterr().out
    cards = [card["data-quiet"] for card in found.all("article", "card")]
    assert cards == ["near-silent", "", "short", "silent short", "silent"]


def test_verify_sees_wrong_counts(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Path(shutil.copytree(out, tmp_path / "wrong"))
    write_dataset(dataset, replace(read_dataset(dataset), quiet=Quiet(silent=1)))
    assert verify([str(dataset), "--workers", "1"]) == 1
    assert (
        "dataset.json: says quiet {'silent': 1, 'near_silent': 0, 'short': 0}, the shards {'silent': 2"
        in capsys.readouterr().out
    )
    path = dataset / "shard-000000.parquet"
    table, facts = read_table(path)
    changed = table.set_column(table.column_names.index("fbank_max"), "fbank_max", pa.array([1.0] * 5, pa.float32()))
    write_table(path, changed, changed.schema, {k: v for k, v in facts.items() if k != "spec_version"})
    assert verify([str(dataset), "--workers", "1"]) == 1
    assert "has fbank_max -15.9453125, the table says 1.0" in capsys.readouterr().out


LEFT_OUT = ["--workers", "1", "--max-failed", "1", "--min-seconds", "0.5", "--skip-silent"]


@pytest.fixture(scope="module")
def left_out(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quiet") / "left out"
    assert make_shards([str(raw), "--out", str(out), *LEFT_OUT]) == 0
    return out


def test_they_are_left_out_on_request(left_out: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = left_out
    assert reasons(out) == {
        "loud.mkv": None,
        "faint.mkv": "no_audio",
        "silent.mkv": "no_audio",
        "short.mkv": "too_short",
        "short_and_silent.mkv": "too_short",
    }
    details = {row["source"]: row["detail"] for row in rows(out)}
    assert details["short.mkv"] == "0.10 s of sound, --min-seconds asks for 0.5"
    assert details["silent.mkv"].startswith("the sound is silent (loudest fbank value -15.95")
    assert details["faint.mkv"].startswith("the sound is near-silent (") and "--skip-silent" in details["faint.mkv"]
    assert read_dataset(out).recipe["min_seconds"] == 0.5
    capsys.readouterr()
    with pytest.raises(SystemExit):
        make_shards([str(raw), "--out", str(out)])
    assert "--min-seconds was 0.5, now none; --skip-silent was True, now none" in capsys.readouterr().err


def no_sample(path: Path, row: dict[str, Any], *, options: object) -> Encoded:
    """Takes the place of a decoder where nothing may be decoded."""
    raise AssertionError(f"{path} was decoded")


@pytest.mark.parametrize("is_of_an_earlier_version", [False, True])
def test_they_are_left_out_later_without_decoding(
    out: Path,
    left_out: Path,
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_of_an_earlier_version: bool,
) -> None:
    monkeypatch.setattr("pipeline.make_shards.make_sample", no_sample)
    later = Path(shutil.copytree(out, tmp_path / "later"))
    if is_of_an_earlier_version:
        rewrite_as_before(later / "shard-000000.parquet")
    assert make_shards([str(raw), "--out", str(later), *LEFT_OUT]) == 0
    for path in left_out.iterdir():
        assert path.read_bytes() == (later / path.name).read_bytes(), path.name


@pytest.mark.parametrize("seconds", ["-1", "nan", "11"])
def test_a_time_that_no_clip_can_have(raw: Path, tmp_path: Path, seconds: str) -> None:
    with pytest.raises(SystemExit):
        make_shards([str(raw), "--out", str(tmp_path / "out"), f"--min-seconds={seconds}"])


# What reads a dataset.


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    """A dataset of six samples, a third of which is silent by its dataset.json."""
    folder = make_dataset(tmp_path / "data", (4, 2), failed=0)
    write_dataset(folder, replace(read_dataset(folder), quiet=Quiet(silent=1, near_silent=1)))
    return folder


def test_a_dataset_json_may_say_less_or_more(quiet: Path) -> None:
    path = quiet / DATASET_FILE
    facts = json.loads(path.read_text())
    facts |= {"mood": "good", "quiet": facts["quiet"] | {"loud": 3}}
    facts["shards"][0]["colour"] = "red"
    path.write_text(json.dumps(facts))
    assert read_dataset(quiet).quiet == Quiet(silent=1, near_silent=1)
    del facts["quiet"]
    path.write_text(json.dumps(facts))
    assert read_dataset(quiet).quiet is None
    assert open_index(quiet).quiet_warnings() == []


def test_a_few_are_not_worth_a_warning() -> None:
    assert Quiet(silent=3, short=3).warning(100) is None
    said = Quiet(silent=2, near_silent=2, short=1).warning(100)
    assert said is not None and "4.0% of 100 samples have next to no sound (2 silent, 2 near-silent, 1 shorter" in said
    assert Quiet(silent=4, near_silent=None).warning(100) is not None


def test_training_and_evaluation_warn(quiet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_checkpoint(tmp_path / "run")
    evaluate(["retrieval", f"--data={quiet}", f"--checkpoint={run}", "--workers=0"])
    said = capsys.readouterr()
    expected = f"{quiet}: 33.3% of 6 samples have next to no sound (1 silent, 1 near-silent)"
    assert f"evaluate.py: warning: {expected}" in said.err
    assert f"note: {expected}" in said.out
    train([*SMALL, f"--data={quiet}", f"--out={tmp_path / 'new'}", "--steps=1", "--batch-size=2", "--workers=0"])
    assert f"train.py: warning: {expected}" in capsys.readouterr().err
