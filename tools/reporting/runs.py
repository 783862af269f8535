"""What a run folder says of itself. What cannot be read is left out and named, so that a page can be made of the rest.

RUN/config.json, metrics.jsonl, evaluation/*.json, checkpoints/ ──> Run, notices
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards_spec.errors import UserError
from tools.pages.metrics import Line
from tools.pages.report import Run
from tools.pages.results import Result
from training.checkpoint import CONFIG_FILE, TO_USE, newest_checkpoint, read_config
from training.run_folder import METRICS_FILE, step_lines

_NAMED = 3  # damaged lines named


def read_run(folder: Path, name: str, notices: list[str]) -> Run:
    """A run; what is missing or damaged is added to `notices`.

    Raises:
        UserError: the folder is no run folder.
    """
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist: give the --out of train.py")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} is no run folder (no {CONFIG_FILE}): give the --out of train.py")
    return Run(
        name=name,
        config=read_config(folder),
        metrics=read_metrics(folder / METRICS_FILE, notices),
        results=read_results(folder, notices),
        checkpoint=_checkpoint(folder, notices),
    )


def _checkpoint(folder: Path, notices: list[str]) -> Path | None:
    try:
        found = newest_checkpoint(folder, TO_USE)
    except UserError as error:
        notices.append(f"{error}: nothing of its model is shown")
        return None
    if found is None:
        notices.append(f"{folder} has no checkpoint yet (--save-every of train.py): nothing of its model is shown")
    return found


def run_names(folders: Sequence[Path]) -> list[str]:
    """A name for each run: the folder's own, with as many parents as tell it from the others."""
    resolved = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the run {next(f for f in folders if resolved.count(f.resolve()) > 1)} is given twice")


def read_metrics(path: Path, notices: list[str]) -> list[Line]:
    """The lines of metrics.jsonl that can be read, by ascending step."""
    if not path.is_file():
        notices.append(f"{path} is missing: there are no curves of this run")
        return []
    lines: list[Line] = []
    damaged = []
    there = step_lines(path)
    for number, line in enumerate(there, start=1):
        if line is None or (lines and line["step"] <= lines[-1]["step"]):
            damaged.append(number)
        else:
            lines.append(line)
    if damaged:
        which = ", ".join(str(number) for number in damaged[:_NAMED]) + (", ..." if len(damaged) > _NAMED else "")
        notices.append(
            f"{path}: {len(damaged)} of {len(there)} lines are damaged or out of order and left out: line {which}"
        )
    elif not lines:
        notices.append(f"{path} holds no line yet: there are no curves of this run")
    return lines


def read_results(folder: Path, notices: list[str]) -> list[Result]:
    """What evaluate.py wrote for a run: RUN/evaluation/*.json, and such files directly in RUN."""
    results = []
    for path in [*sorted((folder / "evaluation").glob("*.json")), *sorted(folder.glob("*.json"))]:
        if path.name == CONFIG_FILE:
            continue
        try:
            result: Any = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            notices.append(f"{path} cannot be read ({error}): its results are left out")
            continue
        if isinstance(result, dict) and isinstance(result.get("metrics"), dict):
            if result not in results:
                results.append(result)
        elif path.parent != folder:
            notices.append(f"{path} holds no metrics: evaluate again to have them here")
    return results
