"""Evaluation: `python evaluate.py TASK --data DIR --checkpoint RUN`, or `accelerate launch evaluate.py ...`."""

from typing import Any

import torch.distributed as dist

from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import DamagedSampleError
from shards_spec.messages import tell
from training.evaluation.ave import AveConfig
from training.evaluation.avqa import AvqaConfig
from training.evaluation.classification import ClassificationConfig
from training.evaluation.localize import LocalizationConfig
from training.evaluation.probe import ProbeConfig
from training.evaluation.retrieval import RetrievalConfig
from training.evaluation.segmentation import SegmentationConfig
from training.evaluation.vggsounder import VggsounderConfig
from training.out_of_memory import out_of_memory_told
from training.stream.ring import WorkerError

_NEEDS_LESS_MEMORY = "a smaller --batch-size needs less memory"
COMMANDS: dict[str, Any] = {
    "retrieval": RetrievalConfig,
    "localization": LocalizationConfig,
    "classification": ClassificationConfig,
    "probe": ProbeConfig,
    "segmentation": SegmentationConfig,
    "ave": AveConfig,
    "avqa": AvqaConfig,
    "vggsounder": VggsounderConfig,
}  # each an EvaluationOptions with run()


def main(arguments: list[str] | None = None) -> None:
    """The command evaluate.py. Exit status: 0 done, 1 damaged data or a worker lost, 2 a user's mistake."""
    with one_line_errors("evaluate.py"):
        command: Any = parse(COMMANDS, arguments)
        try:
            with out_of_memory_told(_NEEDS_LESS_MEMORY):
                command.run()
        except (DamagedSampleError, WorkerError) as error:
            tell(f"stopped: {error}")
            raise SystemExit(1) from None
        if dist.is_initialized():  # not after an error: it would wait for the other processes
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
