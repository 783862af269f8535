"""What is opened as a clip: the file itself and nothing else; and whose fault it is where nothing can be opened."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import av
import pytest

from pipeline.clip_error import ClipError
from pipeline.containers import DECORD_FORMATS, MEDIA_FORMATS
from pipeline.decoder_process import DecoderProcess, start_fork_server
from pipeline.encode_sample import Encoded, SampleOptions, make_sample
from pipeline.media_file import open_media
from tests.clips import decode, make_clip, reason
from tests.fake_samples import fake_sample
from tools.embedding.files import Failed, read_files

LISTS = {
    "concat": "ffconcat version 1.0\nfile neighbour.mp4\n",
    "playlist": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nneighbour.mp4\n#EXT-X-ENDLIST\n",
    "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:02,000\nnobody is speaking\n",
    "lists": "[playlist]\nFile1=neighbour.mp4\nNumberOfEntries=1\nVersion=2\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    make_clip(folder / "neighbour.mp4", 2)
    for name, text in LISTS.items():
        for suffix in ("mp4", "m3u8"):
            (folder / f"{name}.{suffix}").write_text(text)
    return folder


@pytest.mark.parametrize("suffix", ["mp4", "m3u8"])
@pytest.mark.parametrize("name", LISTS)
def test_a_file_that_names_other_files_is_no_clip(folder: Path, name: str, suffix: str) -> None:
    path = folder / f"{name}.{suffix}"
    for decoder in ("pyav", "decord", "auto"):
        assert reason(path, decoder) == "unreadable"
    (failed,) = read_files([path], start=None, options=SampleOptions(), isolate=False)
    assert isinstance(failed, Failed) and failed.reason == "unreadable"


def test_a_picture_is_no_clip(tmp_path: Path) -> None:
    """A name with a number in it would be a series of pictures: of its neighbours too."""
    from PIL import Image

    for number in range(1, 4):
        Image.new("RGB", (64, 64)).save(tmp_path / f"frame{number}.mp4", "PNG")
    assert reason(tmp_path / "frame1.mp4") == "unreadable"
    assert reason(tmp_path / "frame%d.mp4") == "unreadable"


def test_all_formats_on_the_list_exist_and_decords_are_among_them() -> None:
    known = {name for formats in av.formats_available for name in formats.split(",")}
    assert set(MEDIA_FORMATS) <= known
    assert all(set(names.split(",")) & set(MEDIA_FORMATS) for names in DECORD_FORMATS)
    assert not {"concat", "hls", "sdp", "rtsp", "image2", "lavfi", "tty"} & set(MEDIA_FORMATS)


# Whose fault it is.


def refusing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """From now on the system refuses to open media files."""

    def refuse(name: str, *_: object, **__: object) -> None:
        av.error.err_check(-number, name)

    monkeypatch.setattr(av, "open", refuse)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT])
def test_a_machine_that_cannot_open_files_damages_no_clip(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refusing(monkeypatch, number)
    for decoder in ("pyav", "decord", "auto"):
        with pytest.raises(OSError) as caught:
            decode(folder / "neighbour.mp4", decoder)
        assert caught.value.errno == number and not isinstance(caught.value, av.error.FFmpegError)
        assert caught.value.filename == str(folder / "neighbour.mp4")


def test_want_of_memory_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, errno.ENOMEM)
    with pytest.raises(MemoryError):
        open_media(folder / "neighbour.mp4")


def test_a_file_that_may_not_be_read_is_said_to_be_that(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, errno.EACCES)
    with pytest.raises(ClipError, match="unreadable: permission denied"):
        decode(folder / "neighbour.mp4", "auto")


def test_a_folder_that_may_not_be_searched_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ClipError, match="unreadable: permission denied"):
        make_sample(folder / "neighbour.mp4", {}, options=SampleOptions())


def test_a_machine_that_fails_while_a_file_is_read_does_not_cut_the_clip(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = open_media(folder / "neighbour.mp4")

    class Failing:
        """A container whose disk goes away after some packets."""

        name, format, duration, start_time = container.name, container.format, container.duration, 0

        def demux(self, *streams: av.stream.Stream) -> Any:
            for number, packet in enumerate(container.demux(*streams)):
                if number == 5:
                    av.error.err_check(-errno.ESTALE, container.name)
                yield packet

    from pipeline.media_file import demux

    with container, pytest.raises(OSError) as caught:
        list(demux(Failing(), *container.streams))  # type: ignore[arg-type]
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(folder / "neighbour.mp4"))


opened: list[Path] = []


def sample_while_files_can_be_opened(path: Path, row: dict[str, Any]) -> Encoded:
    """Each clip leaves a file open; a process can open as many as the row says."""
    if len(opened) >= row["most"]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
    opened.append(path)
    return fake_sample(path, row)


def test_a_full_table_of_files_costs_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("clip")
    start_fork_server()
    with DecoderProcess(
        sample_while_files_can_be_opened, timeout=60, memory=2_000_000_000, stop=threading.Event()
    ) as process:
        outcomes = list(process.outcomes([(path, {"key": f"k{number}", "most": 2}) for number in range(5)]))
        assert all(isinstance(outcome, Encoded) for outcome in outcomes)  # in three children
        with pytest.raises(OSError, match="Too many open files") as caught:
            list(process.outcomes([(path, {"key": "k", "most": 0})]))
        assert (caught.value.errno, caught.value.filename) == (errno.EMFILE, str(path))
