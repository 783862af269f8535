"""Makes a synthetic audio-visual world, where every answer is known: which object sounds, where it is, of which class.

    python -m tools.make_world OUT --clips 2000 --seed 0            real H.264/AAC files in AudioSet's layout
    python -m tools.make_world OUT --clips 2000 --seed 0 --direct   the same clips straight into shards, codecs left out

    OUT/world.json                  what was asked for
    OUT/class_labels_indices.csv
    OUT/train/*.mp4, OUT/train.csv  files: for make-shards OUT/train --segments OUT/train.csv --boxes OUT/boxes.json ...
    OUT/boxes.json                  boxes of the sounding objects, VGG-SS's form
    OUT/objects.json                all objects of each clip, by key
    OUT/train/shard-*.tar, ...      --direct: a dataset; boxes and objects are in each sample's JSON
    OUT/masks/train/KEY/KEY_1.png   where the sounding objects are seen

Killed, it goes on when the same command is given again; with more --clips it adds some. The same seed gives the same
bytes, whatever the number of workers. docs/world.md says what is in the world.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
from tqdm import tqdm

from shards_spec.command_line import one_line_errors, parse
from shards_spec.cores import usable_cores
from shards_spec.errors import UserError, refusal
from shards_spec.messages import tell
from tools.world.classes import LevelName
from tools.world.direct import begin_split, build_direct_shard, finish_split, plan_split, shards_of
from tools.world.encoded import begin_files, finish_files, make_files, write_class_list
from tools.world.masks import MaskTimes
from tools.world.request import World, agree, make_world, parse_splits

Task = TypeVar("Task")


@dataclass(frozen=True, kw_only=True)
class MakeWorldConfig:
    """Makes a synthetic audio-visual world; run again, it goes on where it stopped."""

    out: tyro.conf.Positional[Path]
    """Folder to write."""
    clips: int | None = None
    """Clips in all splits together."""
    seed: int = 0
    """Of the world: which look goes with which sound, and every clip."""
    splits: str = "train:0.9,val:0.05,test:0.05"
    """Names of the splits with their shares of --clips, or with their clips (train:900,test:100)."""
    classes: Literal[25, 49] = 49
    """Classes. 25 are easier to learn."""
    level: LevelName = "full"
    """easy: what a small model learns on a CPU; shapes and textures have hues of their own, half of the scenes have a
    single large object, hardly any noise."""
    direct: bool = False
    """Write shards straight away, without encoding and decoding any media file."""
    masks: MaskTimes | None = None
    """Masks of the sounding objects: of the middle frame, at the middle of each second, of all frames, or none.
    Default: middle; none with --direct."""
    shard_size: int = 256
    """Clips a shard (--direct)."""
    workers: int | None = None
    """Processes. Default: one for each CPU core."""

    def check(self) -> None:
        """Raises UserError for values that make no sense."""
        for name in ("clips", "workers", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more, got {self.seed}")

    @property
    def mask_times(self) -> MaskTimes:
        """The masks to write."""
        return self.masks or ("none" if self.direct else "middle")

    @property
    def recipe(self) -> dict[str, Any]:
        """Every choice that changes bytes, but for the number of clips."""
        form = {"form": "shards", "shard_size": self.shard_size} if self.direct else {"form": "files"}
        return {"seed": self.seed, "classes": self.classes, "level": self.level, "masks": self.mask_times, **form}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 the disk gave out, 2 a user's mistake, 130 interrupted."""
    with one_line_errors("python -m tools.make_world"):
        config = parse(MakeWorldConfig, arguments)
        config.check()
        splits = parse_splits(config.splits, config.clips)
        agree(config.out, config.recipe, splits)
        world = make_world(config.seed, config.classes, config.level)
        write_class_list(world, config.out)
        try:
            (_write_shards if config.direct else _write_files)(config, world, splits)
        except KeyboardInterrupt:
            tell("stopped; run the same command again to go on")
            return 130
        except OSError as error:
            tell(f"error: {refusal(error)}; mend this and run it again")
            return 1
    return 0


def _write_files(config: MakeWorldConfig, world: World, splits: dict[str, int]) -> None:
    tasks = begin_files(world, config.out, splits, config.mask_times)
    objects = {}
    with _bar(sum(splits.values())) as bar:
        for made in _each(make_files, tasks, config.workers):
            objects.update(made)
            bar.update(len(made))
    finish_files(world, config.out, splits, objects)
    for split, count in splits.items():
        print(f"{config.out / split}: {count:,} clips, {config.out / split}.csv")


def _write_shards(config: MakeWorldConfig, world: World, splits: dict[str, int]) -> None:
    plans, tasks = {}, []
    for split, count in splits.items():
        folder = config.out / split
        masks = None if config.mask_times == "none" else config.out / "masks" / split
        plans[split] = plan_split(world, split, count, config.shard_size, config.recipe)
        shards = shards_of(world, split, folder, plans[split], config.shard_size, masks, config.mask_times)
        tasks += [shards[number] for number in begin_split(folder, plans[split])]
    with _bar(sum(len(task.clips) for task in tasks)) as bar:
        for clips in _each(build_direct_shard, tasks, config.workers):
            bar.update(clips)
    for split, plan in plans.items():
        finish_split(config.out / split, plan)
        print(f"{config.out / split}: {splits[split]:,} clips in {plan.shards:,} shards")


def _bar(total: int) -> tqdm:
    return tqdm(total=total, desc="world", unit="clip", disable=None, dynamic_ncols=True)


def _each(work: Callable[[Task], Any], tasks: Iterable[Task], workers: int | None) -> Iterator[Any]:
    """What `work` gives for each task, in any order."""
    tasks = list(tasks)
    if not tasks:
        return
    count = min(workers or usable_cores(), len(tasks))
    context = multiprocessing.get_context("spawn")
    with _one_thread(), ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent) as pool:
        futures = [pool.submit(work, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Children that start meanwhile compute with one thread each: the number of threads shows in the last bits."""
    before = dict(os.environ)
    os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
