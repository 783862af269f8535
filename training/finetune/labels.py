"""Which classes each sample of a dataset has."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards_spec.errors import UserError
from training.stream.index import DatasetIndex
from training.stream.order import Numbers

# B samples of a batch, N of the dataset, C classes.
Task = Literal["multilabel", "singlelabel"]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The classes of all samples, as lists laid end to end: AudioSet-2M takes 30 MB, a matrix would take 1 GB."""

    classes: int  # C
    starts: Numbers  # int64 [N + 1]: the classes of sample i are ids[starts[i] : starts[i + 1]]
    ids: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def per_sample(self) -> Numbers:
        """How many classes each sample has, int64 [N]."""
        return np.diff(self.starts)

    @property
    def per_class(self) -> Numbers:
        """How many samples each class has, int64 [C]."""
        return np.bincount(self.ids, minlength=self.classes)

    def of(self, number: int) -> list[int]:
        """The classes of a sample."""
        return self.ids[self.starts[number] : self.starts[number + 1]].tolist()

    def matrix(self, numbers: Numbers) -> npt.NDArray[np.float32]:
        """1 where a sample has a class, else 0: float32 [B, C] for sample numbers int64 [B]."""
        targets = np.zeros((len(numbers), self.classes), np.float32)
        counts = self.per_sample[numbers]
        rows = np.repeat(np.arange(len(numbers)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        targets[rows, self.ids[np.repeat(self.starts[numbers], counts) + within]] = 1
        return targets

    def single(self, numbers: Numbers) -> Numbers:
        """The one class of each sample, int64 [B]; every one must have exactly one."""
        assert (self.per_sample[numbers] == 1).all()
        return self.ids[self.starts[numbers]].astype(np.int64)


def read_labels(index: DatasetIndex) -> Labels:
    """The labels of all samples of an index. Reads the tables of all shards.

    Raises:
        UserError: the dataset has no class list, or labels that are not in it.
        DamagedSampleError, FetchError: a table cannot be read.
    """
    folders = ", ".join(map(str, index.folders))
    classes = len(index.classes)
    if not classes:
        raise UserError(
            f"{folders} has no class list: make it again into another folder, with --class-labels where the labels are "
            "AudioSet's mids, else from a --segments CSV with labels, which then are the class list"
        )
    samples = np.array([shard.samples for shard in index.shards])
    index.places((np.cumsum(samples) - samples)[samples > 0])  # reads all tables at once
    lists = [index.rows(shard).label_ids for shard in range(len(index.shards))]
    lengths = [_lengths(of_shard) for of_shard in lists]
    ids = np.concatenate([of_shard.flatten().to_numpy(zero_copy_only=False) for of_shard in lists]).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < classes:
        wrong = int(np.flatnonzero((ids < 0) | (ids >= classes))[0])
        number = int(np.searchsorted(starts, wrong, side="right")) - 1
        raise UserError(
            f"{folders}: sample {index.key(number)} has label {ids[wrong]}, the class list has {classes} classes:"
            " run make-shards again with the class list of these labels"
        )
    if not len(ids):
        raise UserError(f"{folders}: no sample has a label: run make-shards with a --segments CSV that has labels")
    return Labels(classes=classes, starts=starts, ids=ids)


def _lengths(lists: pa.ListArray) -> Numbers:
    return np.array([0 if n is None else n for n in pa.compute.list_value_length(lists).to_pylist()], np.int64)


def choose_task(*labels: Labels) -> Task:
    """singlelabel where every sample has exactly one class."""
    return "singlelabel" if all((part.per_sample == 1).all() for part in labels) else "multilabel"


def check_single(task: Task, labels: Labels, index: DatasetIndex) -> None:
    """Raises UserError where the task is singlelabel and a sample has no class or several."""
    wrong = np.flatnonzero(labels.per_sample != 1)
    if task == "singlelabel" and len(wrong):
        number = int(wrong[0])
        raise UserError(
            f"singlelabel, but sample {index.key(number)} of {', '.join(map(str, index.folders))} has the classes"
            f" {labels.of(number)}: use --task multilabel, or a dataset whose samples have one class each"
        )


def class_list_hash(classes: list[dict[str, Any]]) -> str:
    """A name for a class list: two datasets whose labels mean the same have the same one."""
    return hashlib.sha256(json.dumps(classes, sort_keys=True).encode()).hexdigest()[:16]
