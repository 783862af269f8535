"""Segment CSVs and class lists: every form, every kind of damage, nothing dropped."""

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.classes import ClassList, classes_of_labels, read_classes
from pipeline.segments import Segment, SegmentTable, read_segments
from shards_spec.errors import UserError

META = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "meta"
needs_fixtures = pytest.mark.skipif(not META.is_dir(), reason=f"no fixture folder {META}")

HEAD = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2, num_segs={}\n# YTID, start_seconds, ...\n"


def table(path: Path, text: str, **options: Any) -> SegmentTable:
    path.write_text(text)
    return read_segments(path, clip_seconds=10.0, **options)


def read(path: Path, text: str, **options: Any) -> list[Segment]:
    return table(path, text, **options).rows


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "rows", "labels"),
    # The balanced file at hand announces 22160 segments and 52882 labels but holds these; eval is whole.
    [("balanced_train_segments.csv", 22_155, 52_854), ("eval_segments.csv", 20_371, 51_804)],
)
def test_the_published_segments(name: str, rows: int, labels: int) -> None:
    found = read_segments(META / name, clip_seconds=10.0)
    segments = found.rows
    assert not found.labels  # mids: their order is AudioSet's
    assert len(segments) == len({s.key for s in segments}) == rows
    assert sum(len(s.labels) for s in segments) == labels
    assert not any(s.problem for s in segments)
    assert len(found.warnings) == (name == "balanced_train_segments.csv")
    classes = read_classes(META / "class_labels_indices.csv")
    assert len(classes.classes) == 527
    assert {i for s in segments for i in classes.label_ids(s.labels)} == set(range(527))
    assert not classes.unknown


@needs_fixtures
def test_the_published_vggsound_list() -> None:
    found = read_segments(META / "vggsound_test.csv", clip_seconds=10.0)
    segments = found.rows
    assert len(segments) == 15_446
    assert segments[0][:6] == ("glLQrEijrKg_300000", "glLQrEijrKg", None, 300.0, 310.0, ("playing hammond organ",))
    classes = read_classes(META / "vggsound_classes.csv")
    assert Counter(len(classes.label_ids(s.labels)) for s in segments) == {1: 15_446}


def test_audioset_form(tmp_path: Path) -> None:
    text = HEAD.format(2) + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n_a-b_c-d_e-, 0.500, 3.250, "/m/1"\n'
    first, second = read(tmp_path / "a.csv", text)
    assert first[:8] == ("--PJHxphWEs_30000", "--PJHxphWEs", None, 30.0, 40.0, ("/m/09x0r", "/t/dd00088"), 4, "")
    assert second[:6] == ("_a-b_c-d_e-_500", "_a-b_c-d_e-", None, 0.5, 3.25, ("/m/1",))


def test_vggsound_forms(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "a.csv", '---g-f_I2yQ,1,"bird chirping, tweeting",test\n')
    assert row[:6] == ("---g-f_I2yQ_1000", "---g-f_I2yQ", None, 1.0, 11.0, ("bird chirping, tweeting",))
    rows = read(tmp_path / "b.csv", "0_8-g2rof7E_000049.mp4,heart\r\nsub/my video (1).mp4,cat\r\n../../x.mp4,dog\r\n")
    assert rows[0][:6] == ("0_8-g2rof7E_49000", "0_8-g2rof7E", None, 49.0, 59.0, ("heart",))
    assert rows[1][:6] == ("my_video__1_", None, "my video (1)", 0.0, 10.0, ("cat",))
    assert rows[2].stem == "x"  # a name leads nowhere: files are found by it among those listed


