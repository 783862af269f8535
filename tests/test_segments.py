"""Segment CSVs and class lists: every form, every kind of damage, nothing dropped."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.segments import ClassList, Segment, read_classes, read_segments
from shards_spec.errors import UserError

META = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "meta"
needs_fixtures = pytest.mark.skipif(not META.is_dir(), reason=f"no fixture folder {META}")

HEAD = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2, num_segs={}\n# YTID, start_seconds, ...\n"


def read(path: Path, text: str, **options: int) -> list[Segment]:
    path.write_text(text)
    return read_segments(path, clip_seconds=10.0, **options)[0]


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
    segments, warnings = read_segments(META / name, clip_seconds=10.0)
    assert len(segments) == len({s.key for s in segments}) == rows
    assert sum(len(s.labels) for s in segments) == labels
    assert not any(s.problem for s in segments)
    assert len(warnings) == (name == "balanced_train_segments.csv")
    classes = read_classes(META / "class_labels_indices.csv")
    assert len(classes.classes) == 527
    assert {i for s in segments for i in classes.label_ids(s.labels)} == set(range(527))
    assert not classes.unknown


@needs_fixtures
def test_the_published_vggsound_list() -> None:
    segments, _ = read_segments(META / "vggsound_test.csv", clip_seconds=10.0)
    assert len(segments) == 15_446
    assert segments[0][:6] == ("glLQrEijrKg_300000", "glLQrEijrKg", None, 300.0, 310.0, ("playing hammond organ",))
    classes = read_classes(META / "vggsound_classes.csv")
    assert Counter(len(classes.label_ids(s.labels)) for s in segments) == {1: 15_446}


def test_audioset_form(tmp_path: Path) -> None:
    text = HEAD.format(2) + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n_a-b_c-d_e-, 0.500, 3.250, "/m/1"\n'
    first, second = read(tmp_path / "a.csv", text)
    assert first == ("--PJHxphWEs_30000", "--PJHxphWEs", None, 30.0, 40.0, ("/m/09x0r", "/t/dd00088"), 4, "")
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
