"""Which clip of a plan gets which key, where several names ask for the same."""

from collections.abc import Iterable
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline.segments import Segment
from shards_spec.sample import distinct_key, shared_keys

_WITHOUT_KEY = ("bad_segment", "duplicate")  # reasons of rows that keep no key from others
_BATCH = 50_000  # rows held as Python's objects at the same time


class Keys:
    """Which clip gets which key.

    A clip that is known by its file has the key that `file_key` makes of its name. Where several names have the same,
    each name that is not its own key has a `distinct_key`; those of the plan keep theirs.
    """

    def __init__(self, planned: pa.Table | None, new: Iterable[Segment]) -> None:
        self._taken: set[str] = set()
        self._planned: dict[str, str] = {}  # the name behind a key of the plan
        if planned is not None:
            self._add_planned(planned)
        self._shared = shared_keys((s.key, s.name) for s in new if s.name)

    def _add_planned(self, table: pa.Table) -> None:
        for batch in table.select(("key", "reason", "name", "ytid", "source")).to_batches(_BATCH):
            for key, reason, name, ytid, source in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                if reason in _WITHOUT_KEY:
                    continue
                self._taken.add(key)
                if name is None and ytid is None and source is not None:  # plans from before they had names
                    name = PurePosixPath(source).stem
                if name is not None:
                    self._planned[key] = name

    def take(self, segment: Segment) -> tuple[str, bool]:
        """The clip's key, and whether it is the first that has it."""
        key, name = segment.key, segment.name
        is_anothers = self._planned.get(key, name) != name
        if name and (is_anothers or (key in self._shared and name != key)):
            key = distinct_key(key, name)
        is_first = key not in self._taken
        self._taken.add(key)
        return key, is_first
