"""What an evaluation found: one form for every task, as a table and as JSON. docs/evaluation.md lists the fields."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards_spec.atomic import atomic_path
from shards_spec.sample import file_key
from training.checkpoint import checkpoint_folder
from training.evaluation.class_tables import ClassRows, Confusion
from training.evaluation.intervals import Intervals
from training.stream.index import DatasetIndex

_BELOW = "  95% of resamples"  # the name of an interval's line

Rows = dict[str, dict[str, float | None]]  # row -> column -> number; None where a column does not apply


@dataclass(frozen=True, kw_only=True)
class Result:
    """The numbers of one task on one dataset, beside what they have to be read against. Shares are in %."""

    task: str
    data: str  # folder or URL
    dataset_fingerprint: str
    checkpoint: str
    step: int
    pool: int  # samples scored
    pool_rule: str  # which ones
    protocol_name: str  # by which papers call it, or what sets ours apart; numbers of another name do not compare
    protocol: str
    metrics: Rows
    baselines: Rows
    paper: Rows
    notes: tuple[str, ...] = ()
    intervals: Intervals = field(default_factory=dict)  # of numbers of `metrics`: 95% bootstrap intervals
    classes: dict[str, ClassRows] = field(default_factory=dict)  # row -> class -> column -> number
    confusion: dict[str, Confusion] = field(default_factory=dict)  # row -> right class -> said class -> samples

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"notes": list(self.notes)}

    def write(self, path: Path) -> None:
        """Writes the JSON, whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def table(self) -> str:
        """What is printed: ours, what is to be beaten, and the paper's numbers."""
        groups = (self.metrics, self.baselines, self.paper)
        columns = list(dict.fromkeys(column for group in groups for row in group.values() for column in row))
        name_width = max(len(_BELOW), *(len(name) for group in groups for name in group))
        least = 11 if self.intervals else 6
        widths = [max(len(column), least) + 2 for column in columns]
        head = " " * name_width + "".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))
        lines = [f"{self.task}: {self.pool:,} samples ({self.pool_rule}) of {self.data}, {self.checkpoint}"]
        lines += [f"protocol: {self.protocol_name}", head]
        for title, group in zip(("", "baselines", "in the paper"), groups, strict=True):
            if group and title:
                lines.append(f"{title}:")
            intervals = self.intervals if group is self.metrics else {}
            lines += list(_lines(group, intervals, columns, widths, name_width))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _lines(group: Rows, intervals: Intervals, columns: list[str], widths: list[int], name_width: int) -> Iterator[str]:
    for name, row in group.items():
        cells = [row.get(column) for column in columns]
        said = ["-" if cell is None else f"{cell:.2f}" for cell in cells]
        yield f"{name:<{name_width}}" + "".join(f"{text:>{w}}" for text, w in zip(said, widths, strict=True))
        if ends := intervals.get(name):
            said = ["{:.1f}..{:.1f}".format(*ends[column]) if column in ends else "" for column in columns]
            yield f"{_BELOW:<{name_width}}" + "".join(f"{text:>{w}}" for text, w in zip(said, widths, strict=True))


def run_folder(checkpoint: Path) -> Path:
    """The run folder of a checkpoint; the checkpoint itself where it lies in none."""
    run = checkpoint.resolve().parent.parent
    return run if checkpoint.resolve().parent == checkpoint_folder(run, 0).parent else checkpoint.resolve()


def result_path(checkpoint: Path, task: str, index: DatasetIndex) -> Path:
    """RUN/evaluation/TASK-DATASET.json, named after the dataset's folder."""
    place = index.folders[0]
    name = place.resolve().name if isinstance(place, Path) else place.name
    return run_folder(checkpoint) / "evaluation" / f"{task}-{file_key(name) or 'dataset'}.json"
