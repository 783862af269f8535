"""Which files belong to which video of AVSBench (Zhou et al., ECCV 2022 and arXiv:2301.13190): a frame a second.

Single-source, S4: 5 s                                  s4_meta_data.csv: name,split,category and others, in any order
    s4_data/ (or beside the CSV)
      visual_frames/SPLIT/CATEGORY/NAME/NAME_1.png      ... NAME_5.png
      gt_masks/SPLIT/CATEGORY/NAME/NAME_1.png           ... NAME_5.png; of the training split only the first
      audio_wav/SPLIT/CATEGORY/NAME.wav                 16-bit PCM, any rate

Multi-sources, MS3: 5 s                                 ms3_meta_data.csv: the name first, and split
    ms3_data/ (or beside the CSV)
      visual_frames/NAME/NAME.mp4_1.png                 ... NAME.mp4_5.png
      gt_masks/SPLIT/NAME/NAME_1.png                    ... NAME_5.png, of every split
      audio_wav/SPLIT/NAME.wav

The release with classes, AVSS: all of it               metadata.csv: uid,split,label and others, in any order
    LABEL/UID/                                          LABEL is v1s (S4, 5 s), v1m (MS3, 5 s) or v2 (10 s)
      frames/0.jpg, labels_rgb/0.png, ..., audio.wav    a colour a class; of v1s's training split only the first mask
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards_spec.errors import UserError
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.heads.named_columns import FIRST, read_named

Setting = Literal["s4", "ms3", "avss"]

SPLITS = ("train", "val", "test")
SECONDS = 5
RELEASE = "metadata.csv"
_CSV: dict[Setting, str] = {"s4": "s4_meta_data.csv", "ms3": "ms3_meta_data.csv", "avss": RELEASE}
_LABELS: dict[Setting, dict[str, int]] = {  # of the release: which videos, and how long they last
    "s4": {"v1s": SECONDS},
    "ms3": {"v1m": SECONDS},
    "avss": {"v1s": SECONDS, "v1m": SECONDS, "v2": 2 * SECONDS},
}
_NAME = re.compile(r"(?!\.)[^/\\\0]{1,200}")  # of a file or folder here: leads nowhere else
_EXPECTED = (
    "--data takes AVSBench's Single-source folder, its Multi-sources folder, or the release with v1s, v1m and v2: one "
    f"of {', '.join(_CSV.values())} must be in it"
)


@dataclass(frozen=True, kw_only=True)
class Video:
    """One video of a split, and where its files lie."""

    name: str
    place: str  # in which part of the dataset, as SPLIT/CATEGORY
    folder: Path  # below which all its files lie
    wav: Path
    frames: tuple[Path, ...]  # those with a mask, in time: the first ones
    masks: tuple[Path, ...]  # of each of them
    seconds: int  # that it lasts
    has_colours: bool  # masks have a colour a class; else what sounds is bright

    def files(self) -> list[Path]:
        """All that is read of it."""
        return [self.wav, *self.frames, *self.masks]


Row = tuple[str, str, Video | str]  # CSV:LINE, split, its video or what is wrong with the row


def find_setting(folder: Path, setting: Setting | None) -> Setting:
    """The setting that a folder is of; of the release that is asked for, all of it where none is.

    Raises:
        UserError: the folder has none of the layouts, or not what is asked for.
    """
    found = [name for name, file in _CSV.items() if (folder / file).is_file()]
    if not found:
        raise UserError(f"{folder} has no list of videos: {_EXPECTED}")
    if setting is None:
        return found[0]
    if setting not in found and "avss" not in found:
        raise UserError(f"--setting {setting}: {folder} is AVSBench's folder of {found[0]}: give --setting {found[0]}")
    return setting


def read_videos(folder: Path, left_out: LeftOut, setting: Setting | None = None) -> dict[str, list[Video]]:
    """The videos of each split whose files are all there, in the CSV's order.

    Args:
        left_out: is told of damaged rows, and of videos with a file missing.

    Raises:
        UserError: there is no CSV of these forms, or no video to train or to test on.
    """
    setting = find_setting(folder, setting)
    read = {"s4": _single_source, "ms3": _multi_sources, "avss": _release}[setting]
    is_own = (folder / _CSV[setting]).is_file()
    videos: dict[str, list[Video]] = {split: [] for split in SPLITS}
    for where, split, video in read(folder) if is_own else _release(folder, setting):
        if split not in SPLITS:
            left_out.add(f"rows whose split is none of {', '.join(SPLITS)}", where)
        elif isinstance(video, str):
            left_out.add(video, where)
        else:
            missing = next((file for file in video.files() if not file.is_file()), None)
            if missing is None:
                videos[split].append(video)
            else:
                left_out.add(f"videos with a file missing in {_kind(missing, video)}", f"{split}/{video.name}")
    for split in ("train", "test"):
        if not videos[split]:
            raise UserError(
                f"{folder} has no whole video of the {split} split of {setting}: expected its frames, masks and sounds"
                f" below it{''.join(f'; {note}' for note in left_out.notes())}"
            )
    return videos


def _kind(file: Path, video: Video) -> str:
    """The folder of a kind of files, or the file that each video has."""
    return file.relative_to(video.folder).parts[-2 if video.has_colours and file != video.wav else 0]


def _single_source(folder: Path) -> Iterator[Row]:
    path = folder / _CSV["s4"]
    data = _data(folder, "s4_data")
    for line, (name, category, split) in read_named(path, ("name", "category", "split"), given_by=_EXPECTED):
        where, place = f"{path.name}:{line}", f"{split}/{category}"
        if not _NAME.fullmatch(name) or not _NAME.fullmatch(category):
            yield where, split, "rows without a name and a category that can be files"
        else:
            numbers = range(1, 1 + (1 if split == "train" else SECONDS))
            yield where, split, _video(data, name, place, place, [f"{name}_{number}.png" for number in numbers])


def _multi_sources(folder: Path) -> Iterator[Row]:
    path = folder / _CSV["ms3"]
    data = _data(folder, "ms3_data")
    for line, (name, split) in read_named(path, (FIRST, "split"), given_by=_EXPECTED):
        where = f"{path.name}:{line}"
        if not _NAME.fullmatch(name):
            yield where, split, "rows without a name that can be a file"
        else:
            yield where, split, _video(data, name, split, "", [f"{name}.mp4_{n}.png" for n in range(1, 1 + SECONDS)])


def _data(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _video(data: Path, name: str, place: str, frames_place: str, frames: list[str]) -> Video:
    """A video of the two binary sets, whose masks lie below `place`, its frames below `frames_place`."""
    return Video(
        name=name,
        place=place,
        folder=data,
        wav=data / "audio_wav" / place / f"{name}.wav",
        frames=tuple(data / "visual_frames" / frames_place / name / frame for frame in frames),
        masks=tuple(data / "gt_masks" / place / name / f"{name}_{n}.png" for n in range(1, 1 + len(frames))),
        seconds=SECONDS,
        has_colours=False,
    )


def _release(folder: Path, setting: Setting = "avss") -> Iterator[Row]:
    """The videos of a setting in the release with classes; rows of other labels are none of its."""
    path = folder / RELEASE
    lengths = _LABELS[setting]
    for line, (uid, split, label) in read_named(path, ("uid", "split", "label"), given_by=_EXPECTED):
        where = f"{path.name}:{line}"
        if label not in _LABELS["avss"]:
            yield where, split, "rows whose label is none of v1s, v1m, v2"
        elif label in lengths and not _NAME.fullmatch(uid):
            yield where, split, "rows without a uid that can be a folder"
        elif label in lengths:
            own = folder / label / uid
            numbers = range(1 if (label, split) == ("v1s", "train") else lengths[label])
            yield (
                where,
                split,
                Video(
                    name=uid,
                    place=f"{split}/{label}",
                    folder=folder,
                    wav=own / "audio.wav",
                    frames=tuple(own / "frames" / f"{number}.jpg" for number in numbers),
                    masks=tuple(own / "labels_rgb" / f"{number}.png" for number in numbers),
                    seconds=lengths[label],
                    has_colours=True,
                ),
            )
