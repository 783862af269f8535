"""Holds a method against golden vectors of its authors' code: inputs, weights, masks, and what came out.

    python -m tools.check_vectors cav_mae_tiny.safetensors

The weights pass the reader of the authors' released files. Every `outputs/` and `grads/` entry of a file is compared:
the largest absolute difference, and the same relative to the entry's largest value. An entry that is not computed here
is listed as `not compared`. Exit status: 0 all that can be computed is equal within the tolerance; 1 something differs,
or was left out; 2 a user's mistake.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from safetensors import SafetensorError
from torch import Tensor

from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import UserError
from tools.vectors import cav_mae, deepavfusion, mavil
from tools.vectors.file import Vectors, read_vectors

COMPARED = ("outputs/", "grads/", "grad_norms/")
Compute = Callable[[Vectors], Mapping[str, Tensor]]
# A tensor that only this method's files have -> what computes all of its entries.
METHODS: dict[str, Compute] = {
    "weights/patch_embed_a.proj.weight": cav_mae.compute,
    "weights/patch_embed_v.proj.weight": mavil.compute,
    "weights/encoder.fusion_tokens": deepavfusion.compute,
}
TOLERANCES = (
    mavil.TOLERANCES | deepavfusion.TOLERANCES
)  # of entries that are given one of their own, where it is the larger one
_ROUND_OFF = 1e-9  # an entry that is nowhere larger is 0, but for what rounding left of it: compared absolutely


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Compares a method with golden vectors of its authors' code."""

    files: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]")]]
    """Golden vectors, safetensors files."""
    precision: Literal["float32", "float64"] = "float32"
    """In which the method computes."""
    tolerance: float = 1e-4
    """The largest difference of an entry, relative to its largest value; entries that may differ more are marked."""


@dataclass(frozen=True)
class Row:
    """One entry of a file beside what was computed; None where nothing was."""

    name: str
    absolute: float | None
    relative: float | None
    is_equal: bool
    tolerance: float


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("python -m tools.check_vectors"):
        config: CheckConfig = parse(CheckConfig, arguments)
        if not config.files:
            raise UserError("no file given: give golden vectors, safetensors files")
        dtype = torch.float64 if config.precision == "float64" else torch.float32
        failed = False
        for path in config.files:
            rows = check(path, dtype, config.tolerance)
            print(report(path, rows, config.tolerance), flush=True)
            failed |= not all(row.is_equal for row in rows)
    sys.exit(failed)


def check(path: Path, dtype: torch.dtype, tolerance: float) -> list[Row]:
    """Every entry of a file beside ours.

    Raises:
        UserError: the file cannot be read, or is of no method that is known here.
    """
    try:
        vectors = read_vectors(path, dtype)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): expected golden vectors, a safetensors file") from error
    computes = [compute for name, compute in METHODS.items() if name in vectors.tensors]
    if not computes:
        known = ", ".join(name.removeprefix("weights/") for name in METHODS)
        raise UserError(f"{path} holds no weights of a known method: expected one of {known}")
    try:
        found = computes[0](vectors)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}, which the vectors of its method have") from error
    names = [name for name in vectors.tensors if name.startswith(COMPARED)]
    allowed = {name: max(tolerance, TOLERANCES.get(name, 0.0)) for name in names}
    return [_compare(name, vectors.tensors[name], found.get(name), allowed[name]) for name in names]


def _compare(name: str, expected: Tensor, found: Tensor | None, tolerance: float) -> Row:
    if found is None:
        return Row(name, None, None, is_equal=False, tolerance=tolerance)
    if found.shape != expected.shape:
        shapes = f"shape {list(found.shape)}, expected {list(expected.shape)}"
        return Row(f"{name} ({shapes})", None, None, is_equal=False, tolerance=tolerance)
    difference = (found.detach().double() - expected.double()).abs()
    if not difference.numel():
        return Row(name, 0.0, 0.0, is_equal=True, tolerance=tolerance)
    largest = float(expected.double().abs().max())
    absolute = float(difference.max())
    relative = absolute / max(largest, _ROUND_OFF)
    return Row(name, absolute, relative, is_equal=relative <= tolerance, tolerance=tolerance)  # NaN is not


def report(path: Path, rows: list[Row], tolerance: float) -> str:
    """A line an entry, and a last one that counts them."""
    width = max((len(row.name) for row in rows), default=0)
    lines = [f"{path}: tolerance {tolerance:g} of an entry's largest value"]
    for row in rows:
        if row.absolute is None or row.relative is None:
            lines.append(f"  {row.name:{width}}  not compared")
        else:
            verdict = "equal" if row.is_equal else "DIFFERS"
            verdict += "" if row.tolerance == tolerance else f" (its tolerance is {row.tolerance:g})"
            lines.append(f"  {row.name:{width}}  {row.absolute:9.2e} absolute  {row.relative:9.2e} relative  {verdict}")
    left = sum(row.absolute is None for row in rows)
    differing = sum(row.absolute is not None and not row.is_equal for row in rows)
    worst = max((row.relative for row in rows if row.relative is not None), default=0.0)
    lines.append(
        f"{len(rows) - left} entries compared, {differing} differ, {left} not compared; largest relative difference"
        f" {worst:.1e}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
