"""The contact sheet of a dataset: facts and samples in, one HTML document out. All text is escaped here.

Its only script filters the samples; without it the page lacks nothing else.
"""

from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from shards_spec.quiet import SHORT_SECONDS
from shards_spec.sample import FBANK_SHIFT_MS
from tools.inspection.facts import DatasetFacts, Measure
from tools.inspection.style import SCRIPT, STYLE
from tools.pages.curves import number
from tools.pages.pictures import Picture
from tools.pages.web_page import document, drawn, key_facts, text

_LABELS = 12  # of the most frequent, and of the rarest
_KINDS = 5  # of the most frequent frame sizes and the like
_BINS = 32
_QUIET = {"silent": "Silent", "near-silent": "Near-silent", "short": f"Shorter than {SHORT_SECONDS:g} s"}
_EDGES = (0.5, 99.5)  # percentiles between which a histogram is drawn; what lies beyond is in its outer bins


@dataclass(frozen=True, kw_only=True)
class Card:
    """One sample. `metadata` is its JSON; `quiet` says what is little in its sound (`facts.sound_kinds`)."""

    key: str
    labels: list[str]
    metadata: dict[str, Any]
    boxes: int
    quiet: list[str]
    frame: Picture | None  # None of sound alone
    sound: Picture


def page(facts: DatasetFacts, cards: list[Card], even: int) -> str:
    """The HTML document. The first `even` of the cards are evenly spaced over the dataset."""
    name = facts.folder.resolve().name
    sections = [
        _header(name, facts),
        _labels(facts),
        _statistics(facts),
        _failures(facts),
        _samples(facts, cards, even),
    ]
    return document(title=f"{name}, dataset", style=STYLE, sections=sections, script=SCRIPT)


