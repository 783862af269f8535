"""Checks every byte of a dataset against what its tables say.

    python -m tools.verify_shards shards/as20k
    python -m tools.verify_shards shards/as20k --workers 16

Every tar: size, sha256, structure as tarfile walks it, every payload's crc32; every fbank, frame, FLAC and JSON is
decoded and compared with the tables; plan, shard tables and dataset.json with one another. All damage is listed, with
shard, key and byte offset. Frames that are as they were written, but look as if they had not been decoded from a key
frame (make-shards of earlier versions stored such), are listed too, and are no damage. Exit status: 0 complete and
whole, 1 damaged, 2 a mistake in the command, or not damaged as far as the system gives the files, 3 whole as far as it
goes, but not finished.
"""

import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized

import tyro
from tqdm import tqdm

from pipeline.build_shard import PENDING
from shards_spec.command_line import one_line_errors, parse
from shards_spec.cores import usable_cores
from shards_spec.storage import place
from shards_spec.tables import shard_stem
from tools.verify.damage import MOST_LISTED, Findings
from tools.verify.folder import Folder, check_dataset, read_folder
from tools.verify.shard import Checked, ShardTask, check_shard
from tools.verify.tar import Count

_SECONDS_BETWEEN_LOOKS = 0.2
_NAMED = 8  # files and shards named in one line

_checked: "Synchronized[int]"  # bytes, of all workers; set in each of them


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Checks every byte of a dataset against what its tables say."""

    dataset: tyro.conf.Positional[str]
    """Folder that make-shards wrote, finished or not, or its URL (each tar is then downloaded)."""
    workers: int | None = None
    """Shards checked at the same time. Default: one for each CPU core."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    with one_line_errors("python -m tools.verify_shards"):
        config: VerifyConfig = parse(VerifyConfig, arguments)
        return verify(config)


def verify(config: VerifyConfig) -> int:
    """Checks a dataset and prints what was found; returns the exit status.

    Raises:
        UserError: there is no dataset.
        OSError: its folder cannot be listed, or no process can be started.
    """
    folder = read_folder(place(config.dataset))
    begin = time.monotonic()
    tasks = folder.tasks()
    workers = min(config.workers or usable_cores(), len(tasks))
    total = sum(folder.sizes.get(task.tar.name, 0) for task in tasks)
    with tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        checked = list(_in_turn(tasks, bar.update) if workers <= 1 else _at_once(tasks, workers, bar))
    found = Findings()
    for findings in (folder.found, *(shard.found for shard in checked), check_dataset(folder, checked)):
        found.extend(findings)
    _print(folder, checked, found, time.monotonic() - begin)
    if found.count:
        return 1 if found.count > found.unread else 2
    return 0 if folder.is_finished else 3


def _in_turn(tasks: list[ShardTask], count: Count) -> Iterator[Checked]:
    return (check_shard(task, count) for task in tasks)


def _at_once(tasks: list[ShardTask], workers: int, bar: tqdm) -> Iterator[Checked]:
    """What comes of all shards, in their order."""
    context = multiprocessing.get_context("spawn")
    checked = context.Value("q", 0)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(checked,)) as pool:
        futures = [pool.submit(_check, task) for task in tasks]
        pending: set[Future[Checked]] = set(futures)
        while pending:
            _, pending = wait(pending, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
            bar.update(checked.value - bar.n)
        for future in futures:
            yield future.result()


def _begin(checked: "Synchronized[int]") -> None:
    global _checked
    _checked = checked


def _check(task: ShardTask) -> Checked:
    return check_shard(task, _count)


def _count(size: int) -> None:
    with _checked.get_lock():
        _checked.value += size


def _print(folder: Folder, checked: list[Checked], found: Findings, seconds: float) -> None:
    for damage in found.listed:
        print(damage)
    if found.count > len(found.listed):
        print(f"... and {found.count - len(found.listed):,} more: the first {MOST_LISTED} are listed")
    for doubt in found.doubtful:
        print(doubt)
    if found.doubts:
        more = f", the first {MOST_LISTED} are listed" if found.doubts > len(found.doubtful) else ""
        print(f"{folder.path}: {found.doubts:,} frame{'s' * (found.doubts > 1)} to look at{more}: see above")
    to_come = [shard_stem(number) for number in folder.to_come]
    if to_come:
        print(f"{folder.path}: not there yet: {len(to_come):,} of {folder.shards:,} shards: {_some(to_come)}")
    if damaged := found.count - found.unread:
        files = sorted({damage.file for damage in found.listed if not damage.is_unread})
        print(f"{folder.path}: DAMAGED: {damaged:,} finding{'s' * (damaged > 1)}, in {_some(files)}")
        if any(PENDING.fullmatch(name) for name in folder.sizes):
            print("make-shards was killed while it replaced a shard: run the same command again, then look again")
        elif any(file.startswith("shard-") for file in files):
            print("to mend a shard, remove its .tar and .parquet and run the same make-shards command again")
    if found.unread:
        files = sorted({damage.file for damage in found.listed if damage.is_unread})
        print(f"{folder.path}: NOT CHECKED, because the system does not give them: {_some(files)}; check again then")
    if found.count:
        return
    size = sum(shard.bytes for shard in checked)
    samples, failed = sum(shard.samples for shard in checked), sum(shard.failures.total() for shard in checked)
    shown = f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
    clips = f"{samples:,} samples and {failed:,} failed clips in {len(checked):,} shards, {shown}"
    if folder.is_finished:
        print(f"{folder.path}: whole: {clips}, checked in {seconds:.1f} s")
    else:
        print(f"{folder.path}: whole so far: {clips}; run the same make-shards command again to finish it")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


if __name__ == "__main__":
    sys.exit(main())
