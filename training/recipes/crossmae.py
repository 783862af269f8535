"""CrossMAE's runs.

    accelerate launch train.py --data shards/as2m --out runs/crossmae --mixed-precision bf16 --compile

The paper (Sec. 4.1, A.3): AudioSet-2M, 30 epochs, batch 512, Adam at 2e-5, weight decay 0.05. What it leaves open
follows MAE. No result of it has been reproduced here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from training.config import TrainConfig
from training.methods.crossmae import config as sizes
from training.recipes.whole_run import whole_run


def run(preset: sizes.Preset) -> TrainConfig[Any]:
    """The paper's run with a model of another size; batch and epochs are its own for all of them."""
    return whole_run(method="crossmae", preset=preset, variant="crossmae", model=sizes.PRESETS[preset]())


PRESETS: dict[str, Callable[[], TrainConfig[Any]]] = {preset: partial(run, preset) for preset in sizes.PRESETS}
