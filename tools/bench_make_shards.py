"""How fast make-shards is: beside the usual scripts, and beside the bare cost of the libraries.

    python -m tools.bench_make_shards [--clips 16] [--copies 24] [--rounds 5] [--media vp9+opus] [--frames 20]

It makes its own clips (10 s, 640x360, 30 a second, a keyframe every 5 s, stereo; H.264 and AAC, or what --media says)
and prints, pinned to one core and taken in turns in one run:

    script    what CAV-MAE's preparation does a clip: ffmpeg for the sound, sox for one channel, OpenCV for the frame,
              then torchaudio's fbank, Pillow's JPEG (needs ffmpeg, sox and opencv-python-headless; else left out)
    floor     the bare library calls in one process: no tar, no isolation, no account, nothing that can go wrong; with
              --frames N, every frame from the last keyframe before the first one on is decoded, as N frames need
    sample    what one decoder process of make-shards does for a clip
    make-shards, 1 and 2 workers: the command, from clips to a complete dataset; the rate between a short and a long
              run, so that starting up does not count (it is named apart); the long run has 24 shards of 16 clips, so
              that two workers are busy to its end
"""

import functools
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from pipeline.encode_sample import SampleOptions, make_sample
from pipeline.fbank import fbank
from pipeline.frame import encode_jpeg
from shards_spec.command_line import one_line_errors, parse
from shards_spec.sample import FRAME_SIZE, SAMPLE_RATE
from tools.media import encode_clip

