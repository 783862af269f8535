"""Small curves side by side, in groups: one panel a quantity, with the curves of one run or of several.

    curves_section("Training", [("Losses", [Panel(title="Loss", key="loss", series=[...])])], names=["A", "B"])

A switch between linear and logarithmic steps needs no script: both drawings are there, a style rule shows one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tools.pages.curves import Series, Unit, curves, number
from tools.pages.web_page import legend

STYLE = """\
.curves { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 4px; }
.curves h2 { margin-right: auto; }
.curves > .note, .curves > .legend { flex-basis: 100%; order: 1; margin-top: 6px; }
.curves input { position: absolute; opacity: 0; }
.curves label { font-size: 13px; color: var(--soft); padding: 3px 9px; border-radius: 5px; cursor: pointer; }
.curves input:checked + label { color: var(--ink); background: var(--rule); }
.curves input:focus-visible + label { outline: 2px solid var(--image); outline-offset: 1px; }
.curves .group { flex-basis: 100%; order: 2; min-width: 0; }
.curves .group h3 { margin-top: 22px; padding-top: 10px; border-top: 1px solid var(--rule); }
.curves .small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 232px), 1fr)); gap: 20px 22px; }
.curves .panels { margin-top: 12px; }
.x-log:checked ~ .group .linear, .x-linear:checked ~ .group .log { display: none; }
.panel { min-width: 0; }
.panel figcaption span { overflow-wrap: anywhere; }
.panel code { color: var(--soft); overflow-wrap: anywhere; }
.curve { display: block; width: 100%; height: auto; margin-top: 2px; overflow: visible; }
.curve .grid { stroke: var(--rule); stroke-width: 0.75; }
.curve .axis { stroke: var(--soft); stroke-width: 0.75; opacity: 0.6; }
.curve .tick { fill: var(--soft); font-size: 10.5px; font-variant-numeric: tabular-nums; }
.small .curve .tick { font-size: 12.5px; }
.curve .line { fill: none; stroke: var(--colour); stroke-width: 1.6; stroke-linejoin: round; }
.curve .line { stroke-dasharray: var(--dash, none); }
.curve .band { fill: var(--colour); opacity: 0.16; }
.curve .end { fill: var(--colour); }
@media print { .curves input, .curves label { display: none; } .panel { break-inside: avoid; } }
"""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity.

    Attributes:
        title: text.
        key: its name in the files, shown beside the title; empty for none.
        series: a curve of each run that has it.
        log_y, from_zero, unit: as `curves` takes them.
    """

    title: str
    key: str = ""
    series: Sequence[Series]
    log_y: bool = False
    from_zero: bool = False
    unit: Unit = "number"


def curves_section(
    title: str, groups: Sequence[tuple[str, Sequence[Panel]]], *, names: list[str], note: str = "", name: str = "x"
) -> str:
    """A section of panels; nothing where no group has one.

    Args:
        groups: heading (text, may be empty) and panels; the first group is drawn larger.
        names: of the runs, by colour number, for the legend.
        note: HTML below the title.
        name: of the switch, its own for each section of a page.
    """
    shown = [(heading, panels) for heading, panels in groups if panels]
    if not shown:
        return ""
    below = f'<p class="note">{note}</p>' if note else ""
    body = "".join(_group(heading, panels, is_small=i > 0) for i, (heading, panels) in enumerate(shown))
    return (
        f'<section class="curves"><h2>{escape(title)}</h2>'
        f'<input type="radio" class="x-linear" name="{name}" id="{name}-linear" checked>'
        f'<label for="{name}-linear">linear steps</label>'
        f'<input type="radio" class="x-log" name="{name}" id="{name}-log"><label for="{name}-log">logarithmic</label>'
        f"{below}{legend(names)}{body}</section>"
    )


def _group(heading: str, panels: Sequence[Panel], *, is_small: bool) -> str:
    head = f"<h3>{escape(heading)}</h3>" if heading else ""
    size = " small" if is_small else ""
    return f'<div class="group">{head}<div class="panels{size}">{"".join(_panel(p) for p in panels)}</div></div>'


def _panel(panel: Panel) -> str:
    both = [
        curves(
            panel.series,
            name=panel.title,
            log_x=log_x,
            log_y=panel.log_y,
            from_zero=panel.from_zero,
            unit=panel.unit,
        )
        for log_x in (True, False)
    ]
    key = f" <code>{escape(panel.key)}</code>" if panel.key and panel.key != panel.title else ""
    last = number(panel.series[0].values[-1], panel.unit) if len(panel.series) == 1 else ""
    value = f'<output class="{panel.series[0].colour}">{last}</output>' if last else ""
    title = f"<code>{escape(panel.title)}</code>" if panel.key == panel.title else escape(panel.title)
    return f'<figure class="panel"><figcaption><span>{title}{key}</span>{value}</figcaption>{"".join(both)}</figure>'
