"""The style sheet of a report's page: light and dark, desktop and phone."""

STYLE = """\
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

.curves { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 4px; }
.curves h2 { margin-right: auto; }
.curves input { position: absolute; opacity: 0; }
.curves label { font-size: 13px; color: var(--soft); padding: 3px 9px; border-radius: 5px; cursor: pointer; }
.curves input:checked + label { color: var(--ink); background: var(--rule); }
.curves input:focus-visible + label { outline: 2px solid var(--image); outline-offset: 1px; }
.panels {
  flex-basis: 100%; display: grid; gap: 24px; margin-top: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr));
}
#x-log:checked ~ .panels .linear, #x-linear:checked ~ .panels .log { display: none; }
.panel figcaption { display: flex; justify-content: space-between; gap: 12px; font-size: 13px; }
.panel figcaption span { color: var(--ink); }
.panel code { color: var(--soft); margin-left: 4px; overflow-wrap: anywhere; }
.panel output { font-weight: 600; font-variant-numeric: tabular-nums; color: var(--colour); }
.both { --colour: var(--both); }
.image { --colour: var(--image); }
.audio { --colour: var(--audio); }
.curve { display: block; width: 100%; height: auto; margin-top: 2px; overflow: visible; }
.curve .grid { stroke: var(--rule); stroke-width: 0.75; }
.curve .axis { stroke: var(--soft); stroke-width: 0.75; opacity: 0.6; }
.curve .tick { fill: var(--soft); font-size: 10.5px; font-variant-numeric: tabular-nums; }
.curve .line { fill: none; stroke: var(--colour); stroke-width: 1.5; stroke-linejoin: round; }
.curve .band { fill: var(--colour); opacity: 0.18; }
.curve .end { fill: var(--colour); }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin-top: 12px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 0 6px 28px; text-align: right; white-space: nowrap; }
thead th { font-size: 13px; font-weight: 400; color: var(--soft); }
tbody tr { border-top: 1px solid var(--rule); }
tbody th { padding-left: 0; text-align: left; font-weight: 400; }
tbody tr:last-child { color: var(--soft); }

article { display: grid; grid-template-columns: 168px minmax(0, 1fr); gap: 12px 32px; }
article { margin-top: 20px; padding-top: 20px; border-top: 1px solid var(--rule); }
.about { font-size: 13px; overflow-wrap: anywhere; }
.about h3 { font-weight: 600; margin-bottom: 4px; }
.pictures { display: grid; gap: 12px 16px; }
.columns-3 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.columns-2 { grid-template-columns: repeat(2, minmax(0, 1fr)); max-width: 600px; }
.pictures figcaption { font-size: 12px; margin-top: 3px; }
.picture { position: relative; overflow: hidden; background: var(--hidden); }
.picture img, .picture svg { display: block; width: 100%; }
.picture svg { position: absolute; inset: 0; height: 100%; }
.image img { height: auto; }
.audio img { height: 104px; }
.halo, .attentive { fill: none; vector-effect: non-scaling-stroke; stroke-linecap: square; }
.halo { stroke: #000; stroke-width: 3.5; opacity: 0.55; }
.attentive { stroke: #fff; stroke-width: 1.5; }

details { margin-top: 20px; font-size: 13px; }
summary { color: var(--soft); cursor: pointer; width: fit-content; }
summary:hover { color: var(--ink); }
.groups {
  display: grid; gap: 20px 32px; margin-top: 12px; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr));
}
.groups h2 { font-size: 13px; margin-bottom: 4px; }
.groups dl div { padding: 4px 0; border-top: 1px solid var(--rule); }
.groups dd { overflow-wrap: anywhere; }

@media (max-width: 640px) {
  main { padding: 24px 16px 40px; }
  section { margin-top: 36px; }
  .facts { gap: 10px 20px; }
  .facts dd { font-size: 19px; }
  .groups dl div { display: flex; justify-content: space-between; gap: 16px; }
  .groups dd { text-align: right; }
  article { grid-template-columns: minmax(0, 1fr); }
  .about p { display: inline; margin-right: 8px; }
  .pictures { gap: 8px; }
  .pictures .audio { grid-column: 1 / -1; }
  .audio img { height: 80px; }
  table { font-size: 14px; }
  th, td { padding-left: 11px; }
  .halo { stroke-width: 2.75; }
  .attentive { stroke-width: 1.1; }
}
@media print { .curves input, .curves label { display: none; } article, .panel { break-inside: avoid; } }
"""
