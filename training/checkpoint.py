"""Checkpoints: folders that are whole or absent, and everything that resuming needs.

step-00000500/
  model.safetensors   the weights
  config.json         the resolved configuration of the run
  optimizer.pt        AdamW's state and, with fp16, the loss scale
  state.json          TrainState: the step and the place in the order, readable
step-00000500.tmp        being written, or being removed
step-00000500.abandoned  later than where its run went on from: nothing takes it unless it is named
"""

import json
import math
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
import torch.distributed as dist
from torch import nn

from shards_spec.atomic import TEMPORARY_SUFFIX, atomic_path, sync_folder
from shards_spec.errors import UserError, reason
from shards_spec.messages import warn
from training.stream.order import ORDER_VERSION, Place
from training.tensor_files import check_types, read_safetensors, read_torch, write_safetensors

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
OPTIMIZER_FILE = "optimizer.pt"
STATE_FILE = "state.json"
TO_USE = (WEIGHTS_FILE, CONFIG_FILE, STATE_FILE)
TO_RESUME = (*TO_USE, OPTIMIZER_FILE)
UNKNOWN_OFFSET = -1
_LARGEST = 2**63 - 1
_ANOTHER = "resume from another checkpoint"
_CONFIG_KINDS: dict[str, tuple[type, ...]] = {
    "data": (list,),
    "batch_size": (int,),
    "steps": (int, type(None)),
    "epochs": (int, float),
    "seed": (int,),
    "fbank_mean": (int, float, type(None)),
    "fbank_std": (int, float, type(None)),
    "optimizer": (dict,),
    **{name: (str, type(None)) for name in ("init", "init_visual", "init_audio", "teacher")},
    "cache_dir": (str, type(None)),
    "cache_size": (str,),
}
_ABOVE_ZERO = ("batch_size", "fbank_std")
_ABANDONED_SUFFIX = ".abandoned"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Where a run is: the same on every rank, a few hundred bytes.

    `next_shard` and `next_offset` are for people: where the next sample of the order lies. The offset is
    UNKNOWN_OFFSET where the shard is remote and its table was not fetched yet.
    """

    step: int
    fingerprint: str
    seed: int
    epoch: int
    cursor: int
    next_shard: str
    next_offset: int
    order_version: int = ORDER_VERSION

    @property
    def place(self) -> Place:
        """The place in the order."""
        return Place(epoch=self.epoch, cursor=self.cursor)


def checkpoint_folder(run: Path, step: int) -> Path:
    """The folder of a run's checkpoint after `step` steps."""
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return [path for path in _folders(run) if not _lacking(path, TO_RESUME)]


def newest_checkpoint(run: Path, needed: tuple[str, ...]) -> Path | None:
    """The newest checkpoint of a run that has the files `needed`, None where there is no checkpoint at all.

    A newer one that lacks a file is passed over with a line of warning.

    Raises:
        UserError: there are some, and each lacks a file.
    """
    damaged: list[str] = []
    for path in reversed(_folders(run)):
        if not (lacking := _lacking(path, needed)):
            if not dist.is_initialized() or dist.get_rank() == 0:  # once for all processes
                for line in damaged:
                    warn(f"{line}: passed over")
            return path
        damaged.append(f"{path} lacks {', '.join(lacking)}")
    if damaged:
        raise UserError(
            f"{run} has no whole checkpoint ({damaged[0]}):"
            " take another run, or move its folder checkpoints away to begin again"
        )
    return None


def _folders(run: Path) -> list[Path]:
    """What carries the name of a checkpoint, oldest first."""
    folder = run / "checkpoints"
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _lacking(checkpoint: Path, needed: tuple[str, ...]) -> list[str]:
    return [name for name in needed if not (checkpoint / name).is_file()]


