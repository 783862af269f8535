"""The page of a report: facts of one run or several in, one HTML document out. Nothing external, no script.

The page depends on its facts alone: equal runs give equal bytes. A section without facts is left out.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.pages.configuration import configuration, differences, setting
from tools.pages.curves import number
from tools.pages.metrics import Line, is_finite, metric_groups
from tools.pages.panels import STYLE as CURVES_STYLE
from tools.pages.panels import curves_section
from tools.pages.report_pictures import (
    Localized,
    Queries,
    Retrieved,
    Sample,
    localization_section,
    queries_section,
    retrieval_section,
    samples_section,
)
from tools.pages.report_style import STYLE
from tools.pages.results import Result, results_section
from tools.pages.tables import results_table
from tools.pages.web_page import document, key_facts, notices, text


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """The dataset that the samples are from."""

    folder: str
    samples: int
    is_training_set: list[bool]  # of each run


@dataclass(kw_only=True)
class Run:
    """What is known of a run, as its newest checkpoint has it, where there is one."""

    name: str
    config: dict[str, Any]  # as config.json holds it
    metrics: list[Line]
    results: list[Result] = field(default_factory=list)
    checkpoint: Path | None = None
    epochs: float | None = None
    parameters: int | None = None

    @property
    def step(self) -> int | None:
        """Of the checkpoint."""
        return None if self.checkpoint is None else int(self.checkpoint.name.rpartition("-")[2])

    def setting(self, name: str) -> Any:
        """A value of the configuration by its dotted name; None where it has none."""
        return setting(self.config, name)


@dataclass(kw_only=True)
class Report:
    """Everything the page shows. `notices` say what is not there, and why."""

    runs: list[Run]
    dataset: DatasetFacts | None = None
    samples: list[Sample] = field(default_factory=list)
    queries: list[Queries] = field(default_factory=list)
    query_spread: dict[int, tuple[float, float]] = field(default_factory=dict)
    localized: list[Localized] = field(default_factory=list)
    retrieved: list[Retrieved] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Of the runs."""
        return [run.name for run in self.runs]


def page(report: Report) -> str:
    """The HTML document."""
    names = report.names
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    sections = [
        _header(report, title),
        results_section(names, [run.results for run in report.runs], [run.step for run in report.runs]),
        curves_section("Training", metric_groups([run.metrics for run in report.runs]), names=names),
        samples_section(names, report.samples, _samples_note(report)),
        queries_section(names, report.queries, _queries_note(report)),
        localization_section(names, report.localized, _LOCALIZATION_NOTE),
        retrieval_section(names, report.retrieved, _retrieval_note(report)),
    ]
    return document(title=f"{title}, CrossMAE", style=CURVES_STYLE + STYLE, sections=sections)


# -------------------------------------------------------------------- header


def _header(report: Report, title: str) -> str:
    runs = report.runs
    if len(runs) == 1:
        about = _one_run(runs[0], report.dataset) + configuration(runs[0].config, "Configuration")
    else:
        about = _several_runs(report)
    return f"<header><h1>{text(title)}</h1>{about}{notices(report.notices)}</header>"


def _one_run(run: Run, dataset: DatasetFacts | None) -> str:
    pairs = []
    if run.step is not None:
        pairs.append(("step", f"{run.step:,}"))
    if run.epochs is not None:
        pairs.append(("epochs", f"{run.epochs:.3g}"))
    if dataset is not None:
        pairs.append(("samples", f"{dataset.samples:,}"))
    if run.parameters is not None:
        pairs.append(("parameters", _millions(run.parameters)))
    loss = _last_loss(run)
    if loss is not None:
        pairs.append(("loss", number(loss)))
    kind = [text(str(run.setting(name))) for name in ("preset", "variant")] + _logged(run)
    return f'<p class="kind">{" · ".join(kind)}</p>{key_facts(pairs)}'


