"""The sections of a report that have pictures: reconstructions, queries, localization, retrieval."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from tools.pages.pictures import Picture
from tools.pages.web_page import Mark, drawn, run_name, section, text


@dataclass(frozen=True, kw_only=True)
class Both:
    """The same of both modalities; None where there is none."""

    image: Picture | None
    sound: Picture | None


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """What one run makes of a sample. `run` is its colour number."""

    run: int
    masked: Both
    reconstruction: Both
    attentive: Both


@dataclass(kw_only=True)
class Sample:
    """One sample. `length` is the share of the longest sound shown that its own takes."""

    key: str
    labels: list[str]
    seconds: float
    length: float
    original: Both
    of_runs: list[OfRun] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """What single queries of an embedding decoder attend to in one sample.

    `places` shows where in the modality that is rebuilt each query's token lies, `maps` what each attends to in the
    other one; `captions` name the places.
    """

    run: int
    key: str
    rebuilds: str  # sound or image
    places: Picture
    marks: list[Mark]
    maps: list[Picture]
    captions: list[str]


@dataclass(frozen=True, kw_only=True)
class Localized:
    """A sample with boxes: the frame, and of each run (by colour number) its heatmap and cIoU."""

    key: str
    frame: Picture
    maps: list[tuple[int, Picture, float]]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A candidate of a retrieval query."""

    picture: Picture
    similarity: float
    is_partner: bool


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """One query with its most similar candidates; `rank` is its own partner's among `pool`."""

    run: int
    asks_for: str  # image or sound
    key: str
    query: Picture
    hits: list[Hit]
    rank: int
    pool: int


def samples_section(names: Sequence[str], samples: Sequence[Sample], note: str) -> str:
    """Original, masked, rebuilt, Attentive Tokens. `note` is HTML."""
    return section("Reconstructions and Attentive Tokens", "".join(_sample(s, names) for s in samples), note=note)


def _sample(sample: Sample, names: Sequence[str]) -> str:
    rows = []
    for i, of_run in enumerate(sample.of_runs):
        if i == 0 or of_run.masked != sample.of_runs[0].masked:  # runs may hide other patches
            rows.append(_pair(sample, sample.original, "Original", of_run.masked, "Masked"))
        named = f'<p class="whose">{run_name(names[of_run.run], of_run.run)}</p>' if len(names) > 1 else ""
        rows.append(
            named + _pair(sample, of_run.reconstruction, "Reconstruction", of_run.attentive, "Attentive Tokens")
        )
    labels = ", ".join(text(label) for label in sample.labels)
    return (
        f'<article><h3><code>{text(sample.key)}</code></h3><p class="about">{labels} '
        f'<span class="soft">{sample.seconds:.1f} s of sound</span></p>{"".join(rows)}</article>'
    )


_LACKING = {"Reconstruction": "there is no pixel decoder", "Attentive Tokens": "the method chooses no tokens"}


def _pair(sample: Sample, left: Both, left_caption: str, right: Both, right_caption: str) -> str:
    figures = "".join(
        f'<div class="{kind} missing">{escape(caption)}: none, {_LACKING[caption]}</div>'
        if picture is None
        else _figure(picture, kind, caption, length=sample.length if kind == "sound" else 1.0)
        for kind in ("frame", "sound")
        for caption, picture in (
            (left_caption, left.image if kind == "frame" else left.sound),
            (right_caption, right.image if kind == "frame" else right.sound),
        )
    )
    return f'<div class="strip pair">{figures}</div>'


def _figure(
    picture: Picture,
    kind: str,
    caption: str,
    *,
    alt: str = "",
    length: float = 1.0,
    extra: str = "",
    marks: Sequence[Mark] = (),
) -> str:
    what = "spectrogram" if kind == "sound" else "frame"
    said = alt or f"{what}, {caption.lower()}"
    width = f"width:{100 * length:.4g}%" if length < 1 else ""
    box = drawn(picture, said, style=width, marks=marks)
    shown = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}{f" {extra}" if extra else ""}"><div class="box">{box}</div>{shown}</figure>'


