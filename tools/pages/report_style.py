"""The style of a report's page, after those of all pages (web_page.py) and of curves (panels.py)."""

STYLE = """\
.result { margin-top: 20px; }
.result h3 { font-size: 15px; }
.result table { margin-top: 6px; }
.result .note:empty { display: none; }
details { margin-top: 14px; font-size: 13px; }
details p { margin-top: 6px; max-width: 85ch; }
summary { color: var(--soft); cursor: pointer; width: fit-content; }
summary:hover { color: var(--ink); }

article { margin-top: 18px; padding-top: 14px; border-top: 1px solid var(--rule); }
article h3, article .about { font-size: 13px; overflow-wrap: anywhere; }
article h3 code { font-weight: 600; }
.whose { margin: 12px 0 0; font-size: 13px; overflow-wrap: anywhere; }
.strip { display: grid; gap: 6px 10px; margin-top: 8px; align-items: start; }
.strip figure { min-width: 0; }
.strip figcaption { font-size: 12px; line-height: 1.35; margin-top: 3px; overflow-wrap: anywhere; }
.pair { grid-template-columns: repeat(2, minmax(0, 1fr)) repeat(2, minmax(0, 1.9fr)); }
.over-frames { grid-template-columns: minmax(0, 1.9fr) repeat(var(--n), minmax(0, 1fr)); }
.over-sounds { grid-template-columns: minmax(0, 1fr) repeat(var(--n), minmax(0, 1.9fr)); }
.missing { display: grid; place-items: center; padding: 4px; font-size: 12px; text-align: center; color: var(--soft); }
.missing { border: 1px dashed var(--rule); }
.frame.missing { aspect-ratio: 1; }
.sound.missing { aspect-ratio: 1.9; }
.box { position: relative; display: flex; }
.frame .box { aspect-ratio: 1; }
.sound .box { aspect-ratio: 1.9; }
.box .picture { width: 100%; height: 100%; }
.box .picture img { height: 100%; }

.examples .strip { max-width: 900px; }
.partner .box { outline: 3px solid var(--run-2); outline-offset: 1px; }
.partner figcaption { color: var(--run-2); font-weight: 600; }
.query .box { outline: 2px solid var(--soft); outline-offset: 1px; }
.sets { display: flex; flex-wrap: wrap; gap: 22px 26px; margin-top: 16px; }
.set { width: calc(var(--n) * 128px - 10px); max-width: 100%; }
.set .strip { grid-template-columns: repeat(auto-fill, minmax(min(118px, 46%), 1fr)); }
.set h3 { overflow-wrap: anywhere; font-size: 12px; }

.groups {
  display: grid; gap: 20px 32px; margin-top: 12px; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr));
}
.groups h2 { font-size: 13px; margin-bottom: 4px; }
.groups dl div { padding: 4px 0; border-top: 1px solid var(--rule); }
.groups dd { overflow-wrap: anywhere; }
header h3 { margin-top: 22px; }
details .results td { white-space: normal; overflow-wrap: anywhere; min-width: 110px; }

@media (max-width: 640px) {
  .groups dl div { display: flex; justify-content: space-between; gap: 16px; }
  .groups dd { text-align: right; }
  .pair { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .over-frames, .over-sounds { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .over-frames figure:first-child, .over-sounds figure:first-child { grid-column: 1 / -1; }
  .over-sounds figure:first-child { width: 50%; }
  .examples .over-frames { grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 6px; }
  .set { width: 100%; }
}
@media print { article, .set { break-inside: avoid; } }
"""
