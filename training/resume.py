"""Which checkpoint a run goes on from, and whether it is one of the same run."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from shards_spec.errors import UserError
from training.checkpoint import (
    CONFIG_FILE,
    OPTIMIZER_FILE,
    TO_RESUME,
    find_checkpoint,
    load_optimizer,
    newest_checkpoint,
    read_config,
    read_state,
)
from training.config import OptimizerConfig, RunConfig
from training.methods import method_of
from training.optimizer import in_order, load_moments

Config = TypeVar("Config", bound=RunConfig)
# What a run looked at when it began, and never again: it stays what it was.
_AT_THE_START = ("init", "init_visual", "init_audio", "teacher")
# What changes nothing that is learned, what only names values that are compared themselves, and what is compared
# elsewhere. A change of anything else is told.
_NOT_TOLD = {
    *("out", "resume", "workers", "cache_dir", "cache_size", "save_every", "keep", "log_every", "trace_keys"),
    *(
        "report_to",
        "diagnose_every",
        "preset",
        "variant",
        "method",
        "recipe",
        "dataset_recipe",
        "checkpoint_activations",
    ),
    *("data", "seed", "order", "shuffle", "window", "weights", "balanced", "model", "finetune"),
    *("fbank_mean", "fbank_std", *_AT_THE_START),
}


def checkpoint_to_resume(config: RunConfig) -> Path | None:
    """What --resume means, None where the run begins. A path is taken as it is, at every start.

    Raises:
        UserError: the checkpoint that was asked for is not there; --resume never, and there are some; none is whole.
    """
    if isinstance(config.resume, Path):
        return find_checkpoint(config.resume, TO_RESUME)
    newest = newest_checkpoint(config.out, TO_RESUME)
    if newest is not None and config.resume == "never":
        raise UserError(f"{config.out} holds checkpoints up to {newest.name}: use --resume auto or another --out")
    return newest


def how_to_go_on(config: RunConfig, has_saved: bool) -> str:
    """Where a run ended. With another --resume than auto, its own command would not go on from what it saved."""
    other = " with --resume auto" if has_saved and config.resume != "auto" else ""
    return f"the same command{other} goes on"


def check_same_run(checkpoint: Path, config: RunConfig, fingerprint: str, identity: tuple[str, ...]) -> None:
    """Refuses a checkpoint of another model, dataset or seed, naming what differs.

    Args:
        fingerprint: of the dataset.
        identity: the keys of config.json that must agree.

    Raises:
        UserError: it is of another run, or damaged.
    """
    state = read_state(checkpoint)
    if state.fingerprint != fingerprint:
        raise UserError(
            f"{checkpoint} was trained on another dataset: its fingerprint is {state.fingerprint[:12]},"
            f" that of {', '.join(map(str, config.data))} is {fingerprint[:12]}"
        )
    if state.seed != config.seed:
        raise UserError(f"{checkpoint} was trained with --seed {state.seed}, not {config.seed}")
    theirs, ours = read_config(checkpoint), config.to_dict()
    _check_optimizer_and_scale(checkpoint, config, theirs)
    for name in identity:
        if differing := sorted(_differences(_comparable(name, theirs), _comparable(name, ours), name)):
            kind = "was trained in another order" if name == "order" else f"holds another {name}"
            raise UserError(f"{checkpoint} {kind}: {'; '.join(differing[:3])}")


def _check_optimizer_and_scale(checkpoint: Path, config: RunConfig, theirs: dict[str, Any]) -> None:
    """Refuses what would make the moments, or the weights, those of something else."""
    kind = _optimizer_options(theirs, checkpoint).kind
    if kind != config.optimizer.kind:
        raise UserError(
            f"{checkpoint} was trained with --optimizer.kind {kind}, not {config.optimizer.kind}: say the former, or"
            " begin a new run with --init, which takes the weights alone"
        )
    for name in ("fbank_mean", "fbank_std"):
        then, now = theirs.get(name), getattr(config, name)
        if None not in (then, now) and then != now:
            raise UserError(
                f"{checkpoint} was trained with {_option(name)} {then}, not {now}: say the former, or begin a new run"
                " with --init, which adapts the weights"
            )


def going_on(checkpoint: Path, config: Config) -> tuple[Config, list[str]]:
    """The configuration that a run goes on with, and what has changed since the checkpoint, in lines to print.

    The scale of the fbanks, where it is not given, and what a run begins with are the checkpoint's; everything else is
    what is asked for now.
    """
    theirs = read_config(checkpoint)
    kept: dict[str, Any] = {name: theirs[name] for name in ("fbank_mean", "fbank_std") if theirs.get(name) is not None}
    said = []
    for name in _AT_THE_START:
        if name in theirs and hasattr(config, name):
            then, now = None if theirs[name] is None else Path(theirs[name]), getattr(config, name)
            kept[name] = then
            if now not in (None, then):
                said.append(f"{_option(name)} {now} is not looked at: this run began with {then or 'none'}")
    return replace(config, **kept), [*_changes(checkpoint, theirs, config), *said]


def _changes(checkpoint: Path, theirs: dict[str, Any], config: RunConfig) -> list[str]:
    """The options that take effect from now on, old and new, and what follows from another batch size."""
    then, now = (dict(_leaves(_told(values, checkpoint))) for values in (theirs, config.to_dict()))
    changed = [name for name in now if name in then and then[name] != now[name]]
    if not changed:
        return []
    told = ", ".join(f"{_option(name)} {then[name]} -> {now[name]}" for name in changed)
    lines = [f"changed since {checkpoint.name}: {told}"]
    if "batch_size" in changed and config.steps is not None:
        lines.append(f"the run still ends after step {config.steps}, and the rate goes by steps, whatever they hold")
    if "batch_size" in changed and config.optimizer.scale_lr:
        peaks = (config.optimizer.lr * size / 256 for size in (then["batch_size"], now["batch_size"]))
        lines.append("with --optimizer.scale-lr the peak rate goes with the batch size: {:g} -> {:g}".format(*peaks))
    return lines


def _told(config: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """What is worth telling of a config.json."""
    told = {name: value for name, value in config.items() if name not in _NOT_TOLD}
    return told | {"optimizer": asdict(_optimizer_options(config, checkpoint))}


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested configuration as `a.b` and value."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _optimizer_options(config: dict[str, Any], checkpoint: Path) -> OptimizerConfig:
    """The optimizer's options in a config.json; what an older version did not know has its default."""
    known = asdict(OptimizerConfig())
    told = {name: value for name, value in config.get("optimizer", {}).items() if name in known}
    try:
        first, second = told.get("betas", known["betas"])
        return OptimizerConfig(**told | {"betas": (first, second)})
    except (TypeError, ValueError) as error:
        raise UserError(f"{checkpoint / CONFIG_FILE} is damaged ({error}): resume from another checkpoint") from error


