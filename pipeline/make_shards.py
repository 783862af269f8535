"""make-shards RAW [RAW ...] --segments CSV --out DIR: raw clips -> a dataset of shards.

    make-shards raw/ --segments balanced_train_segments.csv --class-labels class_labels_indices.csv --out shards/as20k

Stopped or killed, it goes on where it was when the same command is given again. Exit status: 0 done, 1 too many
clips failed or the disk gave out, 2 a mistake in the command, 128 + signal stopped.
"""

import contextlib
import functools
import gc
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence

from pipeline.account import is_written, library_versions, summary, take_account, write_account
from pipeline.agree_plan import agreed_plan
from pipeline.array_task import WHOLE, ranges, tasks_of
from pipeline.build_shard import complete_replacements
from pipeline.decoder_process import Make
from pipeline.encode_sample import make_sample
from pipeline.executor_local import run_local
from pipeline.executor_ray import run_ray
from pipeline.folder_lock import folder_lock
from pipeline.options import MakeShardsConfig
from pipeline.plan import Plan, read_plan
from pipeline.progress import Progress, duration
from pipeline.shard_queue import ShardQueue, finished_and_outdated
from shards_spec import storage
from shards_spec.command_line import one_line_errors, parse
from shards_spec.cores import usable_cores
from shards_spec.dataset import DATASET_FILE
from shards_spec.errors import UserError, refusal
from shards_spec.messages import tell, warn

_GO_ON = "run the same command again to go on"


class _EndedBySignal(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    with one_line_errors("make-shards"):
        config = parse(MakeShardsConfig, arguments).in_array(os.environ)
        try:
            config.check()
            with _signals():
                return run(config)
        except _EndedBySignal as ended:
            tell(f"stopped by {signal.Signals(ended.number).name}; finished shards are kept, {_GO_ON}")
            return 128 + ended.number
        except OSError as error:
            tell(f"error: {refusal(error)}; finished shards are kept, mend this and {_GO_ON}")
            return 1


def run(config: MakeShardsConfig, *, make: Make | None = None) -> int:
    """Makes or completes a dataset; returns the exit status.

    Args:
        make: makes one sample, in a child process; must be picklable.

    Raises:
        UserError: mistakes in the command or in its files.
        OSError: the disk is full or cannot be written.
    """
    if config.finalize:
        return _finalize(config)
    share = config.share
    storage.make_folder(config.out)
    with folder_lock(config.out, share):
        complete_replacements(config.out, share)
        with _without_garbage_collection():
            plan = agreed_plan(config)
        queue = ShardQueue(
            folder=config.out,
            plan=plan,
            roots=config.raw,
            options=config.options,
            make=make or functools.partial(make_sample, options=config.options),
            timeout=config.clip_timeout,
            memory=config.worker_memory,
            share=share,
            retry_failed=config.retry_failed,
        )
        if queue.numbers:
            _build(config, plan, queue)
        if share.is_whole:
            return _finish(config, plan)
    mine = sum(share.has(number) for number in range(plan.shards))
    finalize = shlex.join(["make-shards", "--out", str(config.out), "--finalize", "--task-count", str(share.count)])
    tell(f"{share}: its {mine:,} of {plan.shards:,} shards are there; when all tasks are done: {finalize}")
    return 0


def _build(config: MakeShardsConfig, plan: Plan, queue: ShardQueue) -> None:
    """Builds and tries again what the queue says, on the executor that the command names."""
    if plan.versions != library_versions():
        warn(f"{config.out} was begun with other library versions: bytes may differ")
    queue.remove_left_over(common=config.share.is_whole)
    storage.remove(config.out / DATASET_FILE)
    of = f" ({config.share})" if not config.share.is_whole else ""
    anew = f"; to write again without decoding: {len(queue.outdated):,}" if queue.outdated else ""
    tell(f"shards to build: {len(queue.unfinished):,} of {plan.shards:,}{of}{anew}")
    with Progress(queue.clips()) as progress:
        if config.executor == "ray":
            run_ray(queue.job, queue.numbers, progress, address=config.ray_address, in_flight=config.workers)
        else:
            run_local(queue.job, queue.numbers, progress, workers=config.workers or usable_cores())
    queue.remove_left_over(common=False)  # of workers that were lost
    tell(f"{progress.done:,} clips in {duration(progress.seconds)}, {progress.rate:.1f} a second")


def _finalize(config: MakeShardsConfig) -> int:
    """Completes a dataset whose shards are all there; names those that are not."""
    plan = read_plan(config.out)
    if plan is None:
        raise UserError(f"{config.out} holds no plan.parquet: run make-shards without --finalize first")
    with folder_lock(config.out, WHOLE):
        complete_replacements(config.out, WHOLE)
        finished, outdated = finished_and_outdated(config.out, plan, range(plan.shards))
        missing = [number for number in range(plan.shards) if number not in finished or number in outdated]
        if not missing:
            return _finish(config, plan)
    again = "run the same make-shards command again"
    if config.task_count is not None:
        again = f"run tasks {ranges(tasks_of(missing, config.task_count))} of {config.task_count} again"
    state = "missing or out of date" if outdated else "missing"
    tell(f"error: {len(missing):,} of {plan.shards:,} shards are {state}, numbers {ranges(missing)}: {again}")
    return 1


def _finish(config: MakeShardsConfig, plan: Plan) -> int:
    """Prints what came of it and writes dataset.json, if the dataset is worth it."""
    account = take_account(config.out, plan)
    for line in summary(config.out, account):
        print(line)
    if not account.samples:
        tell(f"error: no clip gave a sample, {config.out} is no dataset: see the reasons above")
        return 1
    if too_many := account.too_many_failed(config.max_failed):
        tell(f"error: {too_many}")
        return 1
    if not is_written(config.out, account):
        write_account(config.out, plan, account)
    print(f"  complete: fbank mean {account.mean:.4f}, std {account.std:.4f}, fingerprint {account.fingerprint[:16]}")
    return 0


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Planning makes millions of small objects and no cycles: looking for cycles takes a third of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise _EndedBySignal in the main thread; a second one ends the program at once.

    SIGHUP comes where the terminal is closed or the connection breaks, unless it is ignored, as under nohup.
    """

    def end(number: int, _: object) -> None:
        for signal_number in before:
            signal.signal(signal_number, signal.SIG_DFL)
        raise _EndedBySignal(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
