"""Among which samples retrieval looks: all of them, some of each class, or those that a file names."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from shards_spec.errors import UserError
from shards_spec.sample import audioset_key, file_key
from training.evaluation.metadata import all_numbers, label_ids, sample_keys
from training.stream.index import DatasetIndex
from training.stream.order import Numbers, sample_seeds

_CLIP = re.compile(r"([A-Za-z0-9_-]{11})_(\d{6})")  # VGGSound's name of a clip, seconds


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What --pool asks for."""

    kind: Literal["all", "per-class", "keys"]
    per_class: int = 0
    file: Path | None = None


def parse_pool(text: str) -> Pool:
    """`all`, `per-class:5` or `keys:FILE`; the file may be one of CAV-MAE's JSON lists.

    Raises:
        ValueError: it is none of these.
    """
    kind, _, value = text.partition(":")
    if text == "all":
        return Pool(kind="all")
    if kind == "per-class" and value.isdecimal() and int(value) > 0:
        return Pool(kind="per-class", per_class=int(value))
    if kind == "keys" and value:
        return Pool(kind="keys", file=Path(value))
    raise ValueError(f"--pool is all, per-class:N (N at least 1) or keys:FILE, got {text}")


def choose(index: DatasetIndex, pool: Pool, seed: int) -> tuple[Numbers, str]:
    """The samples of a pool, int64 [N], in the dataset's order, and the rule in words.

    Raises:
        UserError: the file cannot be read or names unknown samples; or there are no labels to go by.
    """
    if pool.kind == "per-class":
        return _per_class(index, pool.per_class, seed)
    if pool.file is not None:
        return _named(index, pool.file)
    return all_numbers(index), "all"


def _per_class(index: DatasetIndex, count: int, seed: int) -> tuple[Numbers, str]:
    """`count` samples of each class, as CAV-MAE takes 5: which ones, a hash of (seed, key) says.

    A sample with several labels counts for its first. So the choice depends on the samples alone, not on how they are
    sharded, and a larger count holds the smaller one's samples.
    """
    numbers = all_numbers(index)
    keys = sample_keys(index, numbers)
    ranked = np.argsort(sample_seeds(seed, np.zeros_like(numbers), keys), kind="stable")
    labels = label_ids(index, numbers)
    members: dict[int, list[int]] = {}
    for number in ranked.tolist():
        if labels[number]:
            members.setdefault(labels[number][0], []).append(number)
    if not members:
        raise UserError("--pool per-class needs labels, and no sample has any: give make-shards --class-labels")
    few = sum(len(found) < count for found in members.values())
    rule = f"{count} a class by first label, seed {seed}; {len(members)} classes" + (
        f", {few} with fewer" if few else ""
    )
    return np.array(sorted(n for found in members.values() for n in found[:count]), np.int64), rule


def _named(index: DatasetIndex, file: Path) -> tuple[Numbers, str]:
    """The samples that a file names, and the rule in words. Of a JSON list, which others wrote, some may be missing."""
    try:
        text = file.read_text()
        wanted = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--pool keys:{file}: cannot be read ({error}): give a text file with a key a line") from error
    places = {key: number for number, key in enumerate(sample_keys(index, all_numbers(index)))}
    rule = f"the keys in {file.name}"
    if text.lstrip().startswith("{"):
        asked = _listed(text, file, places.keys())
        wanted = [key for key in asked if key in places]
        rule = f"the clips in {file.name}, of which the dataset lacks {len(asked) - len(wanted):,} of {len(asked):,}"
        if not wanted:
            raise UserError(f"--pool keys:{file}: the dataset has none of its {len(asked):,} clips, as {asked[:1]}")
    if not wanted:
        raise UserError(f"--pool keys:{file}: the file names no key")
    if len(set(wanted)) != len(wanted):
        twice = next(key for key in wanted if wanted.count(key) > 1)
        raise UserError(f"--pool keys:{file}: {twice} stands there twice")
    if unknown := [key for key in wanted if key not in places]:
        raise UserError(
            f"--pool keys:{file}: {len(unknown)} of {len(wanted)} keys are not in the dataset, the first: {unknown[0]}"
        )
    return np.array(sorted(places[key] for key in wanted), np.int64), rule


def _listed(text: str, file: Path, keys: Collection[str]) -> list[str]:
    """The keys that one of CAV-MAE's JSON lists names, `{"data": [{"video_id": ...}, ...]}`.

    A video_id is a file's name, a clip's of VGGSound (`ID_000030`), or a video's of AudioSet, whose start the list does
    not say: then the dataset's clip of this video.

    Raises:
        UserError: it is no such list, or several clips have an id that it names.
    """
    try:
        names = [str(entry["video_id"]).strip() for entry in json.loads(text)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'--pool keys:{file}: is no list of CAV-MAE\'s, {{"data": [{{"video_id": ...}}, ...]}} ({error!r})'
        ) from error
    of_video: dict[str, list[str]] = {}
    for key in keys:
        of_video.setdefault(key.rpartition("_")[0], []).append(key)
    return [_key_of(name, file, keys, of_video) for name in names]


def _key_of(name: str, file: Path, keys: Collection[str], of_video: dict[str, list[str]]) -> str:
    """The key of the sample that a list calls `name`; that of its name where there is none."""
    clip = _CLIP.fullmatch(name)
    named = [file_key(name), *([audioset_key(clip[1], int(clip[2]))] if clip else [])]
    found = [key for key in named if key in keys] or of_video.get(name, named[-1:])
    if len(found) > 1:
        raise UserError(
            f"--pool keys:{file}: {name} may be {found[0]} or {found[1]}: give a text file with a key a line"
        )
    return found[0]
