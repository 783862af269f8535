"""Makes a small raw download in AudioSet's layout: real encoded clips, CSVs, and what is missing or broken in life.

    OUT/raw/...                      H.264/AAC mp4 and mkv, VP9/Opus webm, named in every form that is met
    OUT/segments.csv                 AudioSet's segments form
    OUT/class_labels_indices.csv     AudioSet's class list form

A class ties the colour and the path of a disc to the pitch and the rhythm of a sound; the disc swells with the sound.

    python -m tools.demo_clips OUT [--clips 64] [--seed 0]
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tyro
from tqdm import tqdm

from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import UserError
from tools.media import encode_clip

SECONDS = 10
WIDTH, HEIGHT, FPS = 320, 180, 15
_ID_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_CLASSES = [
    # name, colour, pitch in Hz, beats a second, how often the disc goes round in the clip
    ("Red disc, low hum", (210, 50, 40), 110.0, 1.0, 1),
    ("Green disc, slow bell", (60, 170, 70), 440.0, 0.5, 2),
    ("Blue disc, fast beeps", (50, 80, 200), 880.0, 4.0, 3),
    ("Yellow disc, whistle", (225, 200, 50), 1760.0, 2.0, 1),
    ("Violet disc, drum", (140, 60, 170), 70.0, 3.0, 2),
    ("White disc, chirps", (235, 235, 235), 3000.0, 6.0, 3),
]
# Where a file's name puts the segment's start s and end e, all of them seen in downloads; {i} is the video's id.
_NAMES = [
    "{i}.mp4",
    "{i}_{s:.3f}.mp4",
    "{i}_{s:06.0f}.mp4",
    "{i}_{ms}.webm",
    "{i}_{s:.0f}_{e:.0f}.mp4",
    "{i}_{s:06.0f}_{e:06.0f}.webm",
    "{i}_{s:.1f}-{e:.1f}.mkv",
    "Y{i}.mp4",
]


@dataclass(frozen=True, kw_only=True)
class DemoClipsConfig:
    """Makes a small raw download in AudioSet's layout."""

    out: tyro.conf.Positional[Path]
    """Folder to make."""
    clips: int = 64
    """Good clips; some missing and broken ones come on top."""
    seed: int = 0
    """Equal seeds make equal clips."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One row of the segments CSV."""

    ytid: str
    start: float
    label: int

    @property
    def csv_row(self) -> str:
        """The row as AudioSet writes it."""
        return f'{self.ytid}, {self.start:.3f}, {self.start + SECONDS:.3f}, "{_mid(self.label)}"'


def _mid(label: int) -> str:
    return f"/t/demo{label:02d}"


def draw(segment: Segment, seconds: float, generator: np.random.Generator) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames of a clip, uint8 [HEIGHT, WIDTH, 3] each."""
    _, colour, _, beats, rounds = _CLASSES[segment.label]
    shade = np.linspace(0.6, 1.2, HEIGHT)[:, None, None] * np.linspace(1.0, 0.8, WIDTH)[None, :, None]
    background = (generator.uniform(60, 150, 3) * shade).astype(np.uint8)
    phase, radius = generator.uniform(0, 2 * math.pi), generator.uniform(22, 34)
    centre_x, centre_y = generator.uniform(0.35, 0.65) * WIDTH, generator.uniform(0.4, 0.6) * HEIGHT
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    for frame in range(round(seconds * FPS)):
        time = frame / FPS
        angle = phase + 2 * math.pi * rounds * time / SECONDS
        swell = radius * (1 + 0.4 * math.exp(-4 * ((time * beats) % 1)))
        disc_x, disc_y = centre_x + 70 * math.cos(angle), centre_y + 35 * math.sin(angle)
        pixels = background.copy()
        pixels[(x - disc_x) ** 2 + (y - disc_y) ** 2 < swell**2] = colour
        yield pixels


def play(segment: Segment, seconds: float, rate: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """The sound of a clip, float32 [2, samples]."""
    _, _, pitch, beats, _ = _CLASSES[segment.label]
    time = np.arange(round(seconds * rate)) / rate
    pitch *= generator.uniform(0.94, 1.06)
    tone = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in (1, 2, 3))
    sound = 0.25 * tone * np.exp(-4 * ((time * beats) % 1)) + 0.005 * generator.standard_normal(time.size)
    return np.stack([sound, 0.8 * sound]).clip(-1, 1).astype(np.float32)


def encode(path: Path, segment: Segment, generator: np.random.Generator, seconds: float = SECONDS) -> Path:
    """Draws, plays and encodes one clip; the suffix of `path` chooses the codecs."""
    webm = path.suffix == ".webm"
    rate = 48_000 if webm else 44_100
    path.parent.mkdir(parents=True, exist_ok=True)
    return encode_clip(
        path,
        draw(segment, seconds, generator),
        play(segment, seconds, rate, generator),
        fps=FPS,
        sample_rate=rate,
        video_codec="vp9" if webm else "h264",
        audio_codec="opus" if webm else "aac",
    )


def make_clips(out: Path, clips: int, seed: int) -> None:
    """Makes the download below `out`."""
    generator = np.random.default_rng(seed)
    raw = out / "raw"
    segments = [_segment(number, generator) for number in range(clips + 6)]
    good, (whole, silent, cut, empty, half_loaded, _never_loaded) = segments[:clips], segments[clips:]
    for number, segment in enumerate(tqdm(good, desc="demo clips", unit="clip", disable=None)):
        name = _NAMES[number % len(_NAMES)].format(
            i=segment.ytid, s=segment.start, e=segment.start + SECONDS, ms=round(1000 * segment.start)
        )
        encode(raw / segment.ytid[0] / name, segment, generator)
    # A whole video: its segment has to be cut out.
    encode(raw / f"{whole.ytid}.mp4", whole, generator, seconds=whole.start + SECONDS + 5)
    encode_clip(raw / f"{silent.ytid}.mp4", draw(silent, SECONDS, generator), None, fps=FPS)
    complete = encode(raw / f"{cut.ytid}.mp4", cut, generator)
    complete.write_bytes(complete.read_bytes()[: complete.stat().st_size // 3])
    (raw / f"{empty.ytid}.mp4").touch()
    (raw / f"{half_loaded.ytid}.mp4.part").write_bytes(b"an interrupted download")

    rows = [segment.csv_row for segment in segments]
    rows.insert(clips // 2, f'#NAME?, 30.000, 40.000, "{_mid(0)}"')  # what a spreadsheet makes of an id like -Abc...
    head = [
        "# Segments csv made by tools.demo_clips",
        f"# num_ytids={len(rows)}, num_segs={len(rows)}, num_unique_labels={len(_CLASSES)}",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    (out / "segments.csv").write_text("\n".join([*head, *rows]) + "\n")
    classes = [f'{i},{_mid(i)},"{name}"' for i, (name, *_) in enumerate(_CLASSES)]
    (out / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *classes]) + "\n")


def _segment(number: int, generator: np.random.Generator) -> Segment:
    ytid = "".join(generator.choice(list(_ID_CHARACTERS), 11))
    return Segment(ytid=ytid, start=float(10 * generator.integers(1, 5)), label=number % len(_CLASSES))


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("demo_clips"):
        config = parse(DemoClipsConfig, arguments, prog="python -m tools.demo_clips")
        if config.out.exists() and any(config.out.iterdir()):
            raise UserError(f"{config.out} is not empty: give a new folder")
        make_clips(config.out, config.clips, config.seed)
        print(
            f"{config.clips} clips and 7 rows that are missing, broken or a whole video: {config.out}", file=sys.stderr
        )


if __name__ == "__main__":
    main()
