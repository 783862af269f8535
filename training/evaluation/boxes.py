"""Which samples of a dataset have boxes, and which of these can be used."""

from dataclasses import dataclass

import numpy as np

from training.evaluation.localization import Box, usable_boxes
from training.evaluation.metadata import all_numbers, read_metadata, sample_keys
from training.stream.index import DatasetIndex
from training.stream.order import Numbers

# N samples with boxes.


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """The samples of a dataset by their boxes."""

    numbers: Numbers  # int64 [N], with a usable box: these are scored
    keys: list[str]
    boxes: list[list[Box]]
    labels: list[list[str]]
    unboxed: Numbers  # int64, without any box
    spoilt: list[str]  # keys of samples whose boxes are all damaged
    left_out: list[str]  # a line for each damaged box


def read_annotations(index: DatasetIndex, chosen: Numbers | None = None) -> Annotated:
    """Sorts samples by the `boxes` of their JSON. Damaged boxes are left out, and named.

    Args:
        chosen: which samples, int64; all of the dataset where None.
    """
    numbers = all_numbers(index) if chosen is None else chosen
    keys = dict(zip(numbers.tolist(), sample_keys(index, numbers), strict=True))
    scored, boxes, labels, unboxed, spoilt, left_out = [], [], [], [], [], []
    for number, metadata in zip(numbers.tolist(), read_metadata(index, numbers), strict=True):
        if not metadata.get("boxes"):
            unboxed.append(number)
            continue
        found = usable_boxes(metadata["boxes"])
        left_out += [f"{keys[number]}: {line}" for line in found.left_out]
        if not found.boxes:
            spoilt.append(keys[number])
            continue
        scored.append(number)
        boxes.append(found.boxes)
        names = metadata.get("labels")
        labels.append([str(name) for name in names] if isinstance(names, list) else [])
    return Annotated(
        numbers=np.array(scored, np.int64),
        keys=[keys[number] for number in scored],
        boxes=boxes,
        labels=labels,
        unboxed=np.array(unboxed, np.int64),
        spoilt=spoilt,
        left_out=left_out,
    )
