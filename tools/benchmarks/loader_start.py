"""What must not grow with a dataset: opening it, the order of an epoch, the first batch after a resume, the state."""

import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from training.checkpoint import TrainState
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.order import Place, SampleStream, epoch_order
from training.stream.shares import rank_shares

LONG_SHARDS = 3907  # of 512: AudioSet's 2 million clips
_REPEATS = 5
_TABLES = 200  # read to measure what an index row takes
_MB = 1e6


def instant(samples: Path, long: Path, batch_size: int, workers: int) -> list[str]:
    """The figures, as lines of a Markdown table.

    Args:
        samples: a dataset of real samples.
        long: one of LONG_SHARDS shards.
    """
    n = len(open_index(long))
    seconds, peak = _seconds(lambda: epoch_order(0, 0, n)), _peak(lambda: epoch_order(0, 0, n))
    lines = [
        "| what | figure |",
        "|---|---:|",
        f"| order of an epoch of {n:,} samples: time | {seconds:.3f} s |",
        f"| ... peak memory | {peak / _MB:.1f} MB |",
        f"| opening an index of {LONG_SHARDS:,} shards | {_seconds(lambda: open_index(long)):.3f} s |",
        f"| loaded index rows | {_row_bytes(long):.0f} bytes a sample |",
        f"| state of a run | {_state_bytes(n)} bytes |",
    ]
    for dataset in (samples, long):
        count = len(open_index(dataset))
        for share in (0.01, 0.99):
            seconds = statistics.median(_first_batch(dataset, share, batch_size, workers) for _ in range(_REPEATS))
            lines.append(f"| first batch at {share:.0%} of {count:,} samples, {workers} workers | {seconds:.3f} s |")
    return lines


def _seconds(call: Callable[[], object]) -> float:
    """Median time of a call."""
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _peak(call: Callable[[], object]) -> int:
    """The most memory that Python and numpy held during a call, beyond what they held before, in bytes."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - before


def _row_bytes(dataset: Path) -> float:
    """Memory that a sample's index row takes once its shard's table is read: numpy's, Python's and Arrow's."""
    index = open_index(dataset)
    index.rows(0)  # what the first table alone takes: modules, caches
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()
    rows = sum(len(index.rows(shard).keys) for shard in range(1, _TABLES + 1))
    after = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()
    tracemalloc.stop()
    return (after - before) / rows


def _first_batch(dataset: Path, share: float, batch_size: int, workers: int) -> float:
    """Seconds from the folder's name to a batch in hand, at a place `share` into the epoch."""
    begin = time.perf_counter()
    index = open_index(dataset)
    stream = SampleStream(index.counts, seed=0)
    shares = rank_shares(stream, Place(cursor=int(share * stream.n)), steps=100, batch_size=batch_size)
    batches = load(index, shares, seed=0, batch_size=batch_size, workers=workers)
    next(batches)
    return time.perf_counter() - begin


def _state_bytes(n: int) -> int:
    """state.json's content for a run in its hundredth epoch, without white space."""
    state = TrainState(
        step=1_000_000,
        fingerprint="0" * 64,
        seed=123_456,
        epoch=100,
        cursor=n - 1,
        next_shard=f"shard-{LONG_SHARDS - 1:06d}.tar",
        next_offset=142_000_000,
    )
    return len(json.dumps(asdict(state), separators=(",", ":")))
