"""Among which samples retrieval looks: all of them, some of each class, or those that a file names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from shards_spec.errors import UserError
from training.evaluation.keys import SampleNames, read_keys
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
    """`all`, `per-class:5` or `keys:FILE`.

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
        return _named(index, pool.file), f"the keys in {pool.file.name}"
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


def _named(index: DatasetIndex, file: Path) -> Numbers:
    names, wanted = SampleNames(index), read_keys(file, f"--pool keys:{file}")
    found = {name: names.find(name) for name in wanted}
    if unknown := [name for name, number in found.items() if number is None]:
        raise UserError(
            f"--pool keys:{file}: {len(unknown)} of {len(wanted)} keys are not in the dataset, the first: {unknown[0]}"
            " (--keys leaves such out)"
        )
    return np.array(sorted({number for number in found.values() if number is not None}), np.int64)