def resume_optimizer(
    checkpoint: Path,
    optimizer: torch.optim.Optimizer,
    make_optimizer: Callable[[OptimizerConfig], torch.optim.Optimizer],
    scaler: Any | None = None,
) -> None:
    """Gives an optimizer a checkpoint's moments, and the loss scaler its state; the optimizer's options stay its own.

    Args:
        make_optimizer: what the optimizer was made by. Which parameter the moments are of follows from the options
            with which they were saved.
        scaler: with fp16.

    Raises:
        UserError: the file is damaged, or of another model.
    """
    saved = load_optimizer(checkpoint)
    then = make_optimizer(_optimizer_options(read_config(checkpoint), checkpoint))
    try:
        if not saved["optimizer"]["state"] and "scaler" not in saved:  # with one, every step may have overflowed
            raise ValueError("it holds no moments")
        load_moments(optimizer, saved["optimizer"], in_order(then))
        if scaler is not None and "scaler" in saved:
            scaler.load_state_dict({name: value + 0 for name, value in saved["scaler"].items()})  # numbers
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:  # whatever its parts are
        said = str(error) if type(error) is ValueError else f"it holds other parts, {type(error).__name__}: {error}"
        said = " ".join(said.split())
        raise UserError(f"{checkpoint / OPTIMIZER_FILE}: {said}; resume from another checkpoint") from error


def _comparable(name: str, config: dict[str, Any]) -> Any:
    """A part of config.json. The model's: without what changes no value, with what older versions did not know."""
    values = config.get(name, "crossmae" if name == "method" else None)
    if name != "model" or values is None:
        return values
    try:
        return asdict(replace(method_of(config).config_from_dict(values), checkpoint_activations=False))
    except (ValueError, TypeError):  # a newer version's: what it has beside ours differs, and is named
        return values


def _differences(theirs: Any, ours: Any, name: str) -> Iterator[str]:
    """Where two nested configurations differ, as `name is A, asked for B`."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() | ours.keys():
            yield from _differences(theirs.get(key), ours.get(key), f"{name}.{key}")
    elif theirs != ours:
        yield f"{name} is {theirs}, asked for {ours}"
