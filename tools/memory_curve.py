"""Whether a decoder process grows: its memory over thousands of clips, as a table and a picture.

    python -m tools.memory_curve [--clips 10000] [--decoder pyav decord] [--svg docs/memory.svg]

For each decoder, the decoder process of make-shards makes samples of a few real clips over and over; its resident
memory is read after the first and then after every tenth clip.
"""

import functools
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from pipeline.decoder_process import DecoderProcess, Failure, Job, start_fork_server
from pipeline.encode_sample import SampleOptions, make_sample
from pipeline.options import MakeShardsConfig
from shards_spec.command_line import one_line_errors, parse
from tools.bench_make_shards import make_clips

EVERY = 10  # clips between two readings


Decoder = Literal["pyav", "decord"]
_COLOURS = {"pyav": "#1663b5", "decord": "#b5541a"}


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Shows the memory of a decoder process over many clips."""

    clips: int = 10_000
    """Clips to make samples of."""
    decoder: tuple[Decoder, ...] = ("pyav", "decord")
    """One process is measured with each of these decoders."""
    svg: Path | None = None
    """Draw the curves into this file."""


def readings(paths: list[Path], clips: int, decoder: Decoder) -> Iterator[tuple[int, float]]:
    """(clips done, resident MB of the decoder process) after every EVERY clips."""
    options = SampleOptions(decoder=decoder, frame_fit="resize", frames=1, keep_audio=False)
    make = functools.partial(make_sample, options=options)
    memory = MakeShardsConfig(raw=(), out=Path()).worker_memory

    def jobs() -> Iterator[Job]:
        for number in range(clips):
            path = paths[number % len(paths)]
            row: dict[str, Any] = {"key": path.stem, "ytid": None, "start": 0.0, "end": 10.0, "source": path.name}
            yield path, row | {"named_start": 0.0, "labels": [], "label_ids": [], "boxes": None}

    start_fork_server()
    with DecoderProcess(make, timeout=60, memory=memory, stop=threading.Event()) as process:
        for done, outcome in enumerate(process.outcomes(jobs()), 1):
            if isinstance(outcome, Failure):
                raise RuntimeError(f"clip {done}: {outcome.detail}")
            if done % EVERY == 0 or done == 1:
                yield done, process.resident / 1e6


def drawing(curves: dict[Decoder, list[tuple[int, float]]]) -> str:
    """The readings as an SVG."""
    width, height, left, bottom = 640, 240, 60, 40
    top = 1.15 * max(memory for points in curves.values() for _, memory in points)
    last = max(points[-1][0] for points in curves.values()) or 1

    def place(done: float, memory: float) -> str:
        x, y = left + done / last * (width - left - 20), height - bottom - memory / top * (height - bottom - 30)
        return f"{x:.1f},{y:.1f}"

    ticks = "".join(
        f'<text x="{left - 8}" y="{float(place(0, value).split(",")[1]) + 4}" text-anchor="end">{value}</text>'
        for value in range(0, int(top), 50)
    ) + "".join(
        f'<text x="{place(done, 0).split(",")[0]}" y="{height - bottom + 18}" text-anchor="middle">{done:,}</text>'
        for done in (0, last // 2, last)
    )
    lines = ""
    for number, (decoder, points) in enumerate(curves.items()):
        line, colour = " ".join(place(*point) for point in points), _COLOURS[decoder]
        lines += f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        lines += f'<text x="{left + 330 + 70 * number}" y="18" fill="{colour}" font-weight="bold">{decoder}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{left}" y="18" font-weight="bold">Memory of a decoder process</text>{lines}{ticks}'
        f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">clips (vertical: resident MB)</text></svg>\n'
    )


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("python -m tools.memory_curve"):
        config = parse(MemoryConfig, arguments)
        with tempfile.TemporaryDirectory() as folder:
            paths = make_clips(Path(folder) / "clips", 8)
            curves: dict[Decoder, list[tuple[int, float]]] = {}
            for decoder in config.decoder:
                total = 1 + config.clips // EVERY
                points = tqdm(readings(paths, config.clips, decoder), total=total, desc=decoder, disable=None)
                curves[decoder] = list(points)
        for decoder, points in curves.items():
            print(f"| clips | resident MB, {decoder} |\n|---:|---:|")
            for done, memory in points[:: max(len(points) // 10, 1)]:
                print(f"| {done:,} | {memory:.0f} |")
            print()
        if config.svg is not None:
            config.svg.write_text(drawing(curves))


if __name__ == "__main__":
    main()
