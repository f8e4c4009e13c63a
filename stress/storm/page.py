"""A storm's report: one self-contained HTML page of its history and its verdicts; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pccl_py.report.chart import LEFT, RIGHT, TOP, WIDTH, Axis, columns, frame, label
from pccl_py.report.oracle import Verdict
from pccl_py.report.style import STYLE
from stress.storm import figures
from stress.storm.history import History, Life
from stress.storm.program import SLOTS

LANE = 20
WIDE = 62  # room for the names of lanes
_STYLE = """
.stopped { fill: var(--orange); } .fault { fill: var(--red); } .end { stroke: var(--red);
  stroke-width: 2; } .gone { stroke: var(--green); stroke-width: 2; }
.histogram { fill: var(--blue); }
"""


def page(history: History, verdicts: Sequence[Verdict], command: str) -> str:
    """The whole page. command: what was typed, for its foot."""
    began = history.began
    good = all(verdict.ok for verdict in verdicts)
    found = "nothing wrong" if good else "violations"
    title = f"Chaos, profile {began.profile}, seed {began.seed}: {found}"
    seconds = _end(history)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pccl-py {escape(title)}</title><style>{STYLE}{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p class="sub">{escape(figures.summary(history))}. Deadline {began.deadline_s:g} s, detection
{began.detection_s:g} s; {
        "links go through a relay that breaks them" if began.proxied else "links are direct"
    }.</p>
<div class="facts">{_facts(history)}</div>
<div class="grid2">
<figure class="card"><h2>Members over time</h2>{_lanes(history, seconds)}
<figcaption><span class="key member"></span> member&ensp;<span class="key starting"></span> on its
way in&ensp;orange: stopped&ensp;red end: killed&ensp;green end: left. A lane is a place, taken by
one process after another.</figcaption></figure>
<figure class="card"><h2>World size and faults</h2>{_world(history, seconds)}
{_faults(history, seconds)}
<figcaption>A bar is a fault that lasts; the coordinator's ends when it listens again.</figcaption>
</figure>
<figure class="card"><h2>Until the last survivor went on</h2>{_histogram(history)}
<figcaption>From a fault to the end of the survivors' step that it met; after a kill or a stop of
the first in a later view.</figcaption></figure>
<section class="card" style="margin-top:0"><h2>By kind of fault</h2>
<div class="scroll">{_table(history)}</div></section>
</div>
<section class="card"><h2>Checks</h2><ul>{"".join(_verdict(v) for v in verdicts)}</ul></section>
<p class="sub" style="margin-top:16px">Made by <code>{escape(command)}</code>; log.jsonl beside it
has every record, schedule.jsonl what was done.</p>
</body></html>
"""


def _end(history: History) -> float:
    """Seconds of the whole; of a log without an end, to its last step."""
    last = max((step.at for step in figures.steps_of(history)), default=1.0)
    return history.over if math.isfinite(history.over) else last


def _facts(history: History) -> str:
    steps = figures.steps_of(history)
    ops = [op for step in steps for op in step.ops]
    kills = [r.seconds for r in figures.recoveries(history) if r.fault.kind == "kill"]
    facts = [
        (str(sum(figures.faults_by_kind(history).values())), "faults"),
        (f"{len(ops)}", "ops, each checked at each member"),
        (f"{sum(op.repaired > 0 for op in ops)}", "of them repaired in flight"),
        (f"{max((op.seconds for op in ops), default=0.0):.1f} s", "the longest op"),
    ]
    if kills:
        facts.append((f"{figures.quantile(kills, 0.5):.2f} s", "median from a kill to going on"))
    return "".join(
        f'<p class="fact"><b>{escape(a)}</b><span>{escape(b)}</span></p>' for a, b in facts
    )


def _verdict(verdict: Verdict) -> str:
    kind, sign = ("ok", "✓") if verdict.ok else ("bad", "✗")
    return (
        f'<li><span class="{kind}">{sign}</span> {escape(verdict.name)}'
        f"<small>{escape(verdict.text)}</small></li>"
    )


def _table(history: History) -> str:
    lines = [
        "<tr><th>fault</th><th>times</th><th>median s</th><th>p90 s</th><th>longest s</th></tr>"
    ]
    recoveries = figures.recoveries(history)
    for kind, count in sorted(figures.faults_by_kind(history).items()):
        values = [r.seconds for r in recoveries if r.fault.kind == kind]
        cells = [f"{figures.quantile(values, q):.2f}" for q in (0.5, 0.9, 1.0)] if values else []
        row = "".join(f"<td>{cell}</td>" for cell in (count, *(cells or ("–",) * 3)))
        lines.append(f"<tr><td>{escape(kind)}</td>{row}</tr>")
    return f"<table>{''.join(lines)}</table>"


# ---------------------------------------------------------------- charts