def test_what_spreadsheets_do(tmp_path: Path) -> None:
    text = "\ufeff" + HEAD.format(9) + '#NAME?,30,40,"/m/1"\n-2147483648,30,40,"/m/1"\ngood_id-123,30,40,/m/1,/m/2,\n'
    first, second, third = read(tmp_path / "a.csv", text)
    assert (first.problem, first.start) == ("line 4: '#NAME?' is no video id (11 characters of A-Z a-z 0-9 _ -)", None)
    assert second.problem == ""  # eleven characters: it may be an id
    assert third.labels == ("/m/1", "/m/2")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("#NAME?, 30, 40, x", "no video id"),
        ("#REF!", "no video id"),
        ("short, 30, 40, x", "no video id"),
        ("elevenchars!, 30, 40", "no video id"),
        ("../../../etc, 30, 40", "no video id"),
        ("elevenchar_, abc, 40", "start 'abc' is no number"),
        ("elevenchar_, nan, 40", "start 'nan' is no number"),
        ("elevenchar_, -1, 40", "start '-1' is no number"),
        ("elevenchar_, 1e300, inf", "start '1e300' is no number"),
        ("elevenchar_, 30, inf", "end 'inf' is no number"),
        ("elevenchar_, 30, #VALUE!", "end '#VALUE!' is no number"),
        ("elevenchar_, 30", "end (no such column)"),
        ("elevenchar_", "start (no such column)"),
        ("elevenchar_, 40, 40", "end 40 is not after start 40"),
        ("elevenchar_, 40, 30", "end 30 is not after start 40"),
        ('elevenchar_, 30, 40, "/m/1', "a quote is not closed"),
        ("elevenchar_, 30, 40, " + 30_000 * "x", "the row has 30022 characters"),
        (",,,", "no video id"),
    ],
)
def test_damaged_rows_are_kept_with_their_line(tmp_path: Path, row: str, problem: str) -> None:
    good = '{}, 30.000, 40.000, "/m/1"\n'
    text = HEAD.format(3) + good.format("aaaaaaaaaaa") + row + "\n" + good.format("bbbbbbbbbbb")
    first, bad, last = read(tmp_path / "a.csv", text)
    assert first.problem == last.problem == ""
    assert problem in bad.problem
    assert bad.problem.startswith("line 5: ")
    assert (bad.ytid, bad.start, bad.end) == (None, None, None)


def test_headers_comments_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    row = "aaaaaaaaaa{},1,2,/m/1\n"
    text = "YTID,start,end,labels\n" + row.format(1) + "\n   \n" + HEAD.format(1) + row.format(2)
    assert [s.line for s in read(tmp_path / "a.csv", text)] == [2, 8]


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    text = "".join(f"aaaaaaaaaa{i},1,2,/m/1\n" for i in range(9))
    assert len(read(tmp_path / "a.csv", text, limit=4)) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no row"),
        (HEAD.format(0), "holds no row"),
        ("#NAME?,1,2,x\n#NAME?,1,2,x\n", "a.csv holds no usable row: line 1: '#NAME\\?' is no video id"),
        ("aaaaaaaaaaa;30,000;40,000\n", "line 1: 'aaaaaaaaaaa;30' is no video id"),
        ("\x00\x01\x02", "no usable row"),
    ],
)
def test_csv_without_a_usable_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.csv", text)


