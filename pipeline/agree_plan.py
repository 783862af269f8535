"""The plan of a run: read from the dataset folder, and made and written there first where it lacks clips.

Tasks of a job array start in the same second and find no plan. One of them gets the lease and makes it, the others
wait for it. Should its machine die, another takes over. Whoever has waited reads what the folder holds.
"""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.compute as pc

from pipeline.account import library_versions
from pipeline.annotations import reannotated, says_the_same
from pipeline.boxes import Boxes, read_boxes
from pipeline.classes import ClassList, classes_of_labels, read_classes
from pipeline.lease import lease
from pipeline.options import MakeShardsConfig
from pipeline.pairs import media_files
from pipeline.plan import (
    Locate,
    Plan,
    check_recipe,
    files_request,
    make_recipe,
    matched,
    plan_request,
    read_plan,
    relocate,
    segments_locator,
)
from pipeline.raw_files import RawFile
from pipeline.segments import Segment, SegmentTable, read_segments
from pipeline.shard_queue import failed_rows
from shards_spec import storage
from shards_spec.dataset import DATASET_FILE
from shards_spec.errors import UserError
from shards_spec.messages import tell, warn

_LEASE_FILE = ".make-shards.planning"
_LOOK_AGAIN = 0.5  # seconds, while another one plans


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the command asks for."""

    by_file: bool
    classes: ClassList | None  # None: those that the labels are
    labels: frozenset[str]
    boxes: Boxes | None
    recipe: dict[str, Any]
    request: list[Segment]
    locate: Locate


def agreed_plan(config: MakeShardsConfig) -> Plan:
    """The plan that covers what the command asks for, as it lies in the folder.

    Raises:
        UserError: a CSV is damaged, the folder was begun with another recipe or request, ...
        OSError: the folder cannot be written.
    """
    asked = _asked(config)
    while True:
        plan, kept, new = _look(config, asked)
        if plan is not None and not new and _says_the_same(plan, kept, asked):
            break
        with lease(config.out / _LEASE_FILE) as ours:
            if ours:
                plan = _made(config, asked)
                break
        time.sleep(_LOOK_AGAIN)
    roots = (pc.max(plan.table["root"]).as_py() or 0) + 1
    if len(config.raw) < roots:
        raise UserError(f"{config.out} was planned with {roots} raw folders, got {len(config.raw)}: give the same ones")
    return _look_for_files(config, plan, asked.request) if config.retry_failed and not asked.by_file else plan


def _asked(config: MakeShardsConfig) -> _Asked:
    table = None
    if config.segments is not None:
        table = read_segments(
            config.segments,
            clip_seconds=config.clip_seconds,
            limit=config.limit,
            split=config.split,
            key_of=config.key,
        )
        for warning in table.warnings:
            warn(warning)
    classes = _classes(config, table)
    boxes = None
    if config.boxes is not None:
        boxes = read_boxes(config.boxes)
        for warning in boxes.warnings():
            warn(f"{config.boxes}: {warning}")
    recipe = make_recipe(
        by_file=table is None,
        shard_size=config.shard_size,
        frame_fit=config.frame_fit,
        frames=config.frames,
        frame_times=config.frame_times,
        keep_audio=config.keep_audio,
        decoder=config.decoder,
        clip_seconds=config.clip_seconds,
        classes=None if classes is None else classes.classes,
        boxes=boxes,
        key_of=config.key,
        pairs=config.pairs,
        audio_only=config.audio_only,
        min_seconds=config.min_seconds,
        skip_silent=config.skip_silent,
    )
    _begun(config, recipe)  # before the raw folders are listed, which may take long
    locate: Locate
    if table is None:
        request, locate = files_request(
            config.raw, _media(config), clip_seconds=config.clip_seconds, limit=config.limit, key_of=config.key
        )
    else:
        request, locate = table.rows, _locator(config)
    labels = frozenset() if table is None else table.labels
    return _Asked(
        by_file=table is None,
        classes=classes,
        labels=labels,
        boxes=boxes,
        recipe=recipe,
        request=request,
        locate=locate,
    )


def _media(config: MakeShardsConfig) -> Iterator[tuple[str, RawFile]]:
    return media_files(config.raw, pairs=config.pairs, warn=warn)


def _locator(config: MakeShardsConfig) -> Locate:
    return segments_locator(config.raw, functools.partial(_media, config))


def _classes(config: MakeShardsConfig, table: SegmentTable | None) -> ClassList | None:
    """The class list; None where the CSV's labels are it.

    A dataset that was begun without one stays without: indices must not come into half of it.
    """
    if config.class_labels is not None:
        return read_classes(config.class_labels)
    if table is None or not table.labels:
        return ClassList([])
    plan = read_plan(config.out)
    if plan is not None and plan.recipe.get("class_labels") == "none":
        return ClassList([])
    return None


def _look(config: MakeShardsConfig, asked: _Asked) -> tuple[Plan | None, list[Segment], list[Segment]]:
    """The plan in the folder, the row of the request for each of its rows, and the rows that it lacks."""
    plan = _begun(config, asked.recipe)
    return (None, [], asked.request) if plan is None else (plan, *matched(plan, asked.request, by_file=asked.by_file))


def _says_the_same(plan: Plan, kept: list[Segment], asked: _Asked) -> bool:
    """Whether labels and recipe are the plan's."""
    return plan.recipe == asked.recipe and says_the_same(plan.table, kept)