def queries_section(names: Sequence[str], queries: Sequence[Queries], note: str) -> str:
    """The paper's Fig. 3 (b) and (c). `note` is HTML."""
    parts, before = [], None
    for found in queries:
        if len(names) > 1 and found.run != before:
            parts.append(f'<p class="whose">{run_name(names[found.run], found.run)}</p>')
        before = found.run
        parts.append(_queries(found))
    return section("What single queries attend to", "".join(parts), note=note)


def _queries(found: Queries) -> str:
    whole, part = ("sound", "frame") if found.rebuilds == "sound" else ("frame", "sound")
    name = "q<sub>a</sub>" if found.rebuilds == "sound" else "q<sub>v</sub>"
    title = (
        f"Audio queries {name}, over the image"
        if found.rebuilds == "sound"
        else f"Visual queries {name}, over the spectrogram"
    )
    kind = "over-frames" if part == "frame" else "over-sounds"
    figures = _figure(
        found.places,
        whole,
        "the places that they rebuild",
        alt=f"the queries' places in the {whole}",
        marks=found.marks,
    )
    for picture, caption in zip(found.maps, found.captions, strict=True):
        figures += _figure(picture, part, caption, alt=f"what the query of {caption} attends to in the {part}")
    return (
        f'<article><h3>{title} <span class="soft">of <code>{text(found.key)}</code></span></h3>'
        f'<div class="strip {kind}" style="--n:{len(found.maps)}">{figures}</div></article>'
    )


def localization_section(names: Sequence[str], localized: Sequence[Localized], note: str) -> str:
    """Heatmaps of the sound over frames with boxes. `note` is HTML."""
    return section(
        "Where the sound comes from",
        f'<div class="sets">{"".join(_localized(found, names) for found in localized)}</div>' if localized else "",
        note=note,
    )


def _localized(found: Localized, names: Sequence[str]) -> str:
    figures = _figure(found.frame, "frame", "frame and boxes")
    for run, picture, ciou in found.maps:
        whose = run_name(names[run], run) if len(names) > 1 else ""
        alt = f"heatmap of the sound, cIoU {ciou:.2f}"
        figures += _figure(picture, "frame", f"{whose} cIoU {ciou:.2f}".strip(), alt=alt)
    return (
        f'<div class="set" style="--n:{len(found.maps) + 1}"><h3><code>{text(found.key)}</code></h3>'
        f'<div class="strip">{figures}</div></div>'
    )


def retrieval_section(names: Sequence[str], retrieved: Sequence[Retrieved], note: str) -> str:
    """Queries with their most similar candidates. `note` is HTML."""
    parts, before = [], None
    for found in retrieved:
        if len(names) > 1 and found.run != before:
            parts.append(f'<p class="whose">{run_name(names[found.run], found.run)}</p>')
        before = found.run
        parts.append(_retrieved(found))
    return section("Retrieval examples", "".join(parts), note=note, kind="examples")


def _retrieved(found: Retrieved) -> str:
    asked, given = ("frame", "sound") if found.asks_for == "image" else ("sound", "frame")
    figures = _figure(found.query, given, "query", extra="query", alt=f"query, {given}")
    for rank, hit in enumerate(found.hits, start=1):
        caption = f"{rank} · {hit.similarity:.2f}{' own' if hit.is_partner else ''}"
        alt = f"candidate {rank}, similarity {hit.similarity:.2f}{', the query’s own' if hit.is_partner else ''}"
        figures += _figure(hit.picture, asked, caption, alt=alt, extra="partner" if hit.is_partner else "")
    kind = "over-frames" if asked == "frame" else "over-sounds"
    arrow = "audio → image" if found.asks_for == "image" else "image → audio"
    return (
        f'<article><h3>{arrow}, <code>{text(found.key)}</code> <span class="soft">own partner at rank {found.rank:,}'
        f" of {found.pool:,}</span></h3>"
        f'<div class="strip {kind}" style="--n:{len(found.hits)}">{figures}</div></article>'
    )
