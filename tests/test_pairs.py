"""make-shards --pairs: a picture and a sound file are a clip, as Flickr-SoundNet and EZ-VSL's folders have them."""

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.make_shards import main
from pipeline.pairs import walk_pairs
from shards_spec.dataset import read_dataset
from shards_spec.errors import UserError
from tests.clips import RATE, number_of, numbered_frame, pitch, pitch_at, tones
from tests.fake_samples import reasons, write_files
from tools.verify_shards import main as verify

FLICKR_BOX = "<bbox><id>0</id><xmin>0</xmin><ymin>64</ymin><xmax>128</xmax><ymax>256</ymax></bbox>"


def write_sound(path: Path, seconds: float) -> Path:
    """A WAV file with another pitch in every second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (tones(seconds) * 32767).astype(np.int16)
    with av.open(path, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for first in range(0, samples.shape[1], 4096):
            frame = av.AudioFrame.from_ndarray(samples[:, first : first + 4096], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_picture(path: Path, number: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbered_frame(number)).save(path, **options)
    return path


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flickr's layout: 20 s of sound, 4 s of it; a picture and a sound that stand alone; a damaged picture."""
    raw = tmp_path_factory.mktemp("flickr")
    for number, seconds in ((10000130166, 20), (10007936344, 4), (10008553263, 10), (1000003, 4)):
        write_sound(raw / "audio" / f"{number}.wav", seconds)
        write_picture(raw / "frames" / f"{number}.jpg", number % 100)
    (raw / "audio" / "1000003.wav").rename(raw / "audio" / "1000004.wav")
    (raw / "frames" / "10008553263.jpg").write_bytes((raw / "frames" / "1000003.jpg").read_bytes()[:600])
    return raw


def samples(out: Path) -> dict[str, dict[str, Any]]:
    """JSON, picture and waveform of each sample."""
    found = {}
    for sample in webdataset.WebDataset(str(out / "shard-000000.tar"), shardshuffle=False, empty_check=False):
        with av.open(io.BytesIO(sample["flac"])) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        picture = np.asarray(Image.open(io.BytesIO(sample["jpg"])))
        found[sample["__key__"]] = {"json": json.loads(sample["json"]), "jpg": picture, "sound": sound / 32768}
    return found


def test_flickr_soundnet(tmp_path: Path, raw: Path) -> None:
    csv, boxes, out = tmp_path / "flickr_test.csv", tmp_path / "Annotations", tmp_path / "out"
    boxes.mkdir()
    (boxes / "10000130166.xml").write_text(f"<annotation><person>{FLICKR_BOX}</person></annotation>")
    csv.write_text("10000130166,202\n10007936344,0\n10008553263,309\n1000003,0\n1000004,1\n1000005,0\n")
    options = ("--pairs", "--keep-audio", "--segments", str(csv), "--boxes", str(boxes), "--max-failed", "1")
    assert main([str(raw), "--out", str(out), *options, "--workers", "1"]) == 0
    assert reasons(out) == {
        "audio/10000130166.wav": None,
        "audio/10007936344.wav": None,
        "audio/10008553263.wav": "decode_error",
        "frames/1000003.jpg": "no_audio",
        "audio/1000004.wav": "no_video",
        "1000005": "missing",
    }
    found = samples(out)
    long, short = found["10000130166"], found["10007936344"]
    assert [number_of(sample["jpg"]) for sample in (long, short)] == [66, 44]
    assert pitch_at(long["sound"], 0.2) == pytest.approx(pitch(5), abs=3)  # the middle 10 of 20 s
    assert pitch_at(short["sound"], 0.2) == pytest.approx(pitch(0), abs=3)
    facts = long["json"]
    assert (facts["file_start"], facts["duration"], facts["valid_frames"]) == (5.0, 20.0, 998)
    assert (facts["source"], facts["picture"]) == ("audio/10000130166.wav", "frames/10000130166.jpg")
    assert (facts["width"], facts["height"], facts["frame_time"], facts["fps"]) == (160, 90, None, 0.0)
    assert facts["boxes"] == [[0.0, 0.25, 0.5, 1.0]]
    assert short["json"]["valid_frames"] == 398
    assert read_dataset(out).recipe["pairs"] is True
    assert verify([str(out)]) == 0


