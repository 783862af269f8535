"""The paper's ablation on the synthetic world: trains every variant with the same budget, measures, writes the table.

    python -m tools.make_world WORLD --direct --seed 0 --splits init:8000,train:8000,test:500
    python -m tools.run_ablation --data WORLD --out ABLATION

    ABLATION/ablation.json              what all runs share: the budget, the fingerprints of the datasets, own rows
    ABLATION/runs/init-seed0/           the SelfMAE run on other clips (WORLD/init) that the variants start from
    ABLATION/runs/crossmae-init-seed0/  a run folder of train.py, with world.json (what was measured) and train.log
    ABLATION/results.json, table.md, report.html    of all runs that are done so far, whichever command asked for them

It resumes where it stopped: finished runs are left alone, a run that was stopped goes on from its checkpoint.
"""

import functools
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, get_args

import tyro
from tqdm import tqdm

from shards_spec.atomic import atomic_path
from shards_spec.command_line import one_line_errors, parse
from shards_spec.cores import usable_cores
from shards_spec.errors import UserError
from shards_spec.messages import say, tell
from tools.ablation.baselines import baselines
from tools.ablation.measure import VERSION, Metrics, read_clips, strangers
from tools.ablation.page import write_page
from tools.ablation.plan import ROWS, TABLE_2, TRAIN, Budget, Run, Start, planned_runs
from tools.ablation.processes import Job, stop
from tools.ablation.table import order_lines, table_rows, text_table
from training.checkpoint import checkpoint_folder
from training.methods.crossmae.config import Preset
from training.recipes import parse_arguments
from training.stream.index import open_index

