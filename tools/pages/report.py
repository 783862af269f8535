"""The page of a report: facts in, one HTML document out. Nothing external, no script; all text is escaped here.

The page depends on its facts alone: equal runs give equal bytes.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from tools.pages.curves import Unit, curve, number
from tools.pages.pictures import Picture, Triple
from tools.pages.report_style import STYLE
from tools.pages.web_page import document, drawn, key_facts, text
from training.evaluation.retrieval import RANKS

Line = dict[str, Any]  # of metrics.jsonl


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample's pictures."""

    key: str
    labels: list[str]
    seconds: float  # of the spectrogram
    image: Triple
    audio: Triple


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """The dataset that the samples are from."""

    folder: str
    samples: int
    is_training_set: bool


@dataclass(frozen=True, kw_only=True)
class RetrievalFacts:
    """What evaluate.py retrieval wrote. Rows map "1", "5", "10" and "median" to numbers."""

    pool: int
    data: str
    is_training_set: bool
    step: int
    rows: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the page shows."""

    name: str
    config: dict[str, Any]  # of the run, as config.json holds it
    step: int  # of the checkpoint
    epochs: float | None
    parameters: int
    metrics: list[Line]
    dataset: DatasetFacts | None
    samples: list[Sample]
    retrieval: RetrievalFacts | None

    def setting(self, name: str) -> Any:
        """A value of the configuration by its dotted name; None where it has none."""
        value: Any = self.config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def page(report: Report) -> str:
    """The HTML document."""
    sections = [_header(report), _curves(report.metrics), _retrieval(report), _samples(report)]
    return document(title=f"{report.name}, CrossMAE", style=STYLE, sections=sections)


# -------------------------------------------------------------------- header


def _header(report: Report) -> str:
    pairs = [("step", f"{report.step:,}")]
    if report.epochs is not None:
        pairs.append(("epochs", f"{report.epochs:.3g}"))
    if report.dataset is not None:
        pairs.append(("samples", f"{report.dataset.samples:,}"))
    pairs.append(("parameters", _millions(report.parameters)))
    losses = [line["loss"] for line in report.metrics if line["step"] <= report.step and _is_finite(line.get("loss"))]
    if losses:
        pairs.append(("loss", number(losses[-1])))
    kind = [text(str(report.setting(name))) for name in ("preset", "variant")]
    if report.metrics[-1]["step"] > report.step:  # it goes on, or was killed after its last checkpoint
        kind.append(f"logged to step {report.metrics[-1]['step']:,}")
    return (
        f'<header><h1>{text(report.name)}</h1><p class="kind">{" · ".join(kind)}</p>'
        f"{key_facts(pairs)}{_configuration(report)}</header>"
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count:,}"


# -------------------------------------------------------------------- curves


@dataclass(frozen=True, kw_only=True)
class _Panel:
    title: str
    colour: str = "both"  # or: image, audio
    log_y: bool = False
    from_zero: bool = False
    unit: Unit = "number"


_PANELS = {
    "loss": _Panel(title="Loss", log_y=True),
    "contrast": _Panel(title="Contrast", log_y=True),
    "cdt_visual": _Panel(title="Pixels, image", colour="image", log_y=True),
    "cdt_audio": _Panel(title="Pixels, audio", colour="audio", log_y=True),
    "emb_visual": _Panel(title="Embeddings, image", colour="image", log_y=True),
    "emb_audio": _Panel(title="Embeddings, audio", colour="audio", log_y=True),
    "grad_norm": _Panel(title="Gradient norm", log_y=True),
    "lr": _Panel(title="Learning rate", from_zero=True),
    "samples_per_second": _Panel(title="Samples a second", from_zero=True),
    "data_wait": _Panel(title="Waiting for data", from_zero=True, unit="share"),
}
_NO_CURVE = {"step", "epoch", "cursor", "seconds"}


def _curves(metrics: list[Line]) -> str:
    told = {key for line in metrics for key, value in line.items() if value}  # bad_samples, where there are any
    others = sorted(told - _NO_CURVE - _PANELS.keys())
    panels = [_panel(key, _PANELS.get(key) or _Panel(title=key), metrics) for key in [*_PANELS, *others]]
    return (
        '<section class="curves"><h2>Training</h2>'
        # Radio buttons and a style rule: the switch needs no script.
        '<input type="radio" name="x" id="x-linear" checked><label for="x-linear">linear steps</label>'
        '<input type="radio" name="x" id="x-log"><label for="x-log">logarithmic</label>'
        f'<div class="panels">{"".join(panels)}</div></section>'
    )


def _panel(key: str, panel: _Panel, metrics: list[Line]) -> str:
    found = [(line["step"], float(line[key])) for line in metrics if _is_finite(line.get(key))]
    if not found:
        return ""
    steps, values = zip(*found, strict=True)
    name = escape(panel.title)
    both = [
        curve(
            steps,
            values,
            name=name,
            log_x=log_x,
            log_y=panel.log_y,
            from_zero=panel.from_zero,
            unit=panel.unit,
        )
        for log_x in (True, False)
    ]
    last = number(values[-1], panel.unit)
    return (
        f'<figure class="panel {panel.colour}"><figcaption><span>{name} <code>{escape(key)}</code></span>'
        f"<output>{last}</output></figcaption>{''.join(both)}</figure>"
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -------------------------------------------------------------------- retrieval


def _retrieval(report: Report) -> str:
    facts = report.retrieval
    if facts is None:
        return ""
    head = "".join(f'<th scope="col">R@{k}</th>' for k in RANKS)
    rows = []
    for name, values in facts.rows.items():
        cells = "".join(f"<td>{values[str(k)]:.1f}</td>" for k in RANKS)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td>{values["median"]:,.1f}</td></tr>')
    note = ", the training set" if facts.is_training_set else ""
    note += "" if facts.step == report.step else f"; the checkpoint at step {facts.step:,}"
    return (
        '<section><h2>Retrieval</h2><div class="scroll"><table>'
        f'<thead><tr><td></td>{head}<th scope="col">median rank</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        f'</table></div><p class="note">R@K in %, among {facts.pool:,} samples of {text(facts.data)}{note}.</p>'
        "</section>"
    )


# -------------------------------------------------------------------- samples


def _samples(report: Report) -> str:
    if not report.samples or report.dataset is None:
        return ""
    longest = max(sample.seconds for sample in report.samples)
    return (
        f'<section class="samples"><h2>Samples</h2><p class="note">{_samples_note(report)}</p>'
        f"{''.join(_sample(sample, longest) for sample in report.samples)}</section>"
    )


def _samples_note(report: Report) -> str:
    assert report.dataset is not None
    origin = "the training set" if report.dataset.is_training_set else f"{text(report.dataset.folder)}, not trained on"
    notes = [f"From {origin}; every report on this dataset shows the same ones, under the same masks."]
    target = report.setting("model.pixel.target")
    if target == "none":
        notes.append("This variant has no pixel decoder, so there is no reconstruction.")
    else:
        notes.append("Visible patches of a reconstruction are the input's own.")
        if report.setting("model.pixel.norm_pix"):
            notes.append("The model predicts normalised patches: their true mean and deviation are put back here.")
    notes.append("Attentive Tokens are outlined on the original" + ("." if target == "cross" else ", though unused."))
    return " ".join(notes)


def _sample(sample: Sample, longest: float) -> str:
    labels = ", ".join(text(label) for label in sample.labels)
    pictures = "".join(
        _figure(picture, kind, f"{name}, {caption.lower()}", caption, width)
        for kind, name, triple, width in (
            ("image", "frame", sample.image, 1.0),
            ("audio", "spectrogram", sample.audio, sample.seconds / longest),  # one scale of time for all samples
        )
        for caption, picture in (
            ("Masked", triple.masked),
            ("Reconstruction", triple.reconstruction),
            ("Original", triple.original),
        )
        if picture is not None
    )
    columns = 3 if sample.image.reconstruction is not None else 2
    return (
        f'<article><div class="about"><h3><code>{text(sample.key)}</code></h3>'
        f'<p>{labels}</p><p class="soft">{sample.seconds:.1f} s of sound</p></div>'
        f'<div class="pictures columns-{columns}">{pictures}</div></article>'
    )


def _figure(picture: Picture, kind: str, alt: str, caption: str, width: float) -> str:
    box = drawn(picture, alt, style=f"width:{100 * width:.4g}%")
    return f'<figure class="{kind}">{box}<figcaption>{caption}</figcaption></figure>'


# -------------------------------------------------------------------- configuration


def _number(value: Any, unit: Unit = "number") -> str:
    return number(value, unit) if _is_finite(value) else "none" if value is None else str(value)


def _share(value: Any) -> str:
    return _number(value, "share")


def _configuration(report: Report) -> str:
    groups = [("Model", _model_rows), ("Masking", _masking_rows), ("Losses", _loss_rows), ("Training", _training_rows)]
    tables = "".join(f"<div><h2>{name}</h2><dl>{_rows(make, report.setting)}</dl></div>" for name, make in groups)
    return f'<details><summary>Configuration</summary><div class="groups">{tables}</div></details>'


def _rows(make: Callable[[Callable[[str], Any]], Iterable[tuple[str, str]]], setting: Callable[[str], Any]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{text(value)}</dd></div>" for name, value in make(setting))


def _model_rows(of: Callable[[str], Any]) -> Iterable[tuple[str, str]]:
    def size(part: str) -> str:
        return f"{of(f'model.{part}.dim')} wide, {of(f'model.{part}.depth')} blocks, {of(f'model.{part}.heads')} heads"

    yield "Encoders", size("encoder")
    if of("model.pixel.target") != "none":
        yield "Pixel decoders", size("pixel")
    if of("model.embedding.enabled"):
        yield "Embedding decoders", size("embedding")


def _masking_rows(of: Callable[[str], Any]) -> Iterable[tuple[str, str]]:
    yield "Image hidden", _share(of("model.mask.image_ratio"))
    yield "Audio hidden", f"{_share(of('model.mask.audio_ratio'))}, {of('model.mask.audio_strategy')}"
    shares = f"{_share(of('model.attentive.image_ratio'))} image, {_share(of('model.attentive.audio_ratio'))} audio"
    yield "Attentive Tokens", f"{shares}, of {of('model.attentive.base')}"
    score = str(of("model.attentive.score"))
    yield "Chosen by", {"random": "chance", "zeros": f"{score}, given as zeros"}.get(of("model.attentive.kind"), score)


def _loss_rows(of: Callable[[str], Any]) -> Iterable[tuple[str, str]]:
    if of("model.contrast.enabled"):
        yield (
            "Contrast",
            f"weight {_number(of('model.contrast.weight'))}, temperature {_number(of('model.contrast.temperature'))}",
        )
        yield "Pooling, negatives", f"{of('model.contrast.pooling')}, {of('model.contrast.negatives')}"
    target = of("model.pixel.target")
    if target != "none":
        kind = {"cross": "cross-conditioned", "self": "own modality alone"}.get(target, str(target))
        normalised = ", normalised" if of("model.pixel.norm_pix") else ""
        yield "Pixels", f"{kind}, {of('model.pixel.loss_on')} patches{normalised}"
    if of("model.embedding.enabled"):
        yield "Embeddings", f"{of('model.embedding.queries')} queries, {of('model.embedding.targets')} targets"


def _training_rows(of: Callable[[str], Any]) -> Iterable[tuple[str, str]]:
    yield "Data", str(of("data"))
    yield "Length", f"{of('steps')} steps" if of("steps") else f"{_number(of('epochs'))} epochs"
    yield "Batch", str(of("batch_size"))
    yield "Learning rate", f"{_number(of('optimizer.lr'))}, warm-up {_share(of('optimizer.warmup'))}"
    yield "Weight decay", _number(of("optimizer.weight_decay"))
    yield "Gradient limit", _number(of("optimizer.clip_grad"))
    yield "Precision", str(of("mixed_precision") or "as launched")
    yield "Seed", str(of("seed"))
    yield "fbank mean, deviation", f"{_number(of('fbank_mean'))}, {_number(of('fbank_std'))}"
