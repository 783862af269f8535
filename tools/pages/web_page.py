"""What the web pages of the tools share: the document, its style (light and dark, desktop and phone), pictures.

    document(title="...", style=STYLE, sections=[header, section("Results", results_table(...), note="..."), ...])

A page is one file: nothing is loaded, all text from files goes through `text` or html.escape, and a policy in the
document keeps whatever slipped through from loading or running anything. Sections are strings of HTML, so pages are
composed of what these modules give, each usable alone:

    web_page.py   document, section, legend, notices, key_facts, drawn
    tables.py     results_table: rows of dicts, with seeds' spread, baselines and published rows
    panels.py     curves_section: groups of panels, each with the curves of one run or several
    curves.py     one panel's SVG
    pictures.py   frames, spectrograms, heatmaps

Runs have colours, the same ones everywhere on a page: class `run_colour(i)` sets --colour and, after the last
colour, a dash pattern. They keep apart in the common kinds of colour blindness and on light and dark ground.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tools.pages.pictures import Picture

_COLOURS = 6  # run-0 to run-5 below

BASE_STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #fcfcfb; --ink: #1c1c1e; --soft: #66666d; --rule: #dedcd7; --hidden: #d9d7d2;
  --both: #3c3c43; --image: #1f66b8; --audio: #b9501a; --shade: #f3f2ee; --warn: #8a5a00;
  --run-0: #1666b0; --run-1: #c14f08; --run-2: #007a5a; --run-3: #a3437c; --run-4: #7d6300; --run-5: #5a4fb0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #141416; --ink: #e9e9ec; --soft: #9b9ba3; --rule: #2f2f34; --hidden: #3d3d43;
    --both: #c9c9d0; --image: #6fa8ee; --audio: #ee9a5f; --shade: #1e1e22; --warn: #e2b252;
    --run-0: #6cb0f0; --run-1: #f4935a; --run-2: #41c79c; --run-3: #e58fc2; --run-4: #d6b73e; --run-5: #aaa0f4;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1, h2, h3, p, dl, dd, figure { margin: 0; }
h1 { font-size: 28px; line-height: 1.2; font-weight: 600; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; line-height: 1.3; font-weight: 600; }
h3 { font-size: 14px; font-weight: 600; }
code { font: 0.87em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
section { margin-top: 48px; }
.kind, .note, dt, figcaption, .soft { color: var(--soft); }
.note { font-size: 14px; margin-top: 4px; max-width: 75ch; text-wrap: pretty; }

.facts { display: flex; flex-wrap: wrap; gap: 12px 40px; margin-top: 24px; }
.facts div { display: flex; flex-direction: column-reverse; }
.facts dd { font-size: 22px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.facts dt { font-size: 13px; }

.panels {
  display: grid; gap: 24px; margin-top: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr));
}
.panel figcaption { display: flex; justify-content: space-between; gap: 12px; font-size: 13px; }
.panel figcaption span { color: var(--ink); }
.panel output { font-weight: 600; font-variant-numeric: tabular-nums; color: var(--colour); }
.both { --colour: var(--both); }
.image { --colour: var(--image); }
.audio { --colour: var(--audio); }
.run-0 { --colour: var(--run-0); }
.run-1 { --colour: var(--run-1); }
.run-2 { --colour: var(--run-2); }
.run-3 { --colour: var(--run-3); }
.run-4 { --colour: var(--run-4); }
.run-5 { --colour: var(--run-5); }
.dashed { --dash: 5 3; }
.dotted { --dash: 1.5 2.5; }

.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 0; padding: 0; list-style: none; font-size: 13px; }
.legend li { overflow-wrap: anywhere; }
.run { display: inline-flex; align-items: baseline; gap: 7px; }
.swatch { flex: none; width: 14px; height: 8px; overflow: visible; }
.swatch path { stroke: var(--colour); stroke-width: 3; stroke-dasharray: var(--dash, none); }

.notices { margin: 16px 0 0; padding: 8px 14px; list-style: none; font-size: 14px; background: var(--shade); }
.notices { border-left: 3px solid var(--warn); overflow-wrap: anywhere; }
.notices li { padding: 2px 0; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin-top: 12px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 0 6px 28px; text-align: right; white-space: nowrap; }
thead th { font-size: 13px; font-weight: 400; color: var(--soft); }
tbody tr { border-top: 1px solid var(--rule); }
tbody th { padding-left: 0; text-align: left; font-weight: 400; }

.results { font-size: 14px; }
.results th, .results td { padding: 5px 0 5px 20px; }
.results tbody th { padding-left: 0; padding-right: 4px; max-width: 340px; white-space: normal; }
.results .run, .results .detail { min-width: 130px; overflow-wrap: anywhere; }
.results .detail { color: var(--soft); font-size: 12.5px; }
.results .group { text-align: center; color: var(--ink); padding-bottom: 0; }
.results .group span { display: block; border-bottom: 1px solid var(--rule); padding-bottom: 3px; }
.results .best { font-weight: 650; }
.results .spread { color: var(--soft); font-size: 12.5px; }
.results .reference th, .results .reference td { color: var(--soft); }
.results .heading th { padding-top: 12px; font-weight: 600; max-width: none; }
.results .first-reference { border-top: 2px solid var(--soft); }

.picture { position: relative; overflow: hidden; background: var(--hidden); }
.picture img, .picture svg { display: block; width: 100%; }
.picture svg { position: absolute; inset: 0; height: 100%; }
.halo, .attentive { fill: none; vector-effect: non-scaling-stroke; stroke-linecap: square; }
.halo { stroke: #000; stroke-width: 3.5; opacity: 0.55; }
.attentive { stroke: #fff; stroke-width: 1.5; }
.mark { position: absolute; transform: translate(-50%, -50%); font-size: 11px; font-weight: 700; line-height: 1; }
.mark { color: #fff; text-shadow: 0 0 3px #000, 0 0 3px #000, 0 0 2px #000; }

@media (max-width: 640px) {
  main { padding: 24px 16px 40px; }
  section { margin-top: 36px; }
  .facts { gap: 10px 20px; }
  .facts dd { font-size: 19px; }
  table { font-size: 14px; }
  th, td { padding-left: 11px; }
  .results th, .results td { padding-left: 13px; font-size: 13px; }
  .results tbody th { max-width: 44vw; }
  .results .run, .results .detail { min-width: 112px; }
  .halo { stroke-width: 2.75; }
  .attentive { stroke-width: 1.1; }
}
"""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A short text upon a picture, centred at x, y: shares of its width and height, from the upper left."""

    x: float
    y: float
    text: str


def document(*, title: str, style: str, sections: list[str], script: str = "") -> str:
    """An HTML document of sections (empty ones are left out).

    Args:
        title: text, escaped here.
        style: rules after BASE_STYLE.
        script: the only one that may run, named in the policy by its hash.
    """
    allowed, element = "", ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed, element = f"; script-src 'sha256-{digest}'", f"<script>{script}</script>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
        f" style-src 'unsafe-inline'{allowed}\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{BASE_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n{element}</body>\n</html>\n"
    )


def section(title: str, body: str, *, note: str = "", kind: str = "") -> str:
    """A section of a page; nothing where `body` is empty.

    Args:
        title: text, escaped here.
        body, note: HTML; the note stands below the title.
        kind: class of the section.
    """
    if not body:
        return ""
    below = f'<p class="note">{note}</p>' if note else ""
    named = f' class="{kind}"' if kind else ""
    return f"<section{named}><h2>{escape(title)}</h2>{below}{body}</section>"


def notices(lines: list[str]) -> str:
    """What is not on the page, and why: a line each, text."""
    return f'<ul class="notices">{"".join(f"<li>{text(line)}</li>" for line in lines)}</ul>' if lines else ""


def run_colour(number: int) -> str:
    """Classes of the `number`-th run of a page: its colour and, after the last colour, its dashes."""
    dashes = ("", " dashed", " dotted")[number // _COLOURS % 3]
    return f"run-{number % _COLOURS}{dashes}"


def run_name(name: str, number: int) -> str:
    """A run's name with its colour before it."""
    swatch = '<svg class="swatch" viewBox="0 0 14 8" aria-hidden="true"><path d="M0 4H14"/></svg>'
    return f'<span class="run {run_colour(number)}">{swatch}<span>{text(name)}</span></span>'


