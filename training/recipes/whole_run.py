"""What every recipe is made by."""

from dataclasses import fields
from typing import Any

import tyro

from training.config import TrainConfig


def whole_run(like: TrainConfig[Any] | None = None, /, **options: Any) -> TrainConfig[Any]:
    """A run without its data and its folder, which the command line must give.

    Args:
        like: a run whose options hold where no others are given.
    """
    begun = {} if like is None else {field.name: getattr(like, field.name) for field in fields(like)}
    return TrainConfig(**(begun | options | {"data": tyro.MISSING, "out": tyro.MISSING}))
