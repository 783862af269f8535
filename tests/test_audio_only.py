"""make-shards --audio-only: samples of sound alone, from ESC-50's files to a classifier of sounds."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset

from pipeline.make_shards import main
from pipeline.options import MakeShardsConfig
from shards_spec.dataset import read_dataset
from shards_spec.errors import UserError
from shards_spec.sample import JSON_FIELDS, member_names
from tests.checkpoints import make_checkpoint
from tests.clips import pitch, pitch_at
from tests.fake_samples import reasons
from tests.runs import command_line, run_to_end
from tests.test_pairs import write_sound
from tools.inspect_shards import main as inspect
from tools.verify_shards import main as verify
from training.evaluate import main as evaluate
from training.methods.interface import Reads
from training.stream.index import open_index
from training.train import main as train

ESC50 = "filename,fold,target,category,esc10,src_file,take\n"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ESC-50's layout: five sounds, a fold each; one that the CSV asks for is not there."""
    raw = tmp_path_factory.mktemp("ESC-50-master")
    rows = []
    for number in range(1, 6):
        name, category = f"{number}-1791-A-{number % 2}.wav", ("dog", "chirping_birds")[number % 2]
        write_sound(raw / "audio" / name, 2 + number)
        rows.append(f"{name},{number},{number % 2},{category},True,1791,A\n")
    (raw / "meta").mkdir()
    (raw / "meta" / "esc50.csv").write_text(ESC50 + "".join(rows) + "1-9-A-1.wav,1,1,chirping_birds,True,9,A\n")
    return raw


