"""The style of a report's page, after that of all pages (web_page.py)."""

STYLE = """\
.curves { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 4px; }
.curves h2 { margin-right: auto; }
.curves input { position: absolute; opacity: 0; }
.curves label { font-size: 13px; color: var(--soft); padding: 3px 9px; border-radius: 5px; cursor: pointer; }
.curves input:checked + label { color: var(--ink); background: var(--rule); }
.curves input:focus-visible + label { outline: 2px solid var(--image); outline-offset: 1px; }
.curves .panels { flex-basis: 100%; }
#x-log:checked ~ .panels .linear, #x-linear:checked ~ .panels .log { display: none; }
.panel code { color: var(--soft); margin-left: 4px; overflow-wrap: anywhere; }
.curve { display: block; width: 100%; height: auto; margin-top: 2px; overflow: visible; }
.curve .grid { stroke: var(--rule); stroke-width: 0.75; }
.curve .axis { stroke: var(--soft); stroke-width: 0.75; opacity: 0.6; }
.curve .tick { fill: var(--soft); font-size: 10.5px; font-variant-numeric: tabular-nums; }
.curve .line { fill: none; stroke: var(--colour); stroke-width: 1.5; stroke-linejoin: round; }
.curve .band { fill: var(--colour); opacity: 0.18; }
.curve .end { fill: var(--colour); }

tbody tr:last-child { color: var(--soft); }

article { display: grid; grid-template-columns: 168px minmax(0, 1fr); gap: 12px 32px; }
article { margin-top: 20px; padding-top: 20px; border-top: 1px solid var(--rule); }
.about { font-size: 13px; overflow-wrap: anywhere; }
.about h3 { font-weight: 600; margin-bottom: 4px; }
.pictures { display: grid; gap: 12px 16px; }
.columns-3 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.columns-2 { grid-template-columns: repeat(2, minmax(0, 1fr)); max-width: 600px; }
.pictures figcaption { font-size: 12px; margin-top: 3px; }
.image img { height: auto; }
.audio img { height: 104px; }

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
  .groups dl div { display: flex; justify-content: space-between; gap: 16px; }
  .groups dd { text-align: right; }
  article { grid-template-columns: minmax(0, 1fr); }
  .about p { display: inline; margin-right: 8px; }
  .pictures { gap: 8px; }
  .pictures .audio { grid-column: 1 / -1; }
  .audio img { height: 80px; }
}
@media print { .curves input, .curves label { display: none; } article, .panel { break-inside: avoid; } }
"""
