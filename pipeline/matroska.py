"""What a Matroska or WebM file says of its pictures and FFmpeg does not hand on: how much of them is not to be shown.

A file is elements in elements, each an identifier, a size and a payload; this follows the few that lead to PixelCrop.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.frame import UNCUT, Crop

_SEGMENT, _TRACKS, _TRACK, _TRACK_TYPE, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0xE0
_TOP, _BOTTOM, _LEFT, _RIGHT = 0x54BB, 0x54AA, 0x54CC, 0x54DD
_VIDEO_TYPE = 1
_LONGEST_NUMBER = 8  # bytes


def pixel_crop(path: Path, track: int) -> Crop:
    """The PixelCrop of video track number `track`, counted from 0; UNCUT where the file says nothing readable."""
    with contextlib.suppress(EOFError), path.open("rb") as file:
        end = path.stat().st_size
        for identifier, size in _elements(file, end):
            if identifier == _SEGMENT:
                return _of_segment(file, min(end, file.tell() + size), track)
    return UNCUT


def _of_segment(file: BinaryIO, end: int, track: int) -> Crop:
    for identifier, size in _elements(file, end):
        if identifier == _TRACKS:
            tracks = _videos(file, file.tell() + size)
            return next((crop for number, crop in enumerate(tracks) if number == track), UNCUT)
    return UNCUT


def _videos(file: BinaryIO, end: int) -> Iterator[Crop]:
    for identifier, size in _elements(file, end):
        if identifier == _TRACK:
            kind, crop = 0, UNCUT
            for inner, length in _elements(file, file.tell() + size):
                if inner == _TRACK_TYPE:
                    kind = _number(file, length)
                elif inner == _VIDEO:
                    crop = _crop(file, file.tell() + length)
            if kind == _VIDEO_TYPE:
                yield crop


def _crop(file: BinaryIO, end: int) -> Crop:
    edges = {_TOP: 0, _BOTTOM: 0, _LEFT: 0, _RIGHT: 0}
    for identifier, size in _elements(file, end):
        if identifier in edges:
            edges[identifier] = _number(file, size)
    return Crop(top=edges[_TOP], bottom=edges[_BOTTOM], left=edges[_LEFT], right=edges[_RIGHT])


def _elements(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Identifier and size of each element up to `end`; the file stands at its payload.

    Raises:
        EOFError: the file ends in the midst of one.
    """
    while (here := file.tell()) < end:
        identifier, _ = _variable(file, keeps_marker=True)
        size, is_unknown = _variable(file, keeps_marker=False)
        here = end if is_unknown else file.tell() + size  # what has no size reaches to the end of what it is in
        yield identifier, here - file.tell()
        file.seek(here)


def _variable(file: BinaryIO, *, keeps_marker: bool) -> tuple[int, bool]:
    """A number whose first byte says how many follow, and whether all its bits are ones: a size that is unknown."""
    first = file.read(1)
    if not first or not first[0]:
        raise EOFError
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    if len(rest) < more:
        raise EOFError
    marker = 0x80 >> more
    value = int.from_bytes(bytes([first[0] if keeps_marker else first[0] - marker]) + rest, "big")
    return value, value == (1 << (7 * (more + 1))) - 1


def _number(file: BinaryIO, size: int) -> int:
    if size > _LONGEST_NUMBER:
        raise EOFError
    return int.from_bytes(file.read(size), "big")