def _axis(seconds: float) -> Axis:
    return Axis(0.0, seconds, LEFT, WIDTH - RIGHT)


def _bar(x: Axis, top: float, start: float, end: float, kind: str, title: str) -> str:
    left, right = x.at(max(start, x.low)), x.at(min(end, x.high))
    return (
        f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{max(1.0, right - left):.1f}" '
        f'height="{LANE - 6}"><title>{escape(title)}</title></rect>'
    )


def _lanes(history: History, seconds: float) -> str:
    slots = max((life.slot for life in history.lives.values()), default=0) + 1
    assert slots <= SLOTS
    x = _axis(seconds)
    bottom = TOP + LANE * slots
    parts = [frame(bottom + 34, "Members over time"), columns(x, TOP, bottom, "seconds")]
    for life in history.lives.values():
        parts.append(_lane(life, x, TOP + LANE * life.slot + 3, seconds))
    return "".join([*parts, "</svg>"])


def _lane(life: Life, x: Axis, top: float, seconds: float) -> str:
    """One process: its ways in, its memberships, its stops, its end."""
    parts = []
    start = life.spawned
    ended = seconds if life.exited is None else life.exited.at
    for membership in life.memberships:
        joined, end = membership.joined.at, min(membership.ended, ended)
        parts.append(_bar(x, top, start, joined, "starting", f"{life.who} on its way in"))
        parts.append(_bar(x, top, joined, end, "member", f"{life.who}: {end - joined:.1f} s"))
        start = end
    if not life.memberships or life.memberships[-1].end == "lost":
        parts.append(_bar(x, top, start, ended, "starting", f"{life.who} on its way in"))
    for a, b in life.stops:
        parts.append(_bar(x, top, a, b, "stopped", f"{life.who} stopped for {b - a:.1f} s"))
    if life.exited is not None:
        kind = "gone" if life.exited.status == 0 else "end"
        at = x.at(min(ended, seconds))
        parts.append(
            f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" '
            f'y1="{top - 2:.1f}" y2="{top + LANE - 4:.1f}"/>'
        )
    return "".join(parts)


def _world(history: History, seconds: float) -> str:
    changes = figures.worlds(history)
    x = _axis(seconds)
    height = 110
    most = max((size for _, size in changes), default=1)
    y = Axis(0.0, float(most), height - 34, 12)
    points, last = [], None
    for at, size in changes:
        if last is not None:
            points.append(f"{x.at(at):.1f},{y.at(last):.1f}")
        points.append(f"{x.at(at):.1f},{y.at(size):.1f}")
        last = size
    if last is not None:
        points.append(f"{x.at(seconds):.1f},{y.at(last):.1f}")
    return "".join(
        [
            frame(height, "World size over time"),
            columns(x, 12, height - 34, "seconds"),
            label(LEFT - 8, y.at(most) + 4, str(most), "end", "muted"),
            label(LEFT - 8, y.at(0) + 4, "0", "end", "muted"),
            f'<polyline class="curve" points="{" ".join(points)}"/></svg>',
        ]
    )


def _faults(history: History, seconds: float) -> str:
    """A lane for each kind."""
    kinds = sorted(figures.faults_by_kind(history))
    x = Axis(0.0, seconds, LEFT + WIDE, WIDTH - RIGHT)
    parts = [frame(LANE * len(kinds) + 8, "Faults over time")]
    for lane, kind in enumerate(kinds):
        parts.append(label(LEFT + WIDE - 8, LANE * lane + 15, kind, "end"))
        for fault in history.faults:
            if fault.kind == kind:
                end = history.healed.get(fault.number, fault.at)
                title = f"{fault.at:.1f} s: {kind} {' '.join(fault.whom)}, {end - fault.at:.1f} s"
                parts.append(_bar(x, LANE * lane + 3, fault.at, end, "fault", title))
    return "".join([*parts, "</svg>"])


def _histogram(history: History) -> str:
    counts = figures.histogram([r.seconds for r in figures.recoveries(history)])
    height, base = 150, 120
    wide = (WIDTH - LEFT - RIGHT) / len(counts)
    y = Axis(0.0, float(max(*counts, 1)), base, 24)
    parts = [frame(height, "Histogram of recovery times")]
    for place, count in enumerate(counts):
        left = LEFT + wide * place
        parts.append(
            f'<rect class="histogram" x="{left + 4:.1f}" y="{y.at(count):.1f}" '
            f'width="{wide - 8:.1f}" height="{base - y.at(count):.1f}"/>'
        )
        parts.append(label(left + wide / 2, y.at(count) - 5, str(count), "middle", "muted"))
        bound = figures.BUCKETS_S[place]
        name = f"≤ {bound:g} s" if place < len(counts) - 1 else f"> {figures.BUCKETS_S[-2]:g} s"
        parts.append(label(left + wide / 2, base + 17, name, "middle", "muted"))
    return "".join([*parts, "</svg>"])
