"""Shards on this machine: a thread for each worker, a decoder process for each shard in work."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from pipeline.decoder_process import StoppedError, start_fork_server
from pipeline.progress import Progress
from pipeline.shard_job import ShardJob, do


def run_local(job: Callable[[int], ShardJob], numbers: Sequence[int], progress: Progress, *, workers: int) -> None:
    """Builds the shards of these numbers, `workers` at a time; `job` says what each of them takes.

    Raises: see `shard_job.do`; the other shards in work are given up then.
    """
    stop = threading.Event()

    def task(number: int) -> None:
        if stop.is_set():
            return
        try:
            do(job(number), stop=stop, on_clip=lambda ok: progress.clips(int(ok), int(not ok)))
        except StoppedError:
            return
        except BaseException:
            stop.set()  # here: this thread would begin the next shard before the main one has heard of it
            raise

    start_fork_server()
    with ThreadPoolExecutor(workers, thread_name_prefix="shard") as pool:
        futures = [pool.submit(task, number) for number in numbers]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
