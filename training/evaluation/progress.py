"""How far an evaluation is: a bar on a terminal, a plain line now and then where the output goes to a file."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from shards_spec.messages import tell

_SECONDS_BETWEEN_LINES = 10.0
T = TypeVar("T")


def progress(
    items: Iterable[T], *, total: int, size: Callable[[T], int], title: str, enabled: bool = True
) -> Iterator[T]:
    """`items`, as they come, while stderr says how many samples of `total` are done.

    Args:
        size: samples of an item.
        enabled: False where another process speaks.
    """
    on_terminal = sys.stderr.isatty()
    start = said = time.monotonic()
    done = 0
    with tqdm(
        total=total, desc=title, unit=" samples", disable=not (enabled and on_terminal), dynamic_ncols=True
    ) as bar:
        for item in items:
            yield item
            done += size(item)
            bar.update(size(item))
            now = time.monotonic()
            if enabled and not on_terminal and (now - said >= _SECONDS_BETWEEN_LINES or done == total):
                said = now
                rate = done / max(now - start, 1e-9)
                left = f", {(total - done) / rate:.0f} s left" if done < total else ""
                line = f"{title}: {done:,} of {total:,} samples, {rate:.1f} a second{left}"
                tell(line)