def test_missing_csv(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*gone\.csv: No such file"):
        read_segments(tmp_path / "gone.csv", clip_seconds=10.0)


def test_classes_by_mid_and_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", 'index,mid,display_name\n0,/m/a,"Speech"\n1,/m/b,"Male speech, man speaking"\n')
    classes = read_classes(path)
    assert classes.label_ids(("/m/b", "Speech", "new", "Male speech, man speaking")) == [1, 0, 1]
    assert classes.unknown == {"new": 1}
    assert classes.classes[1] == {"index": 1, "mid": "/m/b", "name": "Male speech, man speaking"}
    assert ClassList([]).label_ids(("/m/b",)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("index,mid,display_name\n0,/m/a,x\n2,/m/b,y\n", "line 3: got '2,/m/b,y', expected .* with index 1"),
        ("index,mid,display_name\n0,/m/a\n", "line 2: got '0,/m/a', expected index,mid,display_name"),
        ("0,/m/a,x\n", "line 1: got '0,/m/a,x', expected a header"),
    ],
)
def test_bad_class_lists(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_classes(write(tmp_path / "c.csv", text))


# A first line that names the columns.


def brief(segments: list[Segment]) -> list[tuple[Any, ...]]:
    return [(s.key, s.path, s.start, s.end, s.labels, s.problem) for s in segments]


def test_a_csv_of_ones_own(tmp_path: Path) -> None:
    text = 'path,start,end,label\ndogs/a b.mp4,0.0,5.5,dog\nc.webm,5,10,cat,loud\nd.mov,,,\ne,1,2,"cat, tabby"\n'
    found = table(tmp_path / "a.csv", text)
    assert brief(found.rows) == [
        ("a_b_0", "dogs/a b.mp4", 0.0, 5.5, ("dog",), ""),
        ("c_5000", "c.webm", 5.0, 10.0, ("cat", "loud"), ""),
        ("d", "d.mov", 0.0, 10.0, (), ""),
        ("e_1000", "e", 1.0, 2.0, ("cat, tabby",), ""),
    ]
    assert [s.of_file for s in found.rows] == [True, True, False, True]
    assert found.labels == {"dog", "cat", "loud", "cat, tabby"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path\nx.mp4\n", ("x", "x.mp4", 0.0, 10.0, (), "")),
        ("file,label\nx.mp4,1\n", ("x", "x.mp4", 0.0, 10.0, ("1",), "")),
        ("label,file_name\ndog,x.mp4\n", ("x", "x.mp4", 0.0, 10.0, ("dog",), "")),
        ("path,start\nx.mp4,2.5\n", ("x_2500", "x.mp4", 2.5, 12.5, (), "")),
        ("path,label1,label_2,start,end\nx.mp4,a,b,1,2\n", ("x_1000", "x.mp4", 1.0, 2.0, ("a", "b"), "")),
        ('Path,Labels\nx.mp4,"a, b"\n', ("x", "x.mp4", 0.0, 10.0, ("a", "b"), "")),
        ('path,label\nx.mp4,"/m/09x0r,/t/dd00088"\n', ("x", "x.mp4", 0.0, 10.0, ("/m/09x0r", "/t/dd00088"), "")),
        ("video_id,start_seconds,label\naaaaaaaaaaa,3,a\n", ("aaaaaaaaaaa_3000", "", 3.0, 13.0, ("a",), "")),
        ("id,start,end,label\nx.mp4,3,4,a\n", ("x_3000", "x.mp4", 3.0, 4.0, ("a",), "")),
        ("path,label\naaaaaaaaaaa_000030.mp4,a\n", ("aaaaaaaaaaa_30000", "", 30.0, 40.0, ("a",), "")),
        ("path,start,end\naaaaaaaaaaa_30.mp4,1,2\n", ("aaaaaaaaaaa_30_1000", "aaaaaaaaaaa_30.mp4", 1.0, 2.0, (), "")),
        ("path,label,,\nx.mp4,a,,\n", ("x", "x.mp4", 0.0, 10.0, ("a",), "")),
        ("# made by hand\npath,label\n#1 hit.mp4,a\n", ("_1_hit", "#1 hit.mp4", 0.0, 10.0, ("a",), "")),
    ],
)
def test_columns_by_name(tmp_path: Path, text: str, expected: tuple[Any, ...]) -> None:
    assert brief(read(tmp_path / "a.csv", text)) == [expected]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("x.mp4,a,5,dog", "start 'a' is no number"),
        ("x.mp4,,5,dog", "start '' is no number"),
        ("x.mp4,1,,dog", "end '' is no number"),
        ("x.mp4,5,1,dog", "end 1 is not after start 5"),
        (",1,2,dog", "'' is no name of a file"),
        ("..,1,2,dog", "'..' is no name of a file"),
    ],
)
def test_damaged_rows_below_names(tmp_path: Path, row: str, problem: str) -> None:
    _, bad = read(tmp_path / "a.csv", f"path,start,end,label\ny.mp4,0,1,dog\n{row}\n")
    assert bad.problem.startswith(f"line 3: {problem}")
    _, bad = read(tmp_path / "b.csv", "label,path\ndog,y.mp4\ncat, tabby,y.mp4\n")
    assert bad.problem == "line 3: the row has 3 cells, expected 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4,0.0,5.5,dog\n", "line 1: 'a.mp4,0.0,5.5,dog': '0.0' may be a label or a time: put a first line that"),
        ("a.mp4,dog\nb.mp4,7\n", "line 2: 'b.mp4,7': '7' may be a label or a time"),
        ("a.mp4,bird chirping, tweeting\n", "line 1: .* has 3 cells, expected name.mp4,label: put labels that hold a"),
        ("aaaaaaaaaaa,1,a,b,test\n", "line 1: .* has 5 cells, expected id,start,label,split: put labels that hold"),
        ("path,strat,label\na.mp4,0,x\n", "line 1: column 'strat' is unknown: remove it, or name it one of path"),
        ("# x\npath,end\na.mp4,1\n", "line 2: it has a column of ends and none of starts"),
        ("path,start,begin\na.mp4,0,1\n", "line 1: the columns 'start', 'begin' say the same: leave one"),
        ("path,ytid\na.mp4,aaaaaaaaaaa\n", "line 1: the columns 'path', 'ytid' say the same"),
        ("path,label,labels\na.mp4,a,b\n", "line 1: it has a column of one label and one of lists"),
        ("path,label\n", "holds no row"),
        ("source_1,source_2,class_1\naaaaaaaaaaa_000364,bbbbbbbbbbb_000030,flute\n", "line 1: .* has 3 cells"),
    ],
)
def test_what_is_ambiguous_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.csv", text)


def test_names_without_suffix(tmp_path: Path) -> None:
    """The lists of EZ-VSL and DeepAVFusion."""
    rows = read(tmp_path / "a.csv", "---g-f_I2yQ_000001,people_marching\n-zSyfcXmHdk_001083,a_b\n")
    assert rows[0][:6] == ("---g-f_I2yQ_1000", "---g-f_I2yQ", None, 1.0, 11.0, ("people_marching",))
    assert rows[1].start == 1083.0
    assert [s.start for s in read(tmp_path / "b.csv", "aaaaaaaaaaa_000032\nbbbbbbbbbbb_000000\n")] == [32.0, 0.0]
    with pytest.raises(UserError, match="no usable row: line 1: 'tTGSnwqrU1Q_3' is no"):
        read(tmp_path / "c.csv", "tTGSnwqrU1Q_3,playing_glockenspiel\n")  # AVSBench's: a frame, not a second