def test_pairs_without_a_csv_and_by_id_and_time(tmp_path: Path) -> None:
    raw, csv = tmp_path / "raw", tmp_path / "a.csv"
    write_sound(raw / "audio" / "aaaaaaaaaaa_000030.wav", 6)
    write_picture(raw / "frames" / "aaaaaaaaaaa_000030.png", 7)
    assert main([str(raw), "--out", str(tmp_path / "all"), "--pairs", "--keep-audio", "--workers", "1"]) == 0
    assert list(samples(tmp_path / "all")) == ["aaaaaaaaaaa_000030"]
    csv.write_text("aaaaaaaaaaa_000030,dog\n")  # EZ-VSL's and DeepAVFusion's lists
    assert main([str(raw), "--out", str(tmp_path / "id"), "--pairs", "--keep-audio", "--segments", str(csv)]) == 0
    (sample,) = samples(tmp_path / "id").values()
    assert (sample["json"]["key"], sample["json"]["start"]) == ("aaaaaaaaaaa_30000", 30.0)
    csv.write_text("path,start,end\naaaaaaaaaaa_000030.wav,4,6\n")
    assert main([str(raw), "--out", str(tmp_path / "time"), "--pairs", "--keep-audio", "--segments", str(csv)]) == 0
    (sample,) = samples(tmp_path / "time").values()
    assert pitch_at(sample["sound"], 0.2) == pytest.approx(pitch(4), abs=3)
    assert sample["json"]["valid_frames"] == 198


def listed(raw: Path) -> list[tuple[str, str | None, str | None]]:
    return [(file.path, file.picture, file.lacks) for _, file in walk_pairs([raw], warn=pytest.fail)]


def test_what_belongs_together(tmp_path: Path) -> None:
    names = ["a/1.wav", "a/1.jpg", "f/1.jpg", "audio/x/2.flac", "frames/x/2.JPEG", "audio/x/3.wav", "frames/y/3.jpg"]
    write_files(tmp_path, dict.fromkeys([*names, "4.png", "frames/.5.jpg", "film.mp4"], "x"))
    assert listed(tmp_path) == [
        ("4.png", None, "no_audio"),
        ("a/1.wav", "a/1.jpg", None),  # of its own folder
        ("audio/x/2.flac", "frames/x/2.JPEG", None),
        ("audio/x/3.wav", None, "no_video"),  # y is another folder than x
    ]
    write_files(tmp_path, {"small/x/2.jpg": "x"})
    with pytest.raises(
        UserError, match=r"'audio/x/2.flac' may belong to the picture 'frames/x/2.JPEG' or 'small/x/2.j"
    ):
        listed(tmp_path)


def test_pictures_are_upright(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_sound(raw / "1.wav", 1)
    exif = Image.Exif()
    exif[0x0112] = 3  # lying on its head
    Image.fromarray(numbered_frame(5)[::-1, ::-1]).save(raw / "1.jpg", exif=exif)
    assert main([str(raw), "--out", str(tmp_path / "out"), "--pairs", "--keep-audio"]) == 0
    assert number_of(samples(tmp_path / "out")["1"]["jpg"]) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--frames", "4"), "--pairs have one picture each, --frames 4 wants more"),
        (("--decoder", "decord"), "--pairs are read with PyAV, decord reads videos"),
    ],
)
def test_options_that_pairs_cannot_have(
    tmp_path: Path, raw: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(raw), "--out", str(tmp_path / "out"), "--pairs", *words])
    assert message in capsys.readouterr().err
