"""The plan of a dataset: every requested clip, its file, its shard. Written before any decoding, read back by reruns.

    request (rows of the CSV, or the raw files) x raw files -> plan.parquet

Rows keep the order of the request. A request that has grown gets new shards for its new rows: what is there stays.
"""

import hashlib
import itertools
import json
import operator
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.annotations import ANNOTATING
from pipeline.boxes import Boxes
from pipeline.classes import ClassList
from pipeline.keys import Keys
from pipeline.pairs import LACKING
from pipeline.raw_files import RawFile, RawIndex, shown_path
from pipeline.segments import KeyOf, Segment
from shards_spec import sample, storage
from shards_spec.errors import UserError
from shards_spec.storage import Place
from shards_spec.tables import PLAN_SCHEMA, plan_path, read_table, write_table

Row = dict[str, Any]
Found = tuple[RawFile | None, float | None, str]  # file, start that its name states, what was found instead
Locate = Callable[[Sequence[Segment]], Iterator[Found]]

_PLACED = ("source", "root", "named_start", "reason", "detail", "picture")  # columns that `_place` fills
_TWINS = "another file gives the same key: with --key path, files of different folders have keys of their own"
LEAVING_OUT = ("min_seconds", "skip_silent")  # options of the recipe that leave samples out, the greater the more
_BATCH = 50_000  # rows held as Python's objects at the same time
_ARITHMETIC = 2  # counts the changes of this program that changed bits of samples (2: fbank and resampler in numpy)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What plan.parquet holds.

    Attributes:
        table: PLAN_SCHEMA, rows in shard order.
        recipe: every option that changes bytes.
        classes: index, mid, name of each class.
        versions: of the libraries when the plan was made.
    """

    table: pa.Table
    recipe: dict[str, Any]
    classes: list[dict[str, Any]]
    versions: dict[str, str]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return int(self.table["shard"][-1].as_py()) + 1

    def shard_firsts(self) -> list[int]:
        """Row number at which each shard begins, and the number of rows at the end."""
        return [int(i) for i in np.searchsorted(self.table["shard"].to_numpy(), np.arange(self.shards + 1))]

    def write(self, folder: Place) -> None:
        """Writes plan.parquet."""
        facts = {"recipe": self.recipe, "classes": self.classes, "versions": self.versions}
        write_table(plan_path(folder), self.table, PLAN_SCHEMA, facts)


def make_recipe(
    *,
    by_file: bool,
    shard_size: int,
    frame_fit: str,
    frames: int,
    keep_audio: bool,
    decoder: str,
    clip_seconds: float,
    classes: list[dict[str, Any]] | None,
    boxes: Boxes | None,
    key_of: KeyOf = "stem",
    pairs: bool = False,
    audio_only: bool = False,
    min_seconds: float = 0.0,
    skip_silent: bool = False,
    frame_times: str = "middles",
) -> dict[str, Any]:
    """Every choice that changes bytes: the options, and the constants of the format.

    Options that are younger than the format are there where they are used: what was begun without them goes on.

    Args:
        classes: of the class list that is given; None: the labels are the classes, and more may come.
    """
    return {
        "segments": "none" if by_file else "CSV",
        "class_labels": "segments" if classes is None else _sha256(classes) if classes else "none",
        "shard_size": shard_size,
        "frame_fit": frame_fit,
        "frames": frames,
        "keep_audio": keep_audio,
        "decoder": decoder,
        "clip_seconds": clip_seconds,
        "sample_rate": sample.SAMPLE_RATE,
        "fbank_mels": sample.FBANK_MELS,
        "fbank_frames": sample.FBANK_FRAMES,
        "fbank_window_ms": sample.FBANK_WINDOW_MS,
        "fbank_shift_ms": sample.FBANK_SHIFT_MS,
        "frame_size": sample.FRAME_SIZE,
        "jpeg_quality": sample.JPEG_QUALITY,
        "arithmetic": _ARITHMETIC,
        **({} if boxes is None else {"boxes": boxes.sha256}),
        **({} if key_of == "stem" else {"key": key_of}),
        **({"pairs": True} if pairs else {}),
        **({"audio_only": True} if audio_only else {}),
        **({"min_seconds": min_seconds} if min_seconds else {}),
        **({"skip_silent": True} if skip_silent else {}),
        **({} if frame_times == "middles" else {"frame_times": frame_times}),
    }


def _sha256(classes: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(classes, sort_keys=True).encode()).hexdigest()


def read_plan(folder: Place) -> Plan | None:
    """The plan of a dataset folder, None where there is none.

    Raises:
        UserError: it is damaged, or shards lie there without a plan.
    """
    path = plan_path(folder)
    if not storage.is_file(path):
        stray = [name for name in storage.sizes(folder) if name.startswith("shard-") and name.endswith(".parquet")]
        if stray:
            raise UserError(f"{folder} holds {stray[0]} but no {path.name}: restore it, or give another --out")
        return None
    table, facts = read_table(path)
    if missing := [name for name in ("recipe", "classes", "versions") if name not in facts]:
        raise UserError(f"{path} lacks {missing[0]}: it is no plan of make-shards; give another --out")
    for field in PLAN_SCHEMA:  # plans are older than the last of their columns
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    table = table.select(PLAN_SCHEMA.names)
    return Plan(table=table, recipe=facts["recipe"], classes=facts["classes"], versions=facts["versions"])


def check_recipe(plan: Plan, recipe: dict[str, Any], folder: Place) -> None:
    """Raises UserError naming every option in which `recipe` differs from the plan's.

    Class lists and boxes may be added or replaced later, and more samples left out: nothing is decoded for that. To
    take an option away is taken for forgetting it.
    """
    if plan.recipe.get("arithmetic") != recipe["arithmetic"]:
        raise UserError(
            f"{folder} was begun by another version of make-shards, whose samples differ in their last bits: "
            "finish it with that version, or give another --out"
        )
    differences = [
        f"--{name.replace('_', '-')} was {_short(name, plan.recipe)}, now {_short(name, recipe)}"
        for name in sorted(recipe.keys() | plan.recipe.keys())
        if plan.recipe.get(name) != recipe.get(name)
        and not (name in ANNOTATING and recipe.get(name) not in (None, "none", "segments"))
        and not (name in LEAVING_OUT and recipe.get(name, 0) > plan.recipe.get(name, 0))
    ]
    if differences:
        raise UserError(
            f"{folder} was begun with another recipe: {'; '.join(differences)}: "
            "give the options it was begun with, or another --out"
        )


def _short(name: str, recipe: dict[str, Any]) -> str:
    value = recipe.get(name, {"key": "stem", "frame_times": "middles"}.get(name))
    return value[:12] if isinstance(value, str) else "none" if value is None else str(value)


def files_request(
    roots: Sequence[Place],
    media: Iterable[tuple[str, RawFile]],
    *,
    clip_seconds: float,
    limit: int | None,
    key_of: KeyOf,
) -> tuple[list[Segment], Locate]:
    """Every media file as a clip of its first `clip_seconds`, by path; and where each of them lies."""
    files = sorted(media, key=lambda found: (found[1].path, found[1].root))[:limit]
    if not files:
        raise UserError(f"no media file below {_list(roots)}: give the folder that holds the downloads")
    request, place = [], {}
    for stem, file in files:
        base = stem if key_of == "stem" else os.path.splitext(file.path)[0]  # noqa: PTH122
        where = f"{file.root}/{shown_path(file.path)}"
        key, name = sample.file_key(base), shown_path(base)
        request.append(Segment(key, None, stem, 0.0, clip_seconds, (), 0, "", name, where))
        place[where] = file

    def locate(segments: Sequence[Segment]) -> Iterator[Found]:
        for segment in segments:
            file = place[segment.path]
            yield file, 0.0 if file.picture is None else None, ""  # of a pair's sound, the middle is taken

    return request, locate


def segments_locator(roots: Sequence[Place], media: Callable[[], Iterable[tuple[str, RawFile]]]) -> Locate:
    """Finds the files of CSV rows. The roots are listed, by `media`, when it is called."""

    def locate(segments: Sequence[Segment]) -> Iterator[Found]:
        index = RawIndex(
            roots,
            media(),
            ytids=(s.ytid for s in segments if s.ytid is not None),
            stems=(s.stem for s in segments if s.stem is not None),
        )
        for s in segments:
            if s.start is None:
                yield None, None, ""
                continue
            if s.ytid is not None:
                file, named_start, instead = index.find(ytid=s.ytid, start=s.start)
            else:
                files, instead = index.find_named(s.path, s.stem or "")
                _check_one(s, files)
                file, named_start = files[0] if files else None, 0.0 if files and s.of_file else None
            yield file, named_start, instead or f"no file of this clip below {_list(roots)}"

    return locate


def _check_one(segment: Segment, files: Sequence[RawFile]) -> None:
    """Raises UserError where a row may mean several files."""
    if len(files) > 1:
        raise UserError(
            f"line {segment.line} of the segment CSV: {segment.path!r} may be {shown_path(files[0].path)!r} or "
            f"{shown_path(files[1].path)!r}: give its path below the raw folder"
        )


def _list(roots: Sequence[Place]) -> str:
    return ", ".join(str(root) for root in roots)


def plan_request(
    old: Plan | None,
    new: list[Segment],
    locate: Locate,
    *,
    shard_size: int,
    classes: ClassList,
    boxes: Boxes | None,
) -> pa.Table:
    """The table of the whole plan: the old one's rows, and `new` ones (`matched`) in shards of their own.

    Raises:
        UserError: no clip has a file.
    """
    if old is not None and not new:
        return old.table.replace_schema_metadata(None)  # the raw folders need not be listed
    first_shard = 0 if old is None else old.shards
    keys = Keys(None if old is None else old.table, new)
    table = _table(new, locate(new), keys, classes, boxes, first_shard=first_shard, shard_size=shard_size)
    if old is None and table["root"].null_count == len(table):
        raise UserError(
            f"none of the {len(table)} clips has a file: first {table['key'][0]} "
            f"({table['detail'][0]}); expected names like {_example(new)}"
        )
    return table if old is None else pa.concat_tables([old.table.replace_schema_metadata(None), table])


def _example(segments: Iterable[Segment]) -> str:
    segment = next(s for s in segments if not s.problem)
    return segment.path or f"{segment.ytid}.mp4 or {segment.ytid}_{segment.start}.mp4"


def matched(old: Plan, request: list[Segment], *, by_file: bool) -> tuple[list[Segment], list[Segment]]:
    """The request's row for each row of the plan, and the rows that the plan lacks; the same row twice counts twice.

    Raises:
        UserError: clips of the plan are no longer asked for.
    """
    count = len(old.table)
    if len(request) >= count and all(map(operator.eq, _planned(old, by_file), _asked(request, by_file))):
        return request[:count], request[count:]  # the usual case: nothing is gone, and what is new comes last
    asked: dict[tuple[Any, ...], deque[Segment]] = {}
    for s, identity in zip(request, _asked(request, by_file), strict=True):
        for name in {identity, _without_name(s)}:  # plans from before they had names know rows by the second
            asked.setdefault(name, deque()).append(s)
    kept: list[Segment] = []
    taken: set[int] = set()
    vanished = []
    for identity in _planned(old, by_file):
        left = asked.get(identity, deque())
        while left and id(left[0]) in taken:
            left.popleft()
        if left:
            kept.append(left.popleft())
            taken.add(id(kept[-1]))
        else:
            vanished.append(identity)
    if vanished:
        name = vanished[0][0] or vanished[0][1]
        raise UserError(
            f"{len(vanished)} clips of the plan are no longer asked for, the first is {name}: a rerun may ask for "
            "more clips, not for fewer or changed ones; give the same request, or another --out"
        )
    return kept, [s for s in request if id(s) not in taken]


def _planned(plan: Plan, by_file: bool) -> Iterator[tuple[Any, ...]]:
    """What each row of the plan asks for, as `_asked` says it."""
    names = ("key", "start", "end", "root", "source", "reason", "name")
    for batch in plan.table.select(names).to_batches(_BATCH):
        columns = (column.to_pylist() for column in batch.columns)
        for key, start, end, root, source, reason, name in zip(*columns, strict=True):
            if by_file:
                yield source, root
            else:
                is_bad = reason == "bad_segment"
                yield name or "", "" if name else key, start, end, is_bad


def _asked(request: Iterable[Segment], by_file: bool) -> Iterator[tuple[Any, ...]]:
    """What tells the rows of a request apart: a name or a key, and the seconds; not their labels, which may change."""
    for s in request:
        if by_file:
            root, _, path = s.path.partition("/")
            yield path, int(root)
        else:
            yield (s.name, "", *_without_name(s)[2:]) if s.name else _without_name(s)


def _without_name(s: Segment) -> tuple[Any, ...]:
    return "", s.key, s.start, s.end, bool(s.problem)


def _table(
    segments: list[Segment],
    found: Iterator[Found],
    keys: Keys,
    classes: ClassList,
    boxes: Boxes | None,
    *,
    first_shard: int,
    shard_size: int,
) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    rows: list[tuple[Any, ...]] = []  # in the order of PLAN_SCHEMA
    for number, (s, (file, named_start, instead)) in enumerate(zip(segments, found, strict=True)):
        reason = detail = None
        key = s.key
        if s.problem:
            reason, detail = "bad_segment", s.problem
        else:
            key, is_first = keys.take(s)
            if not is_first:
                reason = "duplicate"
                detail = _taken(s)
        source, root, named_start, why_not, note, picture = _place(file, named_start, instead)
        if reason is None:
            reason, detail = why_not, note
        shard, label_ids = first_shard + number // shard_size, classes.label_ids(s.labels)
        clip = (key, source, s.start, s.end, s.labels, label_ids, shard)
        found_boxes = None if boxes is None else boxes.of(s)
        rows.append((*clip, s.ytid, root, named_start, reason, detail, found_boxes, s.name or None, picture))
        if len(rows) == _BATCH:
            batches.append(_batch(rows))
            rows.clear()
    return pa.Table.from_batches([*batches, _batch(rows)], PLAN_SCHEMA)


def _taken(s: Segment) -> str:
    if not s.line:
        return _TWINS
    other = ", or for a file of another folder, to which --key path gives a key of its own" if "/" in s.path else ""
    return f"line {s.line} asks for the clip again{other}"


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    """Rows of PLAN_SCHEMA, in a tenth of the memory that Python's objects take."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(PLAN_SCHEMA)
    arrays = [_array(column, field.type) for column, field in zip(columns, PLAN_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=PLAN_SCHEMA)


def _array(values: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_list(kind) or None in values:
        return pa.array(values, kind)
    ends = list(itertools.accumulate(map(len, values), initial=0))  # half the time of pa.array
    return pa.ListArray.from_arrays(ends, pa.array(list(itertools.chain.from_iterable(values)), kind.value_type))


def _place(
    file: RawFile | None, named_start: float | None, instead: str
) -> tuple[str | None, int | None, float | None, str | None, str | None, str | None]:
    """Columns source, root, named_start, reason, detail and picture for what `Locate` gave."""
    if file is None:
        return None, None, None, "missing", instead, None
    source, picture = shown_path(file.path), None if file.picture is None else shown_path(file.picture)
    reason, detail = file.lacks, None if file.lacks is None else LACKING[file.lacks]
    if (source, picture) != (file.path, file.picture):
        reason, detail = "unreadable", "the file name is not UTF-8: rename the file"
    return source, file.root, named_start, reason, detail, picture


def relocate(plan: Plan, numbers: Sequence[int], request: list[Segment], locate: Locate) -> Plan:
    """The plan after looking again, below the raw roots, for the files of failed CSV rows, by row number."""
    columns = plan.table.to_pydict()
    by_name = {s.name: s for s in reversed(request) if s.name and not s.problem}
    keys = {columns["key"][i] for i in numbers}
    by_key = {s.key: s for s in reversed(request) if s.key in keys and not s.problem}
    segments = [by_name.get(columns["name"][i] or "") or by_key[columns["key"][i]] for i in numbers]
    for i, found in zip(numbers, locate(segments), strict=True):
        for name, value in zip(_PLACED, _place(*found), strict=True):
            columns[name][i] = value
    table = pa.Table.from_pydict(columns, schema=PLAN_SCHEMA)
    return Plan(table=table, recipe=plan.recipe, classes=plan.classes, versions=plan.versions)
