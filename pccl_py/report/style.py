"""The style sheet of the demo's report: inline, light or dark as the reader's system is."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfa; --card: #ffffff; --ink: #1b1f24; --muted: #626b76;
  --grid: #e6e8eb; --blue: #2f6fde; --grey: #c3c9d1; --red: #c9312b; --green: #157f4a;
  --orange: #b45f06; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171b; --card: #1c2026; --ink: #e7eaee;
  --muted: #98a2ae; --grid: #2d333b; --blue: #6ea1ff; --grey: #4b535e; --red: #ff7b72;
  --green: #4cc38a; --orange: #f0a04b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 20px 16px 40px; background: var(--bg);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 1.05rem; margin: 0 0 6px; }
p { margin: 0 0 12px; } .sub, figcaption { color: var(--muted); font-size: .9rem; }
.grid2 { display: grid; gap: 16px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.facts { display: grid; gap: 12px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.card, .fact { background: var(--card); border: 1px solid var(--grid); border-radius: 10px;
  padding: 14px; margin: 0; min-width: 0; }
.fact b { display: block; font-size: 1.35rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.fact span { color: var(--muted); font-size: .85rem; }
.ok { color: var(--green); } .bad { color: var(--red); }
ul { list-style: none; margin: 0; padding: 0; }
li { padding: 7px 0; border-top: 1px solid var(--grid); }
li:first-child { border-top: 0; } li small { display: block; color: var(--muted);
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; } th, td { text-align: right; padding: 6px 8px;
  border-top: 1px solid var(--grid); white-space: nowrap; } th { color: var(--muted);
  font-weight: 500; border-top: 0; } th:first-child, td:first-child, td.hash, th.hash {
  text-align: left; } .hash { font-family: ui-monospace, monospace; }
section.card { margin-top: 16px; } svg { width: 100%; height: auto; display: block; }
svg text { font: 12.5px system-ui, sans-serif; fill: var(--ink); }
svg .muted { fill: var(--muted); }
.grid { stroke: var(--grid); stroke-width: 1; } .axis { stroke: var(--muted); stroke-width: 1; }
.curve { fill: none; stroke: var(--blue); stroke-width: 2; stroke-linejoin: round; }
.test { fill: var(--blue); stroke: var(--card); stroke-width: 2; }
.bigram { stroke: var(--muted); stroke-width: 1.5; stroke-dasharray: 5 4; }
.member { fill: var(--blue); } .starting { fill: var(--grey); } .halo { fill: var(--card); }
.mark { stroke-width: 1.2; stroke-dasharray: 3 3; } .mark.kill { stroke: var(--red); }
.mark.back { stroke: var(--green); } .mark.join { stroke: var(--orange); }
svg text.kill { fill: var(--red); } svg text.back { fill: var(--green); }
svg text.join { fill: var(--orange); }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; vertical-align: -1px; }
.key.member { background: var(--blue); } .key.starting { background: var(--grey); }
"""
