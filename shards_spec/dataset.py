"""dataset.json: what a complete dataset folder says of itself."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from shards_spec import storage
from shards_spec.errors import UserError
from shards_spec.quiet import Quiet
from shards_spec.sample import SPEC_VERSION
from shards_spec.storage import Place
from shards_spec.tables import plan_path

DATASET_FILE = "dataset.json"

Facts = TypeVar("Facts", "ShardInfo", "Dataset", Quiet)


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One line of dataset.json's shard list."""

    name: str  # file name of the tar
    samples: int
    failed: int
    bytes: int
    sha256: str  # of the tar


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The facts of a complete dataset.

    `mean` and `std` are over the valid fbank rows of all samples, as stored.
    `fingerprint` names the exact bytes: sha256 over the shard hashes, in order.
    """

    recipe: dict[str, Any]
    samples: int
    failed: int
    failures: dict[str, int]
    shards: list[ShardInfo]
    classes: list[dict[str, Any]]  # index, mid, name
    mean: float
    std: float
    fingerprint: str
    versions: dict[str, str]  # of the libraries that made the bytes
    quiet: Quiet | None = None  # samples with next to no sound; earlier versions did not count them
    spec_version: int = SPEC_VERSION


def fingerprint(shards: list[ShardInfo]) -> str:
    """sha256, in hex, over the shards' sha256 in order."""
    return hashlib.sha256("\n".join(s.sha256 for s in shards).encode()).hexdigest()


def write_dataset(folder: Place, dataset: Dataset) -> None:
    """Writes dataset.json, the last file of a dataset."""
    with storage.writing(folder / DATASET_FILE) as temporary:
        temporary.write_text(json.dumps(asdict(dataset), indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_dataset(folder: Place) -> Dataset:
    """Reads dataset.json.

    Raises:
        UserError: the folder is missing, unfinished, or no dataset of this format.
    """
    path = folder / DATASET_FILE
    if not storage.is_folder(folder):
        raise UserError(f"dataset {folder} does not exist: give the folder that make-shards wrote")
    if not storage.is_file(path):
        if storage.is_file(plan_path(folder)):
            raise UserError(
                f"dataset {folder} is unfinished (no {DATASET_FILE}): run the same make-shards command again"
            )
        raise UserError(f"{folder} is no dataset (no {DATASET_FILE}): give the folder that make-shards wrote")
    return dataset_from_json(storage.read_bytes(path), path)


def _typed(facts: Facts) -> Facts:
    """Raises TypeError or ValueError where a field is of another kind than its annotation, or counts less than none."""
    for name, annotated in get_type_hints(type(facts)).items():
        hint, value = annotated, getattr(facts, name)
        if NoneType in get_args(hint):
            if value is None:
                continue
            (hint,) = (allowed for allowed in get_args(hint) if allowed is not NoneType)
        kind = get_origin(hint) or hint
        if type(value) is not kind and not (kind is float and type(value) is int):  # JSON writers may drop the point
            raise TypeError(f"{name} is {str(value)[:80]}, expected {kind.__name__}")
        if kind is int and value < 0:
            raise ValueError(f"{name} is {value}")
        inner = get_args(hint)[-1] if kind in (list, dict) else Any
        items = value.values() if kind is dict else value if kind is list else ()
        if inner is not Any and not all(isinstance(item, get_origin(inner) or inner) for item in items):
            raise TypeError(f"{name} is {str(value)[:80]}, expected {hint}")
    return facts


def dataset_from_json(content: bytes, path: Place) -> Dataset:
    """The dataset that the content of a dataset.json describes; `path` is where it lies, for messages.

    Raises:
        UserError: it is damaged, or of another version of the format.
    """
    try:
        facts = json.loads(content)
        version = facts["spec_version"]
        if version != SPEC_VERSION:
            raise UserError(f"{path} has spec_version {version}, this program reads {SPEC_VERSION}")
        facts["shards"] = [_typed(ShardInfo(**_known(ShardInfo, shard))) for shard in facts["shards"]]
        if facts.get("quiet") is not None:
            facts["quiet"] = _typed(Quiet(**_known(Quiet, facts["quiet"])))
        dataset = _typed(Dataset(**_known(Dataset, facts)))
    except UserError:
        raise
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:  # the first two: no JSON
        raise UserError(
            f"{path} is damaged ({error!r}): remove it and run the same make-shards command again"
        ) from error
    if not (math.isfinite(dataset.mean) and math.isfinite(dataset.std)):
        raise UserError(
            f"{path} says that the fbank mean is {dataset.mean}, as earlier versions did where sound was damaged: "
            "run the same make-shards command again"
        )
    return dataset


def _known(kind: type, facts: dict[str, Any]) -> dict[str, Any]:
    """Without what later versions may say beside what this one reads."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in facts.items() if name in names}
