"""Boxes of VGG-SS and Flickr-SoundNet: the usable ones reach the samples, the damaged ones are named."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.boxes import Boxes, read_boxes
from pipeline.make_shards import MakeShardsConfig, main, run
from pipeline.segments import Segment
from shards_spec.errors import UserError
from shards_spec.sample import audioset_key, file_key
from shards_spec.tables import plan_path, read_table, write_table
from tests.fake_samples import rows, ten_files, write_csv, write_files, ytid
from tests.whole_samples import whole_sample

VGGSS = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "meta" / "vggss.json"
FLICKR_BOX = "<bbox><id>{id}</id><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bbox>"


def vggss(path: Path, boxes: dict[str, Any]) -> Path:
    path.write_text(json.dumps([{"file": name, "class": "x", "bbox": found} for name, found in boxes.items()]))
    return path


def flickr(folder: Path, boxes: dict[str, list[tuple[float, ...]]]) -> Path:
    """A file a clip; each of its boxes is another annotator's."""
    folder.mkdir()
    for name, found in boxes.items():
        marks = "".join(f"<person>{FLICKR_BOX.format(*box, id=i)}</person>" for i, box in enumerate(found))
        (folder / f"{name}.xml").write_text(f'<?xml version="1.0"?>\n<annotation>{marks}</annotation>')
    return folder


def clip(name: str, start: float | None = None) -> Segment:
    """A clip of a video id, or one known by its file."""
    key = file_key(name) if start is None else audioset_key(name, start)
    return Segment(key, None if start is None else name, name, start or 0.0, None, (), 0, "")


# Reading.


@pytest.mark.skipif(not VGGSS.is_file(), reason=f"no file {VGGSS}")
def test_the_published_file() -> None:
    boxes = read_boxes(VGGSS)
    assert (boxes.read, boxes.left_out, len(boxes.clips)) == (5941, 18, 5156)
    far, inverted = boxes.warnings()
    assert far.startswith("12 of 5,941 boxes have coordinates far outside the frame and are left out: Db6Hjt0x28k_0000")
    assert inverted.startswith("18 of 5,941 boxes are inverted or empty (12 of them with coordinates far outside)")
    assert "UyCw7pCgYg8_000055, M1P1xla8rg0_000000, Db6Hjt0x28k_000056 and 15 more" in inverted
    assert boxes.of(clip("zpWuikVorYg", 32.0)) == [(0.403125, 0.253125, 0.6, 0.75)]
    assert len(boxes.of(clip("sYIymaJi6tc", 90.0)) or ()) == 3  # one of its four is absurd
    assert boxes.of(clip("MKC9LvRivTM", 30.0)) is None  # its only one is
    assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for found in boxes.clips.values() for x0, y0, x1, y1 in found)


def test_what_a_box_must_be(tmp_path: Path) -> None:
    good = [[-0.1, 0, 1.2, 0.5], [0, 0, 1, 1]]
    far = [[0, 0, 2, 1], [0, -1e17, 1, 1], [0, 0, 10**400, 1]]
    empty = [[0.5, 0, 0.5, 1], [0.6, 0, 0.5, 1], [1.1, 0, 1.2, 1]]
    wrong = [[0, 0, 1], [0, 0, 1, "1"], None, [0, 0, 1, True], [0, 0, 1, float("nan")], {}]
    boxes = read_boxes(vggss(tmp_path / "b.json", {"a": [*good, *far, *empty, *wrong]}))
    assert boxes.clips == {"a": [(0.0, 0.0, 1.0, 0.5), (0.0, 0.0, 1.0, 1.0)]}
    assert [(line.split(" ")[0], line.split(" boxes ")[1][:14]) for line in boxes.warnings()] == [
        ("6", "are not four n"), ("3", "have coordinat"), ("3", "are inverted o"),
    ]  # fmt: skip


def test_flickr_annotations(tmp_path: Path) -> None:
    folder = flickr(tmp_path / "xml", {"10000130166": [(0, 64, 128, 256), (32, 0, 260, 128)], "a b.c": [(0, 0, 1, 1)]})
    (folder / "notes.txt").write_text("not an annotation")
    (folder / "empty.xml").write_text("<annotation/>")
    (folder / "words.xml").write_text(f"<a><p>{FLICKR_BOX.format('x', 1, 2, 3, id=0)}</p></a>")
    (folder / "unnamed.xml").write_text("<a><p><bbox><n>1</n><a>0</a><b>0</b><c>64</c><d>32</d></bbox></p></a>")
    boxes = read_boxes(folder)
    assert boxes.of(clip("10000130166")) == [(0.0, 0.25, 0.5, 1.0), (0.125, 0.0, 1.0, 0.5)]
    assert boxes.of(clip("10000130166", 0.0)) == boxes.of(clip("10000130166"))  # a row `ID,0,label`
    assert boxes.of(clip("a b.c")) is not None
    assert boxes.of(clip("unnamed")) == [(0.0, 0.0, 0.25, 0.125)]
    assert boxes.of(clip("empty")) is boxes.of(clip("words")) is None
    assert boxes.warnings() == ["1 of 5 boxes are not four numbers and are left out: words"]


