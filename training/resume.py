"""Which checkpoint a run goes on from, and whether it is one of the same run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards_spec.errors import UserError
from training.checkpoint import CONFIG_FILE, TO_RESUME, find_checkpoint, newest_checkpoint, read_json, read_state
from training.config import RunConfig
from training.methods.crossmae.config import config_from_dict, config_to_dict


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
    theirs, ours = read_json(checkpoint / CONFIG_FILE), config.to_dict()
    for name in identity:
        if differing := sorted(_differences(_comparable(name, theirs), _comparable(name, ours), name)):
            kind = "was trained in another order" if name == "order" else f"holds another {name}"
            raise UserError(f"{checkpoint} {kind}: {'; '.join(differing[:3])}")


def _comparable(name: str, config: dict[str, Any]) -> Any:
    """A part of config.json. The model's: without what changes no value, with what older versions did not know."""
    values = config.get(name)
    if name != "model" or values is None:
        return values
    try:
        return config_to_dict(replace(config_from_dict(values), checkpoint_activations=False))
    except (ValueError, TypeError):  # a newer version's: what it has beside ours differs, and is named
        return values


def _differences(theirs: Any, ours: Any, name: str) -> Iterator[str]:
    """Where two nested configurations differ, as `name is A, asked for B`."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() | ours.keys():
            yield from _differences(theirs.get(key), ours.get(key), f"{name}.{key}")
    elif theirs != ours:
        yield f"{name} is {theirs}, asked for {ours}"
