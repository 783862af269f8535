"""inspect_shards prints what a dataset holds and writes a page that needs no other, whatever the names in it."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards_spec.sample import member_names
from shards_spec.tables import plan_path, read_table, shard_schema, write_table
from tests.datasets import make_dataset
from tests.fake_samples import ytid
from tests.pages import Page
from tests.whole_samples import HOSTILE, whole_dataset
from tools.inspect_shards import main
from tools.pages.pictures import spectrogram_picture


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With boxes on one of its clips."""
    folder = tmp_path_factory.mktemp("whole")
    boxes = [{"file": f"{ytid(2)}_000030", "bbox": [[0.25, 0, 0.5, 1], [0, 0, 1, 0.5]]}]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return whole_dataset(folder, boxes=folder / "boxes.json")


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "data <b>set"))


def built(dataset: Path, *options: str) -> Page:
    out = dataset.parent / "page.html"
    main([str(dataset), "--out", str(out), *options])
    return Page(out.read_text(encoding="utf-8"))


def test_what_is_printed(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(whole), "--out", str(tmp_path / "page.html")])
    said = capsys.readouterr().out
    assert f"{whole}: 7 samples of 10 clips, 1.9 MB in 3 shards" in said
    assert "failed: 3 (30.0%)" in said
    assert re.search(r"1  no_audio +as -_000000006_30\.mp4: no audio stream <script>", said)
    assert "labels: 4, 2.00 a sample" in said
    assert re.search(rf"7  Music\n +3  Dog\n +2  {re.escape(HOSTILE)}\n +2  Bell, small\n", said)
    assert re.search(r"Sound \(s\) +least \d\.\d+, median \d\.\d+, most 9\.\d+\n", said)
    assert re.search(r"Frame rate \(fps\) +least 25, median 25, most 25\n", said)
    for name, kind in (("Frame size", "640×360"), ("Decoder", "pyav"), ("Sample rate", "44100 Hz"), ("Channels", "2")):
        assert re.search(rf"{name} +{kind} 100%\n", said)
    assert re.search(r"\n7 samples in .*page\.html, 0\.\d MB\n$", said)


def test_the_page(dataset: Path) -> None:
    found = built(dataset)
    assert not {"link", "iframe", "object", "b"} & {tag for tag, _ in found.tags}
    assert len(found.all("script")) == 1 and "addEventListener" in found.text
    addresses = [v for _, a in found.tags for k, v in a.items() if k in {"src", "href", "xlink:href", "srcset"}]
    assert all(address.startswith("data:image/") for address in addresses)
    assert not [name for _, a in found.tags for name in a if name.startswith("on")]
    assert "data <b>set" in found.text and "resized frames" in found.text
    for text in ("no_audio", "missing", "bad_segment", "3 of 10 clips gave no sample", "4 labels, 2.00 a sample"):
        assert text in found.text
    cards = found.all("article", "card")
    assert len(cards) == 7
    assert all("music" in card["data-text"] and card["data-text"] == card["data-text"].lower() for card in cards)
    assert f"{ytid(2)}_30000" in cards[2]["data-text"]