@needs_fixtures
def test_the_published_flickr_list() -> None:
    found = read_segments(META / "flickr_test.csv", clip_seconds=10.0)
    assert brief(found.rows)[0] == ("10000130166", "10000130166", 0.0, 10.0, (), "")
    assert len(found.rows) == 249
    assert not any(s.problem for s in found.rows)
    assert not found.labels


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "message"),
    [("ave_annotations.txt", "holds no usable row: line 1: "), ("vggss.json", "vggss.json is no list of CAV-MAE's: ")],
)
def test_what_is_no_list_of_clips_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_segments(META / name, clip_seconds=10.0)


# Splits, pipes, encodings.


SPLITS = "aaaaaaaaaaa,1,dog,train\nbbbbbbbbbbb,1,cat,test\n#NAME?,1,x,train\nccccccccccc,1,cow,test\nshort,1,x,\n"


def test_splits(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(UserError, match=r"several splits, train \(2 rows\), test \(2 rows\): say which with --spl"):
        read(path, SPLITS)
    found = table(path, SPLITS, split="test")
    assert [s.line for s in found.rows] == [2, 4, 5]  # a damaged row without a split belongs to each
    assert found.labels == {"dog", "cat", "cow"}  # of both: indices are the same
    assert [s.line for s in read(path, SPLITS, split="train, test")] == [1, 2, 3, 4, 5]
    limited = table(path, SPLITS, split="test", limit=1)
    assert ([s.line for s in limited.rows], limited.labels) == ([2], found.labels)
    with pytest.raises(UserError, match=r"has no split 'val': its splits are train \(2 rows\), test"):
        read(path, SPLITS, split="val,test")
    with pytest.raises(UserError, match="has no column of splits: leave --split away"):
        read(path, "aaaaaaaaaaa,1,dog\n", split="test")
    assert len(read(path, SPLITS.replace("train", "test"))) == 5
    named = "path,split,label\na.mp4,train,x\nb.mp4,,x\n"
    assert [s.problem for s in read(path, named)] == ["", "line 3: the row names no split"]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    rows = 3 * 200  # more than are looked at to tell the form
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = "".join(f"aaaaaaa{i:04d},1,label {i}\n" for i in range(rows))
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    found = read_segments(pipe, clip_seconds=10.0)
    writer.join()
    assert len(found.rows) == len(found.labels) == rows


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a.mp4,dog\ncaf\xe9.mp4,dog\nb\0.mp4,dog\n")
    good, latin, zero = read_segments(path, clip_seconds=10.0).rows
    assert good.problem == ""
    assert latin.problem == "line 2: the row is not UTF-8: save the file as UTF-8"
    assert zero.problem.startswith("line 3: the row holds bytes of value 0")
    path.write_text("a.mp4,dog\n", encoding="utf-16")
    with pytest.raises(UserError, match="is a text of UTF-16: save it as UTF-8"):
        read_segments(path, clip_seconds=10.0)


# Classes.


def test_classes_of_labels() -> None:
    classes = classes_of_labels({"cow", "ant"}, [])
    assert [c["name"] for c in classes.classes] == ["ant", "cow"]
    grown = classes_of_labels({"cow", "ant", "bee"}, classes.classes)
    assert [(c["index"], c["name"]) for c in grown.classes] == [(0, "ant"), (1, "cow"), (2, "bee")]
    assert grown.label_ids(("bee", "cow")) == [2, 1]


@needs_fixtures
def test_labels_as_file_names_spell_them() -> None:
    classes = read_classes(META / "vggsound_classes.csv")
    labels = ("bee_wasp_etc._buzzing", "police_car_(siren)", "cattle_bovinae_cowbell", "dog_bow-wow", "thunder")
    names = [classes.classes[i]["name"] for i in classes.label_ids(labels)]
    assert names == [
        "bee, wasp, etc. buzzing",
        "police car (siren)",
        "cattle, bovinae cowbell",
        "dog bow-wow",
        "thunder",
    ]
    assert not classes.unknown
    twins = ClassList([{"index": i, "mid": "", "name": name} for i, name in enumerate(("a b", "a, b", "a_c", "a c"))])
    assert twins.label_ids(("a_b", "a_c", "a c")) == [2, 3]  # whose is a_b?
