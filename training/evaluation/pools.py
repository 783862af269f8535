"""Among which samples retrieval looks: all of them, some of each class, or those that a file names."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from shards_spec.errors import UserError
from training.evaluation.keys import SampleNames, distinct, keys_of, read_list
from training.evaluation.metadata import all_numbers, label_ids, sample_keys
from training.stream.index import DatasetIndex
from training.stream.order import Numbers, sample_seeds


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


def choose(index: DatasetIndex, pool: Pool, seed: int, chosen: Numbers | None = None) -> tuple[Numbers, str]:
    """The samples of a pool, int64 [N], in the dataset's order, and the rule in words.

    Args:
        chosen: the samples, int64, among which the pool is taken; all where None.

    Raises:
        UserError: the file cannot be read or names unknown samples; or there are no labels to go by.
    """
    if pool.kind == "per-class":
        return _per_class(index, all_numbers(index) if chosen is None else chosen, pool.per_class, seed)
    if pool.file is not None:
        return _named(index, pool.file)
    return (all_numbers(index), "all") if chosen is None else (chosen, "all")


def _per_class(index: DatasetIndex, numbers: Numbers, count: int, seed: int) -> tuple[Numbers, str]:
    """`count` samples of each class, as CAV-MAE takes 5: which ones, a hash of (seed, key) says.

    A sample with several labels counts for its first. So the choice depends on the samples alone, not on how they are
    sharded, and a larger count holds the smaller one's samples.
    """
    keys = sample_keys(index, numbers)
    ranked = np.argsort(sample_seeds(seed, np.zeros_like(numbers), keys), kind="stable")
    labels = label_ids(index, numbers)
    members: dict[int, list[int]] = {}
    for place in ranked.tolist():
        if labels[place]:
            members.setdefault(labels[place][0], []).append(int(numbers[place]))
    if not members:
        raise UserError("--pool per-class needs labels, and no sample has any: give make-shards --class-labels")
    few = sum(len(found) < count for found in members.values())
    rule = f"{count} a class by first label, seed {seed}; {len(members)} classes" + (
        f", {few} with fewer" if few else ""
    )
    return np.array(sorted(n for found in members.values() for n in found[:count]), np.int64), rule


def _named(index: DatasetIndex, file: Path) -> tuple[Numbers, str]:
    """The samples that a file names, and the rule in words. Of a JSON list, which others wrote, some may be missing."""
    option, names = f"--pool keys:{file}", SampleNames(index)
    text = read_list(file, option)
    is_json = text.lstrip().startswith("{")
    wanted = _listed(text, option) if is_json else keys_of(text, option)
    found = {name: _find_listed(name, names, option) if is_json else names.find(name) for name in wanted}
    numbers = np.array(sorted({number for number in found.values() if number is not None}), np.int64)
    unknown = [name for name, number in found.items() if number is None]
    if is_json:
        if not len(numbers):
            raise UserError(f"{option}: the dataset has none of its {len(wanted):,} clips, as {wanted[:1]}")
        return numbers, f"the clips in {file.name}, of which the dataset lacks {len(unknown):,} of {len(wanted):,}"
    if unknown:
        raise UserError(
            f"{option}: {len(unknown)} of {len(wanted)} keys are not in the dataset, the first: {unknown[0]}"
            " (--keys leaves such out)"
        )
    return numbers, f"the keys in {file.name}"


def _listed(text: str, option: str) -> list[str]:
    """The names in one of CAV-MAE's JSON lists, `{"data": [{"video_id": ...}, ...]}`.

    Raises:
        UserError: it is no such list, names nothing, or a clip twice.
    """
    try:
        names = [str(entry["video_id"]).strip() for entry in json.loads(text)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'{option}: is no list of CAV-MAE\'s, {{"data": [{{"video_id": ...}}, ...]}} ({error!r})'
        ) from error
    return distinct(names, option)


def _find_listed(name: str, names: SampleNames, option: str) -> int | None:
    """The sample that a JSON list calls `name`: by a file's name, a clip's of VGGSound, or a video's of AudioSet.

    Where a video's start is not said, it is the dataset's clip of this video.

    Raises:
        UserError: several clips are of the video.
    """
    number = names.find(name)
    clips = names.of_video(name) if number is None else [number]
    if len(clips) > 1:
        raise UserError(f"{option}: the dataset has {len(clips)} clips of {name}: give a text file with a key a line")
    return clips[0] if clips else None