def test_clips_are_found_by_id_and_start(tmp_path: Path) -> None:
    boxes = read_boxes(vggss(tmp_path / "b.json", {f"{ytid(1)}_000032": [[0, 0, 1, 1]], "my clip": [[0, 0, 1, 1]]}))
    for segment in (clip(ytid(1), 32.0), clip("my clip"), *(clip(f"{ytid(1)}_{s}") for s in ("32", "32.000", "32_42"))):
        assert boxes.of(segment), segment
    for segment in (clip(ytid(1), 33.0), clip(ytid(1)), clip(ytid(2), 32.0), clip("my"), clip(ytid(1), 32.5)):
        assert boxes.of(segment) is None, segment
    assert boxes.of(clip(ytid(1), 32.0)._replace(start=None)) is None  # a damaged row


def test_names_of_one_key_have_their_own_boxes(tmp_path: Path) -> None:
    boxes = read_boxes(vggss(tmp_path / "b.json", {"视频": [[0, 0, 1, 1]], "音频": [[0, 0, 0.5, 0.5]]}))
    assert boxes.of(clip("视频")) == [(0.0, 0.0, 1.0, 1.0)]
    assert boxes.of(clip("音频")) == [(0.0, 0.0, 0.5, 0.5)]
    assert boxes.of(clip("声音")) is None
    assert boxes.of(clip("音频")._replace(key="___5000", start=5.0)) == [(0.0, 0.0, 0.5, 0.5)]  # a part of the file


