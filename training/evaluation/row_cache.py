"""Rows of numbers for samples: computed once, by all processes together, and kept on disk in pieces.

    numbers ─> what is on disk ─> the missing, in pieces of PIECE samples ─> each rank its share ─> written ─> gathered

A piece is one safetensors file that appears whole or not at all; a killed extraction goes on behind its last one. Two
runs may fill the same folder at once: both write the same values, and the last writer of a piece wins.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from shards_spec.atomic import atomic_path
from shards_spec.messages import warn
from training.evaluation.progress import progress
from training.stream.order import Numbers
from training.stream.shares import Share
from training.tensor_files import DamagedFileError, read_safetensors, write_safetensors

PIECE = 128  # consecutive sample numbers of a piece. Batches do not cross pieces, so neither the number of processes
#              nor an interruption changes which samples are computed together, and results are equal to the bit.
_NUMBERS = "numbers"

Rows = dict[str, Tensor]  # name -> [N, ...], a row a sample
Compute = Callable[[Iterable[Share]], Iterator[tuple[Numbers, Rows]]]


def cached_rows(
    numbers: Numbers,
    compute: Compute,
    *,
    folder: Path | None,
    batch_size: int,
    accelerator: Accelerator | None = None,
    title: str,
) -> Rows:
    """Rows for samples, on the CPU, in the order of `numbers`: out of `folder`, or computed. All ranks get them all.

    Args:
        numbers: int64 [N], each sample once.
        compute: turns shares of samples into (their numbers int64 [B], rows [B, ...]), share by share.
        folder: of the pieces, for these rows alone (its name must say what they depend on); None keeps nothing.
        batch_size: the most samples of a share; at most PIECE are taken at once.
        accelerator: the processes; None for this one alone.
    """
    is_main = accelerator is None or accelerator.is_main_process
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    found: dict[int, tuple[Numbers, Rows]] = {}
    if is_main and folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        found = {p: kept for p in _pieces(numbers) if (kept := _read(folder, p, aloud=True)) is not None}
    kept_numbers = np.concatenate([np.empty(0, np.int64), *(piece for piece, _ in found.values())])
    missing: Numbers = np.setdiff1d(numbers, kept_numbers)  # sorted
    if world > 1:  # the first rank's disk counts: others may be elsewhere
        (missing,) = broadcast_object_list([missing])
    computed = []
    if len(missing):
        pieces = np.split(missing, np.flatnonzero(np.diff(missing // PIECE)) + 1)
        computed = list(_compute_pieces(pieces[rank::world], compute, folder, batch_size, title=title, speaks=is_main))
    if world > 1:
        computed = gather_object([(piece, rows) for piece, rows in computed])
        (found,) = broadcast_object_list([found])
    return _in_order(numbers, [*found.values(), *computed])


def _pieces(numbers: Numbers) -> list[int]:
    return [int(piece) for piece in np.unique(numbers // PIECE)]


def _compute_pieces(
    pieces: list[Numbers], compute: Compute, folder: Path | None, batch_size: int, *, title: str, speaks: bool
) -> Iterator[tuple[Numbers, Rows]]:
    """Computes the samples of each piece, and writes it when it is done."""
    if not pieces:
        return
    shares = (
        Share(numbers=batch, epochs=np.zeros_like(batch))
        for piece in pieces
        for batch in np.split(piece, range(batch_size, len(piece), batch_size))
    )
    left = iter(pieces)
    piece, collected = next(left), list[tuple[Numbers, Rows]]()
    total = sum(map(len, pieces))
    for batch in progress(compute(shares), total=total, size=lambda b: len(b[0]), title=title, enabled=speaks):
        collected.append(batch)
        if sum(len(n) for n, _ in collected) == len(piece):
            rows = _in_order(piece, collected)
            if folder is not None:
                _write(folder, int(piece[0]) // PIECE, piece, rows)
            yield piece, rows
            piece, collected = next(left, piece), []


def _in_order(numbers: Numbers, parts: list[tuple[Numbers, Rows]]) -> Rows:
    """The rows of `numbers` out of parts that hold them all."""
    where = np.concatenate([part for part, _ in parts])
    order = np.argsort(where, kind="stable")
    places = torch.from_numpy(order[np.searchsorted(where[order], numbers)])
    return {name: torch.cat([rows[name] for _, rows in parts])[places] for name in parts[0][1]}


# -------------------------------------------------------------------- on disk


def _path(folder: Path, piece: int) -> Path:
    return folder / f"piece-{piece:08d}.safetensors"


def _write(folder: Path, piece: int, numbers: Numbers, rows: Rows) -> None:
    """Writes a piece, with what another run has put there meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    other = _read(folder, piece, aloud=False)
    if other is not None and set(other[1]) == set(rows):
        everything = np.union1d(numbers, other[0])
        numbers, rows = everything, _in_order(everything, [(numbers, rows), other])
    tensors = {_NUMBERS: torch.from_numpy(numbers), **rows}
    with atomic_path(_path(folder, piece)) as temporary:
        write_safetensors(tensors, temporary)


def _read(folder: Path, piece: int, *, aloud: bool) -> tuple[Numbers, Rows] | None:
    """The samples of a piece and their rows; None where there is none, or a damaged one.

    Raises:
        UserError: the system does not give it.
    """
    path = _path(folder, piece)
    if not path.exists():
        return None
    try:
        tensors = read_safetensors(path, "computed again")
        if _NUMBERS not in tensors:
            raise DamagedFileError(f"{path} is no piece of a cache: computed again")
    except DamagedFileError as error:
        if aloud:
            warn(str(error))
        return None
    return tensors.pop(_NUMBERS).numpy(), tensors
