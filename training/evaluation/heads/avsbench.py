"""AVSBench's single-source set, S4 (Zhou et al., ECCV 2022), as it is distributed: 5 s of a video, a frame a second.

    s4_meta_data.csv                                    name,split,category and others, in any order
    s4_data/ (or beside the CSV)
      visual_frames/SPLIT/CATEGORY/NAME/NAME_1.png      ... NAME_5.png, 224 x 224
      gt_masks/SPLIT/CATEGORY/NAME/NAME_1.png           ... NAME_5.png; of the training split only the first
      audio_wav/SPLIT/CATEGORY/NAME.wav                 16-bit PCM, any rate

Decoding is the standard library's `wave` and Pillow; the fbank is torchaudio's, with the constants of shards_spec.
"""

import csv
import hashlib
import re
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from shards_spec.errors import UserError, is_refusal
from shards_spec.sample import FBANK_FRAMES, FBANK_MELS, FBANK_SHIFT_MS, FBANK_WINDOW_MS, FRAME_SIZE, SAMPLE_RATE
from training.evaluation.heads.left_out import LeftOut

# F frames of a video, S pixels a side, T fbank rows, M mel bins.
SECONDS = 5
ANNOTATED = {"train": 1, "val": SECONDS, "test": SECONDS}  # frames with a mask, the first ones
CSV = "s4_meta_data.csv"
UNREADABLE = ("videos with an unreadable picture", "videos whose sound is no 16-bit PCM WAV of at least 25 ms")
_NAME = re.compile(r"(?!\.)[^/\\\0]{1,200}")  # of a file or folder here: leads nowhere else
_WINDOW = SAMPLE_RATE * FBANK_WINDOW_MS // 1000  # samples


@dataclass(frozen=True, kw_only=True)
class Video:
    """One video of a split, and where its files lie."""

    name: str
    folder: Path  # of visual_frames, gt_masks and audio_wav
    place: str  # SPLIT/CATEGORY
    frames: int  # F, those with a mask

    @property
    def wav(self) -> Path:
        """Its sound."""
        return self.folder / "audio_wav" / self.place / f"{self.name}.wav"

    def pictures(self, kind: str) -> list[Path]:
        """Its annotated frames (`visual_frames`) or their masks (`gt_masks`), in time."""
        folder = self.folder / kind / self.place / self.name
        return [folder / f"{self.name}_{second}.png" for second in range(1, self.frames + 1)]

    def files(self) -> list[Path]:
        """All that is read of it."""
        return [self.wav, *self.pictures("visual_frames"), *self.pictures("gt_masks")]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What a video holds."""

    fbank: Tensor  # float16 [T, M], as shards hold it: zero rows after the 5 s
    frames: Tensor  # uint8 [F, S, S, 3]
    masks: Tensor  # bool [F, S, S], the sounding object


def read_videos(folder: Path, left_out: LeftOut) -> dict[str, list[Video]]:
    """The videos of each split whose files are all there, in the CSV's order.

    Args:
        left_out: is told of damaged rows, and of videos with a file missing.

    Raises:
        UserError: there is no CSV of this form, or no video to train or to test on.
    """
    path = folder / CSV
    if not path.is_file():
        raise UserError(f"{path} does not exist: --data takes AVSBench's Single-source folder, with {CSV} in it")
    data = folder / "s4_data" if (folder / "s4_data").is_dir() else folder
    videos: dict[str, list[Video]] = {split: [] for split in ANNOTATED}
    for line, name, category, split in _read_rows(path):
        if split not in ANNOTATED:
            left_out.add(f"rows whose split is none of {', '.join(ANNOTATED)}", f"{CSV}:{line}")
        elif not _NAME.fullmatch(name) or not _NAME.fullmatch(category):
            left_out.add("rows without a name and a category that can be files", f"{CSV}:{line}")
        else:
            video = Video(name=name, folder=data, place=f"{split}/{category}", frames=ANNOTATED[split])
            missing = next((file for file in video.files() if not file.is_file()), None)
            if missing is None:
                videos[split].append(video)
            else:
                left_out.add(f"videos with a file missing in {missing.relative_to(data).parts[0]}", f"{split}/{name}")
    for split in ("train", "test"):
        if not videos[split]:
            raise UserError(
                f"{folder} has no whole video of the {split} split: expected visual_frames, gt_masks and audio_wav in"
                f" {data}{''.join(f'; {note}' for note in left_out.notes())}"
            )
    return videos


def _read_rows(path: Path) -> list[tuple[int, str, str, str]]:
    """Line number, name, category and split of each row."""
    columns = ("name", "category", "split")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(line.replace("\0", "") for line in file)
        try:
            if not set(columns) <= set(reader.fieldnames or ()):
                raise UserError(f"{path} has the columns {reader.fieldnames}, expected name, category and split")
            rows = [(reader.line_num, [str(row[column] or "").strip() for column in columns]) for row in reader]
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num} is no CSV ({error}): fetch it again") from error
    return [(line, name, category, split) for line, (name, category, split) in rows]


def fingerprint(videos: list[Video]) -> str:
    """sha256 over names and sizes of all files of the videos; their bytes are not read."""
    digest = hashlib.sha256()
    for video in videos:
        for file in video.files():
            digest.update(f"{file.relative_to(video.folder).as_posix()} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def decode(video: Video) -> Decoded | str:
    """What a video holds, or which of UNREADABLE it is.

    Raises:
        OSError: the system does not give a file.
    """
    try:
        frames = np.stack([_picture(path, "RGB") for path in video.pictures("visual_frames")])
        masks = np.stack([_picture(path, "L") for path in video.pictures("gt_masks")])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's for damaged files
        if is_refusal(error):
            raise
        return UNREADABLE[0]
    try:
        fbank = kaldi_fbank(read_wav(video.wav))
    except (OSError, EOFError, ValueError, wave.Error) as error:
        if is_refusal(error):
            raise
        return UNREADABLE[1]
    return Decoded(fbank=fbank, frames=torch.from_numpy(frames), masks=torch.from_numpy(is_foreground(masks)))


def is_foreground(masks: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Pixels of at least half of their own mask's brightest, bool [F, S, S]: masks come as 0 and 255, or as 0 and 1."""
    brightest = masks.max(axis=(1, 2), keepdims=True).astype(np.int64)
    return (brightest > 0) & (2 * masks.astype(np.int64) >= brightest)


def _picture(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    """uint8 [S, S] or [S, S, 3]; another size is squashed, masks without inventing values."""
    with Image.open(path) as picture:
        converted = picture.convert(mode)
    if converted.size != (FRAME_SIZE, FRAME_SIZE):
        how = Image.Resampling.NEAREST if mode == "L" else Image.Resampling.BICUBIC
        converted = converted.resize((FRAME_SIZE, FRAME_SIZE), how)
    return np.asarray(converted)


def read_wav(path: Path) -> Tensor:
    """A 16-bit PCM WAV as float32 [samples] in [-1, 1]: mono (mean of the channels), 16 kHz.

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
    return waveform[: SECONDS * SAMPLE_RATE]


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