def _header(name: str, facts: DatasetFacts) -> str:
    hours = float(facts.seconds.sum()) / 3600
    pairs = [
        ("samples", f"{facts.samples:,}"),
        ("failed", f"{facts.failed:,}"),
        ("labels", f"{len(facts.labels):,}"),
        ("shards", f"{len(facts.samples_by_shard):,}"),
        ("sound", f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"),
        ("size", f"{facts.bytes / 1e9:,.1f} GB" if facts.bytes >= 1e9 else f"{facts.bytes / 1e6:,.1f} MB"),
    ]
    recipe = facts.recipe
    kind = [str(facts.folder)]
    if facts.is_sound_alone:
        kind.append("sound alone")
    elif "frame_fit" in recipe:
        kind.append(
            {"resize": "resized frames", "crop": "cropped frames"}.get(recipe["frame_fit"], recipe["frame_fit"])
        )
    if recipe.get("frames", 1) > 1:
        kind.append(f"{recipe['frames']} frames a clip")
    if recipe.get("keep_audio"):
        kind.append("with waveform")
    if not facts.is_finished:
        kind.append(f"unfinished: {len(facts.samples_by_shard):,} of {facts.planned:,} shards")
    shown = " · ".join(text(str(part)) for part in kind)
    return f'<header><h1>{text(name)}</h1><p class="kind">{shown}</p>{key_facts(pairs)}</header>'


# -------------------------------------------------------------------- samples


def _samples(facts: DatasetFacts, cards: list[Card], even: int) -> str:
    note = "All samples." if len(cards) == facts.samples else f"{even:,} evenly spaced samples."
    if len(cards) > even:
        note += f" Of those with next to no sound, {len(cards) - even:,} more."
    longest = max(card.sound.width for card in cards)
    shown = "".join(_card(card, longest) for card in cards)
    return (
        '<section class="samples"><div class="bar"><h2>Samples</h2>'
        f'<div class="filters">{_kinds(cards)}'
        '<input type="search" id="filter" placeholder="Filter by label, key or source"'
        ' aria-label="Filter samples by label, key or source" autocomplete="off" spellcheck="false"></div>'
        f'<output id="shown" for="filter">{len(cards):,}</output></div><p class="note">{note} Low frequencies are at'
        f' the bottom, quiet sound is dark, and time has one scale.</p><div class="sheet">{shown}</div></section>'
    )


def _kinds(cards: list[Card]) -> str:
    """The choice among sounds; nothing where all cards have some."""
    counts = Counter(kind for card in cards for kind in card.quiet)
    if not counts:
        return ""
    options = "".join(
        f'<option value="{kind}">{name} ({counts[kind]:,})</option>' for kind, name in _QUIET.items() if counts[kind]
    )
    return (
        '<select id="kind" aria-label="Filter samples by their sound"><option value="">Every sound</option>'
        f"{options}</select>"
    )


def _card(card: Card, longest: int) -> str:
    said = card.metadata
    source = str(said.get("source") or "")
    labels = ", ".join(text(label) for label in card.labels) or '<span class="soft">no label</span>'
    found = escape(" ".join([*card.labels, card.key, source]).lower())
    boxes = [f"{card.boxes} {'box' if card.boxes == 1 else 'boxes'}"] if card.boxes else []
    parts = "".join(f'<span class="quiet">{kind}</span> ' for kind in card.quiet)
    parts += "".join(f"<span>{escape(part)}</span> " for part in [*_described(said), *boxes])
    width = f"width:{100 * card.sound.width / longest:.4g}%"
    frame = "" if card.frame is None else drawn(card.frame, ", ".join(["frame", *boxes]))
    return (
        f'<article class="card" data-text="{found}" data-quiet="{" ".join(card.quiet)}"><div class="pictures">'
        f"{frame}{drawn(card.sound, 'spectrogram', style=width)}</div>"
        f"<h3>{labels}</h3><p><code>{text(card.key)}</code></p>"
        f'<p class="soft parts">{parts}</p>'
        f'<p class="soft source" title="{escape(source)}">{text(source)}</p></article>'
    )


def _described(said: dict[str, Any]) -> list[str]:
    """Length of sound, where it lies in its file, size and rates, decoder: what is known of them."""
    parts = []
    if said.get("valid_frames"):
        whole = f" of {said['duration']:.1f}" if said.get("duration") else ""
        begin = f" from {said['file_start']:.1f}" if said.get("file_start") else ""
        parts.append(f"{said['valid_frames'] * FBANK_SHIFT_MS / 1000:.1f}{whole} s{begin}")
    if said.get("width"):
        rate = f", {said['fps']:.4g} fps" if said.get("fps") else ""
        parts.append(f"{said['width']}×{said['height']}{rate}")
    if said.get("sample_rate"):
        parts.append(f"{said['sample_rate'] / 1000:g} kHz, {said.get('channels')} ch")
    parts += [str(said["decoder"])] if said.get("decoder") else []
    return parts


# -------------------------------------------------------------------- labels


def _labels(facts: DatasetFacts) -> str:
    ranked = [(facts.name(label), count) for label, count in facts.labels.most_common()]
    if not ranked:
        return ""
    notes = [f"{len(ranked):,} labels, {sum(facts.labels.values()) / facts.samples:.2f} a sample."]
    if facts.unlabelled:
        notes.append(f"{facts.unlabelled:,} samples have none.")
    if facts.empty:
        notes.append(f"{facts.empty:,} of {facts.classes:,} classes have no sample.")
    if len(ranked) <= 2 * _LABELS:
        groups = {"": ranked}
    else:
        groups = {"Most frequent": ranked[:_LABELS], "Rarest": ranked[-_LABELS:]}
    lists = "".join(_bars(name, rows, of=ranked[0][1]) for name, rows in groups.items())
    return f'<section><h2>Labels</h2><p class="note">{" ".join(notes)}</p><div class="panels">{lists}</div></section>'


def _bars(title: str, rows: list[tuple[str, int]], *, of: int, share: int = 0) -> str:
    """Names with bars, `of` being a full one; counts, or shares of `share`, as numbers."""
    items = "".join(
        f'<li><span class="name">{text(name)}</span><span class="count">'
        f"{f'{100 * count / share:.3g}%' if share else f'{count:,}'}</span>"
        f'<span class="meter" style="width:{100 * count / of:.3g}%"></span></li>'
        for name, count in rows
    )
    caption = f"<figcaption><span>{escape(title)}</span></figcaption>" if title else ""
    return f'<figure class="panel bars">{caption}<ol>{items}</ol></figure>'


# -------------------------------------------------------------------- statistics


def _statistics(facts: DatasetFacts) -> str:
    if len(facts.metadata) < facts.samples:
        note = (
            f"Sound and level of all samples; what stands in their JSON, of {len(facts.metadata):,} evenly spaced ones."
        )
    else:
        note = "Of all samples."
    if facts.next_to_no_sound:
        note += f" With next to no sound: {facts.next_to_no_sound}."
    panels = "".join(_histogram(measure) for measure in facts.measures())
    for name, kinds in facts.categories().items():
        panels += _bars(name, _top(kinds), of=kinds.total(), share=kinds.total())
    return f'<section><h2>Clips</h2><p class="note">{note}</p><div class="panels">{panels}</div></section>'


def _top(kinds: Counter[str]) -> list[tuple[str, int]]:
    ranked = kinds.most_common()
    rest = sum(count for _, count in ranked[_KINDS:])
    return ranked[:_KINDS] + ([(f"{len(ranked) - _KINDS} others", rest)] if rest else [])


def _histogram(measure: Measure) -> str:
    low, high = (float(v) for v in np.percentile(measure.values, _EDGES))
    least, middle, most = (number(float(v)) for v in np.percentile(measure.values, (0, 50, 100)))
    unit = f" {measure.unit}" if measure.unit else ""
    known, unknown = len(measure.values), measure.unknown
    if least == most:
        rows = [(f"{middle}{unit}", known), *([("unknown", unknown)] if unknown else [])]
        return _bars(measure.name, rows, of=known + unknown, share=known + unknown)
    bars = _bins(measure.values, low, high)
    notes = [] if (least, most) == (number(low), number(high)) else [f"all from {least} to {most}{unit}"]
    notes += [f"unknown for {unknown:,}"] if unknown else []
    said = f"{measure.name}: from {least}{unit} to {most}{unit}, median {middle}{unit}"
    width = 100 / len(bars)
    columns = "".join(
        f'<rect x="{i * width:.3f}" y="{60 - 60 * share:.2f}" width="{0.86 * width:.3f}" height="{60 * share:.2f}"/>'
        for i, share in enumerate(bars)
        if share
    )
    return (
        f'<figure class="panel histogram"><figcaption><span>{escape(measure.name)}</span>'
        f"<output>median {middle}{unit}</output></figcaption>"
        f'<svg viewBox="0 0 100 60" preserveAspectRatio="none" role="img" aria-label="{escape(said)}">{columns}</svg>'
        f'<div class="ends"><span>{number(low)}</span><span>{number(high)}{unit}</span></div>'
        f'<p class="soft">{", ".join(notes)}</p></figure>'
    )


def _bins(values: npt.NDArray[np.float64], low: float, high: float) -> list[float]:
    """Heights of the bins of a histogram, 0 to 1. Nearly all values may be the same: then low is high."""
    high = max(high, low + 1e-6 * max(1.0, abs(low)))
    counts, _ = np.histogram(np.clip(values, low, high), bins=_BINS, range=(low, high))
    return [float(share) for share in counts / counts.max()]


# -------------------------------------------------------------------- failures


def _failures(facts: DatasetFacts) -> str:
    if not facts.failures:
        return '<section><h2>Failures</h2><p class="note">Every clip asked for gave a sample.</p></section>'
    asked = facts.samples + facts.failed
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(reason)}</code></th><td>{failure.count:,}</td>'
        f"<td>{100 * failure.count / asked:.2g}%</td>"
        f'<td class="examples">{"<br>".join(text(example) for example in failure.examples)}</td></tr>'
        for reason, failure in facts.failures.items()
    )
    return (
        f'<section><h2>Failures</h2><p class="note">{facts.failed:,} of {asked:,} clips gave no sample.</p>'
        '<div class="scroll"><table class="failures"><thead><tr><th scope="col"></th><th scope="col">clips</th>'
        '<th scope="col">share</th><th scope="col" class="examples">the first of them</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )
