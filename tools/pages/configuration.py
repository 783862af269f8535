"""What a run was told, in words and in differences: config.json -> HTML."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from tools.pages.curves import Unit, number
from tools.pages.metrics import is_finite
from tools.pages.tables import results_table
from tools.pages.web_page import text

Config = dict[str, Any]
_NOT_COMPARED = {"out", "resume", "workers", "cache_dir", "cache_size", "trace_keys", "save_every", "keep", "log_every"}


def setting(config: Config, name: str) -> Any:
    """A value of the configuration by its dotted name; None where it has none."""
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def differences(names: Sequence[str], configs: Sequence[Config]) -> str:
    """A table of the settings in which runs differ; nothing where they do not."""
    flat = [dict(_leaves(config)) for config in configs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows: list[dict[str, Any]] = []
    for key in keys:
        told = [_told(values.get(key)) for values in flat]
        if key.split(".")[0] not in _NOT_COMPARED and len(set(told)) > 1:
            rows.append({"name": key, **{str(i): value for i, value in enumerate(told)}})
    if not rows:
        return ""
    return results_table(rows, titles={str(i): name for i, name in enumerate(names)}, head="what differs")


def _leaves(values: Config, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_told(item) for item in value)
    return _number(value) if is_finite(value) else "none" if value is None else str(value)


def configuration(config: Config, summary: str) -> str:
    """The settings that matter most, folded away under `summary` (HTML)."""

    def of(name: str) -> Any:
        return setting(config, name)

    groups = [("Model", _model_rows), ("Masking", _masking_rows), ("Losses", _loss_rows), ("Training", _training_rows)]
    tables = "".join(f"<div><h2>{name}</h2><dl>{_rows(make, of)}</dl></div>" for name, make in groups)
    return f'<details><summary>{summary}</summary><div class="groups">{tables}</div></details>'


def _number(value: Any, unit: Unit = "number") -> str:
    return number(value, unit) if is_finite(value) else "none" if value is None else str(value)


def _share(value: Any) -> str:
    return _number(value, "share")


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
