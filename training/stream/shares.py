"""Who loads which samples together: each rank its part of every step.

SampleStream.take ──> rank_shares ──> load
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.stream.order import Numbers, Place, SampleStream, rank_slice


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which samples to load together: their numbers in the index and the epochs they belong to, int64 [B].

    `first` is the place in the stream of the first one; the others follow it. `together` are the samples that all
    ranks take in the same step, None where there is one rank.
    """

    numbers: Numbers
    epochs: Numbers
    first: int = 0
    together: Numbers | None = None


def rank_shares(
    stream: SampleStream,
    place: Place,
    *,
    steps: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    micro_steps: int = 1,
) -> Iterator[Share]:
    """A rank's share of each of `steps` steps from `place` on, in `micro_steps` equal pieces."""
    mine = rank_slice(batch_size, rank, world)
    size = (mine.stop - mine.start) // micro_steps
    for _ in range(steps):
        numbers, epochs = stream.take(place, batch_size)
        for start in range(mine.start, mine.stop, size):
            piece = slice(start, start + size)
            yield Share(
                numbers=numbers[piece],
                epochs=epochs[piece],
                first=place.samples_done(stream.n) + start,
                together=numbers,
            )
        place = place.advance(batch_size, stream.n)


def all_shares(n: int, batch_size: int) -> Iterator[Share]:
    """Every sample once, in the index's own order, for evaluation."""
    for start in range(0, n, batch_size):
        numbers = np.arange(start, min(start + batch_size, n))
        yield Share(numbers=numbers, epochs=np.zeros_like(numbers))
