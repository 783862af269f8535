"""Checkpoints: folders that are whole or absent, and everything that resuming needs.

step-00000500/
  model.safetensors   the weights
  config.json         the resolved configuration of the run
  optimizer.pt        AdamW's state and, with fp16, the loss scale
  state.json          TrainState: the step and the place in the order, readable
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from shards_spec.atomic import TEMPORARY_SUFFIX, sync_folder
from shards_spec.errors import UserError
from training.stream.order import ORDER_VERSION, Place

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
OPTIMIZER_FILE = "optimizer.pt"
STATE_FILE = "state.json"
UNKNOWN_OFFSET = -1
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
    folder = run / "checkpoints"
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


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

    `resumed`, the checkpoint that the run began from, is kept in any case.

    Raises:
        OSError: it could not be written; nothing of it is left, and the older ones are as they were.
    """
    final = checkpoint_folder(run, state.step)
    temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write(temporary, state, model=model, optimizer=optimizer, config=config)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():  # this step was saved before and is reached again after a resume from an older one
        shutil.rmtree(final)
    temporary.rename(final)
    sync_folder(final.parent)
    for old in checkpoints(run)[:-keep]:
        if resumed is None or old.resolve() != resumed.resolve():
            shutil.rmtree(old)
    return final


def _write(
    folder: Path, state: TrainState, *, model: nn.Module, optimizer: dict[str, Any], config: dict[str, Any]
) -> None:
    try:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS_FILE)
        torch.save(optimizer, folder / OPTIMIZER_FILE)
    except (SafetensorError, RuntimeError) as error:  # what the two make of a full disk
        raise OSError(str(error).splitlines()[0]) from error
    write_json(folder / CONFIG_FILE, config)
    write_json(folder / STATE_FILE, asdict(state))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest of the run folder `path`.

    Raises:
        UserError: there is none.
    """
    if (path / STATE_FILE).is_file():
        return path
    found = checkpoints(path)
    if not found:
        raise UserError(
            f"{path} is no checkpoint and no run folder with checkpoints: give RUN or RUN/checkpoints/step-N"
        )
    return found[-1]


def read_state(checkpoint: Path) -> TrainState:
    """The state of a checkpoint.

    Raises:
        UserError: it is damaged, or of another order version.
    """
    state = read_json(checkpoint / STATE_FILE)
    try:
        result = TrainState(**state)
    except TypeError as error:
        raise UserError(f"{checkpoint / STATE_FILE} is damaged ({error}): resume from another checkpoint") from error
    if result.order_version != ORDER_VERSION:
        raise UserError(
            f"{checkpoint} was made with order version {result.order_version}, this program has {ORDER_VERSION}:"
            " resume it with the version of the program that began the run"
        )
    return result


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Loads a checkpoint's weights into `model`, all of them and no other.

    Raises:
        UserError: the file is damaged, or of another model.
    """
    path = checkpoint / WEIGHTS_FILE
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): use another checkpoint") from error
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} holds another model than its config.json describes: {first}") from error


def load_optimizer(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as `optimizer`. Only tensors and plain values are read, nothing is executed."""
    path = checkpoint / OPTIMIZER_FILE
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): resume from another checkpoint") from error


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes readable JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): use another checkpoint") from error
