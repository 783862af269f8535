"""Whether a decoder process grows: its memory over thousands of clips, as a table and a picture.

    python -m tools.memory_curve [--clips 10000] [--decoder pyav] [--svg docs/memory.svg]

One process makes samples of a few real clips over and over, as a decoder process of make-shards does, and reads its
own resident memory after every hundredth clip.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from tqdm import tqdm

from pipeline.encode_sample import SampleOptions, make_sample
from shards_spec.command_line import one_line_errors, parse
from tools.bench_make_shards import make_clips

EVERY = 100  # clips between two readings


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Shows the memory of a decoder process over many clips."""

    clips: int = 10_000
    """Clips to make samples of."""
    decoder: Literal["auto", "pyav", "decord"] = "auto"
    """As of make-shards."""
    svg: Path | None = None
    """Draw the curve into this file."""


def readings(paths: list[Path], clips: int, decoder: Literal["auto", "pyav", "decord"]) -> Iterator[tuple[int, float]]:
    """(clips done, resident MB) after every EVERY clips."""
    torch.set_num_threads(1)
    options = SampleOptions(decoder=decoder, frame_fit="resize", frames=1, keep_audio=False)
    process = psutil.Process()
    for done in range(clips + 1):
        if done % EVERY == 0:
            yield done, process.memory_info().rss / 1e6
        path = paths[done % len(paths)]
        row: dict[str, Any] = {"key": path.stem, "ytid": None, "start": 0.0, "end": 10.0, "source": path.name}
        make_sample(path, row | {"named_start": 0.0, "labels": [], "label_ids": [], "boxes": None}, options=options)


def drawing(points: list[tuple[int, float]], title: str) -> str:
    """The readings as an SVG."""
    width, height, left, bottom = 640, 240, 60, 40
    top = 1.15 * max(memory for _, memory in points)
    last = points[-1][0] or 1

    def place(done: float, memory: float) -> str:
        x, y = left + done / last * (width - left - 20), height - bottom - memory / top * (height - bottom - 30)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(*point) for point in points)
    ticks = "".join(
        f'<text x="{left - 8}" y="{float(place(0, value).split(",")[1]) + 4}" text-anchor="end">{value}</text>'
        for value in range(0, int(top), 100)
    ) + "".join(
        f'<text x="{place(done, 0).split(",")[0]}" y="{height - bottom + 18}" text-anchor="middle">{done:,}</text>'
        for done in (0, last // 2, last)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{left}" y="18" font-weight="bold">{title}</text>'
        f'<polyline points="{line}" fill="none" stroke="#1663b5" stroke-width="2"/>{ticks}'
        f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">clips (vertical: resident MB)</text></svg>\n'
    )


def main(arguments: list[str] | None = None) -> None:
    """The command. With --clips it starts itself again, so that making the clips leaves no memory behind."""
    with one_line_errors("memory_curve"):
        config = parse(MemoryConfig, arguments, prog="python -m tools.memory_curve")
        with tempfile.TemporaryDirectory() as folder:
            paths = make_clips(Path(folder) / "clips", 8)
            words = [sys.executable, "-m", "tools.memory_curve", "--child", str(config.clips), config.decoder]
            child = subprocess.Popen([*words, *map(str, paths)], stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            points = []
            with tqdm(total=config.clips, unit="clip", disable=None) as bar:
                for text in child.stdout:
                    points.append(tuple(json.loads(text)))
                    bar.update(points[-1][0] - bar.n)
            if child.wait():
                raise SystemExit(child.returncode)
        print("| clips | resident MB |\n|---:|---:|")
        step = max(len(points) // 10, 1)
        for done, memory in points[::step]:
            print(f"| {done:,} | {memory:.0f} |")
        if config.svg is not None:
            config.svg.write_text(drawing(points, f"Memory of a decoder process, --decoder {config.decoder}"))


def _child(clips: str, decoder: Literal["auto", "pyav", "decord"], *paths: str) -> None:
    for reading in readings([Path(path) for path in paths], int(clips), decoder):
        print(json.dumps(reading), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:])  # type: ignore[arg-type]
    else:
        main()
