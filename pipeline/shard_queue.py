"""Builds the shards that are not there yet: a thread for each worker, a decoder process for each shard in work."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from pipeline.build_shard import Row, ShardSpec, build_shard, finished_shard
from pipeline.decoder_process import DecoderProcess, Failure, Make, StoppedError, start_fork_server
from pipeline.encode_sample import Encoded
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.retry_shard import FINAL_REASONS, clips_to_retry, may_change, retry_shard
from shards_spec.atomic import TEMPORARY_SUFFIX
from shards_spec.tables import read_table, shard_stem


class ShardQueue:
    """The shards of a plan, and how their clips are made."""

    def __init__(
        self, *, folder: Path, plan: Plan, roots: Sequence[Path], members: tuple[str, ...], make: Make, timeout: float
    ) -> None:
        """
        Args:
            roots: raw folders, as the plan counts them.
            members: of each sample, in tar order.
            make: makes one sample, in a child process; must be picklable.
            timeout: seconds that one clip may take.
        """
        self._folder, self._plan, self._members = folder, plan, members
        self._roots = [root.absolute() for root in roots]
        self._make, self._timeout = make, timeout
        self._firsts = plan.shard_firsts()
        self._stop = threading.Event()

    def unfinished(self) -> list[int]:
        """Numbers of the shards to build."""
        return [n for n in range(self._plan.shards) if finished_shard(self._folder, n) is None]

    def retryable(self) -> list[int]:
        """Numbers of the finished shards in which another try may change something."""
        finished = [n for n in range(self._plan.shards) if finished_shard(self._folder, n) is not None]
        return [n for n in finished if may_change(self._spec(n))]

    def clips(self, build: list[int], retry: list[int]) -> int:
        """How many clips `run` will decode."""
        reasons = self._plan.table["reason"]
        to_build = sum(reasons.slice(self._firsts[n], self._firsts[n + 1] - self._firsts[n]).null_count for n in build)
        return int(to_build) + sum(len(clips_to_retry(self._spec(n))) for n in retry)

    def run(self, build: list[int], retry: list[int], *, workers: int, progress: Progress) -> None:
        """Builds shards, and tries failed clips of others again.

        Raises:
            OSError: the disk is full or cannot be written.
            DecoderDefectError: the program has a mistake.
        """
        for left_over in self._folder.glob(f"shard-*{TEMPORARY_SUFFIX}"):
            left_over.unlink()
        start_fork_server()
        again = set(retry)
        with ThreadPoolExecutor(workers, thread_name_prefix="shard") as pool:
            futures = [pool.submit(self._task, n, n in again, progress) for n in sorted(build + retry)]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _task(self, number: int, retry: bool, progress: Progress) -> None:
        if self._stop.is_set():
            return
        with DecoderProcess(self._make, timeout=self._timeout, stop=self._stop) as process, suppress(StoppedError):

            def decode(rows: list[Row]) -> Iterator[Encoded | Failure]:
                for outcome in process.outcomes((self._roots[row["root"]] / row["source"], row) for row in rows):
                    progress.clip(ok=isinstance(outcome, Encoded))
                    yield outcome

            (retry_shard if retry else build_shard)(self._spec(number), decode)

    def _spec(self, number: int) -> ShardSpec:
        first, end = self._firsts[number], self._firsts[number + 1]
        rows = self._plan.table.slice(first, end - first).to_pylist()
        return ShardSpec(folder=self._folder, number=number, rows=rows, members=self._members)


def failed_rows(folder: Path, plan: Plan) -> list[int]:
    """Row numbers, in the plan, of clips that failed for a reason that may pass: by the tables of the finished shards,
    by the plan itself where a shard is not finished."""
    numbers = []
    firsts = plan.shard_firsts()
    for shard in range(plan.shards):
        if finished_shard(folder, shard) is not None:
            table, _ = read_table(folder / f"{shard_stem(shard)}.parquet")
        else:
            table = plan.table.slice(firsts[shard], firsts[shard + 1] - firsts[shard])
        reasons = table["reason"].to_pylist()
        numbers += [firsts[shard] + i for i, r in enumerate(reasons) if r is not None and r not in FINAL_REASONS]
    return numbers