def _several_runs(report: Report) -> str:
    rows: list[dict[str, Any]] = []
    for i, run in enumerate(report.runs):
        rows.append(
            {
                "name": run.name,
                "run": i,
                "detail": " · ".join([*(str(run.setting(name)) for name in ("preset", "variant")), *_logged(run)]),
                "step": run.step,
                "epochs": run.epochs,
                "parameters": None if run.parameters is None else _millions(run.parameters),
                "loss": None if (loss := _last_loss(run)) is None else number(loss),
            }
        )
    told = differences(report.names, [run.config for run in report.runs])
    folded = f"<details><summary>Settings in which they differ</summary>{told}</details>" if told else ""
    configurations = "".join(configuration(run.config, f"Configuration of {text(run.name)}") for run in report.runs)
    columns = ["step", "epochs", "parameters", "loss"]
    return results_table(rows, columns=columns) + folded + configurations


def _logged(run: Run) -> list[str]:
    """That a run goes on, or was killed after its last checkpoint."""
    last = run.metrics[-1]["step"] if run.metrics else 0
    return [f"logged to step {last:,}"] if last > (run.step or 0) else []


def _last_loss(run: Run) -> float | None:
    """The loss at the checkpoint; the last one logged where there is none."""
    until = float("inf") if run.step is None else run.step
    losses = [line["loss"] for line in run.metrics if line["step"] <= until and is_finite(line.get("loss"))]
    return float(losses[-1]) if losses else None


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count:,}"


# -------------------------------------------------------------------- notes


def _samples_note(report: Report) -> str:
    notes = []
    if report.dataset is not None:
        trained = report.dataset.is_training_set
        origin = "the training set" if all(trained) else text(report.dataset.folder)
        # A fingerprint tells datasets apart, not clips: the same clips with boxes are another dataset.
        origin += " (another dataset than the training set, though it may share clips)" if not any(trained) else ""
        notes.append(f"From {origin}; every report on this dataset shows the same ones, under the same masks.")
    runs = report.runs
    if any(run.setting("model.pixel.target") == "none" for run in runs):
        which = "This variant has" if len(runs) == 1 else "Variants without reconstruction have"
        notes.append(f"{which} no pixel decoder.")
    if any(run.setting("model.pixel.target") != "none" for run in runs):
        notes.append("Visible patches of a reconstruction are the input's own.")
    if any(run.setting("model.pixel.norm_pix") for run in runs):
        notes.append("Where patches are predicted normalised, their true mean and deviation are put back.")
    notes.append("Attentive Tokens (the paper’s Fig. 3a) are bright and outlined, always among the visible patches.")
    return " ".join(notes)


def _queries_note(report: Report) -> str:
    notes = [
        "The paper’s Fig. 3 (b) and (c). A query stands for a place of the modality that its decoder rebuilds (numbered"
        ", left) and gathers it from the other one’s visible patches: cross-attention of the decoder’s last block, mean"
        " over heads, relative to the map’s largest value. Hidden patches are dark. The places are the same ones in"
        " every report."
    ]
    for run, (audio, visual) in report.query_spread.items():
        whose = f" of {text(report.names[run])}" if len(report.runs) > 1 else ""
        notes.append(
            f"Two queries{whose} differ in the first sample, on average, by {100 * audio:.1f}% of their attention over"
            f" the image and by {100 * visual:.1f}% over the spectrogram (total variation: 0% if all look alike)."
        )
    return " ".join(notes)


_LOCALIZATION_NOTE = (
    "Cosine of the pooled sound and each image token, from its least to its greatest value. Outlined: the boxes."
    " cIoU as the VGG-SS benchmark counts it, for the half of the frame with the highest values."
)


def _retrieval_note(report: Report) -> str:
    if not report.retrieved:
        return ""
    return (
        f"The most similar of {report.retrieved[0].pool:,} samples, by the cosine of pooled unmasked features; the"
        " query’s own partner is outlined. The queries are the first samples of the order, not chosen."
    )
