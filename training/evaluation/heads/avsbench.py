"""What the files of AVSBench's videos hold (`avsbench_layouts.py`: which files).

Decoding is the standard library's `wave` and Pillow; the fbank is torchaudio's, with the constants of shards_spec.
"""

import functools
import hashlib
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from shards_spec.errors import is_refusal
from shards_spec.sample import FBANK_FRAMES, FBANK_MELS, FBANK_SHIFT_MS, FBANK_WINDOW_MS, FRAME_SIZE, SAMPLE_RATE
from training.evaluation.heads.avsbench_layouts import SECONDS, Video

# F frames of a video, S pixels a side, T fbank rows, M mel bins.
CLASSES = 71  # of the release with classes: 70, and 0 for what does not sound
UNREADABLE = ("videos with an unreadable picture", "videos whose sound is no 16-bit PCM WAV of at least 25 ms")
_WINDOW = SAMPLE_RATE * FBANK_WINDOW_MS // 1000  # samples


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What a video holds."""

    fbank: Tensor  # float16 [T, M], as shards hold it: zero rows after its seconds
    frames: Tensor  # uint8 [F, S, S, 3]
    masks: Tensor  # [F, S, S], bool: what sounds; or uint8: its class, 0 for none


def fingerprint(videos: list[Video]) -> str:
    """sha256 over names and sizes of all files of the videos; their bytes are not read."""
    digest = hashlib.sha256()
    for video in videos:
        for file in video.files():
            digest.update(f"{file.relative_to(video.folder).as_posix()} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def decode(video: Video, *, classes: bool = False) -> Decoded | str:
    """What a video holds, or which of UNREADABLE it is.

    Args:
        classes: masks are classes, of a video that has colours.

    Raises:
        OSError: the system does not give a file.
    """
    try:
        frames = np.stack([_picture(path, "RGB", Image.Resampling.BICUBIC) for path in video.frames])
        mode = "RGB" if video.has_colours else "L"
        masks = np.stack([_picture(path, mode, Image.Resampling.NEAREST) for path in video.masks])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's for damaged files
        if is_refusal(error):
            raise
        return UNREADABLE[0]
    try:
        fbank = kaldi_fbank(read_wav(video.wav, seconds=video.seconds))
    except (OSError, EOFError, ValueError, wave.Error) as error:
        if is_refusal(error):
            raise
        return UNREADABLE[1]
    if video.has_colours:
        of_class = classes_of_colours(masks)
        sounding = of_class if classes else of_class > 0
    else:
        sounding = is_foreground(masks)
    return Decoded(fbank=fbank, frames=torch.from_numpy(frames), masks=torch.from_numpy(sounding))


def is_foreground(masks: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Pixels of at least half of their own mask's brightest, bool [F, S, S]: masks come as 0 and 255, or as 0 and 1."""
    brightest = masks.max(axis=(1, 2), keepdims=True).astype(np.int64)
    return (brightest > 0) & (2 * masks.astype(np.int64) >= brightest)


def classes_of_colours(masks: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The class of each pixel, uint8 [...], of colours [..., 3]; a colour of none is 0, as in AVSBench's dataloader.

    The colours are PASCAL VOC's: bits 0, 3, 6 of the class are the highest of red, bits 1, 4, 7 those of green, and
    bits 2, 5, 8 those of blue.
    """
    wide = masks.astype(np.uint32)
    return _class_table()[wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]]


@functools.cache
def _class_table() -> npt.NDArray[np.uint8]:
    """The class of each colour, uint8 [2^24]."""
    table = np.zeros(1 << 24, np.uint8)
    for number in range(CLASSES):
        red, green, blue = (
            sum(((number >> (3 * place + side)) & 1) << (7 - place) for place in range(3)) for side in range(3)
        )
        table[red << 16 | green << 8 | blue] = number
    return table


def _picture(path: Path, mode: str, how: Image.Resampling) -> npt.NDArray[np.uint8]:
    """uint8 [S, S] or [S, S, 3]; another size is squashed."""
    with Image.open(path) as picture:
        converted = picture.convert(mode)
    if converted.size != (FRAME_SIZE, FRAME_SIZE):
        converted = converted.resize((FRAME_SIZE, FRAME_SIZE), how)
    return np.asarray(converted)


def read_wav(path: Path, *, seconds: int = SECONDS) -> Tensor:
    """The first seconds of a 16-bit PCM WAV, float32 [samples] in [-1, 1]: mono (mean of the channels), 16 kHz.

    Raises:
        wave.Error, EOFError, OSError: it is no WAV.
        ValueError: it has other than 16 bits.
    """
    with wave.open(str(path), "rb") as file:
        if file.getsampwidth() != 2 or file.getframerate() < 1:
            raise ValueError(f"{path}: {8 * file.getsampwidth()} bits at {file.getframerate()} Hz, expected 16 bits")
        rate, channels = file.getframerate(), file.getnchannels()
        values = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    values = values[: len(values) // channels * channels].reshape(-1, channels)
    waveform = torch.from_numpy(values.astype(np.float32).mean(axis=1) / 32768)
    if rate != SAMPLE_RATE:
        from torchaudio.functional import resample  # torchaudio is slow to import, and no other task needs it

        waveform = resample(waveform, rate, SAMPLE_RATE)
    return waveform[: seconds * SAMPLE_RATE]


def kaldi_fbank(waveform: Tensor) -> Tensor:
    """The fbank of shards, float16 [T, M], of a waveform float32 [samples] at 16 kHz, zero rows after its end.

    Raises:
        ValueError: it is shorter than one window.
    """
    from torchaudio.compliance import kaldi

    if len(waveform) < _WINDOW:
        raise ValueError(f"{len(waveform)} samples, one fbank window needs {_WINDOW}")
    rows = kaldi.fbank(
        (waveform - waveform.mean()).unsqueeze(0),
        htk_compat=True,
        sample_frequency=SAMPLE_RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=FBANK_MELS,
        dither=0.0,
        frame_shift=FBANK_SHIFT_MS,
        frame_length=FBANK_WINDOW_MS,
    )[:FBANK_FRAMES]
    fbank = torch.zeros(FBANK_FRAMES, FBANK_MELS, dtype=torch.float16)
    fbank[: len(rows)] = rows
    return fbank