def test_only_the_pages_own_script_may_run(dataset: Path) -> None:
    built(dataset)
    raw = (dataset.parent / "page.html").read_text()
    (script,) = re.findall("<script>(.*?)</script>", raw, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in raw


def test_hostile_names_stay_text(dataset: Path) -> None:
    found = built(dataset)
    assert found.text.count(HOSTILE) == 4  # in the list of labels, on two samples, in a failure's detail
    assert "<script>alert" not in (dataset.parent / "page.html").read_text()


def test_pictures(dataset: Path) -> None:
    found = built(dataset, "--samples", "3")
    images = found.images()
    assert [alt for alt, _ in images] == ["frame", "spectrogram"] * 3
    rows = [row for row in read_table(dataset / "shard-000000.parquet")[0].to_pylist() if row["status"] == "ok"]
    assert images[0][1].shape == (224, 224, 4)
    assert images[1][1].shape == (128, -(-rows[0]["valid_frames"] // 2), 4)
    widths = [
        float(a["style"][6:-1]) for _, a in found.tags if a.get("style", "").startswith("width:") and "%" in a["style"]
    ]
    assert max(widths) == 100


def test_boxes_are_drawn(dataset: Path) -> None:
    found = built(dataset)
    (path,) = found.all("path", "attentive")
    assert path["d"] == "M56 0H112V224H56ZM0 0H224V112H0Z"
    assert [alt for alt, _ in found.images() if "box" in alt] == ["frame, 2 boxes"]


def test_time_runs_to_the_right_and_low_is_at_the_bottom() -> None:
    fbank = np.full((7, 128), -10, np.float32)
    fbank[6, 3] = 9  # late and low; in a column of its own
    picture = spectrogram_picture(fbank, step=2)
    assert (picture.width, picture.height) == (4, 128)
    page = Page(f'<img alt="" src="{picture.uri}" width="4" height="128">')
    brightness = page.images()[0][1][..., :3].sum(axis=-1)
    assert np.argwhere(brightness > 200).tolist() == [[124, 3]]


def test_samples_are_evenly_spaced(dataset: Path) -> None:
    keys = [card["data-text"].split()[-2] for card in built(dataset, "--samples", "3").all("article", "card")]
    assert keys == [f"{ytid(i)}_30000" for i in (0, 3, 7)]
    assert "3 evenly spaced samples" in built(dataset, "--samples", "3").text


def test_an_unfinished_dataset(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dataset.json", "shard-000001.parquet", "shard-000001.tar"):
        (dataset / name).unlink()
    found = built(dataset)
    assert "unfinished: 2 of 3 shards" in found.text and len(found.all("article", "card")) == 4
    assert "in 2 shards of 3 (unfinished)" in capsys.readouterr().out
    (dataset / "shard-000000.parquet").unlink()
    assert "holds no sample yet" in refused(capsys, dataset)


def test_a_dataset_that_says_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No plan, no classes, no labels, JSON of a key alone."""
    folder = make_dataset(tmp_path / "set", (2, 1), failed=0)
    for path in folder.glob("*.parquet"):
        table, facts = read_table(path)
        table = table.set_column(table.column_names.index("fbank_sum"), "fbank_sum", [[-4.0 * 998 * 128] * len(table)])
        facts.pop("spec_version")
        write_table(path, table.to_pylist(), shard_schema(member_names()), facts)
    found = built(folder)
    assert "labels: none" in capsys.readouterr().out
    assert len(found.all("article", "card")) == 3
    assert "Every clip asked for gave a sample." in found.text and found.text.count("no label") == 3


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and said.err.count("\n") == 1
    return said.err


def test_mistakes_are_answered_in_one_line(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refused(capsys, tmp_path / "gone")
    assert "is a URL: copy the dataset to a local folder" in refused(capsys, "s3://bucket/dataset")
    (tmp_path / "empty").mkdir()
    assert "is no dataset" in refused(capsys, tmp_path / "empty")
    assert "--samples must be at least 1" in refused(capsys, dataset, "--samples=0")
    assert "page.html: the folder" in refused(capsys, dataset, "--out", tmp_path / "missing" / "page.html")
    assert "is a folder: give a file" in refused(capsys, dataset, "--out", tmp_path)
    row = read_table(dataset / "shard-000000.parquet")[0].to_pylist()[1]
    tar = bytearray((dataset / "shard-000000.tar").read_bytes())
    tar[row["jpg_offset"]] ^= 1
    (dataset / "shard-000000.tar").write_bytes(tar)
    said = refused(capsys, dataset)
    assert f"shard-000000.tar: jpg of sample {row['key']} at byte {row['jpg_offset']} is damaged" in said
    (dataset / "shard-000000.tar").unlink()
    assert "shard-000000.tar cannot be read" in refused(capsys, dataset)
    plan_path(dataset).write_text("x")
    (dataset / "dataset.json").unlink()
    assert "plan.parquet cannot be read" in refused(capsys, dataset)
