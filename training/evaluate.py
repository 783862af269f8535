"""Evaluation: `python evaluate.py retrieval --data DIR --checkpoint RUN`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards_spec.atomic import atomic_path
from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import DamagedSampleError, UserError
from training.evaluation.retrieval import RANKS, evaluate_retrieval
from training.stream.cache_folder import DEFAULT_SIZE, parse_size
from training.stream.index import open_index
from training.stream.ring import WorkerError


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Audio-to-image and image-to-audio retrieval, R@1/5/10 (the paper's Tables 4 and 5)."""

    data: str
    """Dataset folder, complete, or its URL (https://, s3://, gs://, ...)."""
    checkpoint: Path
    """A checkpoint, or a run folder (its newest checkpoint is taken)."""
    out: Path | None = None
    """Write the result to this JSON file too."""
    batch_size: int = 64
    """Samples encoded at once."""
    workers: int = 2
    """Loader processes; 0 loads in this one."""
    cache_dir: Path | None = None
    """Where shards of remote datasets are kept. Default: ~/.cache/crossmae."""
    cache_size: str = DEFAULT_SIZE
    """The most that --cache-dir holds, as 200GB."""

    def __post_init__(self) -> None:
        parse_size(self.cache_size)

    def run(self) -> dict[str, Any]:
        """Evaluates and prints the table."""
        if self.out is not None and not self.out.parent.is_dir():
            raise UserError(f"--out {self.out}: the folder {self.out.parent} does not exist")
        index = open_index(self.data, cache_dir=self.cache_dir, cache_size=self.cache_size)
        result = evaluate_retrieval(index, self.checkpoint, batch_size=self.batch_size, workers=self.workers)
        print(_table(result))
        return result


def _table(result: dict[str, Any]) -> str:
    head = f"retrieval among {result['pool']} samples, {result['checkpoint']}"
    columns = "".join(f"{f'R@{k}':>8}" for k in RANKS)
    rows = [f"{'':<18}{columns}{'median rank':>14}"]
    for name, direction in (("audio -> image", "audio_to_image"), ("image -> audio", "image_to_audio")):
        recall = result[direction]["recall"]
        values = "".join(f"{recall[k]:8.1f}" for k in RANKS)
        rows.append(f"{name:<18}{values}{result[direction]['median_rank']:14.1f}")
    rows.append(
        f"{'chance':<18}" + "".join(f"{result['chance'][k]:8.1f}" for k in RANKS) + f"{(result['pool'] + 1) / 2:14.1f}"
    )
    return "\n".join([head, *rows])


def main(arguments: list[str] | None = None) -> None:
    """The command evaluate.py. Exit status: 0 done, 1 a damaged dataset, 2 a user's mistake."""
    with one_line_errors("evaluate.py"):
        command: RetrievalConfig = parse({"retrieval": RetrievalConfig}, arguments, prog="evaluate.py")
        try:
            result = command.run()
        except (DamagedSampleError, WorkerError) as error:
            print(f"evaluate.py: stopped: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        if command.out is not None:
            with atomic_path(command.out) as temporary:
                temporary.write_text(json.dumps(result, indent=2) + "\n")
