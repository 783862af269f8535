"""The members of one sample: does each decode to what the contract says, and agree with its row of the table?"""

import io
import json
import math
from typing import Any

import av
import numpy as np
import simplejpeg

from shards_spec.sample import (
    AUDIO_MEMBER,
    FBANK_FRAMES,
    FBANK_MEMBER,
    FRAME_SIZE,
    JSON_FIELDS,
    JSON_MEMBER,
    SAMPLE_RATE,
    decode_fbank,
)

Row = dict[str, Any]

_SHARED = ("key", "source", "start", "end", "valid_frames")  # fields of the JSON that are columns of the table
_SUM_TOLERANCE = 1e-9  # relative: the order of adding differs between processors


def problems_of(member: str, payload: memoryview, row: Row) -> list[str]:
    """What is wrong with a member, given the sample's row of the shard table; empty for a good one."""
    if member == JSON_MEMBER:
        return _json_problems(payload, row)
    if member == FBANK_MEMBER:
        return _fbank_problems(payload, row)
    if member == AUDIO_MEMBER:
        return _flac_problems(payload)
    return _jpeg_problems(payload)


def _json_problems(payload: memoryview, row: Row) -> list[str]:
    try:
        metadata = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        return [f"is no JSON ({error})"]
    if not isinstance(metadata, dict):
        return ["is no JSON object"]
    problems = []
    if missing := [name for name in JSON_FIELDS if name not in metadata]:
        problems.append(f"lacks {', '.join(missing)}")
    expected = {name: row[name] for name in _SHARED} | {name: row[name] or [] for name in ("labels", "label_ids")}
    for name, value in expected.items():
        if name in metadata and metadata[name] != value:
            problems.append(f"says {name} {str(metadata[name])[:80]!r}, the table {str(value)[:80]!r}")
    boxes = metadata.get("boxes", [])
    if not (isinstance(boxes, list) and all(_is_box(box) for box in boxes)):
        problems.append(f"has boxes that are not normalised x0, y0, x1, y1: {str(boxes)[:80]}")
    return problems


def _is_box(box: Any) -> bool:
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)):
        return False
    x0, y0, x1, y1 = box
    return bool(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1)


def _fbank_problems(payload: memoryview, row: Row) -> list[str]:
    try:
        fbank = decode_fbank(payload)
    except ValueError as error:
        return [f"is {error}"]
    valid = row["valid_frames"]
    if not (isinstance(valid, int) and 0 < valid <= FBANK_FRAMES):
        return [f"has {valid} valid rows by the table, expected 1 to {FBANK_FRAMES}"]
    problems = []
    bad = np.argwhere(~np.isfinite(fbank))
    if len(bad):
        problems.append(f"has {len(bad):,} values that are not finite, the first in row {bad[0][0]}")
    padding = np.flatnonzero(fbank[valid:].any(axis=1))
    if len(padding):
        problems.append(f"is not zero in row {valid + padding[0]}, after its {valid} valid ones")
    if not problems:
        values = fbank[:valid].astype(np.float64)
        sums = {"fbank_sum": values.sum(), "fbank_sumsq": np.square(values).sum(), "fbank_max": values.max()}
        for name, found in sums.items():
            if name in row and not _is_close(found, row[name]):
                problems.append(f"has {name} {found:.12g}, the table says {row[name]}")
    return problems


def _is_close(found: float, recorded: float | None) -> bool:
    return recorded is not None and math.isclose(found, recorded, rel_tol=_SUM_TOLERANCE, abs_tol=1e-6)


def _jpeg_problems(payload: memoryview) -> list[str]:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(payload)
        if (height, width, colours) != (FRAME_SIZE, FRAME_SIZE, "YCbCr"):
            return [f"is {width}x{height} {colours}, expected {FRAME_SIZE}x{FRAME_SIZE} YCbCr"]
        simplejpeg.decode_jpeg(payload, "RGB", strict=True)
    except ValueError as error:
        return [f"does not decode ({error})"]
    return []


def _flac_problems(payload: memoryview) -> list[str]:
    try:
        with av.open(io.BytesIO(payload), "r", format="flac") as container:
            stream = container.streams.audio[0]
            samples = sum(frame.samples for frame in container.decode(stream))
            found = (stream.rate, stream.channels)
    except (av.FFmpegError, IndexError) as error:
        return [f"does not decode ({error})"]
    if found != (SAMPLE_RATE, 1) or not samples:
        return [f"has {samples:,} samples of {found[1]} channels at {found[0]} Hz, expected mono at {SAMPLE_RATE}"]
    return []
