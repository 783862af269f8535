"""How far a number would move with other samples of the same kind: bootstrap intervals (Efron and Tibshirani, 1993).

Samples are drawn anew, with replacement, as many as there are; of the numbers that they score, the middle 95% is the
interval. What belongs together (the questions about a video, the segments of a clip) is drawn together. The model is
the same throughout: what another seed of the training would change is not in it.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

# N samples, R resamples.
Interval = list[float]  # its lower and upper end
Intervals = dict[str, dict[str, Interval]]  # row -> column -> interval

RESAMPLES = 1000  # of means
FEW_RESAMPLES = 200  # of numbers that take long: their ends are rougher
_SEED = 0
_ENDS = (2.5, 97.5)  # percentiles


def draws(
    n: int, *, groups: npt.NDArray[np.int64] | None = None, resamples: int = RESAMPLES
) -> Iterator[npt.NDArray[np.int64]]:
    """How often each of N samples is drawn, int64 [N], for each resample; the same ones at every call.

    Args:
        groups: int64 [N], from 0 on: samples of one group are drawn together.
    """
    generator = np.random.default_rng(_SEED)
    of_sample = np.arange(n) if groups is None else groups
    size = int(of_sample.max()) + 1
    for _ in range(resamples):
        yield np.bincount(generator.integers(0, size, size), minlength=size)[of_sample]


def spread(rows: Iterable[Mapping[str, float | None]]) -> dict[str, Interval]:
    """The interval of each column from the rows of the resamples; a column that is None in one of them has none."""
    columns: dict[str, list[float | None]] = {}
    for row in rows:
        for column, value in row.items():
            columns.setdefault(column, []).append(value)
    return {
        column: [float(end) for end in np.percentile(np.array(values, np.float64), _ENDS)]
        for column, values in columns.items()
        if None not in values
    }


def of_means(
    values: Mapping[str, npt.NDArray[np.float64]], *, groups: npt.NDArray[np.int64] | None = None
) -> dict[str, Interval]:
    """Intervals of 100 times the mean of each column, float [N]; a NaN is a sample that the column does not count."""
    table = np.stack(list(values.values()), axis=1).astype(np.float64)
    is_counted = ~np.isnan(table)
    kept = np.where(is_counted, table, 0)
    counted = is_counted.astype(np.float64)

    def row(drawn: npt.NDArray[np.int64]) -> dict[str, float | None]:
        sums, totals = drawn @ kept, drawn @ counted
        return {name: 100 * float(s / t) if t else None for name, s, t in zip(values, sums, totals, strict=True)}

    return spread(row(drawn) for drawn in draws(len(table), groups=groups))
