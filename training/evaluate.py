"""Evaluation: `python evaluate.py TASK --data DIR --checkpoint RUN`, or `accelerate launch evaluate.py ...`."""

import sys
from typing import Any

import torch.distributed as dist

from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import DamagedSampleError
from training.evaluation.ave import AveConfig
from training.evaluation.avqa import AvqaConfig
from training.evaluation.classification import ClassificationConfig
from training.evaluation.localize import LocalizationConfig
from training.evaluation.probe import ProbeConfig
from training.evaluation.retrieval import RetrievalConfig
from training.evaluation.segmentation import SegmentationConfig
from training.stream.ring import WorkerError

COMMANDS: dict[str, Any] = {
    "retrieval": RetrievalConfig,
    "localization": LocalizationConfig,
    "classification": ClassificationConfig,
    "probe": ProbeConfig,
    "segmentation": SegmentationConfig,
    "ave": AveConfig,
    "avqa": AvqaConfig,
}  # each an EvaluationOptions with run()


def main(arguments: list[str] | None = None) -> None:
    """The command evaluate.py. Exit status: 0 done, 1 damaged data or a worker lost, 2 a user's mistake."""
    with one_line_errors("evaluate.py"):
        command: Any = parse(COMMANDS, arguments, prog="evaluate.py")
        try:
            command.run()
        except (DamagedSampleError, WorkerError) as error:
            print(f"evaluate.py: stopped: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        if dist.is_initialized():  # not after an error: it would wait for the other processes
            dist.destroy_process_group()
