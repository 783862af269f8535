"""--pairs: SLAVC's lists of which frame is shown with which sound.

flickr_test_plus_silent.csv and vggss_test_plus_silent.csv of its metadata have a row a pair and no header:

    IMAGE,AUDIO,KIND         names of clips, without suffix; KIND is non-sounding where nothing in view is heard
"""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from shards_spec.errors import UserError
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.keys import SampleNames
from training.stream.index import DatasetIndex

_SILENT = "non-sounding"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A frame and a sound, by their sample numbers."""

    image: int
    sound: int
    is_sounding: bool


def read_pairs(path: Path, index: DatasetIndex, scored: set[int], left_out: LeftOut) -> list[Pair]:
    """The pairs of a list that the dataset has.

    Where no row is of a sounding kind, the frames with boxes and their own sounds are the positives, as in SLAVC's
    code, which takes them from another list.

    Args:
        scored: the samples with usable boxes, which alone can be positives.
        left_out: is told of rows that cannot be used.

    Raises:
        UserError: the list cannot be read, or no pair of one of the two kinds is there.
    """
    names = SampleNames(index)
    pairs = []
    for line, row in _rows(path):
        if len(row) < 3:
            left_out.add("rows that are not IMAGE,AUDIO,KIND", f"{path.name}:{line}")
            continue
        image, sound = names.find(row[0]), names.find(row[1])
        is_sounding = row[2].lower() != _SILENT
        kind = "sounding" if is_sounding else _SILENT
        if image is None or sound is None:
            left_out.add(f"{kind} pairs of which the dataset lacks a clip", row[0] if image is None else row[1])
        elif is_sounding and image not in scored:
            left_out.add("sounding pairs whose frame has no usable box", row[0])
        else:
            pairs.append(Pair(image=image, sound=sound, is_sounding=is_sounding))
    kinds = Counter(pair.is_sounding for pair in pairs)
    if not kinds[False]:
        raise UserError(
            f"--pairs {path}: no {_SILENT} pair is in the dataset{''.join(f'; {note}' for note in left_out.notes())}:"
            f" expected rows IMAGE,AUDIO,{_SILENT} as in SLAVC's vggss_test_plus_silent.csv, of clips of --data"
        )
    if not kinds[True]:
        pairs += [Pair(image=number, sound=number, is_sounding=True) for number in sorted(scored)]
    return pairs


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--pairs {path}: cannot be read ({error}): give SLAVC's CSV of pairs") from error
    return [(line, row) for line, row in rows if any(row)]


def in_rounds(pairs: list[Pair]) -> list[dict[int, Pair]]:
    """The pairs by their frame, each frame at most once a round."""
    rounds: list[dict[int, Pair]] = []
    seen: Counter[int] = Counter()
    for pair in pairs:
        if seen[pair.image] == len(rounds):
            rounds.append({})
        rounds[seen[pair.image]][pair.image] = pair
        seen[pair.image] += 1
    return rounds
