"""Training a small head on frozen features: what it can be told, and the loop."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from shards_spec.errors import UserError
from training.evaluation.options import EvaluationOptions

# N training rows, D features.
Head = TypeVar("Head", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class HeadOptions(EvaluationOptions):
    """What every task can be told that trains a head on frozen encoders."""

    epochs: int = 30
    """Over the training split; the epoch that does best on the validation split is kept."""
    learning_rate: float = 1e-3
    """Of AdamW, constant."""
    weight_decay: float = 1e-4
    head_batch_size: int = 64
    """Training examples of a step of the head."""
    seed: int = 0
    """Of the head's first weights and of the order of examples."""
    untrained: bool = False
    """Also train a head on the model's initial weights, as a baseline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1 or self.head_batch_size < 1:
            raise ValueError(
                f"--epochs and --head-batch-size must be at least 1, got {self.epochs} and {self.head_batch_size}"
            )
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise ValueError(
                "--learning-rate must be above 0 and --weight-decay at least 0,"
                f" got {self.learning_rate} and {self.weight_decay}"
            )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Which epoch (1 = first) was kept, and its score on the validation split, None where there is none."""

    epoch: int
    score: float | None


def make_head(build: Callable[[], Head], options: HeadOptions, device: torch.device) -> Head:
    """A head whose first weights follow from the seed alone, on any device; no random state outside is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        head = build()
    return head.to(device)


def fit_head(
    head: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    *,
    options: HeadOptions,
    validate: Callable[[], float] | None = None,
) -> Fit:
    """Trains a head with AdamW, and leaves it with the weights of its best epoch.

    Args:
        loss: the mean loss of the training rows that an int64 [B] on the CPU names.
        count: N, of training rows.
        validate: the score of the head as it is, the higher the better; of equals the earliest epoch is kept. None
            keeps the last epoch.

    Raises:
        UserError: the loss or the weights are not finite.
    """
    solver = torch.optim.AdamW(head.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    generator = np.random.default_rng(options.seed)
    kept, weights = Fit(epoch=options.epochs, score=None), None
    for epoch in range(1, options.epochs + 1):
        head.train()
        for rows in torch.from_numpy(generator.permutation(count)).split(options.head_batch_size):
            solver.zero_grad()
            value = loss(rows)
            if not value.isfinite():
                raise UserError(f"the head's loss is not finite in epoch {epoch}: give a lower --learning-rate")
            value.backward()  # type: ignore[no-untyped-call, unused-ignore]
            solver.step()
        head.eval()
        if validate is not None:
            with torch.no_grad():
                score = validate()
            if kept.score is None or score > kept.score:
                kept, weights = Fit(epoch=epoch, score=score), copy.deepcopy(head.state_dict())
    if weights is not None:
        head.load_state_dict(weights)
    if not all(parameter.isfinite().all() for parameter in head.parameters()):  # of the last step no loss tells
        raise UserError(f"the head's weights are not finite after epoch {kept.epoch}: give a lower --learning-rate")
    return kept


def standardise(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All of them less the mean of `train` [N, ..., D], divided by its deviation, feature by feature."""
    rows = train.flatten(0, -2)
    mean, std = rows.mean(dim=0), rows.std(dim=0, correction=0)
    std = torch.where(std > 1e-5 * mean.abs(), std, 1.0)  # a constant feature, but for round-off, stays one
    return tuple((x - mean) / std for x in (train, *others))
