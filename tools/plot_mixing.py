"""How well block shuffle mixes, beside the global shuffle: docs/mixing.svg, and the same as a table.

    python -m tools.plot_mixing docs/mixing.svg

A sample and the one next to it in the order come from the same shard with a chance of 1/shards where shuffling is
global, and of about 1/window in blocks. Three figures say what that does to batches, for every window: the distinct
shards in a batch; the share of pairs of samples in a batch that are from the same shard; and the total variation
distance between the shards of a batch and all shards, beyond the distance that a batch of random samples has anyway
(0: as well mixed as can be; 1: nothing in common with the whole). How much that matters depends on how shards differ.
Shards keep the order of the CSV; AudioSet's is by video id, so neighbours there have nothing in common.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tyro

from shards_spec.command_line import one_line_errors, parse
from training.stream.order import block_order, epoch_order

_WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SAMPLES = 512  # of a shard
_BATCHES = 200  # looked at for each window, evenly spaced over the epoch
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 300, 56, 16, 40, 44
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#52606d}.grid{stroke:#e4e7eb}.axis{stroke:#9aa5b1}"
    ".blocks{fill:none;stroke:#2f6fde;stroke-width:2}.dot{fill:#2f6fde}"
    ".global{stroke:#c2410c;stroke-width:1.5;stroke-dasharray:5 4}.title{font-size:14px;fill:#1f2933}"
)


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Measures and draws how well block shuffle mixes."""

    out: tyro.conf.Positional[Path]
    """The SVG to write."""

    shards: int = 1024
    """Shards of the dataset, of 512 samples each."""

    batch_size: int = 512


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How the batches of an order mix shards, means over batches."""

    window: int | None  # None: global
    distinct: float  # shards in a batch
    same_shard: float  # share of pairs in a batch
    distance: float  # total variation distance to all shards, beyond that of a random batch


def measure(shards: int, samples: int, batch_size: int, window: int | None) -> Mixing:
    """The mixing of an epoch of `shards` shards with `samples` each.

    Args:
        window: shards mixed at a time; None for the global shuffle.
    """
    n = shards * samples
    order = epoch_order(0, 0, n) if window is None else block_order(0, 0, [samples] * shards, window)
    starts = np.linspace(0, n - batch_size, _BATCHES).astype(int)
    counts = [np.bincount(order[start : start + batch_size] // samples, minlength=shards) for start in starts]
    random = np.random.default_rng(0)
    chance = [np.bincount(random.integers(0, shards, batch_size), minlength=shards) for _ in range(_BATCHES)]
    pairs = batch_size * (batch_size - 1)
    floor = float(np.mean([_distance(count) for count in chance]))
    found = float(np.mean([_distance(count) for count in counts]))
    return Mixing(
        window=window,
        distinct=float(np.mean([np.count_nonzero(count) for count in counts])),
        same_shard=float(np.mean([(count * (count - 1)).sum() / pairs for count in counts])),
        distance=max(found - floor, 0) / (1 - floor),
    )


def _distance(counts: npt.NDArray[np.int64]) -> float:
    """Total variation distance between the shards of a batch and all shards, which are equally large."""
    return float(np.abs(counts / counts.sum() - 1 / len(counts)).sum() / 2)


def table(rows: list[Mixing]) -> str:
    """The figures as Markdown."""
    lines = ["| window, shards | shards in a batch | pairs of one shard | distance |", "|---:|---:|---:|---:|"]
    for row in rows:
        window = "all (global)" if row.window is None else str(row.window)
        lines.append(f"| {window} | {row.distinct:.1f} | {row.same_shard:.2%} | {row.distance:.2f} |")
    return "\n".join(lines)


def picture(rows: list[Mixing], whole: Mixing, config: MixingConfig) -> str:
    """The distinct shards in a batch over the window, both on logarithmic axes, as SVG."""
    top = max(whole.distinct, *(row.distinct for row in rows))

    def x(window: float) -> float:
        return _LEFT + np.log2(window) / np.log2(_WINDOWS[-1]) * (_WIDTH - _LEFT - _RIGHT)

    def y(distinct: float) -> float:
        return _HEIGHT - _BOTTOM - np.log2(distinct) / np.log2(1.3 * top) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="Distinct shards in a batch, by window"><style>{_STYLE}</style>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text class="title" x="{_LEFT}" y="22">Distinct shards in a batch of {config.batch_size},'
        f" {config.shards:,} shards of {_SAMPLES}</text>",
    ]
    for tick in (1, 4, 16, 64, 256):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick):.1f}" dy=".32em" text-anchor="end">{tick}</text>')
    for window in _WINDOWS:
        anchor = "end" if window == _WINDOWS[-1] else "middle"
        parts.append(f'<text x="{x(window):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="{anchor}">{window}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">window (shards)</text>')
    parts.append(f'<path class="global" d="M{_LEFT} {y(whole.distinct):.1f}H{_WIDTH - _RIGHT}"/>')
    parts.append(f'<text x="{_LEFT + 6}" y="{y(whole.distinct) - 6:.1f}">global shuffle: {whole.distinct:.0f}</text>')
    points = [(x(row.window or 1), y(row.distinct)) for row in rows]
    parts.append(f'<polyline class="blocks" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
    parts += [f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    return "".join(parts) + "</svg>\n"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("python -m tools.plot_mixing"):
        config = parse(MixingConfig, arguments)
        rows = [measure(config.shards, _SAMPLES, config.batch_size, window) for window in _WINDOWS]
        whole = measure(config.shards, _SAMPLES, config.batch_size, None)
        config.out.write_text(picture(rows, whole, config))
        print(table([*rows, whole]))


if __name__ == "__main__":
    main()