SECONDS, FPS, WIDTH, HEIGHT, RATE = 10, 30, 640, 360, 44_100
_SUFFIXES = {"h264+aac": ".mp4", "vp9+opus": ".webm", "av1+opus": ".mp4"}  # as such files are found
SHARD_SIZE = 16  # clips: with the usual number of clips, the long run has 24 shards, so two workers end together


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measures make-shards beside the usual scripts and beside the bare cost of the libraries."""

    clips: int = 16
    """Clips made."""
    rounds: int = 5
    """Times that each way is measured; the median counts."""
    copies: int = 24
    """The long run of the command has this many times the clips of the short one."""
    media: Literal["h264+aac", "vp9+opus", "av1+opus"] = "h264+aac"
    """What the clips are encoded with."""
    frames: int = 1
    """As of make-shards. The script takes one frame whatever this says."""

    def __post_init__(self) -> None:
        if self.clips < 1 or self.copies < 2 or self.rounds < 1 or self.frames < 1:
            raise ValueError("--clips, --rounds and --frames must be at least 1, --copies at least 2")


def make_clips(folder: Path, count: int, media: str = "h264+aac") -> list[Path]:
    """Clips with moving texture and broadband sound, so that codecs have something to do."""
    folder.mkdir()
    video_codec, audio_codec = media.split("+")
    options: dict[str, Any] = {"fps": FPS, "sample_rate": RATE, "keyframe_seconds": 5.0, "video_codec": video_codec}
    paths = []
    for number in range(count):
        generator = np.random.default_rng(number)
        texture = generator.integers(0, 256, (HEIGHT // 8 + 40, WIDTH // 8 + 40, 3), dtype=np.uint8)
        texture = texture.repeat(8, axis=0).repeat(8, axis=1)
        shifts = generator.integers(-2, 3, (SECONDS * FPS, 2)).cumsum(axis=0) % 300
        frames = (texture[y : y + HEIGHT, x : x + WIDTH] for y, x in shifts)
        sound = np.cumsum(generator.normal(0, 0.02, (2, SECONDS * RATE)), axis=1)
        sound = np.sin(sound * 5) * 0.3 + generator.normal(0, 0.02, sound.shape)
        path = folder / f"clip{number:06d}_{_SUFFIXES[media]}"
        encode_clip(path, frames, sound.astype(np.float32), audio_codec=audio_codec, **options)
        paths.append(path)
    return paths


def script(path: Path) -> None:
    """One clip as the usual preparation scripts take it."""
    import cv2
    import torch
    import torchaudio
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        stereo, mono, jpeg = (str(Path(folder) / name) for name in ("stereo.wav", "mono.wav", "frame.jpg"))
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["ffmpeg", "-i", str(path), "-vn", "-ar", str(SAMPLE_RATE), stereo], **quiet)  # type: ignore[call-overload]
        subprocess.run(["sox", stereo, mono, "remix", "1"], **quiet)  # type: ignore[call-overload]
        video = cv2.VideoCapture(str(path))
        video.set(cv2.CAP_PROP_POS_FRAMES, int(video.get(cv2.CAP_PROP_FRAME_COUNT) / 2))
        _, frame = video.read()
        video.release()
        Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).resize((FRAME_SIZE, FRAME_SIZE)).save(jpeg, quality=95)
        pcm = np.frombuffer(Path(mono).read_bytes()[44:], "<i2").astype(np.float32) / 32768
        wave = torch.from_numpy(pcm)[None]
        torchaudio.compliance.kaldi.fbank(
            wave - wave.mean(),
            htk_compat=True,
            sample_frequency=SAMPLE_RATE,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        )


def floor(path: Path, frames: int) -> None:
    """One clip with the fewest library calls that give the same kind of sample."""
    import torch
    import torchaudio

    torch.set_num_threads(1)
    extra = [(i + 0.5) / frames * SECONDS for i in range(frames)] if frames > 1 else []
    targets = sorted([SECONDS / 2, *extra])
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        video.thread_count = audio.codec_context.thread_count = 1
        keyframe = 0.0
        packets: list[Any] = []
        sound: list[Any] = []
        for packet in container.demux(video, audio):
            if packet.pts is None:
                continue
            if packet.stream is audio:
                sound += [frame.to_ndarray().mean(axis=0) for frame in audio.decode(packet)]
                continue
            at = float(packet.pts * (video.time_base or 0))
            if packet.is_keyframe and keyframe <= at <= targets[0]:
                keyframe, packets = at, []
            if at <= targets[-1]:
                packets.append(packet)
        pictures = _on_display((frame for packet in [*packets, None] for frame in video.decode(packet)), targets)
        images = [
            frame.reformat(FRAME_SIZE, FRAME_SIZE, "rgb24", interpolation="BICUBIC").to_ndarray().view(np.uint8)
            for frame in pictures
        ]
    wave = torch.from_numpy(np.concatenate(sound))
    wave = torchaudio.functional.resample(wave, audio.rate, SAMPLE_RATE)[: SECONDS * SAMPLE_RATE]
    fbank(wave.numpy())
    for image in images:
        encode_jpeg(image)


def _on_display(frames: Iterator[av.VideoFrame], times: list[float]) -> list[av.VideoFrame]:
    """The last frame at or before each of the times, which increase."""
    last = next(frames)
    taken: list[av.VideoFrame] = []
    for frame in frames:
        while len(taken) < len(times) and (frame.time or 0.0) > times[len(taken)] + 1e-4:
            taken.append(last)
        last = frame
    return taken + [last] * (len(times) - len(taken))


def sample(path: Path, frames: int) -> None:
    """One clip as a decoder process of make-shards takes it."""
    row: dict[str, Any] = {"key": path.stem, "ytid": None, "start": 0.0, "end": 10.0, "source": path.name}
    row |= {"named_start": 0.0, "labels": [], "label_ids": [], "boxes": None}
    make_sample(path, row, options=SampleOptions(decoder="auto", frame_fit="resize", frames=frames, keep_audio=False))


def seconds_a_clip(way: Callable[[Path], None], paths: list[Path]) -> float:
    """Seconds that `way` takes for a clip, over all of them."""
    began = time.perf_counter()
    for path in paths:
        way(path)
    return (time.perf_counter() - began) / len(paths)


def command_seconds(raw: Path, out: Path, workers: int, frames: int) -> float:
    """Seconds that the command takes from clips to a complete dataset."""
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "pipeline.make_shards", str(raw), "--out", str(out), f"--workers={workers}"]
    words.append(f"--frames={frames}")
    began = time.perf_counter()
    subprocess.run([*words, f"--shard-size={SHARD_SIZE}"], check=True, capture_output=True)
    return time.perf_counter() - began


def pin(cores: int) -> None:
    """This process and all it starts run on the first `cores` cores."""
    os.sched_setaffinity(0, sorted(_ALL_CORES)[:cores])


_ALL_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def measure(config: BenchConfig, folder: Path) -> dict[str, list[float]]:
    """Clips a second of each way, one figure a round; the starting time of the command in seconds."""
    paths = make_clips(folder / "clips", config.clips, config.media)
    many = folder / "many"
    many.mkdir()
    for copy in range(config.copies):
        for path in paths:
            (many / f"{path.stem}{copy}{path.suffix}").hardlink_to(path)
    ways: dict[str, Callable[[Path], None]] = {
        "floor": functools.partial(floor, frames=config.frames),
        "sample": functools.partial(sample, frames=config.frames),
    }
    if shutil.which("ffmpeg") and shutil.which("sox") and importlib.util.find_spec("cv2"):
        ways = {"script": script} | ways
    figures: dict[str, list[float]] = {name: [] for name in [*ways, "make-shards, 1 worker", "make-shards, 2 workers"]}
    starts = []
    for _ in range(config.rounds):
        pin(1)
        for name, way in ways.items():
            way(paths[0])
            figures[name].append(1 / seconds_a_clip(way, paths[:8] if way is script else paths))
        for workers in (1, 2):
            pin(workers)
            if len(_ALL_CORES) >= workers:
                short = command_seconds(paths[0].parent, folder / "short", workers, config.frames)
                long = command_seconds(many, folder / "long", workers, config.frames)
                rate = config.clips * (config.copies - 1) / (long - short)
                figures[f"make-shards, {workers} worker{'s' if workers > 1 else ''}"].append(rate)
                starts.append(short - config.clips / rate)
    return figures | {"start": starts}


def table(figures: dict[str, list[float]]) -> str:
    """The figures as a Markdown table."""
    starts = figures.pop("start")
    median = {name: statistics.median(rates) for name, rates in figures.items() if rates}
    lines = ["| | clips/s, median | min to max | of the floor | times the script |", "|---|---:|---:|---:|---:|"]
    for name, rate in median.items():
        spread = f"{min(figures[name]):.1f} to {max(figures[name]):.1f}"
        times = f"{rate / median['script']:.1f}" if "script" in median else "not measured"
        lines.append(f"| {name} | {rate:.1f} | {spread} | {rate / median['floor']:.2f} | {times} |")
    two, one = median.get("make-shards, 2 workers"), median["make-shards, 1 worker"]
    if two is not None:
        lines.append(f"\n2 workers: {two / one:.2f} times one. ")
    lines.append(f"Starting and finishing the command: {statistics.median(starts):.1f} s.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("python -m tools.bench_make_shards"):
        config = parse(BenchConfig, arguments)
        with tempfile.TemporaryDirectory() as folder:
            print(table(measure(config, Path(folder))))


if __name__ == "__main__":
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # read when numpy is imported; decoder processes have it too
        os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        os.execv(sys.executable, [sys.executable, "-m", "tools.bench_make_shards", *sys.argv[1:]])
    main()
