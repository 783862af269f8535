"""Names of downloads, folders of them, and which file a clip gets."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.pairs import media_files
from pipeline.raw_files import RawIndex, parse_name, walk
from shards_spec.errors import UserError

IDS = ["dQw4w9WgXcQ", "--PJHxphWEs", "_a-b_c-d_e-", "abc_30_4012", "Y23456789_1", "YYYYYYYYYYY", "12345678901"]


@pytest.mark.parametrize("ytid", IDS)
@pytest.mark.parametrize("prefix", ["", "Y"])
@pytest.mark.parametrize(
    ("suffix", "start"),
    [
        ("", None),
        ("_40.000", 40.0),
        ("_000361", 361.0),
        ("_000000", 0.0),
        ("_30000", 30.0),
        ("_360000", 360.0),
        ("_30_40", 30.0),
        ("_0_10", 0.0),
        ("_000030_000040", 30.0),
        ("_30000_40000", 30.0),
        ("_30.0-40.0", 30.0),
        ("_30", 30.0),
        ("_1234", 1234.0),
    ],
)
def test_every_form(ytid: str, prefix: str, suffix: str, start: float | None) -> None:
    parsed = parse_name(prefix + ytid + suffix)
    assert parsed is not None
    assert parsed.ytid == ytid
    assert parsed.starts[:1] == (() if start is None else (start,))


@pytest.mark.parametrize("stem", ["short", "video name", "dQw4w9WgXcQ.f137", "dQw4w9WgXcQ_x", "dQw4w9WgXcQ_1_2_3", ""])
def test_other_names(stem: str) -> None:
    assert parse_name(stem) is None


def listed(*roots: Path) -> Iterator[tuple[int, str, str]]:
    return walk(roots, warn=pytest.fail)


def indexed(roots: list[Path], *, ytids: set[str] | None = None, stems: set[str] | None = None) -> RawIndex:
    files = media_files(roots, pairs=False, warn=pytest.fail)
    return RawIndex(roots, files, ytids=ytids or set(), stems=stems or set())


def touch(root: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def find(roots: list[Path], ytid: str, start: float) -> tuple[str | None, float | None, str]:
    index = indexed(roots, ytids={ytid})
    file, named_start, instead = index.find(ytid=ytid, start=start)
    return (None if file is None else f"{file.root}:{file.path}"), named_start, instead


def test_walk_is_sorted_and_takes_media_only(tmp_path: Path) -> None:
    names = ["b.mp4", "a b'\"[1].MKV", "-x.webm", "z/y/c.mp4", "z/a.ts", "a/q.flv", "song.mp3"]
    others = ["a.mp4.part", "b.ytdl", ".c.mp4", ".cache/d.mp4", "e.temp.mp4", "f.txt", "b.wav", "g.jpg", "noending"]
    touch(tmp_path, *names, *others)
    assert [path for _, path, _ in listed(tmp_path)] == [
        "-x.webm", "a b'\"[1].MKV", "b.mp4", "song.mp3", "a/q.flv", "z/a.ts", "z/y/c.mp4",
    ]  # fmt: skip


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path / "store", "deep/one.mp4")
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "file.mp4").symlink_to(tmp_path / "store" / "deep" / "one.mp4")
    (raw / "folder").symlink_to(tmp_path / "store")
    (raw / "loop").symlink_to(raw)
    (raw / "broken.mp4").symlink_to(tmp_path / "gone.mp4")
    assert [path for _, path, _ in listed(raw)] == ["broken.mp4", "file.mp4", "folder/deep/one.mp4"]


def test_what_cannot_be_listed_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.mp4", "lost+found/b.mp4", "ours/c.mp4", "z/d.mp4")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "film.mp4").symlink_to("film.mp4")  # says so itself when it is opened
    listing = os.scandir

    def scandir(folder: str) -> Any:
        if folder.endswith(("lost+found", "/z")):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return listing(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    said: list[str] = []
    found = [path for _, path, _ in walk([tmp_path], warn=said.append)]
    assert found == ["a.mp4", "film.mp4", "ours/c.mp4"]
    assert said == [
        f"left out below {tmp_path}: {tmp_path}/loop and 2 more, which cannot be listed: "
        "Too many levels of symbolic links"
    ]


def test_a_failing_disk_ends_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the clips of a folder would be planned as missing."""
    touch(tmp_path, "a/b.mp4")
    listing = os.scandir

    def scandir(folder: str) -> Any:
        if folder.endswith("/a"):
            raise OSError(errno.EIO, "Input/output error", folder)
        return listing(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cannot list the raw folder .*/a: Input/output error"):
        list(listed(tmp_path))


def test_unlistable_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot list the raw folder .*gone"):
        list(listed(tmp_path / "gone"))


def test_the_stated_start_decides(tmp_path: Path) -> None:
    ytid = "--PJHxphWEs"
    touch(tmp_path, f"{ytid}.mp4", f"sub/{ytid}_30_40.mp4", f"{ytid}_40.000.mp4", f"Y{ytid}_000361.mp4")
    assert find([tmp_path], ytid, 30.0) == (f"0:sub/{ytid}_30_40.mp4", 30.0, "")
    assert find([tmp_path], ytid, 40.0) == (f"0:{ytid}_40.000.mp4", 40.0, "")
    assert find([tmp_path], ytid, 361.0) == (f"0:Y{ytid}_000361.mp4", 361.0, "")
    assert find([tmp_path], ytid, 99.0) == (f"0:{ytid}.mp4", None, "")
    (tmp_path / f"{ytid}.mp4").unlink()
    assert find([tmp_path], ytid, 99.0)[0] is None
    assert "only files of other segments" in find([tmp_path], ytid, 99.0)[2]


def test_a_number_may_be_seconds_or_milliseconds(tmp_path: Path) -> None:
    ytid = "--PJHxphWEs"
    touch(tmp_path, f"{ytid}_2000.mp4")
    assert find([tmp_path], ytid, 2.0)[0] == find([tmp_path], ytid, 2000.0)[0] == f"0:{ytid}_2000.mp4"
    touch(tmp_path, f"{ytid}_2.mp4")
    assert find([tmp_path], ytid, 2.0)[0] == f"0:{ytid}_2.mp4"  # the first by path among equals


def test_of_several_files(tmp_path: Path) -> None:
    ytid, first, second = "dQw4w9WgXcQ", tmp_path / "first", tmp_path / "second"
    touch(first, f"z/{ytid}.mp4", f"{ytid}.m4a")
    touch(second, f"{ytid}.mp4")
    assert find([first, second], ytid, 0.0)[0] == f"0:z/{ytid}.mp4"  # video before audio, then the earlier root
    touch(first, f"z/{ytid}.mp4", content=b"")
    assert find([first, second], ytid, 0.0)[0] == f"1:{ytid}.mp4"  # not the empty one
    touch(second, f"{ytid}_0.mp4", content=b"")
    assert find([first, second], ytid, 0.0)[0] == f"1:{ytid}.mp4"  # even if the empty one states the start
    touch(second, f"{ytid}.mp4", content=b"")
    assert find([first, second], ytid, 0.0)[0] == f"1:{ytid}_0.mp4"  # all empty: the one that states it


def named(roots: list[Path], path: str) -> list[str]:
    """The files that a path of a CSV may mean."""
    stem = path.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    index = indexed(roots, stems={stem})
    return [f"{file.root}:{file.path}" for file in index.find_named(path, stem)[0]]


def test_files_found_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a/my video (1).mp4", "passwd.mp4")
    index = indexed([tmp_path], stems={"my video (1)"})
    assert [file.path for file in index.find_named("my video (1).mp4", "my video (1)")[0]] == ["a/my video (1).mp4"]
    assert index.find_named("passwd.mp4", "passwd") == ([], "")  # nothing but what was asked for is remembered
    assert index.files == 2
    assert named([tmp_path], "../../etc/passwd.mp4") == []
    assert named([tmp_path], "../passwd.mp4") == ["0:passwd.mp4"]  # a name leads nowhere


def test_the_folders_of_a_path_must_be_the_files(tmp_path: Path) -> None:
    cats, dogs = tmp_path / "clips" / "cats", tmp_path / "clips" / "dogs"
    touch(cats, "1.mp4", "2.mp4", "deep/3.mp4", "deep/4.webm")
    touch(dogs, "1.mp4")
    both = [tmp_path / "clips"]
    assert named(both, "dogs/1.mp4") == ["0:dogs/1.mp4"]
    assert named(both, "dogs\\1.mp4") == ["0:dogs/1.mp4"]
    assert named(both, "clips/dogs/1.mp4") == ["0:dogs/1.mp4"]  # from the folder above
    assert named(both, "dogs/2.mp4") == []  # not the cat's
    assert named(both, "1.mp4") == ["0:cats/1.mp4", "0:dogs/1.mp4"]  # whose?
    assert named([cats, dogs], "dogs/1.mp4") == ["1:1.mp4"]
    assert named([cats], "dogs/1.mp4") == []
    assert named([cats], "1.mp4") == ["0:1.mp4"]
    assert named(both, "3.mp4") == ["0:cats/deep/3.mp4"]
    assert named(both, "deep/4.mp4") == ["0:cats/deep/4.webm"]  # converted since
    for absolute in (f"{dogs}/1.mp4", "/before/it/moved/clips/dogs/1.mp4", r"D:\clips\dogs\1.mp4"):
        assert named(both, absolute) == ["0:dogs/1.mp4"], absolute
    assert named(both, "/elsewhere/dogs/1.mp4") == []


def test_of_files_of_one_name(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    touch(first, "x.mp4", "x.mkv")
    touch(second, "x.mp4")
    assert named([first, second], "x.mp4") == ["0:x.mp4"]  # the very name, in the earlier root
    touch(first, "x.mp4", content=b"")
    assert named([first, second], "x.mp4") == ["1:x.mp4"]  # not the empty one
    touch(second, "copy/x.mp4", content=b"")
    assert named([second], "x.mp4") == ["0:x.mp4"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    os.close(os.open(path, os.O_CREAT))
    assert [path for _, path, _ in listed(tmp_path)] == ["caf\udce9.mp4"]