def save_checkpoint(
    run: Path,
    state: TrainState,
    *,
    model: nn.Module,
    optimizer: dict[str, Any],
    config: dict[str, Any],
    keep: int,
    resumed: Path | None = None,
) -> Path:
    """Writes a checkpoint under a temporary name, syncs and renames it, then removes all but the newest `keep`.

    `resumed`, the checkpoint that the run began from, is kept in any case. There must be none of this step yet
    (`set_later_aside` sees to that).

    Raises:
        OSError: it could not be written; nothing of it is left, and the older ones are as they were.
    """
    final = checkpoint_folder(run, state.step)
    for left in final.parent.glob(f"step-*{TEMPORARY_SUFFIX}"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary = _temporary(final)
    try:
        temporary.mkdir(parents=True)
        _write(temporary, state, model=model, optimizer=optimizer, config=config)
        temporary.rename(final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(final.parent)
    for old in checkpoints(run)[:-keep]:
        if resumed is None or old.resolve() != resumed.resolve():
            _remove(old)
    return final


def set_later_aside(run: Path, step: int) -> list[Path]:
    """Renames the checkpoints of a run that are later than `step`, from which it goes on; what they were called.

    They are of a future that will not come: they must not be resumed, nor push new ones out. Nothing is deleted.
    """
    later = [path for path in _folders(run) if _step(path) > step]
    for path in later:
        path.rename(_name_aside(path))
    return later


def _name_aside(path: Path) -> Path:
    """A free name; it does not end in a digit, as those of checkpoints do."""
    aside, number = path.with_name(path.name + _ABANDONED_SUFFIX), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{number}{_ABANDONED_SUFFIX}")
    return aside


def _remove(checkpoint: Path) -> None:
    """Takes the name first: what carries it is whole, also when the process is killed on the way."""
    temporary = _temporary(checkpoint)
    checkpoint.rename(temporary)
    sync_folder(temporary.parent)
    shutil.rmtree(temporary)


def _temporary(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + TEMPORARY_SUFFIX)


def _write(
    folder: Path, state: TrainState, *, model: nn.Module, optimizer: dict[str, Any], config: dict[str, Any]
) -> None:
    write_safetensors(model.state_dict(), folder / WEIGHTS_FILE)
    _write_optimizer(optimizer, folder / OPTIMIZER_FILE)
    write_json(folder / CONFIG_FILE, config)
    write_json(folder / STATE_FILE, asdict(state))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _write_optimizer(optimizer: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # a path would be torch's to open: no error of its own tells a full disk from others
        try:
            torch.save(optimizer, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's "unexpected pos", for which `file` had the reason
                raise error.__context__ from error
            raise


def find_checkpoint(path: Path, needed: tuple[str, ...] = TO_USE) -> Path:
    """The checkpoint that `path` means: itself, or of the run folder `path` the newest that has the files `needed`.

    Raises:
        UserError: there is none.
    """
    if (path / STATE_FILE).is_file():
        return path
    found = newest_checkpoint(path, needed)
    if found is None:
        raise UserError(
            f"{path} is no checkpoint and no run folder with checkpoints: give RUN or RUN/checkpoints/step-N"
        )
    return found


def read_state(checkpoint: Path, samples: int | None = None) -> TrainState:
    """The state of a checkpoint.

    Args:
        samples: of the run's dataset, where that is known: then the place must be one of it.

    Raises:
        UserError: it is damaged, or of another order version.
    """
    path = checkpoint / STATE_FILE
    try:
        result = TrainState(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path} is damaged ({error}): {_ANOTHER}") from error
    if wrong := _impossible(result, checkpoint, samples):
        raise UserError(f"{path} is damaged ({wrong}): {_ANOTHER}")
    if result.order_version != ORDER_VERSION:
        raise UserError(
            f"{checkpoint} was made with order version {result.order_version}, this program has {ORDER_VERSION}:"
            " resume it with the version of the program that began the run"
        )
    return result


def _impossible(state: TrainState, checkpoint: Path, samples: int | None) -> str:
    """What no run writes into its state; empty where there is nothing of that kind."""
    least = {"next_offset": UNKNOWN_OFFSET}
    for name, kind in get_type_hints(TrainState).items():
        value = getattr(state, name)
        is_possible = name == "seed" or type(value) is not int or least.get(name, 0) <= value <= _LARGEST
        if type(value) is not kind or not is_possible:
            return f"{name} is {value!r}"
    if _NAME.fullmatch(checkpoint.name) and state.step != _step(checkpoint):
        return f"it is of step {state.step}"
    if samples is not None and state.cursor >= samples:
        return f"cursor is {state.cursor}, and the dataset has {samples} samples"
    if samples is not None and state.place.samples_done(samples) < state.step:
        return f"{state.step} steps have taken {state.place.samples_done(samples)} samples"
    return ""


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Loads a checkpoint's weights into `model`, all of them and no other.

    Raises:
        UserError: the file is damaged, or of another model.
    """
    path = checkpoint / WEIGHTS_FILE
    weights = read_safetensors(path, "use another checkpoint")
    check_types(weights, model.state_dict(), path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} holds another model than its config.json describes: {first}") from error


def load_optimizer(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as `optimizer`. Only tensors and plain values are read, nothing is executed."""
    path = checkpoint / OPTIMIZER_FILE
    saved = read_torch(path, _ANOTHER)
    if not isinstance(saved, dict):
        raise UserError(f"{path} holds {type(saved).__name__}, expected the state of an optimizer: {_ANOTHER}")
    return saved


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes readable JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: the file is damaged, or the system does not give it.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): use another checkpoint") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (no JSON object): use another checkpoint")
    return values


def read_config(folder: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """The config.json of a checkpoint or a run folder, in which what is read again is of the kind that runs write.

    Args:
        needed: what must be in it.

    Raises:
        UserError: it is damaged, or lacks something.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    for name in needed:
        if name not in config:
            raise UserError(f"{path} lacks {name}: use another checkpoint")
    for name in _CONFIG_KINDS.keys() & config.keys():
        value = config[name]
        is_finite = type(value) is not float or math.isfinite(value)
        is_of_kind = type(value) in _CONFIG_KINDS[name] and is_finite
        if not is_of_kind or (name in _ABOVE_ZERO and value is not None and value <= 0):
            raise UserError(f"{path} is damaged ({name} is {value!r}): use another checkpoint")
    return config