def _begun(config: MakeShardsConfig, recipe: dict[str, Any]) -> Plan | None:
    """The plan in the folder, after checking that it is of the same recipe."""
    plan = read_plan(config.out)
    if plan is not None:
        check_recipe(plan, recipe, config.out)
    return plan


def _made(config: MakeShardsConfig, asked: _Asked) -> Plan:
    """The plan, made or extended and written, unless another one has done that just now."""
    old, kept, new = _look(config, asked)
    classes, boxes = asked.classes, asked.boxes
    says_the_same = old is not None and _says_the_same(old, kept, asked)
    if old is not None and says_the_same and not new:
        return old
    if classes is None:
        classes = classes_of_labels(asked.labels, old.classes if old is not None and says_the_same else [])
        tell(f"{len(classes.classes):,} classes: the labels of {config.segments}, in alphabetical order")
    if old is not None and not says_the_same:
        table, changed = reannotated(old.table, kept, classes, boxes)
        old = replace(old, table=table)
        if changed:
            told = f"labels, class indices or boxes of {changed:,} of {len(table):,} planned clips are new"
            tell(f"{told}: their JSON is written again, nothing is decoded")
    table = plan_request(old, new, asked.locate, shard_size=config.shard_size, classes=classes, boxes=boxes)
    if classes.unknown:
        named = ", ".join(repr(label) for label, _ in classes.unknown.most_common(3))
        count = len(classes.unknown)
        warn(f"labels that are not in {config.class_labels} get no index: {count:,}, as {named}")
    if boxes is not None:
        boxed = len(table) - table["boxes"].null_count
        tell(f"{boxed:,} of {len(table):,} planned clips have boxes ({config.boxes}: {len(boxes.clips):,} clips)")
    versions = library_versions() if old is None else old.versions
    plan = Plan(table=table, recipe=asked.recipe, classes=classes.classes, versions=versions)
    storage.remove(config.out / DATASET_FILE)
    plan.write(config.out)
    return plan


def _look_for_files(config: MakeShardsConfig, plan: Plan, request: list[Segment]) -> Plan:
    """The plan with the files that failed clips have now, written if any differs."""
    numbers = failed_rows(config.out, plan)
    if not numbers:
        return plan
    renewed = relocate(plan, numbers, request, _locator(config))
    if not renewed.table.equals(plan.table):
        storage.remove(config.out / DATASET_FILE)
        renewed.write(config.out)
    return renewed
