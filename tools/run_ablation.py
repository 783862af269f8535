"""The paper's ablation on the synthetic world: trains every variant with the same budget, measures, writes the table.

    python -m tools.make_world WORLD --direct --seed 0 --splits init:8000,train:8000,test:500
    python -m tools.run_ablation --data WORLD --out ABLATION

    ABLATION/runs/init-seed0/           the SelfMAE run on other clips (WORLD/init) that the variants start from
    ABLATION/runs/crossmae-init-seed0/  a run folder of train.py, with world.json (what was measured) and train.log
    ABLATION/results.json, table.md, report.html    of the runs that are done so far

It resumes where it stopped: finished runs are left alone, a run that was stopped goes on from its checkpoint.
"""

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from shards_spec.atomic import atomic_path
from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import UserError
from tools.ablation.baselines import baselines
from tools.ablation.measure import Metrics
from tools.ablation.page import write_page
from tools.ablation.plan import ROWS, TABLE_2, Budget, Run, Start, planned_runs
from tools.ablation.table import order_lines, table_rows, text_table
from training.checkpoint import checkpoint_folder
from training.model.config import Preset
from training.stream.index import open_index

_MEASURED = "world.json"
_UNTRAINED = "world-untrained.json"


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Trains and measures the variants of Table 2 (and Table 6) on a synthetic world; run again, it goes on."""

    data: Path
    """What tools.make_world --direct wrote: the splits train and test, and init for --starts init."""
    out: Path
    """Folder to write."""
    variants: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Rows of the table, one a flag. Default: the six of Table 2 and the two of Table 6."""
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

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows, in the order of the table."""
        return tuple(name for name in ROWS if not self.variants or name in self.variants)


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
        self.train, self.test, self.init = (config.data / name for name in ("train", "test", "init"))
        for split in (self.train, self.test, *([self.init] if "init" in config.starts else [])):
            open_index(str(split))  # complete, or a line that says what is wrong
        self.planned = planned_runs(config.rows, config.starts, config.seeds)
        self._writing = Lock()
        self._lock = Lock()  # of the two below
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def folder(self, name: str) -> Path:
        """The folder of a run."""
        return self.config.out / "runs" / name

    # ---------------------------------------------------------------- running

    def run(self) -> None:
        """Everything that is not there yet; then the table."""
        config = self.config
        self.folder("").mkdir(parents=True, exist_ok=True)
        self._agree()
        if "init" in config.starts:
            self._together([f"init-seed{seed}" for seed in range(config.seeds)], self._train_init, "init runs")
        self._together(self.planned, self._train_and_measure, "runs")
        untrained = [run for run in self.planned if run.row == self._widest]
        self._together(untrained, self._measure_untrained, "untrained")
        print(self.write())

    @property
    def _widest(self) -> str:
        """The row whose initial weights stand for the untrained model: the last one builds everything."""
        return [name for name in self.config.rows if name in TABLE_2 or len(self.config.rows) == 1][-1]

    def _agree(self) -> None:
        """Refuses to go on with another budget; more seeds, rows and starts are welcome."""
        path = self.config.out / "ablation.json"
        free = {"out", "variants", "seeds", "starts", "jobs", "workers", "launch"}
        mine = {k: json.loads(json.dumps(v, default=str)) for k, v in asdict(self.config).items() if k not in free}
        if path.exists():
            theirs = json.loads(path.read_text())
            differing = [
                f"--{k.replace('_', '-')} was {theirs.get(k)}, is {v}" for k, v in mine.items() if theirs.get(k) != v
            ]
            if differing:
                raise UserError(
                    f"{self.config.out} was begun with another budget: {'; '.join(differing)}: use another --out"
                )
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(mine, indent=2) + "\n")

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
                        print(f"run_ablation: {what}: {len(items) - len(waiting)} of {len(items)}", flush=True)
            except BaseException:
                self._stop(waiting)
                raise

    def _stop(self, waiting: set[Future[None]]) -> None:
        for future in waiting:
            future.cancel()
        with self._lock:
            self._stopping = True
            for child in self._children:
                child.terminate()

    def _train_init(self, name: str) -> None:
        steps = self.config.init_steps or self.config.steps
        seed = 1000 + int(name.removeprefix("init-seed"))  # other weights and orders than any run of the table
        self._train(name, data=self.init, steps=steps, seed=seed, options=["--variant=selfmae"])

    def _train_and_measure(self, run: Run) -> None:
        options = list(ROWS[run.row])
        if run.start == "init":
            options.append(f"--init={self.folder(f'init-seed{run.seed}')}")
        self._train(run.name, data=self.train, steps=self.config.steps, seed=run.seed, options=options)
        self._measure(run, self.folder(run.name) / _MEASURED)

    def _measure_untrained(self, run: Run) -> None:
        if run.start == "scratch" or "scratch" not in self.config.starts:
            self._measure(run, self.folder(run.name) / _UNTRAINED, "--untrained")

    def _train(self, name: str, *, data: Path, steps: int, seed: int, options: list[str]) -> None:
        folder = self.folder(name)
        if not checkpoint_folder(folder, steps).is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            self._call(self.budget.command(data=data, out=folder, steps=steps, seed=seed, options=options), folder)

    def _measure(self, run: Run, out: Path, *options: str) -> None:
        folder = self.folder(run.name)
        if not out.exists():
            command = [sys.executable, "-m", "tools.ablation.measure", f"--checkpoint={folder}", f"--out={out}"]
            self._call([*command, f"--train={self.train}", f"--test={self.test}", *options], folder)
            self.write()

    def _call(self, command: list[str], folder: Path) -> None:
        """Runs a command to its end, its output into the run's log.

        Raises:
            UserError: it failed; names the log and its last line.
        """
        log = folder / "train.log"
        threads = str(max(1, (os.cpu_count() or 1) // self.config.jobs))
        with log.open("ab") as output:
            with self._lock:
                if self._stopping:
                    return
                child = subprocess.Popen(
                    command, stdout=output, stderr=output, env={"OMP_NUM_THREADS": threads} | os.environ
                )
                self._children.add(child)
            status = child.wait()
            with self._lock:
                self._children.remove(child)
        if status:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise UserError(f"a run ended with status {status}: {log}: {lines[-1] if lines else 'it said nothing'}")

    # ---------------------------------------------------------------- what came out

    def write(self) -> str:
        """results.json, table.md and report.html, of the runs that were measured; returns what to print."""
        with self._writing:
            return self._write()

    def _write(self) -> str:
        out = self.config.out
        measured = {run: found for run in self.planned if (found := self._read(run, _MEASURED)) is not None}
        untrained = [found for run in self.planned if (found := self._read(run, _UNTRAINED)) is not None]
        references: dict[str, list[Metrics]] = {"untrained": untrained} if untrained else {}
        references |= {name: [metrics] for name, metrics in self._baselines.items()}
        rows = table_rows(measured, references)
        order = order_lines(rows)
        table = text_table(rows)
        facts = self._facts(len(measured))
        with atomic_path(out / "results.json") as temporary:
            plain = {"config": facts, "rows": [asdict(row) for row in rows], "order": order}
            temporary.write_text(json.dumps(plain, indent=2) + "\n")
        with atomic_path(out / "table.md") as temporary:
            temporary.write_text("\n".join([table, "", *(f"- {line}" for line in order)]) + "\n")
        write_page(out / "report.html", rows, order, {run: self.folder(run.name) for run in measured}, facts)
        return "\n".join([table, "", *order, "", f"written: {out / 'report.html'}"])

    @functools.cached_property
    def _baselines(self) -> dict[str, Metrics]:
        return baselines(open_index(str(self.test)))

    def _read(self, run: Run, name: str) -> Metrics | None:
        path = self.folder(run.name) / name
        return json.loads(path.read_text())["metrics"] if path.exists() else None

    def _facts(self, runs: int) -> list[tuple[str, str]]:
        config = self.config
        return [
            ("runs", f"{runs} of {len(self.planned)}"),
            ("preset", config.preset),
            ("steps", f"{config.steps:,} of {config.batch_size} clips"),
            ("learning rate", f"{config.lr:g}"),
            ("train clips", f"{len(open_index(str(self.train))):,}"),
            ("test clips", f"{len(open_index(str(self.test))):,}"),
        ]


def main(arguments: list[str] | None = None) -> None:
    """The command. Exit status: 0 done, 2 a user's mistake or a run that failed, 130 stopped by a signal."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs are told to save and stop
    with one_line_errors("run_ablation"):
        ablation = Ablation(parse(AblationConfig, arguments, prog="python -m tools.run_ablation"))
        try:
            ablation.run()
        except KeyboardInterrupt:
            print("run_ablation: stopped; the same command goes on", file=sys.stderr)
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
