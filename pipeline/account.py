"""What came of a request: all shard tables added up, as dataset.json and as a summary for people."""

import math
import platform
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.plan import Plan
from shards_spec.dataset import Dataset, ShardInfo, fingerprint, read_dataset, write_dataset
from shards_spec.errors import UserError
from shards_spec.quiet import Quiet, count_quiet
from shards_spec.sample import FBANK_MELS
from shards_spec.storage import Place
from shards_spec.tables import REASONS, read_tables, shard_stem

NOT_PRESENT = ("missing",)  # reasons of clips that are not there to be made: videos vanish, and nobody can mend that
_OF_ROWS = ("bad_segment", "duplicate")  # reasons that lie in the request
_CLIPS, _MEND = "clips that have a file", "mend them and add --retry-failed"
_EXAMPLES = 3  # clips named for each reason
_LIBRARIES = ("av", "decord", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Account:
    """All clips of a request.

    Attributes:
        failures: clips by reason.
        examples: `source: detail` of the first clips of each reason.
        quiet: samples with next to no sound.
        valid_values: fbank values before padding; fbank_sum and fbank_sumsq are over them.
    """

    shards: list[ShardInfo]
    failures: dict[str, int]
    examples: dict[str, list[str]]
    quiet: Quiet
    valid_values: int
    fbank_sum: float
    fbank_sumsq: float

    @property
    def samples(self) -> int:
        """Clips that gave a sample."""
        return sum(shard.samples for shard in self.shards)

    @property
    def failed(self) -> int:
        """Clips that gave none."""
        return sum(shard.failed for shard in self.shards)

    @property
    def failed_present(self) -> int:
        """Clips that gave none although there was a file or a row for them: all that somebody could mend."""
        return sum(count for reason, count in self.failures.items() if reason not in NOT_PRESENT)

    def too_many_failed(self, accepted: float) -> str | None:
        """What to say where a larger share than `accepted` of what is there gave no sample, else None."""
        present = self.samples + self.failed_present
        if self.failed_present <= accepted * present:
            return None
        rows = any(self.failures.get(reason) for reason in _OF_ROWS)
        kind = "clips that have a file, or a row that is damaged or asks for a key again," if rows else _CLIPS
        mend = "mend files and add --retry-failed, mend rows and give another --out" if rows else _MEND
        return (
            f"{self.failed_present:,} of {present:,} {kind} failed, more than --max-failed {accepted:g}: "
            f"{mend}, or accept them with --max-failed {math.ceil(100 * self.failed_present / present) / 100:g}"
        )

    @property
    def fingerprint(self) -> str:
        """Names the exact bytes of the dataset."""
        return fingerprint(self.shards)

    @property
    def mean(self) -> float:
        """Of the fbank values."""
        return self.fbank_sum / self.valid_values

    @property
    def std(self) -> float:
        """Of the fbank values."""
        return math.sqrt(max(0.0, self.fbank_sumsq / self.valid_values - self.mean**2))


def take_account(folder: Place, plan: Plan) -> Account:
    """Reads the tables of all shards, in order.

    Raises:
        UserError: a table is damaged, is not the plan's, or holds a sample without statistics.
    """
    shards = []
    failures: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    quiet = Quiet()
    sums: dict[str, list[float]] = {"valid_frames": [], "fbank_sum": [], "fbank_sumsq": []}
    firsts = plan.shard_firsts()
    parquets = [folder / f"{shard_stem(number)}.parquet" for number in range(plan.shards)]
    for number, (table, facts) in enumerate(read_tables(parquets)):
        parquet = parquets[number]
        planned = plan.table["key"].slice(firsts[number], firsts[number + 1] - firsts[number])
        if table["key"].to_pylist() != planned.to_pylist():
            raise UserError(f"{parquet} holds other clips than the plan: remove it and run the same command again")
        tar = parquet.with_suffix(".tar").name
        if key := _without_mean(table):
            raise UserError(
                f"{parquet}: the fbank of sample {key} is not finite, as earlier versions wrote it for damaged sound: "
                "remove this file and run the same make-shards command again"
            )
        shards.append(ShardInfo(name=tar, **{k: facts[k] for k in ("samples", "failed", "bytes", "sha256")}))
        for name, values in sums.items():
            values.append(pc.sum(table[name]).as_py() or 0)
        quiet += count_quiet(table.filter(pc.equal(table["status"], "ok")))
        failed = table.filter(pc.equal(table["status"], "failed")).select(["key", "source", "reason", "detail"])
        for row in failed.to_pylist():
            failures[row["reason"]] += 1
            named = examples.setdefault(row["reason"], [])
            if len(named) < _EXAMPLES:
                named.append(_printable(f"{row['source'] or row['key']}: {row['detail'] or row['reason']}"))
    return Account(
        shards=shards,
        failures={reason: failures[reason] for reason in REASONS if failures[reason]},
        examples=examples,
        quiet=quiet,
        valid_values=int(sum(sums["valid_frames"])) * FBANK_MELS,
        fbank_sum=math.fsum(sums["fbank_sum"]),
        fbank_sumsq=math.fsum(sums["fbank_sumsq"]),
    )


def _without_mean(table: pa.Table) -> str | None:
    """The key of a sample with which the dataset would have no mean and no standard deviation."""
    for name in ("fbank_sum", "fbank_sumsq"):
        keys = table.filter(pc.invert(pc.is_finite(table[name])))["key"]
        if len(keys):
            return str(keys[0].as_py())
    return None


def _printable(text: str) -> str:
    """One line without control characters: file names may hold any."""
    return "".join(c if c.isprintable() else "?" for c in text)[:160]


def is_written(folder: Place, account: Account) -> bool:
    """Whether dataset.json is there, whole, and says what the shard tables say."""
    try:
        dataset = read_dataset(folder)
    except UserError:
        return False
    return (dataset.shards, dataset.failures, dataset.quiet) == (account.shards, account.failures, account.quiet)


def write_account(folder: Place, plan: Plan, account: Account) -> None:
    """Writes dataset.json."""
    dataset = Dataset(
        recipe=plan.recipe,
        samples=account.samples,
        failed=account.failed,
        failures=account.failures,
        shards=account.shards,
        classes=plan.classes,
        mean=account.mean,
        std=account.std,
        quiet=account.quiet,
        fingerprint=account.fingerprint,
        versions=plan.versions,
    )
    write_dataset(folder, dataset)


def library_versions() -> dict[str, str]:
    """Of Python and the libraries whose version may change bytes."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def summary(folder: Place, account: Account) -> list[str]:
    """The lines printed at the end of a run."""
    size = sum(shard.bytes for shard in account.shards)
    width = len(f"{account.samples + account.failed:,}")
    lines = [f"{folder}: {account.samples + account.failed:,} clips asked for"]
    shown = f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    lines.append(f"  {account.samples:>{width},} ok, {shown} in {len(account.shards):,} shards")
    if parts := account.quiet.parts():
        lines.append(f"  {'':{width}}   of these {', '.join(parts)}: see tools.inspect_shards")
    for reason, count in account.failures.items():
        lines.append(f"  {count:>{width},} {reason}")
        lines += [f"  {'':{width}}   {example}" for example in account.examples[reason]]
        if count > _EXAMPLES:
            lines.append(
                f"  {'':{width}}   and {count - _EXAMPLES:,} more (columns reason and detail of shard-*.parquet)"
            )
    return lines
