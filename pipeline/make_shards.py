"""make-shards RAW [RAW ...] --segments CSV --out DIR: raw clips -> a dataset of shards.

    make-shards raw/ --segments balanced_train_segments.csv --class-labels class_labels_indices.csv --out shards/as20k

Stopped or killed, it goes on where it was when the same command is given again. Exit status: 0 done, 1 too many
clips failed or the disk gave out, 2 a mistake in the command, 128 + signal stopped.
"""

import contextlib
import fcntl
import functools
import gc
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pyarrow.compute as pc
import tyro

from pipeline.account import is_written, library_versions, summary, take_account, write_account
from pipeline.boxes import Boxes, read_boxes
from pipeline.decoder_process import Make
from pipeline.encode_sample import SampleOptions, make_sample
from pipeline.plan import (
    Locate,
    Plan,
    check_recipe,
    files_request,
    make_recipe,
    plan_request,
    read_plan,
    relocate,
    segments_locator,
)
from pipeline.progress import Progress, duration
from pipeline.segments import ClassList, Segment, read_classes, read_segments
from pipeline.shard_queue import ShardQueue, failed_rows
from shards_spec.command_line import one_line_errors, parse
from shards_spec.dataset import DATASET_FILE
from shards_spec.errors import UserError
from shards_spec.sample import CLIP_SECONDS

_LOCK_FILE = ".make-shards.lock"
_GO_ON = "run the same command again to go on"


