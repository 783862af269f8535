"""Style and script of a contact sheet, after the style of all pages (web_page.py)."""

STYLE = """\
.bar { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 12px; }
.filters { display: flex; flex: 0 1 460px; gap: 8px; min-width: 0; margin-left: auto; justify-content: flex-end; }
.bar input, .bar select {
  min-width: 0; padding: 5px 10px; font: inherit; font-size: 14px;
  color: inherit; background: var(--paper); border: 1px solid var(--rule); border-radius: 6px;
}
.bar input { flex: 0 1 280px; }
.bar :is(input, select):focus-visible { outline: 2px solid var(--image); outline-offset: -1px; }
.bar output { min-width: 5ch; text-align: right; font-size: 14px; color: var(--soft); }
.bar output { font-variant-numeric: tabular-nums; }

.sheet {
  display: grid; gap: 28px 24px; margin-top: 20px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr));
}
.card { min-width: 0; font-size: 13px; overflow-wrap: anywhere; }
.card[hidden] { display: none; }
.card .pictures { display: grid; grid-template-columns: 112px minmax(0, 1fr); gap: 4px; margin-bottom: 8px; }
.card .picture img { height: 112px; }
.card h3 { line-height: 1.35; }
.parts { display: flex; flex-wrap: wrap; gap: 0 12px; }
.quiet { color: var(--warn); font-weight: 600; }
.source { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.halo { stroke-width: 3; }

.bars ol { list-style: none; margin: 4px 0 0; padding: 0; font-size: 13px; }
.bars li { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 12px; padding: 3px 0; }
.bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .count { font-variant-numeric: tabular-nums; color: var(--soft); }
.bars .meter { grid-column: 1 / -1; height: 3px; min-width: 1px; background: var(--image); border-radius: 2px; }
.panel figcaption { padding-bottom: 4px; }
.panel { --colour: var(--both); }

.histogram svg { display: block; width: 100%; height: 90px; border-bottom: 1px solid var(--soft); }
.histogram rect { fill: var(--image); }
.ends { display: flex; justify-content: space-between; font-size: 12px; color: var(--soft); margin-top: 3px; }
.ends { font-variant-numeric: tabular-nums; }
.histogram p { font-size: 12px; }

.failures { width: 100%; font-size: 14px; }
.failures tbody tr { vertical-align: baseline; }
.failures .examples { width: 100%; text-align: left; white-space: normal; overflow-wrap: anywhere; color: var(--soft); }
.failures td.examples { min-width: 220px; font-size: 13px; }

@media (max-width: 640px) {
  .filters { flex-basis: 100%; order: 3; margin-left: 0; }
  .bar input { flex: 1 1 0; }
  .bar output { margin-left: auto; }
  .failures td.examples { min-width: 150px; }
}
@media print { .filters { display: none; } .card, .panel { break-inside: avoid; } }
"""

SCRIPT = """\
const filter = document.getElementById("filter"), shown = document.getElementById("shown");
const kind = document.getElementById("kind");  // not there where every sample has sound
const cards = [...document.querySelectorAll(".card")];
function apply() {
  const words = filter.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const quiet = kind ? kind.value : "";
  let left = 0;
  for (const card of cards) {
    card.hidden = !words.every((word) => card.dataset.text.includes(word));
    card.hidden ||= quiet !== "" && !card.dataset.quiet.split(" ").includes(quiet);
    left += !card.hidden;
  }
  shown.textContent = words.length || quiet ? `${left} of ${cards.length}` : `${cards.length}`;
}
filter.addEventListener("input", apply);
kind?.addEventListener("input", apply);
"""