def legend(names: list[str]) -> str:
    """Which colour is whose; nothing for a single run."""
    if len(names) < 2:
        return ""
    return f'<ul class="legend">{"".join(f"<li>{run_name(name, i)}</li>" for i, name in enumerate(names))}</ul>'


def text(value: str) -> str:
    """Text from a file: escaped, and with its writing direction kept to itself."""
    return f"<bdi>{escape(value)}</bdi>"


def key_facts(pairs: list[tuple[str, str]]) -> str:
    """The row of large numbers below a page's title: names and values, both HTML."""
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def drawn(picture: Picture, alt: str, *, style: str = "", marks: Sequence[Mark] = ()) -> str:
    """A picture with its outline upon it.

    Args:
        alt: what it shows, HTML.
        style: of the box around it.
        marks: short texts upon it.
    """
    overlay = ""
    if picture.outline:
        path = f'd="{picture.outline}"'
        overlay = (
            f'<svg viewBox="0 0 {picture.width} {picture.height}" preserveAspectRatio="none" aria-hidden="true">'
            f'<path class="halo" {path}/><path class="attentive" {path}/></svg>'
        )
    overlay += "".join(
        f'<span class="mark" style="left:{100 * mark.x:.4g}%;top:{100 * mark.y:.4g}%">{escape(mark.text)}</span>'
        for mark in marks
    )
    box = f' style="{style}"' if style else ""
    return (
        f'<div class="picture"{box}><img src="{picture.uri}" width="{picture.width}" height="{picture.height}"'
        f' alt="{alt}">{overlay}</div>'
    )
