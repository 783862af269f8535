"""Which samples an evaluation is about: lists of keys, and the names that benchmarks give to clips."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from shards_spec.errors import UserError
from shards_spec.sample import file_key
from training.evaluation.metadata import all_numbers, sample_keys
from training.stream.index import DatasetIndex
from training.stream.order import Numbers

_NAMED = 3  # keys named in a message
_MEDIA = re.compile(r"\.(mp4|mkv|webm|wav|flac|jpe?g|png)$", re.IGNORECASE)
_AT_SECOND = re.compile(r"(.{11})_([0-9]{6})", re.DOTALL)  # ID_000030, as VGG-SS and VGGSound name clips


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The samples of a dataset that are scored."""

    numbers: Numbers  # int64 [N], in the dataset's order
    rule: str
    notes: tuple[str, ...] = ()


class SampleNames:
    """Finds samples by key, or by the name of their clip: ID_000030 and ID_000030.mp4 are the key ID_30000."""

    def __init__(self, index: DatasetIndex) -> None:
        """
        Raises:
            DamagedSampleError, FetchError: a table cannot be read.
        """
        numbers = all_numbers(index)
        self._numbers = dict(zip(sample_keys(index, numbers), numbers.tolist(), strict=True))

    def find(self, name: str) -> int | None:
        """The sample's number; None where the dataset does not have it."""
        bare = _MEDIA.sub("", name)
        named = _AT_SECOND.fullmatch(bare)
        at_second = [f"{named[1]}_{1000 * int(named[2])}"] if named else []
        return next((self._numbers[key] for key in (name, file_key(bare), *at_second) if key in self._numbers), None)

    def of_video(self, name: str) -> list[int]:
        """The samples whose keys are a video's id and a time."""
        return self._of_video.get(name, [])

    @cached_property
    def _of_video(self) -> dict[str, list[int]]:
        videos: dict[str, list[int]] = {}
        for key, number in self._numbers.items():
            videos.setdefault(key.rpartition("_")[0], []).append(number)
        return videos


def read_keys(file: Path, option: str) -> list[str]:
    """`keys_of` a file; raises as it and `read_list` do."""
    return keys_of(read_list(file, option), option)


def read_list(file: Path, option: str) -> str:
    """The text of a list of keys.

    Args:
        option: as it was given, for messages.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}: cannot be read ({error}): give a text file with a key a line") from error


def keys_of(text: str, option: str) -> list[str]:
    """The first column of a list of keys, in its order: a key a line, or a CSV whose first column holds them.

    Raises:
        UserError: it names nothing, or a key twice.
    """
    return distinct([name for line in text.splitlines() if (name := line.partition(",")[0].strip().strip('"'))], option)


def distinct(wanted: list[str], option: str) -> list[str]:
    """The names of a list as they are; raises UserError where there is none, or one twice."""
    if not wanted:
        raise UserError(f"{option}: the file names no key")
    if len(set(wanted)) != len(wanted):
        seen: set[str] = set()
        twice = next(key for key in wanted if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UserError(f"{option}: {twice} stands there twice")
    return wanted


def choose_keys(index: DatasetIndex, file: Path | None) -> Chosen:
    """The samples that --keys names, all where it was not given. Those that the dataset lacks are counted and named.

    Raises:
        UserError: the file cannot be used, or the dataset has none of its keys.
    """
    if file is None:
        return Chosen(numbers=all_numbers(index), rule="all samples")
    names, wanted = SampleNames(index), read_keys(file, f"--keys {file}")
    found = {name: names.find(name) for name in wanted}
    missing = [name for name, number in found.items() if number is None]
    numbers = sorted({number for number in found.values() if number is not None})
    if not numbers:
        raise UserError(
            f"--keys {file}: none of its {len(wanted):,} keys is in the dataset, the first: {wanted[0]};"
            f" the dataset's are as {index.key(0)}"
        )
    return Chosen(
        numbers=np.array(numbers, np.int64),
        rule=f"the keys in {file.name}",
        notes=_notes(file, missing, len(wanted)),
    )


def choose_names(names: Iterable[str], file: Path | None) -> tuple[set[str], tuple[str, ...]]:
    """Those of `names` that --keys names, all where it was not given, and notes on what is not there.

    Raises:
        UserError: as `choose_keys`.
    """
    there = set(names)
    if file is None:
        return there, ()
    wanted = read_keys(file, f"--keys {file}")
    if not there.intersection(wanted):
        raise UserError(f"--keys {file}: none of its {len(wanted):,} names is in the test split, as {wanted[0]}")
    return there.intersection(wanted), _notes(file, [name for name in wanted if name not in there], len(wanted))


def _notes(file: Path, missing: list[str], wanted: int) -> tuple[str, ...]:
    if not missing:
        return ()
    named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    return (f"--keys {file.name}: {len(missing):,} of {wanted:,} keys are not in the dataset ({named})",)