BOMB = '<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;&b;&b;">]><a><bbox><xmin>&c;</xmin></bbox></a>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB.encode(), "it has a DOCTYPE"),
        (OUTSIDE.encode(), "it has a DOCTYPE"),
        (OUTSIDE.encode("utf-16"), "it has a DOCTYPE"),
        (b"<!DOCTYPE a SYSTEM 'http://example.com/a.dtd'><a/>", "it has a DOCTYPE"),
        (b"<a>&b;</a>", "undefined entity"),
        (b"<?xml version='1.0' encoding='nonsense'?><a/>", "unknown encoding"),
        (b"<a><bbox>", "no element found"),
        (b"", "no element found"),
        (b"<a>" + b" " * 1_000_000 + b"</a>", "more than 1,000,000 bytes"),
    ],
)
def test_xml_that_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    folder = flickr(tmp_path / "xml", {"good": [(0, 0, 1, 1)]})
    (folder / "bad.xml").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.xml") as refused:
        read_boxes(folder)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "b.json is no JSON"),
        ("[" * 100_000, "b.json is no JSON"),
        ("{}", "b.json holds no list"),
        ("[]", "b.json holds no usable box"),
        ('[{"file": "a", "bbox": [[0, 0, 256, 128]]}]', "no usable box; 1 of 1 boxes have coordinates far outside"),
        ('[{"file": "a", "bbox": []}, 7]', "b.json: entry 1 is '7': expected 'file': 'ID_000032'"),
        ('[{"file": "a"}]', "b.json: entry 0 is"),
        ('[{"bbox": []}]', "b.json: entry 0 is"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(UserError) as refused:
        read_boxes(tmp_path / "b.json")
    assert said in str(refused.value)


# Through make-shards.


def make(raw: Path, out: Path, **options: Any) -> None:
    config = MakeShardsConfig(raw=(raw,), out=out, **{"max_failed": 1.0, "workers": 2, "shard_size": 2} | options)
    assert run(config, make=whole_sample) == 0


def boxes_of(out: Path) -> dict[str, Any]:
    """What the samples' JSON says, by key; samples without boxes are left out."""
    found = {}
    for row in rows(out):
        if row["status"] == "ok":
            with (out / f"shard-{row['shard']:06d}.tar").open("rb") as tar:
                tar.seek(row["json_offset"])
                said = json.loads(tar.read(row["json_length"]))
            if "boxes" in said:
                found[row["key"]] = said["boxes"]
    return found


def test_boxes_reach_the_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = ten_files(tmp_path / "raw"), tmp_path / "out"
    csv = write_csv(tmp_path / "a.csv", [0, 1, 2])
    published = {f"{ytid(1)}_000030": [[0, 0, 0.5, 0.25], [0, 0, 1, 2.5]], f"{ytid(2)}_000031": [[0, 0, 1, 1]]}
    boxes = vggss(tmp_path / "b.json", published | {f"{ytid(5)}_000030": [[0.5, 0.5, 1, 1]]})
    make(raw, out, segments=csv, boxes=boxes)
    assert boxes_of(out) == {f"{ytid(1)}_30000": [[0.0, 0.0, 0.5, 0.25]]}
    said = capsys.readouterr().err
    assert f"1 of 3 planned clips have boxes ({boxes}: 3 clips)" in said
    assert f"warning: {boxes}: 1 of 4 boxes have coordinates far outside the frame" in said
    write_csv(csv, [0, 1, 2, 3, 4, 5])  # a request that grows
    make(raw, out, segments=csv, boxes=boxes)
    assert boxes_of(out) == {f"{ytid(1)}_30000": [[0.0, 0.0, 0.5, 0.25]], f"{ytid(5)}_30000": [[0.5, 0.5, 1.0, 1.0]]}


def test_flickr_boxes_reach_the_samples(tmp_path: Path) -> None:
    raw = write_files(tmp_path / "raw", {"10000130166.mp4": "a", "sub/222.mp4": "b", "333.mp4": "c"})
    folder = flickr(tmp_path / "xml", {"10000130166": [(0, 0, 64, 64), (0, 0, 64, 128)], "222": [(128, 128, 256, 256)]})
    make(raw, tmp_path / "out", boxes=folder)
    first = [[0.0, 0.0, 0.25, 0.25], [0.0, 0.0, 0.25, 0.5]]
    assert boxes_of(tmp_path / "out") == {"10000130166": first, "222": [[0.5, 0.5, 1.0, 1.0]]}


def test_equal_boxes_are_the_same_recipe_and_none_are_another(tmp_path: Path) -> None:
    raw, out = ten_files(tmp_path / "raw"), tmp_path / "out"
    boxes = vggss(tmp_path / "b.json", {f"{ytid(1)}_000030": [[0, 0, 1, 1]]})
    make(raw, out, boxes=boxes)
    before = {path.name: path.read_bytes() for path in out.glob("shard-*.tar")}
    boxes.write_text(json.dumps(json.loads(boxes.read_text()), indent=3))  # the same boxes in another file
    (out / "shard-000000.parquet").unlink()
    make(raw, out, boxes=boxes)
    assert before == {path.name: path.read_bytes() for path in out.glob("shard-*.tar")}
    with pytest.raises(UserError, match=r"another recipe: --boxes was [0-9a-f]{12}, now none:"):
        make(raw, out)  # forgotten, most likely


def test_plans_without_the_column_go_on(tmp_path: Path) -> None:
    raw, out = ten_files(tmp_path / "raw"), tmp_path / "out"
    make(raw, out, limit=4)
    table, facts = read_table(plan_path(out))
    old = table.drop_columns(["boxes"])
    facts.pop("spec_version")
    write_table(plan_path(out), old.replace_schema_metadata(None), old.schema.remove_metadata(), facts)
    make(raw, out, limit=6)
    assert Counter(row["status"] for row in rows(out)) == {"ok": 6}


def test_mistakes_are_answered_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = ten_files(tmp_path / "raw")
    boxes = vggss(tmp_path / "b.json", {"a": [[0, 0, 1, 1]]})
    for options, said in (
        (["--boxes", str(tmp_path / "gone.json")], "gone.json: No such file"),
        (["--boxes", str(raw)], "raw holds no usable box"),
        (["--boxes", str(boxes), "--frame-fit", "crop"], "which --frame-fit crop cuts: take resize"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(raw), "--out", str(tmp_path / "out"), *options])
        printed = capsys.readouterr()
        assert ended.value.code == 2 and said in printed.err and printed.err.count("\n") == 1, printed.err


def test_equal_boxes_have_equal_hashes() -> None:
    one, same, other = (Boxes(iter([("a", [box])])) for box in ([0, 0, 1, 1], [0.0, -0.1, 1, 1], [0, 0, 1, 0.5]))
    assert one.sha256 == same.sha256 != other.sha256
