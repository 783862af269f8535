"""Clips whose frames and sounds say which ones they are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.clip_error import ClipError
from pipeline.decode import DecodedClip, decode_clip
from tools.media import encode_clip

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
RATE = 16_000  # Hz
FPS = 10
_BITS = 9


def numbered_frame(number: int, width: int = 160, height: int = 90) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3]: `number` as black and white bars, the highest bit left."""
    bits = [(number >> bit) & 1 for bit in reversed(range(_BITS))]
    row = np.repeat(np.array(bits, np.uint8) * 200 + 20, -(-width // _BITS))[:width]
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(frame: npt.NDArray[np.uint8]) -> int:
    """The number of a frame of [224, 224, 3] that came of `numbered_frame`."""
    centres = [int((bit + 0.5) * -(-160 // _BITS) / 160 * frame.shape[1]) for bit in range(_BITS)]
    return sum((frame[frame.shape[0] // 2, min(x, 221)].mean() > 120) << (_BITS - 1 - i) for i, x in enumerate(centres))


def numbered_frames(count: int, **size: int) -> Iterator[npt.NDArray[np.uint8]]:
    return (numbered_frame(number, **size) for number in range(count))


def pitch(second: int) -> float:
    """Hz of the tone that sounds in a second of `tones`."""
    return 200.0 + 100.0 * second


def tones(seconds: float, rate: int = RATE, channels: int = 1) -> npt.NDArray[np.float32]:
    """float32 [channels, samples]: in every second another pitch."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200.0 + 100.0 * np.floor(time)) * time)
    return np.stack([wave] * channels).astype(np.float32)


def pitch_at(waveform: npt.NDArray[np.float32], second: float) -> float:
    """The loudest frequency, Hz, in 0.6 s of `waveform` (RATE) from `second` on."""
    part = waveform[round(second * RATE) :][: round(0.6 * RATE)]
    return float(np.abs(np.fft.rfft(part * np.hanning(len(part)))).argmax() * RATE / len(part))


def make_clip(path: Path, seconds: float = 10, **options: Any) -> Path:
    """A numbered clip, FPS frames a second, with a tone for each second."""
    size = options.pop("size", {})
    waveform = options.pop("waveform", None)
    return encode_clip(
        path,
        numbered_frames(round(seconds * FPS), **size),
        tones(seconds) if waveform is None else waveform,
        **({"fps": FPS, "sample_rate": RATE} | options),
    )


def with_pixel_crop(
    path: Path,
    *,
    top: int = 0,
    bottom: int = 0,
    left: int = 0,
    right: int = 0,
    display: tuple[int, int] | None = None,
) -> Path:
    """Writes into a Matroska file of `encode_clip` how much of its pictures is not to be shown, and how large the rest.

    The elements take bytes of those that FFmpeg leaves free before the tracks: all after them stays in place.
    """
    data = bytearray(path.read_bytes())
    edges = {b"\x54\xbb": top, b"\x54\xaa": bottom, b"\x54\xcc": left, b"\x54\xdd": right}
    if display is not None:
        data[:] = data.replace(b"\x54\xb2\x81\x04", b"\x54\xb2\x81\x00")  # its unit is pixels
        edges |= {b"\x54\xb0": display[0], b"\x54\xba": display[1]}
    new = b"".join(identifier + b"\x82" + edge.to_bytes(2, "big") for identifier, edge in edges.items())
    tracks = data.rindex(b"\x16\x54\xae\x6b", 0, data.index(b"\x1f\x43\xb6\x75"))
    found = re.search(rb"\xe0[\x80-\xfe]\xb0", data[tracks:])
    assert found is not None
    video = tracks + found.start()
    entry = data.rindex(b"\xae", tracks + 4, video)
    while _number_at(data, entry + 1)[2] < video:  # the byte stands elsewhere too: the element is the one around
        entry = data.rindex(b"\xae", tracks + 4, entry)
    for place in (tracks + 4, entry + 1, video + 1):
        _grow(data, place, len(new))
    data[video + 2 : video + 2] = new
    info = data.rindex(b"\x15\x49\xa9\x66", 0, tracks)
    free = data.rindex(b"\xec", 0, info)
    while _number_at(data, free + 1)[2] != info:
        free = data.rindex(b"\xec", 0, free)
    _grow(data, free + 1, -len(new))
    del data[info - len(new) : info]
    path.write_bytes(data)
    return path


def _number_at(data: bytearray, place: int) -> tuple[int, int, int]:
    """A Matroska element's size: how many bytes state it, what it is, and where the element ends."""
    width = 9 - data[place].bit_length()
    size = int.from_bytes(data[place : place + width], "big") & ((1 << (7 * width)) - 1)
    return width, size, place + width + size


def _grow(data: bytearray, place: int, by: int) -> None:
    width, size, _ = _number_at(data, place)
    data[place : place + width] = (size + by | 1 << (7 * width)).to_bytes(width, "big")


def decode(path: Path, decoder: str = "pyav", **options: Any) -> DecodedClip:
    """`decode_clip`, by default of a file that is a clip of its own."""
    request: dict[str, Any] = {"start": None, "end": None, "named_start": None, "frame_fit": "resize"}
    return decode_clip(path, decoder=decoder, **(request | options))  # type: ignore[arg-type]


def reason(path: Path, decoder: str = "pyav", **options: Any) -> str:
    """Why `decode` fails, which it must."""
    with pytest.raises(ClipError) as caught:
        decode(path, decoder, **options)
    return caught.value.reason
