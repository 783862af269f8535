"""A world straight into shards: drawn, synthesised, and encoded as make-shards does, with all codecs left out.

A shard is a task of a worker, and its bytes depend on nothing but the world and the numbers of its clips. Shards that
are finished stay: a run that was killed goes on, and more clips change none of the full ones.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.account import library_versions, take_account, write_account
from pipeline.build_shard import Row, ShardSpec, build_shard, finished_shards
from pipeline.decode import DecodedClip
from pipeline.encode_sample import Encoded, SampleOptions, encode_sample
from pipeline.plan import Plan, make_recipe
from shards_spec.atomic import TEMPORARY_SUFFIX
from shards_spec.dataset import DATASET_FILE
from shards_spec.sample import CLIP_SECONDS, FRAME_SIZE, JSON_MEMBER, SAMPLE_RATE, encode_json
from shards_spec.tables import PLAN_SCHEMA, plan_path, read_table, shard_stem
from tools.world.annotations import objects_of, sounding_boxes
from tools.world.classes import class_list
from tools.world.masks import MaskTimes, write_masks
from tools.world.picture import draw_frame
from tools.world.request import World, chunks
from tools.world.scene import MIDDLE, SECONDS
from tools.world.sound import render_sound

_OPTIONS = SampleOptions()


@dataclass(frozen=True, kw_only=True)
class DirectShard:
    """One shard of a split to build; what a worker is given."""

    world: World
    split: str
    folder: Path
    number: int
    clips: range
    masks: Path | None
    mask_times: MaskTimes


def plan_split(world: World, split: str, count: int, shard_size: int, recipe: dict[str, Any]) -> Plan:
    """The plan of a split of `count` clips, as make-shards would have written it."""
    rows = [_row(world, split, index, index // shard_size) for index in range(count)]
    classes = class_list(world.classes)
    whole = make_recipe(
        by_file=False,
        shard_size=shard_size,
        frame_fit=_OPTIONS.frame_fit,
        frames=_OPTIONS.frames,
        keep_audio=_OPTIONS.keep_audio,
        decoder="none",
        clip_seconds=CLIP_SECONDS,
        classes=classes,
        boxes=None,
    )
    return Plan(
        table=pa.Table.from_pylist(rows, schema=PLAN_SCHEMA),
        recipe={**whole, "world": recipe},
        classes=classes,
        versions=library_versions(),
    )


def _row(world: World, split: str, index: int, shard: int) -> Row:
    name = world.name(split, index)
    return {
        "key": name.key,
        "source": f"{name.key}.mp4",  # the file that it would have been
        "start": name.start,
        "end": name.start + SECONDS,
        "labels": [world.classes[label].mid for label in name.label_ids],
        "label_ids": list(name.label_ids),
        "shard": shard,
        "ytid": name.ytid,
        "root": 0,
        "named_start": name.start,
        "reason": None,
        "detail": None,
        "boxes": None,
    }


def begin_split(folder: Path, plan: Plan) -> list[int]:
    """Writes the plan and returns the numbers of the shards that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        left_over.unlink()
    firsts = plan.shard_firsts()
    keys = plan.table["key"].to_pylist()
    done = set()
    for number in finished_shards(folder, range(plan.shards)):
        table, _ = read_table(folder / f"{shard_stem(number)}.parquet", ["key"])
        if table["key"].to_pylist() == keys[firsts[number] : firsts[number + 1]]:  # else the split has grown
            done.add(number)
    missing = [number for number in range(plan.shards) if number not in done]
    if missing or not plan_path(folder).is_file():
        (folder / DATASET_FILE).unlink(missing_ok=True)
        plan.write(folder)
    return missing


def shards_of(
    world: World, split: str, folder: Path, plan: Plan, shard_size: int, masks: Path | None, mask_times: MaskTimes
) -> dict[int, DirectShard]:
    """All shards of a split, by number."""
    return {
        number: DirectShard(
            world=world,
            split=split,
            folder=folder,
            number=number,
            clips=clips,
            masks=masks,
            mask_times=mask_times,
        )
        for number, clips in enumerate(chunks(len(plan.table), shard_size))
    }


def build_direct_shard(shard: DirectShard) -> int:
    """Builds one shard; returns the number of its clips."""
    rows = [_row(shard.world, shard.split, index, shard.number) for index in shard.clips]

    def encode(planned: list[Row]) -> Iterator[Encoded]:
        for row, index in zip(planned, shard.clips, strict=True):
            yield _sample(shard, row, index)

    spec = ShardSpec(folder=shard.folder, number=shard.number, rows=rows, members=_OPTIONS.members)
    decode: Callable[[list[Row]], Iterator[Any]] = encode
    build_shard(spec, decode)
    return len(shard.clips)


def _sample(shard: DirectShard, row: Row, index: int) -> Encoded:
    scene = shard.world.scene(shard.split, index)
    drawn = draw_frame(scene, MIDDLE, FRAME_SIZE, FRAME_SIZE)
    objects = objects_of(scene, drawn.owners)
    clip = DecodedClip(
        waveform=render_sound(scene),
        frame=drawn.picture,
        extra_frames=[],
        frame_time=MIDDLE,
        extra_frame_times=[],
        file_start=0.0,
        duration=SECONDS,
        fps=0.0,
        width=FRAME_SIZE,
        height=FRAME_SIZE,
        sample_rate=SAMPLE_RATE,
        channels=1,
        decoder="none",
    )
    encoded = encode_sample({**row, "boxes": sounding_boxes(objects)}, clip, options=_OPTIONS)
    metadata = json.loads(encoded.payloads[JSON_MEMBER]) | {"objects": objects}
    if shard.masks is not None:
        write_masks(shard.masks, scene, shard.mask_times)
    return encoded._replace(payloads=encoded.payloads | {JSON_MEMBER: encode_json(metadata)})


def finish_split(folder: Path, plan: Plan) -> None:
    """Writes dataset.json."""
    write_account(folder, plan, take_account(folder, plan))
