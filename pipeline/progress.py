"""How far a run is: a bar on a terminal, a plain line now and then where the output goes to a file."""

import sys
import threading
import time
from types import TracebackType

from tqdm import tqdm

from shards_spec.messages import tell

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts clips; for several threads. Use it in a `with` block."""

    def __init__(self, total: int) -> None:
        """total: clips that will be decoded."""
        self.done = self.failed = 0
        self._total = total
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._next_line = self._start + _SECONDS_BETWEEN_LINES
        self._bar = tqdm(total=total, unit=" clips", smoothing=0.05, mininterval=0.2) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._total:
            self._line()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Clips a second, ok and failed."""
        return self.done / max(self.seconds, 1e-9)

    def clips(self, ok: int, failed: int) -> None:
        """Counts decoded clips."""
        with self._lock:
            self.done += ok + failed
            self.failed += failed
            if self._bar is not None:
                self._bar.set_postfix(failed=self.failed, refresh=False)
                self._bar.update(ok + failed)
            elif time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
                self._line()

    def _line(self) -> None:
        left = (self._total - self.done) / self.rate if self.done else float("inf")
        eta = f", {duration(left)} left" if 0 < left < float("inf") else ""
        done = f"{self.done:,} of {self._total:,} clips, {self.rate:.1f} a second, {self.failed:,} failed{eta}"
        tell(done)


def duration(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
