"""The shards of a plan: which of them are to be built or tried again, and what each of them takes."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotations import is_annotated
from pipeline.array_task import Share
from pipeline.build_shard import ShardReport, ShardSpec, finished_shards, finished_tables
from pipeline.decoder_process import Make
from pipeline.encode_sample import SampleOptions
from pipeline.plan import LEAVING_OUT, Plan
from pipeline.renew_shard import FINAL_REASONS, clips_to_retry, may_change
from pipeline.shard_job import ShardJob
from shards_spec import storage
from shards_spec.atomic import TEMPORARY_SUFFIX
from shards_spec.dataset import DATASET_FILE
from shards_spec.quiet import count_quiet, rows_of
from shards_spec.storage import Place
from shards_spec.tables import plan_path, read_table, shard_stem

_SHARD_FILE = re.compile(r"shard-(\d+)\.")


class ShardQueue:
    """The shards that a run is to see to.

    Attributes:
        unfinished: numbers of the shards to build.
        retried: numbers of the finished shards whose failed clips get another try.
        outdated: numbers of the finished shards that say other labels or boxes than the plan, or hold samples that
            are no longer wanted.
    """

    def __init__(
        self,
        *,
        folder: Place,
        plan: Plan,
        roots: Sequence[Place],
        options: SampleOptions,
        make: Make,
        timeout: float,
        memory: int,
        share: Share,
        retry_failed: bool,
    ) -> None:
        """
        Args:
            roots: raw folders, as the plan counts them.
            options: of the samples.
            make: makes one sample, in a child process; must be picklable.
            timeout: seconds that one clip may take.
            memory: bytes that a decoder process may take.
            share: the shards that are this run's.
            retry_failed: whether failed clips of finished shards get another try.
        """
        self._folder, self._plan, self._options = folder.absolute(), plan, options
        self._roots = tuple(root.absolute() for root in roots)
        self._make, self._timeout, self._memory = make, timeout, memory
        self._firsts = plan.shard_firsts()
        self._ours = [number for number in range(plan.shards) if share.has(number)]
        self._finished, self.outdated = finished_and_outdated(folder, plan, self._ours)
        self.unfinished = [number for number in self._ours if number not in self._finished]
        self.retried = [n for n in self._finished if retry_failed and may_change(self._spec(n))]
        self._again, self._anew = frozenset(self.retried), frozenset(self.outdated)

    @property
    def numbers(self) -> list[int]:
        """Numbers of the shards to build or to renew."""
        return sorted({*self.unfinished, *self.retried, *self.outdated})

    def clips(self) -> int:
        """How many clips will be decoded, or copied."""
        reasons = self._plan.table["reason"]
        bounds = [(self._firsts[n], self._firsts[n + 1] - self._firsts[n]) for n in self.unfinished]
        decoded = sum(reasons.slice(*bound).null_count for bound in bounds)
        decoded += sum(len(clips_to_retry(self._spec(n))) for n in self.retried)
        return decoded + sum(self._finished[n].samples for n in self.outdated)

    def job(self, number: int) -> ShardJob:
        """What building a shard takes."""
        return ShardJob(
            spec=self._spec(number),
            roots=self._roots,
            make=self._make,
            timeout=self._timeout,
            memory=self._memory,
            retry=number in self._again,
            renew=number in self._anew,
            options=self._options,
        )

    def remove_left_over(self, *, common: bool) -> None:
        """Removes what killed writers of our shards have left; `common`: also of the files of the whole dataset."""
        ours = frozenset(self._ours)
        shared = (plan_path(self._folder).name, DATASET_FILE)
        for name in storage.sizes(self._folder):
            if name.endswith(TEMPORARY_SUFFIX):
                shard = _SHARD_FILE.match(name)
                if int(shard[1]) in ours if shard else common and name.startswith(shared):
                    storage.remove(self._folder / name)

    def _spec(self, number: int) -> ShardSpec:
        first, end = self._firsts[number], self._firsts[number + 1]
        rows = self._plan.table.slice(first, end - first).to_pylist()
        return ShardSpec(folder=self._folder, number=number, rows=rows, members=self._options.members)


def finished_and_outdated(
    folder: Place, plan: Plan, numbers: Iterable[int]
) -> tuple[dict[int, ShardReport], list[int]]:
    """The finished shards among these; and the numbers of those that are not what the plan asks for any more: they say
    other labels or boxes, or hold samples that --min-seconds or --skip-silent leave out.

    Raises:
        UserError: a parquet is damaged.
    """
    finished, outdated = {}, []
    firsts = plan.shard_firsts()
    for report, table in finished_tables(folder, numbers):
        first = firsts[report.number]
        planned = plan.table.slice(first, firsts[report.number + 1] - first)
        finished[report.number] = report
        is_current = is_annotated(table, planned) and not _holds_unwanted(table, plan.recipe)
        if table["key"].equals(planned["key"]) and not is_current:  # take_account refuses other clips
            outdated.append(report.number)
    return finished, outdated


def _holds_unwanted(table: pa.Table, recipe: dict[str, Any]) -> bool:
    """Whether a shard holds, or as far as its table says may hold, samples that the recipe leaves out."""
    if not any(name in recipe for name in LEAVING_OUT):
        return False
    ok = table.filter(pc.equal(table["status"], "ok"))
    quiet = count_quiet(ok)
    is_short = pc.any(pc.less(ok["valid_frames"], rows_of(recipe.get("min_seconds", 0)))).as_py()
    return bool(is_short or (recipe.get("skip_silent") and (quiet.silent or quiet.near_silent != 0)))


def failed_rows(folder: Place, plan: Plan) -> list[int]:
    """Row numbers, in the plan, of clips that failed for a reason that may pass: by the tables of the finished shards,
    by the plan itself where a shard is not finished."""
    numbers = []
    firsts = plan.shard_firsts()
    finished = finished_shards(folder, range(plan.shards))
    for shard in range(plan.shards):
        if shard in finished:
            table, _ = read_table(folder / f"{shard_stem(shard)}.parquet")
        else:
            table = plan.table.slice(firsts[shard], firsts[shard + 1] - firsts[shard])
        reasons = table["reason"].to_pylist()
        numbers += [firsts[shard] + i for i, r in enumerate(reasons) if r is not None and r not in FINAL_REASONS]
    return numbers
