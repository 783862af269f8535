"""One sample: its members, their dtypes and shapes, its key. These facts exist here and nowhere else.

A sample is a run of contiguous tar members `{key}.{member}`:

    {key}.json        metadata, UTF-8, sorted keys
    {key}.jpg         the middle frame, FRAME_SIZE x FRAME_SIZE RGB   (not with --audio-only)
    {key}.fbank.npy   float16 [FBANK_FRAMES, FBANK_MELS], log-mel, time first, not normalised, zero rows at the end
    {key}.frame00.jpg ... evenly spaced frames          (only with --frames N > 1)
    {key}.flac        16 kHz mono, 16 bit               (only with --keep-audio)
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

SPEC_VERSION = 1

# Audio. The fbank of AST, CAV-MAE and AudioMAE: Kaldi's, 25 ms Hanning windows every 10 ms.
SAMPLE_RATE = 16_000  # Hz, mono
FBANK_MELS = 128
FBANK_FRAMES = 1024  # rows stored; 10 s of audio give 998 valid ones
FBANK_WINDOW_MS = 25
FBANK_SHIFT_MS = 10
FBANK_DTYPE = np.dtype("<f2")
FBANK_SHAPE = (FBANK_FRAMES, FBANK_MELS)

# Video.
FRAME_SIZE = 224  # pixels, both sides
JPEG_QUALITY = 95

CLIP_SECONDS = 10.0  # length of a segment where nothing else is said

JSON_MEMBER = "json"
FRAME_MEMBER = "jpg"
FBANK_MEMBER = "fbank.npy"
AUDIO_MEMBER = "flac"

JSON_FIELDS = (  # of every sample's metadata; `boxes` and others come where given
    "key", "ytid", "start", "end", "labels", "label_ids", "source", "file_start", "duration", "fps", "width", "height",
    "sample_rate", "channels", "frame_time", "valid_frames", "decoder",
)  # fmt: skip


def extra_frame_member(index: int) -> str:
    """Member name of the index-th evenly spaced frame (`--frames N`)."""
    return f"frame{index:02d}.jpg"


def member_names(frames: int = 1, keep_audio: bool = False, audio_only: bool = False) -> tuple[str, ...]:
    """The members of every sample of a dataset, in tar order.

    Args:
        frames: frames stored a clip (`--frames`); 1 stores the middle frame alone.
        keep_audio: whether the waveform is stored as FLAC (`--keep-audio`).
        audio_only: whether samples are sound alone (`--audio-only`).
    """
    if audio_only and frames != 1:
        raise ValueError(f"samples of sound alone have no frames, asked for {frames}")
    extra_frames = tuple(extra_frame_member(i) for i in range(frames)) if frames > 1 else ()
    audio = (AUDIO_MEMBER,) if keep_audio else ()
    frame = () if audio_only else (FRAME_MEMBER,)
    return (JSON_MEMBER, *frame, FBANK_MEMBER, *extra_frames, *audio)


def member_column(member: str, field: str) -> str:
    """Name of a member's column in the shard parquet: ("fbank.npy", "offset") -> "fbank_offset"."""
    return f"{member.split('.')[0]}_{field}"


def audioset_key(ytid: str, start: float) -> str:
    """AudioSet's own segment_id: video id and start in milliseconds, `--PJHxphWEs_30000`."""
    return f"{ytid}_{round(start * 1000)}"


def file_key(stem: str) -> str:
    """Key of a clip that is known by its file alone: every character outside [A-Za-z0-9_-] becomes `_`."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem)


def distinct_key(key: str, name: str) -> str:
    """The key of a clip whose `key` another name has too: `_-3f2a8c5be0d1`, the end from the sha256 of its own name.

    It depends on the name alone, so a name that has such a key has the same one in every dataset.
    """
    return f"{key}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:12]}"


def shared_keys(named: Iterable[tuple[str, str]]) -> set[str]:
    """The keys, of (key, name) pairs, that several names have."""
    names: dict[str, str] = {}
    return {key for key, name in named if names.setdefault(key, name) != name}


def encode_json(metadata: dict[str, Any]) -> bytes:
    """Metadata as UTF-8 JSON with sorted keys: equal metadata give equal bytes."""
    return json.dumps(metadata, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def encode_fbank(fbank: npt.NDArray[np.float16]) -> bytes:
    """An .npy file of `fbank`, float16 [FBANK_FRAMES, FBANK_MELS]."""
    if fbank.shape != FBANK_SHAPE or fbank.dtype != FBANK_DTYPE:
        raise ValueError(f"fbank must be {FBANK_DTYPE} {FBANK_SHAPE}, got {fbank.dtype} {fbank.shape}")
    return FBANK_HEADER + np.ascontiguousarray(fbank).tobytes()


def decode_fbank(payload: bytes | memoryview) -> npt.NDArray[np.float16]:
    """The fbank in an .npy payload, as a view (no copy), float16 [FBANK_FRAMES, FBANK_MELS].

    Raises:
        ValueError: the payload is not the .npy file that `encode_fbank` writes.
    """
    if len(payload) != FBANK_BYTES or bytes(payload[: len(FBANK_HEADER)]) != FBANK_HEADER:
        raise ValueError(f"not an .npy file of {FBANK_DTYPE} {FBANK_SHAPE}: {len(payload)} bytes")
    return np.frombuffer(payload, FBANK_DTYPE, offset=len(FBANK_HEADER)).reshape(FBANK_SHAPE)


def _npy_header() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(FBANK_SHAPE, FBANK_DTYPE))
    return buffer.getvalue()[: -FBANK_FRAMES * FBANK_MELS * FBANK_DTYPE.itemsize]


FBANK_HEADER = _npy_header()
FBANK_BYTES = len(FBANK_HEADER) + FBANK_FRAMES * FBANK_MELS * FBANK_DTYPE.itemsize
