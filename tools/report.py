"""A page about one run or several: results, curves, what the models rebuild, attend to, find. One HTML file, alone.

    python -m tools.report runs/pretrain                    writes runs/pretrain/report.html
    python -m tools.report runs/a runs/b --data shards/eval --samples 12 --out compared.html

It reads the run folders (config.json, metrics.jsonl, the newest checkpoint, what evaluate.py wrote to evaluation/) and
a few samples of one dataset, the same ones for every run. Runs may still be going on. What cannot be had is left out;
the page and the command say what, and why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro

from shards_spec.atomic import atomic_path
from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import DamagedSampleError, UserError, refusal
from shards_spec.messages import say, tell
from shards_spec.storage import place
from tools.pages.report import DatasetFacts, Report, page
from tools.reporting.examples import Thumbnails, frame_with_boxes, localize, retrieve, with_boxes
from tools.reporting.queries import query_pictures
from tools.reporting.runs import read_run, run_names
from tools.reporting.samples import Stored, first_numbers, original, pictures, read_samples
from training.checkpoint import CONFIG_FILE, read_state
from training.evaluation.features import LoadedModel, load_model
from training.stream.cache_folder import FetchError
from training.stream.index import DatasetIndex, open_config

Made = TypeVar("Made")
REPORT_FILE = "report.html"
_QUERIES_OF = 2  # samples of which single queries' attention is shown
_RETRIEVED = 3  # queries a direction
_LOCALIZED = 6  # samples with boxes


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Writes a page about runs: results, curves, reconstructions, attention, retrieval, localization."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """Run folders, the --out of train.py."""
    data: str | None = None
    """Dataset folder, or its URL, to take samples from. Default: the first run's own, as its config.json names it."""
    out: Path | None = None
    """File to write. Default: report.html in the run folder; of several runs, in the current folder."""
    samples: int = 6
    """Samples to show; 0 needs no dataset."""
    pool: int = 100
    """Samples among which the retrieval examples are sought, and those with boxes; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("samples", "pool"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be at least 0, got {getattr(self, name)}")


def main(arguments: list[str] | None = None) -> None:
    """The command. Exit status: 0 done, 2 a user's mistake."""
    with one_line_errors("python -m tools.report"):
        config: ReportConfig = parse(ReportConfig, arguments)
        if not config.runs:
            raise UserError("no run given: python -m tools.report RUN [RUN ...]")
        out = config.out or (config.runs[0] / REPORT_FILE if len(config.runs) == 1 else Path(REPORT_FILE))
        if config.out is not None and not out.parent.is_dir():
            raise UserError(f"--out {out}: the folder {out.parent} does not exist")
        if out.is_dir():
            raise UserError(f"--out {out} is a folder: give a file")
        report = gather(config)
        document = page(report).encode("utf-8", "replace")  # names of files may be no Unicode
        with atomic_path(out) as temporary:
            temporary.write_bytes(document)
        for notice in report.notices:
            tell(f"left out: {notice}")
        say(f"{out}, {len(document) / 1e6:.1f} MB")


def gather(config: ReportConfig) -> Report:
    """What the page shows.

    Raises:
        UserError: a folder is no run folder, or --data is no dataset.
    """
    notices: list[str] = []
    names = run_names(config.runs)
    runs = [read_run(folder, name, notices) for folder, name in zip(config.runs, names, strict=True)]
    report = Report(runs=runs, notices=notices)
    index = _open_dataset(config, runs[0].config, notices)
    if index is not None:
        _describe_dataset(report, index)
    show = _Shown(config, report, index)
    for number, run in enumerate(runs):
        loaded = _attempt(notices, f"the model of {run.name}", _load, run.checkpoint) if run.checkpoint else None
        if loaded is not None:
            run.parameters = sum(p.numel() for p in loaded.model.parameters())
            show.run(number, loaded)
    return report


def _load(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _attempt(notices: list[str], what: str, make: Callable[..., Made], *given: Any) -> Made | None:
    """What `make` gives; None, and a notice, where a file that it needs is damaged, gone, or not to be had."""
    try:
        return make(*given)
    except (UserError, DamagedSampleError, FetchError, OSError) as error:
        notices.append(f"{what}: {refusal(error) if isinstance(error, OSError) else error}")
        return None


def _open_dataset(config: ReportConfig, settings: dict[str, Any], notices: list[str]) -> DatasetIndex | None:
    """The dataset to take samples from. A mistake in --data is the user's; a run's own dataset may have moved on."""
    if config.samples == config.pool == 0:
        return None
    if config.data is not None:
        return open_config(settings | {"data": [config.data]})
    folders = [place(str(folder)) for folder in settings.get("data", [])]
    if missing := [folder for folder in folders if isinstance(folder, Path) and not folder.is_dir()]:
        notices.append(
            f"the dataset {missing[0]} is not there (as {CONFIG_FILE} names it, from the current folder):"
            " no samples are shown; give --data DIR to have them"
        )
        return None
    return _attempt(notices, "samples", open_config, settings)


def _describe_dataset(report: Report, index: DatasetIndex) -> None:
    trained = []
    for run in report.runs:
        found = run.checkpoint
        state = _attempt(report.notices, f"the state of {run.name}", read_state, found) if found else None
        trained.append(state is not None and state.fingerprint == index.fingerprint)
        if state is not None and trained[-1]:
            run.epochs = state.place.samples_done(len(index)) / len(index)
    report.dataset = DatasetFacts(
        folder=", ".join(map(str, index.folders)), samples=len(index), is_training_set=trained
    )


class _Shown:
    """The samples of the page: read once, then shown to one model after the other."""

    def __init__(self, config: ReportConfig, report: Report, index: DatasetIndex | None) -> None:
        self.report, self.index, self.notices = report, index, report.notices
        self.stored: list[Stored] = []
        self.boxed: list[tuple[Stored, list[list[float]]]] = []
        if index is None:
            return
        self.pool = first_numbers(index, config.pool)
        self.thumbnails = Thumbnails(index)
        first = first_numbers(index, config.samples)
        self.stored = _attempt(self.notices, "samples", read_samples, index, first) or []
        longest = max((stored.seconds for stored in self.stored), default=1.0)
        report.samples = [original(stored, longest=longest) for stored in self.stored]
        self.boxed = _attempt(self.notices, "localization", with_boxes, index, self.pool, _LOCALIZED) or []
        report.localized = [frame_with_boxes(stored, boxes) for stored, boxes in self.boxed]

    def run(self, run: int, loaded: LoadedModel) -> None:
        """Adds what a run's model makes of the samples. `run` is its number on the page."""
        for number, (stored, sample) in enumerate(zip(self.stored, self.report.samples, strict=True)):
            drawn = pictures(loaded, stored, run)
            sample.of_runs += [] if drawn is None else [drawn]
            if number < _QUERIES_OF:
                found, spread = query_pictures(loaded, stored, run)
                self.report.queries += found
                if number == 0 and spread:
                    self.report.query_spread[run] = (spread[0], spread[1])
        for (stored, boxes), entry in zip(self.boxed, self.report.localized, strict=True):
            entry.maps.append((run, *localize(loaded, stored, boxes)))
        if self.index is not None and len(self.pool) > 1:
            index = self.index
            made = _attempt(
                self.notices,
                f"retrieval examples of {self.report.runs[run].name}",
                lambda: retrieve(loaded, index, self.pool, queries=_RETRIEVED, run=run, thumbnails=self.thumbnails),
            )
            self.report.retrieved += made or []


if __name__ == "__main__":
    main()
