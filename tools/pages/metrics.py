"""The curves of a report: metrics.jsonl of one run or several -> groups of panels, whatever fields the lines have.

Every number of a line is drawn. Known ones have a title and an axis that suits them; the losses come first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.pages.curves import Series, Unit
from tools.pages.panels import Panel
from tools.pages.tables import flatten
from tools.pages.web_page import run_colour

Line = dict[str, Any]  # of metrics.jsonl; has a step


@dataclass(frozen=True, kw_only=True)
class _Known:
    title: str
    colour: str = "both"  # or image, audio: of a run alone on its page
    log_y: bool = False
    from_zero: bool = False
    unit: Unit = "number"


_KNOWN = {
    "loss": _Known(title="Loss", log_y=True),
    "contrast": _Known(title="Contrast", log_y=True),
    "cdt_visual": _Known(title="Pixels, image", colour="image", log_y=True),
    "cdt_audio": _Known(title="Pixels, audio", colour="audio", log_y=True),
    "pixel_image": _Known(title="Pixels, image", colour="image", log_y=True),
    "pixel_audio": _Known(title="Pixels, audio", colour="audio", log_y=True),
    "emb_visual": _Known(title="Embeddings, image", colour="image", log_y=True),
    "emb_audio": _Known(title="Embeddings, audio", colour="audio", log_y=True),
    "grad_norm": _Known(title="Gradient norm", log_y=True),
    "lr": _Known(title="Learning rate", from_zero=True),
    "samples_per_second": _Known(title="Samples a second", from_zero=True),
    "data_wait": _Known(title="Waiting for data", from_zero=True, unit="share"),
    "mfu": _Known(title="Use of the GPU's arithmetic", from_zero=True, unit="share"),
    "bad_samples": _Known(title="Damaged samples skipped", from_zero=True),
}
_NO_CURVE = {"step", "epoch", "cursor", "seconds"}

# A group takes the keys that begin with one of its words; the first that fits. The last takes what is left.
_GROUPS = (
    ("Losses", ("loss", "contrast", "cdt_", "pixel_", "emb_")),
    ("Optimizer", ("grad", "lr", "temperature", "weight_norm", "update", "loss_scale", "clip")),
    ("Data and speed", ("samples", "data_", "mfu", "bad_", "memory", "gpu", "tflops", "step_time", "tokens_")),
    ("Diagnostics", ("",)),
)


def metric_groups(runs: Sequence[Sequence[Line]]) -> list[tuple[str, list[Panel]]]:
    """Groups of panels for `curves_section`; run i has colour i, a run alone the colours of the modalities."""
    flat = [[flatten(line) for line in lines] for lines in runs]
    told = {key for lines in flat for line in lines for key, value in line.items() if value}
    keys = [key for key in _KNOWN if key in told]
    keys += sorted(told - _NO_CURVE - _KNOWN.keys())
    groups: dict[str, list[Panel]] = {name: [] for name, _ in _GROUPS}
    for key in keys:
        panel = _panel(key, flat)
        if panel is not None:
            groups[_group(key)].append(panel)
    return list(groups.items())


def is_finite(value: Any) -> bool:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _group(key: str) -> str:
    last = key.rpartition("/")[2]
    return next(name for name, words in _GROUPS if key.startswith(words) or last.startswith(words))


def _panel(key: str, runs: Sequence[Sequence[Line]]) -> Panel | None:
    known = _KNOWN.get(key) or _Known(title=key, colour=_modality(key))
    series = []
    for number, lines in enumerate(runs):
        found = [(int(line["step"]), float(line[key])) for line in lines if is_finite(line.get(key))]
        if found:
            steps, values = zip(*found, strict=True)
            colour = known.colour if len(runs) == 1 else run_colour(number)
            series.append(
                Series(name=f"run {number + 1}" if len(runs) > 1 else "", steps=steps, values=values, colour=colour)
            )
    if not series:
        return None
    return Panel(
        title=known.title, key=key, series=series, log_y=known.log_y, from_zero=known.from_zero, unit=known.unit
    )


def _modality(key: str) -> str:
    """The colour of a field that is known by its name alone."""
    words = set(key.replace("/", "_").split("_"))
    if words & {"image", "visual"}:
        return "both" if "audio" in words else "image"
    return "audio" if "audio" in words else "both"
