"""Whole runs, by the names that --preset takes; a file a method. The command line of train.py begins with one of them.

A recipe is a function: its docstring gives the command, what it takes, and what is expected of it.
"""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from shards_spec.command_line import parse
from shards_spec.errors import UserError
from training.checkpoint import CONFIG_FILE, read_json
from training.config import TrainConfig, checkpoint_of_run
from training.methods import METHODS, method_of
from training.recipes import cav_mae, crossmae
from training.recipes.whole_run import whole_run

Recipe = Callable[[], TrainConfig[Any]]
PRESETS: dict[str, Recipe] = {**crossmae.PRESETS, **cav_mae.PRESETS}
DEFAULT = "crossmae-base"


def parse_arguments(arguments: Sequence[str] | None = None) -> TrainConfig[Any]:
    """The configuration that the command line asks for.

    --preset and --variant choose the run; where neither is given and the run goes on from a checkpoint, its method and
    model are taken. Every other flag overrides them.

    Raises:
        UserError: unknown options, malformed or contradictory values.
        SystemExit: --help was asked for.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")  # without a value tyro says so
    first.add_argument("--variant", nargs="?")
    chosen, _ = first.parse_known_args(arguments)
    default = _begun(arguments) if chosen.preset is None and chosen.variant is None else None
    if default is None:
        default = recipe(chosen.preset or DEFAULT, chosen.variant)
    kind: Any = TrainConfig[type(default.model)]  # type: ignore[misc]
    config: TrainConfig[Any] = parse(kind, arguments, prog="train.py", default=default)
    return config


def recipe(preset: str, variant: str | None) -> TrainConfig[Any]:
    """A preset, as a variant of its method.

    Raises:
        UserError: there is none of this name.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: allowed are {', '.join(PRESETS)}")
    run = PRESETS[preset]()
    method = METHODS[run.method]
    if variant is None:
        return run
    if variant not in method.variants:
        raise UserError(f"--variant {variant}: of {run.method} allowed are {', '.join(method.variants)}")
    return whole_run(run, variant=variant, model=method.with_variant(run.model, variant))


def _begun(arguments: Sequence[str] | None) -> TrainConfig[Any] | None:
    """The preset of the run that this command line goes on with, its model as it is there; None where it begins."""
    checkpoint = checkpoint_of_run(arguments)
    if checkpoint is None:
        return None
    began = read_json(checkpoint / CONFIG_FILE)
    with contextlib.suppress(KeyError, TypeError, ValueError):  # resuming says what it is instead
        model = method_of(began).config_from_dict(began["model"])
        return whole_run(PRESETS[began["preset"]](), variant=began["variant"], model=model)
    return None
