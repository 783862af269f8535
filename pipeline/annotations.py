"""What people say of a clip: labels, their class indices, boxes. It stands in the JSON and the tables alone, so a rerun
may say it anew: the plan changes, and shards that say something else are written again without any decoding.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.boxes import Boxes
from pipeline.classes import ClassList
from pipeline.segments import Segment
from shards_spec.sample import encode_json
from shards_spec.tables import PLAN_SCHEMA

Row = dict[str, Any]

ANNOTATIONS = ("labels", "label_ids", "boxes")  # columns of the plan and of the shard tables
ANNOTATING = ("class_labels", "boxes")  # options of the recipe that change these alone


def annotated(metadata: Row, row: Row) -> Row:
    """A sample's metadata with what its row of the plan says of it."""
    others = {name: value for name, value in metadata.items() if name not in ANNOTATIONS}
    boxes = {"boxes": row["boxes"]} if row.get("boxes") else {}
    return {**others, "labels": row["labels"] or [], "label_ids": row["label_ids"] or [], **boxes}


def annotated_json(payload: bytes, row: Row) -> bytes:
    """`annotated` of a JSON member: the bytes that decoding the clip again would give."""
    return encode_json(annotated(json.loads(payload), row))


def is_annotated(table: pa.Table, planned: pa.Table) -> bool:
    """Whether a shard says of its clips what the plan does.

    Tables of earlier versions have no boxes: where the plan has some, the shard is written again, once.
    """
    if "boxes" not in table.column_names:
        if planned["boxes"].null_count < len(planned):
            return False
        table = table.append_column("boxes", pa.nulls(len(table), planned["boxes"].type))
    return all(table[name].equals(planned[name]) for name in ANNOTATIONS)


def says_the_same(plan: pa.Table, segments: Sequence[Segment]) -> bool:
    """Whether the labels of the request, a row for each row of the plan, are the plan's."""
    planned = itertools.chain.from_iterable(batch.to_pylist() for batch in plan["labels"].chunks)
    return all(tuple(labels or ()) == segment.labels for labels, segment in zip(planned, segments, strict=True))


def reannotated(
    plan: pa.Table, segments: Sequence[Segment], classes: ClassList, boxes: Boxes | None
) -> tuple[pa.Table, int]:
    """The plan's table with what is said of its clips now, and of how many that is something else.

    Args:
        segments: the request's row for each row of the plan.
    """
    now: dict[str, list[Any]] = {
        "labels": [segment.labels for segment in segments],
        "label_ids": [classes.label_ids(segment.labels) for segment in segments],
        "boxes": [None if boxes is None else boxes.of(segment) for segment in segments],
    }
    table, differs = plan, np.zeros(len(plan), bool)
    for name in ANNOTATIONS:
        field = PLAN_SCHEMA.field(name)
        column = pa.array(now[name], field.type)
        before = plan[name].to_pylist()
        differs |= [(a or []) != (b or []) for a, b in zip(before, column.to_pylist(), strict=True)]
        table = table.set_column(table.column_names.index(name), field, column)
    return table, int(differs.sum())
