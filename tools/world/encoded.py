"""A world as files: H.264 and AAC in mp4, AudioSet's CSVs, boxes in VGG-SS's form, all objects, masks.

A clip's file is written last and all at once: where it is, its masks are. What the CSVs and JSON files say follows
from the seed alone, so it is computed anew by every run.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards_spec.atomic import TEMPORARY_SUFFIX, atomic_path
from shards_spec.sample import FRAME_SIZE, SAMPLE_RATE
from tools.media import encode_clip
from tools.world.annotations import objects_of, sounding_boxes
from tools.world.masks import MaskTimes, write_masks
from tools.world.picture import draw_frames
from tools.world.request import World, chunks
from tools.world.scene import MIDDLE, SECONDS, ClipName, owners
from tools.world.sound import render_sound

WIDTH, HEIGHT, FPS = 320, 240, 10
_X264 = {"preset": "ultrafast", "crf": "23"}
_CHUNK = 8  # clips a task

Objects = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Some clips of a split to make; what a worker is given."""

    world: World
    split: str
    out: Path
    numbers: range
    mask_times: MaskTimes


def begin_files(world: World, out: Path, splits: dict[str, int], mask_times: MaskTimes) -> list[Clips]:
    """Makes the folders, removes what a killed run left half done, and returns the tasks."""
    tasks = []
    for split, count in splits.items():
        folder = out / split
        folder.mkdir(exist_ok=True)
        for left_over in folder.glob(f"*{TEMPORARY_SUFFIX}"):
            left_over.unlink()
        tasks += [
            Clips(world=world, split=split, out=out, numbers=numbers, mask_times=mask_times)
            for numbers in chunks(count, _CHUNK)
        ]
    return tasks


def make_files(clips: Clips) -> dict[str, Objects]:
    """Makes those files that are not there yet; returns the objects of all of them, by key."""
    return dict(_make_file(clips, index) for index in clips.numbers)


def _make_file(clips: Clips, index: int) -> tuple[str, Objects]:
    scene = clips.world.scene(clips.split, index)
    key = scene.name.key
    path = clips.out / clips.split / f"{key}.mp4"
    if not path.is_file():
        if clips.mask_times != "none":
            write_masks(clips.out / "masks" / clips.split, scene, clips.mask_times, FPS)
        times = [frame / FPS for frame in range(round(SECONDS * FPS))]
        with atomic_path(path) as temporary:
            encode_clip(
                temporary,
                draw_frames(scene, times, HEIGHT, WIDTH),
                render_sound(scene)[np.newaxis],
                fps=FPS,
                sample_rate=SAMPLE_RATE,
                video_options=_X264,
                container_format="mp4",
            )
    return key, objects_of(scene, owners(scene.actors, MIDDLE, FRAME_SIZE, FRAME_SIZE))


def finish_files(world: World, out: Path, splits: dict[str, int], objects: dict[str, Objects]) -> None:
    """Writes the CSV of each split, the class list, boxes.json and objects.json."""
    boxes, everything = [], {}
    for split, count in splits.items():
        names = [world.name(split, index) for index in range(count)]
        _write(out / f"{split}.csv", _segments(world, split, names))
        for name in names:
            found = objects[name.key]
            everything[name.key] = found
            heard = [item["class"] for item in found if item["is_sounding"]]
            file = f"{name.ytid}_{round(name.start):06d}"
            boxes.append({"file": file, "class": "; ".join(heard), "bbox": sounding_boxes(found)})
    _write(out / "boxes.json", [json.dumps(boxes)])
    _write(out / "objects.json", [json.dumps(everything)])


def write_class_list(world: World, out: Path) -> None:
    """Writes class_labels_indices.csv."""
    rows = [f'{kind.index},{kind.mid},"{kind.name}"' for kind in world.classes]
    _write(out / "class_labels_indices.csv", ["index,mid,display_name", *rows])


def _segments(world: World, split: str, names: list[ClipName]) -> Iterator[str]:
    """The lines of a segment CSV, as AudioSet has them."""
    labels = {label for name in names for label in name.label_ids}
    yield f"# Segments csv of the {split} split of world {world.seed}, made by tools.make_world"
    yield f"# num_ytids={len(names)}, num_segs={len(names)}, num_unique_labels={len(labels)}"
    yield "# YTID, start_seconds, end_seconds, positive_labels"
    for name in names:
        mids = ",".join(world.classes[label].mid for label in name.label_ids)
        yield f'{name.ytid}, {name.start:.3f}, {name.start + SECONDS:.3f}, "{mids}"'


def _write(path: Path, lines: Iterator[str] | list[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
