"""One clip -> the bytes of its sample. Runs in the decoder process."""

import functools
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from pipeline.annotations import annotated
from pipeline.clip_error import ClipError
from pipeline.file_errors import unreadable
from shards_spec.quiet import NEAR_SILENCE, kind_of, loudest, rows_of
from shards_spec.sample import (
    AUDIO_MEMBER,
    FBANK_MEMBER,
    FBANK_SHIFT_MS,
    FBANK_WINDOW_MS,
    FRAME_MEMBER,
    JSON_MEMBER,
    SAMPLE_RATE,
    encode_fbank,
    encode_json,
    extra_frame_member,
    member_names,
)

if TYPE_CHECKING:
    from pipeline.decode import DecodedClip


class Encoded(NamedTuple):
    """A sample, ready to be written.

    Attributes:
        payloads: bytes by member name, in tar order.
        valid_frames: fbank rows before padding.
        fbank_sum, fbank_sumsq: over the valid rows as stored (float16), in float64.
    """

    payloads: dict[str, bytes]
    valid_frames: int
    fbank_sum: float
    fbank_sumsq: float


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How clips are decoded and what is kept of them: options of make-shards."""

    decoder: Literal["auto", "decord", "pyav"] = "auto"
    frame_fit: Literal["resize", "crop"] = "resize"
    frames: int = 1
    frame_times: Literal["middles", "starts"] = "middles"
    keep_audio: bool = False
    min_seconds: float = 0.0
    skip_silent: bool = False
    audio_only: bool = False

    @property
    def members(self) -> tuple[str, ...]:
        """Member names of each sample, in tar order."""
        return member_names(self.frames, self.keep_audio, self.audio_only)


def make_sample(path: Path, row: dict[str, Any], *, options: SampleOptions) -> Encoded:
    """Decodes and encodes the planned clip `row` (a row of plan.parquet) from the file `path`.

    With --pairs that is a sound, and `row["picture_file"]` is where its picture is.

    Computes with one BLAS thread: with more, the last bits of resampler and fbank depend on their number.

    Raises:
        ClipError: the clip gives no sample.
        OSError: the machine cannot open or read files, whatever is in them.
    """
    # Imported here: the parent of the decoder processes names this function without needing a decoder.
    from pipeline.decode import decode_clip

    try:
        if path.stat().st_size == 0:
            raise ClipError("empty_file", "the file has 0 bytes")
    except FileNotFoundError:
        raise ClipError("missing", "the file is gone since the plan was made") from None
    except OSError as error:
        raise unreadable(error, path) from error
    picture = row.get("picture_file")
    is_own = picture is not None and row["ytid"] is None and row["named_start"] is None
    with _blas().limit(limits=1):
        clip = decode_clip(
            path,
            start=None if is_own else row["start"],
            end=row["end"],
            named_start=row["named_start"],
            decoder=options.decoder,
            frame_fit=options.frame_fit,
            frames=options.frames,
            frame_times=options.frame_times,
            picture=picture,
            audio_only=options.audio_only,
        )
        return encode_sample(row, clip, options=options)


@functools.cache
def _blas() -> ThreadpoolController:
    """numpy's."""
    return ThreadpoolController().select(user_api="blas")


def encode_sample(row: dict[str, Any], clip: "DecodedClip", *, options: SampleOptions) -> Encoded:
    """The payloads of a decoded clip.

    Raises:
        ClipError: `too_short`, less audio than one fbank window, or `check_wanted`.
    """
    from pipeline.fbank import fbank
    from pipeline.frame import encode_jpeg

    stored, valid_frames = fbank(clip.waveform)
    fbank_member = encode_fbank(stored)
    check_wanted(valid_frames, loudest(fbank_member, valid_frames), options)
    metadata: dict[str, Any] = {
        **{name: row[name] for name in ("key", "ytid", "start", "end", "source")},
        "file_start": clip.file_start,
        "duration": clip.duration,
        "fps": clip.fps,
        "width": clip.width,
        "height": clip.height,
        "sample_rate": clip.sample_rate,
        "channels": clip.channels,
        "frame_time": clip.frame_time,
        "valid_frames": valid_frames,
        "decoder": clip.decoder,
    }
    payloads = {FBANK_MEMBER: fbank_member}
    if clip.frame is not None:
        payloads[FRAME_MEMBER] = encode_jpeg(clip.frame)
    if row.get("picture"):
        metadata["picture"] = row["picture"]
    if options.frames > 1:
        metadata["extra_frame_times"] = list(clip.extra_frame_times)
        payloads |= {extra_frame_member(i): encode_jpeg(frame) for i, frame in enumerate(clip.extra_frames)}
    if options.keep_audio:
        payloads[AUDIO_MEMBER] = encode_flac(clip.waveform)
    known = {name: _json_number(value) for name, value in metadata.items()}
    payloads[JSON_MEMBER] = encode_json(annotated(known, row))
    rows = stored[:valid_frames].astype(np.float64)
    return Encoded(
        payloads={member: payloads[member] for member in options.members},
        valid_frames=valid_frames,
        fbank_sum=float(rows.sum()),
        fbank_sumsq=float(np.square(rows).sum()),
    )


def check_wanted(valid_frames: int, fbank_max: float, options: SampleOptions) -> None:
    """Raises ClipError for samples that --min-seconds and --skip-silent leave out; what it takes stands in the tables.

    Args:
        fbank_max: the greatest value in the valid rows of the fbank.
    """
    if valid_frames < rows_of(options.min_seconds):
        seconds = (FBANK_WINDOW_MS + (valid_frames - 1) * FBANK_SHIFT_MS) / 1000
        raise ClipError("too_short", f"{seconds:.2f} s of sound, --min-seconds asks for {options.min_seconds:g}")
    kind = kind_of(fbank_max) if options.skip_silent else None
    if kind is not None:
        level = f" (loudest fbank value {fbank_max:.2f}, sound has more than {NEAR_SILENCE:g})"
        raise ClipError("no_audio", f"the sound is {kind}{level}, and --skip-silent leaves such clips out")


def _json_number(value: Any) -> Any:
    """JSON has neither NaN nor infinity: files without a duration or frame rate say null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def encode_flac(waveform: npt.NDArray[np.float32]) -> bytes:
    """A FLAC file, 16 bit mono at SAMPLE_RATE, of float32 [samples] in [-1, 1]. Equal input gives equal bytes."""
    import av

    samples = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono", format="s16")
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