_MEASURED = "world.json"
_UNTRAINED = "world-untrained.json"
_LOG = "train.log"
_SEED = re.compile(r"-seed(\d+)$")
_ROW = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Trains and measures the variants of Table 2 (and Table 6) on a synthetic world; run again, it goes on."""

    data: Path
    """What tools.make_world --direct wrote: the splits train and test, and init for --starts init."""
    out: Path
    """Folder to write."""
    variants: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Rows of the table, one a flag. Default: the six of Table 2 and the two of Table 6."""
    row: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A row of your own, one a flag, as NAME=OPTIONS with options for train.py, for example
    --row "feature=--variant crossmae --model.embedding.normalise feature" (docs/ablation.md)."""
    seeds: int = 3
    """Runs of each row."""
    starts: tuple[Start, ...] = ("init", "scratch")
    """From the weights of a SelfMAE run on other clips (as the paper starts from ImageNet's), and from scratch."""
    preset: Preset = "world-tiny"
    """Model size: world-tiny for a CPU, world-small for a GPU."""
    steps: int = 1000
    """Optimizer steps of each run."""
    init_steps: int | None = None
    """Of the SelfMAE run that the others start from. Default: as --steps."""
    batch_size: int = 64
    """Clips a step."""
    lr: float = 1e-3
    """Peak learning rate: the paper's 2e-5 is for ViT-B from ImageNet weights."""
    jobs: int = 1
    """Runs at the same time."""
    workers: int = 1
    """Loader processes of each run."""
    launch: str = ""
    """What stands before train.py, as "accelerate launch --num_processes 8". Default: this Python."""
    options: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """For train.py, one a flag: --options=--mixed-precision=bf16"""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "batch_size", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        unknown = [name for name in self.variants if name not in ROWS]
        if unknown:
            raise ValueError(f"--variants {unknown[0]}: allowed are {'; '.join(ROWS)}")
        taken = {run.name for run in planned_runs(tuple(ROWS), ("scratch",), 1)}
        clashing = [run.row for run in planned_runs(tuple(self.own_rows), ("scratch",), 1) if run.name in taken]
        if clashing:
            raise ValueError(f"--row {clashing[0]}: the table has such a row, give another name")

    @property
    def own_rows(self) -> dict[str, tuple[str, ...]]:
        """--row: what train.py is told, by name."""
        found = {}
        for given in self.row:
            parts = _ROW.fullmatch(given)
            if parts is None:
                raise ValueError(f"--row {given}: expected NAME=OPTIONS, the name of letters, digits, '.', '_' and '-'")
            if parts[1] in found:
                raise ValueError(f"--row {parts[1]}: given twice, give each row a name of its own")
            try:
                found[parts[1]] = tuple(shlex.split(parts[2]))
            except ValueError as error:
                raise ValueError(f"--row {given}: the options cannot be split into words: {error}") from error
        return found

    @property
    def rows(self) -> dict[str, tuple[str, ...]]:
        """What train.py is told for each row, by name, in the order of the table."""
        return {name: told for name, told in ROWS.items() if not self.variants or name in self.variants} | self.own_rows


class Ablation:
    """One ablation: its runs, what they need, and what they gave."""

    def __init__(self, config: AblationConfig) -> None:
        self.config = config
        self.budget = Budget(
            preset=config.preset,
            batch_size=config.batch_size,
            lr=config.lr,
            workers=config.workers,
            launch=tuple(shlex.split(config.launch)),
            options=config.options,
        )
        splits = ("train", "test", *(["init"] if "init" in config.starts else []))
        self.splits = {name: open_index(str(config.data / name)) for name in splits}  # complete, or what is wrong
        self.planned = planned_runs(tuple(config.rows), config.starts, config.seeds)
        self._rows = [*ROWS, *config.own_rows]
        self._writing = Lock()
        self._lock = Lock()  # of the two below
        self._jobs: set[Job] = set()
        self._stopping = False

    def folder(self, name: str) -> Path:
        """The folder of a run."""
        return self.config.out / "runs" / name

    # ---------------------------------------------------------------- running

    def run(self) -> None:
        """Everything that is not there yet; then the table."""
        config = self.config
        self._check()
        self.folder("").mkdir(parents=True, exist_ok=True)
        self._agree()
        if "init" in config.starts:
            self._together(range(config.seeds), self._train_and_measure_init, "init runs")
        self._together(self.planned, self._train_and_measure, "runs")
        there = self._by_seed(_UNTRAINED)
        untrained = {run.seed: run for run in self.planned if run.row == self._widest and run.seed not in there}
        self._together(untrained.values(), self._measure_untrained, "untrained")
        print(self.write())

    @property
    def _widest(self) -> str:
        """The row whose initial weights stand for the untrained model: the last one of Table 2 builds the most."""
        rows = list(self.config.rows)
        return ([name for name in rows if name in TABLE_2] or rows)[-1]

    def _check(self) -> None:
        """Refuses, before anything is trained, what would show only after it: options, and clips that do not serve."""
        strangers(read_clips(self.splits["test"]))
        for row, told in self.config.rows.items():
            words = self.budget.command(data=Path(), out=Path(), steps=self.config.steps, seed=0, options=told)
            try:
                parse_arguments(words[words.index(str(TRAIN)) + 1 :])
            except UserError as error:
                raise UserError(f"row {row}: {error}") from error

    def _agree(self) -> None:
        """Refuses to go on with another budget or other data; more seeds, rows and starts are welcome."""
        path = self.config.out / "ablation.json"
        free = {"out", "data", "variants", "row", "seeds", "starts", "jobs", "workers", "launch"}
        mine = {k: json.loads(json.dumps(v, default=str)) for k, v in asdict(self.config).items() if k not in free}
        fingerprints = {name: index.fingerprint for name, index in self.splits.items()}
        rows = {name: list(told) for name, told in self.config.own_rows.items()}
        if path.exists():
            theirs = json.loads(path.read_text())
            differing = [
                f"--{k.replace('_', '-')} was {theirs.get(k)}, is {v}" for k, v in mine.items() if theirs.get(k) != v
            ]
            differing += self._other_data(theirs, fingerprints)
            before = theirs.get("rows", {})
            differing += [
                f"--row {name} was {shlex.join(before[name])}, is {shlex.join(told)}"
                for name, told in rows.items()
                if before.get(name, told) != told
            ]
            if differing:
                raise UserError(
                    f"{self.config.out} was begun with another budget: {'; '.join(differing)}: use another --out"
                )
            fingerprints, rows = theirs.get("fingerprints", {}) | fingerprints, before | rows
        mine |= {"data": str(self.config.data), "fingerprints": fingerprints, "rows": rows}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(mine, indent=2) + "\n")
        self._rows = [*ROWS, *rows]  # those of earlier commands, too

    def _other_data(self, theirs: dict[str, Any], fingerprints: dict[str, str]) -> list[str]:
        """What differs in the data. An ablation.json that has no fingerprints yet is taken by its path."""
        before = theirs.get("fingerprints")
        if before is None:
            is_same = Path(theirs["data"]).resolve() == self.config.data.resolve()
            return [] if is_same else [f"--data was {theirs['data']}, is {self.config.data}"]
        return [
            f"{self.config.data / name} is another dataset (fingerprint {mine[:12]}, was {before[name][:12]})"
            for name, mine in fingerprints.items()
            if before.get(name, mine) != mine
        ]

    def _together(self, items: Iterable[Any], work: Callable[[Any], None], what: str) -> None:
        """`jobs` at a time. After a failure, or Ctrl-C, those that run are stopped: they save and can go on."""
        items = list(items)
        on_terminal = sys.stderr.isatty()
        bar = tqdm(total=len(items), desc=what, unit="run", disable=not on_terminal)
        with ThreadPoolExecutor(self.config.jobs) as pool, bar:
            waiting: set[Future[None]] = {pool.submit(work, item) for item in items}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        bar.update()
                    if not on_terminal:
                        _say(f"{what}: {len(items) - len(waiting)} of {len(items)}")
            except BaseException:
                self._stop(waiting)
                raise

    def _stop(self, waiting: set[Future[None]]) -> None:
        for future in waiting:
            future.cancel()
        with self._lock:
            self._stopping = True
            jobs = set(self._jobs)
        stop(jobs)

    def _train_and_measure_init(self, seed: int) -> None:
        name, steps = _init_name(seed), self.config.init_steps or self.config.steps
        # 1000: other weights and orders than any run of the table.
        self._train(name, split="init", steps=steps, seed=1000 + seed, options=["--variant=selfmae"])
        self._measure(name, _MEASURED)

    def _train_and_measure(self, run: Run) -> None:
        options = list(self.config.rows[run.row])
        if run.start == "init":
            options.append(f"--init={self.folder(_init_name(run.seed))}")
        self._train(run.name, split="train", steps=self.config.steps, seed=run.seed, options=options)
        self._measure(run.name, _MEASURED)

    def _measure_untrained(self, run: Run) -> None:
        self._measure(run.name, _UNTRAINED, "--untrained")

    def _train(self, name: str, *, split: str, steps: int, seed: int, options: list[str]) -> None:
        folder, data = self.folder(name), self.config.data / split
        if not checkpoint_folder(folder, steps).is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _say(f"{name}: trains for {steps:,} steps ({folder / _LOG})")
            self._call(self.budget.command(data=data, out=folder, steps=steps, seed=seed, options=options), folder)

    def _measure(self, name: str, out: str, *options: str) -> None:
        folder, data = self.folder(name), self.config.data
        if self._read(name, out) is None:
            command = [sys.executable, "-m", "tools.ablation.measure", f"--checkpoint={folder}", *options]
            command += [f"--out={folder / out}", f"--train={data / 'train'}", f"--test={data / 'test'}"]
            _say(f"{name}: is measured{' untrained' if options else ''}")
            self._call(command, folder)
            self.write()

    def _call(self, command: list[str], folder: Path) -> None:
        """Runs a command to its end, its output into the run's log.

        Raises:
            UserError: it failed, and names the log and its last line; or there is no such program.
        """
        log = folder / _LOG
        threads = str(max(1, usable_cores() // self.config.jobs))
        with self._lock:
            if self._stopping:
                return
            try:
                job = Job(command, log=log, environment={"OMP_NUM_THREADS": threads} | os.environ)
            except OSError as error:
                raise UserError(f"{command[0]} cannot be started ({error.strerror}): see --launch") from error
            self._jobs.add(job)
        status = job.wait()
        with self._lock:
            self._jobs.remove(job)
        if status:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise UserError(f"a run ended with status {status}: {log}: {lines[-1] if lines else 'it said nothing'}")

    # ---------------------------------------------------------------- what came out

    def write(self) -> str:
        """results.json, table.md and report.html, of the runs that were measured; returns what to print."""
        with self._writing:
            return self._write()

    def _write(self) -> str:
        out, known = self.config.out, self._known()
        measured = {run: found for run in known if (found := self._read(run.name, _MEASURED)) is not None}
        seeds = sorted({run.seed for run in known})
        inits = [found for seed in seeds if (found := self._read(_init_name(seed), _MEASURED)) is not None]
        references = {"start: SelfMAE": inits, "untrained": list(self._by_seed(_UNTRAINED).values())}
        references |= {name: [metrics] for name, metrics in self._baselines.items()}
        rows = table_rows(measured, {name: figures for name, figures in references.items() if figures})
        order = order_lines(rows, len(self.splits["test"]))
        table = text_table(rows)
        facts = self._facts(measured)
        with atomic_path(out / "results.json") as temporary:
            plain = {"version": VERSION, "config": facts, "rows": [asdict(row) for row in rows], "order": order}
            temporary.write_text(json.dumps(plain, indent=2) + "\n")
        with atomic_path(out / "table.md") as temporary:
            temporary.write_text("\n".join([table, "", *(f"- {line}" for line in order)]) + "\n")
        write_page(out / "report.html", rows, order, {run: self.folder(run.name) for run in measured}, facts)
        return "\n".join([table, "", *order, "", f"written: {out / 'report.html'}"])

    @functools.cached_property
    def _baselines(self) -> dict[str, Metrics]:
        return baselines(self.splits["test"])

    def _read(self, name: str, out: str) -> Metrics | None:
        """The figures of a run, where they were taken as they are now."""
        path = self.folder(name) / out
        result = json.loads(path.read_text()) if path.exists() else {}
        return result["metrics"] if result.get("version") == VERSION else None

    def _known(self) -> list[Run]:
        """All runs that this or an earlier command may have made: what is there stays in the table."""
        seeds = {int(name[1]) for path in self.folder("").iterdir() if (name := _SEED.search(path.name))}
        starts: tuple[Start, ...] = get_args(Start)
        return planned_runs(self._rows, starts, max({self.config.seeds - 1, *seeds}) + 1)

    def _by_seed(self, out: str) -> dict[int, Metrics]:
        """The figures of one run of each seed that has any: of the untrained model, whatever the start."""
        return {run.seed: found for run in self._known() if (found := self._read(run.name, out)) is not None}

    def _facts(self, measured: Collection[Run]) -> list[tuple[str, str]]:
        config = self.config
        return [
            ("runs", f"{len(measured)} of {len({*measured, *self.planned})}"),
            ("preset", config.preset),
            ("steps", f"{config.steps:,} of {config.batch_size} clips"),
            ("learning rate", f"{config.lr:g}"),
            ("train clips", f"{len(self.splits['train']):,}"),
            ("test clips", f"{len(self.splits['test']):,}"),
        ]


def _say(text: str) -> None:
    """A line beside the bar, if there is one."""
    with tqdm.external_write_mode():
        say(text)


def _init_name(seed: int) -> str:
    """The folder's name of the SelfMAE run that a seed starts from."""
    return f"init-seed{seed}"


def main(arguments: list[str] | None = None) -> None:
    """The command. Exit status: 0 done, 2 a user's mistake or a run that failed, 130 stopped by a signal."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # the last as Slurm's warning
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the runs are told to save and stop
    with one_line_errors("python -m tools.run_ablation"):
        ablation = Ablation(parse(AblationConfig, arguments))
        try:
            ablation.run()
        except KeyboardInterrupt:
            tell("stopped; the same command goes on")
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
