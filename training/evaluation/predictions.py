"""--save-predictions: what a task found for each sample, as a table for other programs: CSV or Parquet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from shards_spec.atomic import atomic_path
from shards_spec.errors import UserError

Columns = Mapping[str, Any]  # name -> a list or array of N values

_SUFFIXES = (".csv", ".parquet")


def check_place(path: Path | None) -> None:
    """Raises UserError where --save-predictions can be no file."""
    if path is None:
        return
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"--save-predictions {path}: the name must end in {' or '.join(_SUFFIXES)}")
    if path.is_dir():
        raise UserError(f"--save-predictions {path} is a folder: give a file in it")
    if not path.parent.is_dir():
        raise UserError(f"--save-predictions {path}: the folder {path.parent} does not exist")


def write_predictions(path: Path, tables: Sequence[Columns]) -> None:
    """Writes tables of the same columns one below the other, whole or not at all."""
    table = pa.concat_tables([pa.table({name: pa.array(values) for name, values in t.items()}) for t in tables])
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".csv":
            pyarrow.csv.write_csv(table, temporary)
        else:
            pyarrow.parquet.write_table(table, temporary)


def joined(items: Sequence[str]) -> str:
    """Several labels in one cell."""
    return ";".join(items)