@dataclass(frozen=True, kw_only=True)
class MakeShardsConfig:
    """Turns raw AudioSet or VGGSound downloads into a dataset of shards; run again, it goes on where it stopped."""

    raw: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RAW [RAW ...]", help_behavior_hint="")]
    ]
    """Folders with the downloads, flat or in subfolders."""
    out: Path
    """Dataset folder to write."""
    segments: Path | None = None
    """CSV of the clips wanted: AudioSet's segments, or VGGSound's. Default: every media file is a clip."""
    class_labels: Path | None = None
    """Class list (class_labels_indices.csv): labels get their index in it."""
    boxes: Path | None = None
    """Boxes of sound sources: VGG-SS's vggss.json, or Flickr-SoundNet's folder of ID.xml. Into each clip's JSON."""
    shard_size: int = 512
    """Clips a shard."""
    workers: int | None = None
    """Clips decoded at the same time. Default: one for each CPU core."""
    frame_fit: Literal["resize", "crop"] = "resize"
    """resize squashes a frame to 224x224; crop scales its short side to 224 and takes the centre."""
    frames: int = 1
    """Frames kept of each clip; above 1, evenly spaced ones beside the middle one."""
    keep_audio: bool = False
    """Also keep the waveform, as FLAC."""
    decoder: Literal["auto", "decord", "pyav"] = "auto"
    """auto takes the faster one, and the other for files that the first cannot open."""
    clip_seconds: float = CLIP_SECONDS
    """Length of a clip where no CSV gives its end."""
    limit: int | None = None
    """Take only the first N clips."""
    retry_failed: bool = False
    """Look again for missing files and try failed clips again."""
    max_failed: float = 0.5
    """Accept the dataset if at most this share of the clips that have a file fails."""
    clip_timeout: float = 60.0
    """Seconds that one clip may take."""

    def check(self) -> None:
        """Raises UserError for values that make no sense."""
        if not self.raw:
            raise UserError("no raw folder given: make-shards RAW [RAW ...] --out DIR")
        for root in self.raw:
            if not root.is_dir():
                raise UserError(f"raw folder {root} is no folder: give the folder that holds the downloads")
        for name, least in (("shard_size", 1), ("workers", 1), ("frames", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        if self.frames > 100:
            raise UserError(f"--frames must be at most 100, got {self.frames}")
        for name in ("clip_seconds", "clip_timeout"):
            if not 0 < getattr(self, name) < 1e6:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if self.boxes is not None and self.frame_fit == "crop":
            raise UserError("--boxes are places in the whole frame, which --frame-fit crop cuts: take resize")
        if not 0 <= self.max_failed <= 1:
            raise UserError(f"--max-failed is a share, 0 to 1, got {self.max_failed}")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is no folder")

    @property
    def options(self) -> SampleOptions:
        """What concerns single samples."""
        return SampleOptions(
            decoder=self.decoder, frame_fit=self.frame_fit, frames=self.frames, keep_audio=self.keep_audio
        )


class _EndedBySignal(BaseException):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    with one_line_errors("make-shards"):
        config = parse(MakeShardsConfig, arguments, prog="make-shards")
        config.check()
        try:
            with _signals():
                return run(config)
        except _EndedBySignal as ended:
            _say(f"stopped by {signal.Signals(ended.number).name}; finished shards are kept, {_GO_ON}")
            return 128 + ended.number
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _say(f"error: {where}{error.strerror or error}; finished shards are kept, mend this and {_GO_ON}")
            return 1


def run(config: MakeShardsConfig, *, make: Make | None = None) -> int:
    """Makes or completes a dataset; returns the exit status.

    Args:
        make: makes one sample, in a child process; must be picklable.

    Raises:
        UserError: mistakes in the command or in its files.
        OSError: the disk is full or cannot be written.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    with _locked(config.out):
        with _without_garbage_collection():
            plan = _plan(config)
        queue = ShardQueue(
            folder=config.out,
            plan=plan,
            roots=config.raw,
            members=config.options.members,
            make=make or functools.partial(make_sample, options=config.options),
            timeout=config.clip_timeout,
        )
        unfinished = queue.unfinished()
        retried = queue.retryable() if config.retry_failed else []
        if unfinished or retried:
            if plan.versions != library_versions():
                _say(f"warning: {config.out} was begun with other library versions: bytes may differ")
            (config.out / DATASET_FILE).unlink(missing_ok=True)
            _say(f"shards to build: {len(unfinished):,} of {plan.shards:,}")
            with Progress(queue.clips(unfinished, retried)) as progress:
                queue.run(unfinished, retried, workers=config.workers or _cores(), progress=progress)
            _say(f"{progress.done:,} clips in {duration(progress.seconds)}, {progress.rate:.1f} a second")
        return _finish(config, plan)


def _plan(config: MakeShardsConfig) -> Plan:
    """The plan of this run, written."""
    by_file = config.segments is None
    classes = ClassList([]) if config.class_labels is None else read_classes(config.class_labels)
    boxes = None if config.boxes is None else _boxes(config.boxes)
    recipe = make_recipe(
        by_file=by_file,
        shard_size=config.shard_size,
        frame_fit=config.frame_fit,
        frames=config.frames,
        keep_audio=config.keep_audio,
        decoder=config.decoder,
        clip_seconds=config.clip_seconds,
        classes=classes.classes,
        boxes=boxes,
    )
    old = plan = read_plan(config.out)
    if old is not None:
        check_recipe(old, recipe, config.out)
    request, locate = _request(config)
    table = plan_request(
        old, request, locate, by_file=by_file, shard_size=config.shard_size, classes=classes, boxes=boxes
    )
    if classes.unknown:
        named = ", ".join(repr(label) for label, _ in classes.unknown.most_common(3))
        count = len(classes.unknown)
        _say(f"warning: labels that are not in {config.class_labels} get no index: {count:,}, as {named}")
    if table is not None:
        if boxes is not None:
            boxed = len(table) - table["boxes"].null_count
            _say(f"{boxed:,} of {len(table):,} planned clips have boxes ({config.boxes}: {len(boxes.clips):,} clips)")
        versions = library_versions() if old is None else old.versions
        plan = Plan(table=table, recipe=recipe, classes=classes.classes, versions=versions)
        (config.out / DATASET_FILE).unlink(missing_ok=True)
        plan.write(config.out)
    assert plan is not None
    roots = (pc.max(plan.table["root"]).as_py() or 0) + 1
    if len(config.raw) < roots:
        raise UserError(f"{config.out} was planned with {roots} raw folders, got {len(config.raw)}: give the same ones")
    return _look_again(config, plan, request) if config.retry_failed and not by_file else plan


def _boxes(path: Path) -> Boxes:
    boxes = read_boxes(path)
    for warning in boxes.warnings():
        _say(f"warning: {path}: {warning}")
    return boxes


def _request(config: MakeShardsConfig) -> tuple[list[Segment], Locate]:
    """The clips asked for, and the way to their files."""
    if config.segments is None:
        return files_request(config.raw, clip_seconds=config.clip_seconds, limit=config.limit)
    request, warnings = read_segments(config.segments, clip_seconds=config.clip_seconds, limit=config.limit)
    for warning in warnings:
        _say(f"warning: {warning}")
    return request, segments_locator(config.raw)


def _look_again(config: MakeShardsConfig, plan: Plan, request: list[Segment]) -> Plan:
    """The plan with the files that failed clips have now, written if any differs."""
    numbers = failed_rows(config.out, plan)
    if not numbers:
        return plan
    renewed = relocate(plan, numbers, request, segments_locator(config.raw))
    if not renewed.table.equals(plan.table):
        (config.out / DATASET_FILE).unlink(missing_ok=True)
        renewed.write(config.out)
    return renewed


def _finish(config: MakeShardsConfig, plan: Plan) -> int:
    """Prints what came of it and writes dataset.json, if the dataset is worth it."""
    account = take_account(config.out, plan)
    for line in summary(config.out, account):
        print(line)
    if not account.samples:
        _say(f"error: no clip gave a sample, {config.out} is no dataset: see the reasons above")
        return 1
    present = account.samples + account.failed_present
    if account.failed_present > config.max_failed * present:
        share = math.ceil(100 * account.failed_present / present) / 100
        _say(
            f"error: {account.failed_present:,} of {present:,} clips that have a file failed, more than --max-failed "
            f"{config.max_failed:g}: mend them and add --retry-failed, or accept them with --max-failed {share:g}"
        )
        return 1
    if not is_written(config.out, account):
        write_account(config.out, plan, account)
    print(f"  complete: fbank mean {account.mean:.4f}, std {account.std:.4f}, fingerprint {account.fingerprint[:16]}")
    return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(message: str) -> None:
    print(f"make-shards: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other make-shards out of the folder. The kernel lets go when the process ends, however it ends."""
    with (folder / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another make-shards is writing {folder}: let it end, or give another --out") from None
        yield


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
    """SIGINT and SIGTERM raise _EndedBySignal in the main thread; a second one ends the program at once."""

    def end(number: int, _: object) -> None:
        for signal_number in before:
            signal.signal(signal_number, signal.SIG_DFL)
        raise _EndedBySignal(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
