"""What the web pages of the tools share: the document, its style (light and dark, desktop and phone), pictures.

A page is one file: nothing is loaded, all text from files goes through `text` or html.escape, and a policy in the
document keeps whatever slipped through from loading or running anything.
"""

import base64
import hashlib
from html import escape

from tools.pages.pictures import Picture

BASE_STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #fcfcfb; --ink: #1c1c1e; --soft: #66666d; --rule: #dedcd7; --hidden: #d9d7d2;
  --both: #3c3c43; --image: #1f66b8; --audio: #b9501a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #141416; --ink: #e9e9ec; --soft: #9b9ba3; --rule: #2f2f34; --hidden: #3d3d43;
    --both: #c9c9d0; --image: #6fa8ee; --audio: #ee9a5f;
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

.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin-top: 12px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 0 6px 28px; text-align: right; white-space: nowrap; }
thead th { font-size: 13px; font-weight: 400; color: var(--soft); }
tbody tr { border-top: 1px solid var(--rule); }
tbody th { padding-left: 0; text-align: left; font-weight: 400; }

.picture { position: relative; overflow: hidden; background: var(--hidden); }
.picture img, .picture svg { display: block; width: 100%; }
.picture svg { position: absolute; inset: 0; height: 100%; }
.halo, .attentive { fill: none; vector-effect: non-scaling-stroke; stroke-linecap: square; }
.halo { stroke: #000; stroke-width: 3.5; opacity: 0.55; }
.attentive { stroke: #fff; stroke-width: 1.5; }

@media (max-width: 640px) {
  main { padding: 24px 16px 40px; }
  section { margin-top: 36px; }
  .facts { gap: 10px 20px; }
  .facts dd { font-size: 19px; }
  table { font-size: 14px; }
  th, td { padding-left: 11px; }
  .halo { stroke-width: 2.75; }
  .attentive { stroke-width: 1.1; }
}
"""


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


def text(value: str) -> str:
    """Text from a file: escaped, and with its writing direction kept to itself."""
    return f"<bdi>{escape(value)}</bdi>"


def key_facts(pairs: list[tuple[str, str]]) -> str:
    """The row of large numbers below a page's title: names and values, both HTML."""
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def drawn(picture: Picture, alt: str, *, style: str = "") -> str:
    """A picture with its outline upon it.

    Args:
        alt: what it shows, HTML.
        style: of the box around it.
    """
    overlay = ""
    if picture.outline:
        path = f'd="{picture.outline}"'
        overlay = (
            f'<svg viewBox="0 0 {picture.width} {picture.height}" preserveAspectRatio="none" aria-hidden="true">'
            f'<path class="halo" {path}/><path class="attentive" {path}/></svg>'
        )
    box = f' style="{style}"' if style else ""
    return (
        f'<div class="picture"{box}><img src="{picture.uri}" width="{picture.width}" height="{picture.height}"'
        f' alt="{alt}">{overlay}</div>'
    )