@pytest.fixture(scope="module")
def dataset(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folds 1 to 4."""
    out = tmp_path_factory.mktemp("shards") / "esc50"
    options = ("--audio-only", "--keep-audio", "--segments", str(raw / "meta" / "esc50.csv"), "--split", "1,2,3,4")
    assert main([str(raw), "--out", str(out), *options, "--workers", "1"]) == 0
    return out


def test_samples_are_sound_alone(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = read_dataset(dataset)
    assert facts.samples == 4 and reasons(dataset)["1-9-A-1"] == "missing"
    assert facts.recipe["audio_only"] is True
    assert [c["name"] for c in facts.classes] == ["chirping_birds", "dog"]
    found = {}
    for sample in webdataset.WebDataset(str(dataset / "shard-000000.tar"), shardshuffle=False, empty_check=False):
        assert {name for name in sample if name[:2] != "__"} == {"json", "fbank.npy", "flac"}
        found[sample["__key__"]] = json.loads(sample["json"])
    assert list(found) == [f"{number}-1791-A-{number % 2}" for number in range(1, 5)]
    first = found["1-1791-A-1"]
    assert set(JSON_FIELDS) <= first.keys()
    assert [first[name] for name in ("width", "height", "fps", "frame_time")] == [None] * 4
    assert first["duration"] == pytest.approx(3) and first["valid_frames"] == 298
    assert first["labels"] == ["chirping_birds"] and first["label_ids"] == [0]
    assert verify([str(dataset), "--workers", "1"]) == 0
    capsys.readouterr()
    inspect([str(dataset), "--out", str(dataset.parent / "page.html")])
    assert "audio_only true" in capsys.readouterr().out
    page = (dataset.parent / "page.html").read_text()
    assert "sound alone" in page and "image/jpeg" not in page and "spectrogram" in page


def test_a_rerun_goes_on_and_pictures_are_another_recipe(raw: Path, dataset: Path, capsys) -> None:
    options = ("--keep-audio", "--segments", str(raw / "meta" / "esc50.csv"), "--split", "1,2,3,4", "--workers", "1")
    before = read_dataset(dataset)
    assert main([str(raw), "--out", str(dataset), "--audio-only", *options]) == 0
    assert read_dataset(dataset) == before
    with pytest.raises(SystemExit):
        main([str(raw), "--out", str(dataset), *options])
    assert "--audio-only was True, now none" in capsys.readouterr().err


def test_the_seconds_of_a_csv_are_heard(tmp_path: Path) -> None:
    write_sound(tmp_path / "raw" / "long.wav", 20)
    (tmp_path / "wanted.csv").write_text("path,start,end\nlong.wav,12,15\n")
    options = ("--audio-only", "--keep-audio", "--segments", str(tmp_path / "wanted.csv"), "--workers", "1")
    assert main([str(tmp_path / "raw"), "--out", str(tmp_path / "out"), *options]) == 0
    (sample,) = webdataset.WebDataset(str(tmp_path / "out" / "shard-000000.tar"), shardshuffle=False, empty_check=False)
    assert sample["__key__"] == "long_12000" and json.loads(sample["json"])["file_start"] == 12
    with av.open(io.BytesIO(sample["flac"])) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]) / 32768
    assert len(sound) == 3 * 16_000
    heard = [pitch_at(sound, second + 0.2) for second in range(3)]
    assert heard == pytest.approx([pitch(second) for second in (12, 13, 14)], abs=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": True}, "--pairs is about pictures"),
        ({"frames": 10}, "--frames 10 is about pictures"),
        ({"boxes": Path("b.json")}, "--boxes is about pictures"),
        ({"frame_fit": "crop"}, "--frame-fit crop is about pictures"),
        ({"decoder": "decord"}, "--audio-only is read with PyAV"),
    ],
)
def test_options_about_pictures_are_refused(tmp_path: Path, options, message: str) -> None:
    config = MakeShardsConfig(raw=(tmp_path,), out=tmp_path / "out", audio_only=True, **options)
    with pytest.raises(UserError, match=message):
        config.check()


def test_members_of_sound_alone() -> None:
    assert member_names(audio_only=True) == ("json", "fbank.npy")
    with pytest.raises(ValueError, match="have no frames, asked for 10"):
        member_names(10, audio_only=True)


def test_who_reads_frames_refuses_them(dataset: Path) -> None:
    for reads in (Reads(), Reads(frames=4, choose="random")):
        with pytest.raises(UserError, match=r"holds sound alone \(make-shards --audio-only\), and frames are read"):
            open_index(str(dataset), reads=reads)
    index = open_index(str(dataset), looks=False)
    assert index.reads == Reads(frames=0)
    place = index.place(2)
    assert place.frames == () and place.fbank.length and place.key == "3-1791-A-1"
    with pytest.raises(ValueError, match="of no frames none is chosen"):
        Reads(frames=0, choose="window")


def test_a_classifier_of_sounds_is_trained_and_scored(dataset: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    size = ["--encoder.dim=16", "--encoder.depth=1", "--encoder.heads=2", "--steps=1", "--batch-size=4"]
    finetune = command_line("train.py", "finetune", f"--data={dataset}", f"--out={run}", "--inputs=a", *size)
    run_to_end(finetune)
    evaluate(["classification", f"--data={dataset}", f"--checkpoint={run}", "--workers=0"])
    result = json.loads((run / "evaluation" / "classification-esc50.json").read_text())
    assert result["pool"] == 4 and list(result["metrics"]) == ["audio"]
    assert 0 <= result["metrics"]["audio"]["top-1"] <= 100
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train(["finetune", f"--data={dataset}", f"--out={tmp_path / 'av'}", "--inputs=av", *size])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "holds sound alone" in said and "give --inputs a" in said


def test_a_probe_on_sound_needs_no_frame(dataset: Path, tmp_path: Path) -> None:
    run = make_checkpoint(tmp_path / "run")
    probe = ["probe", f"--data={dataset}", f"--eval-data={dataset}", f"--checkpoint={run}", "--workers=0"]
    evaluate([*probe, "--inputs=a", "--no-untrained", "--weight-decay=0.01"])
    result = json.loads((run / "evaluation" / "probe-esc50.json").read_text())
    assert list(result["metrics"]) == ["audio"] and result["pool"] == 4
    with pytest.raises(SystemExit):
        evaluate([*probe, "--inputs=av"])
