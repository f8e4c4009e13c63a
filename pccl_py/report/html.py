"""The demo's report: one self-contained HTML page, from the events and the verdicts; pure.

Nothing is loaded from anywhere and nothing runs: style and charts are inline, readable on a phone,
light or dark as the reader's system is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pccl_py.report import board, oracle
from pccl_py.report.chart import Bar, Mark, loss_curve, membership
from pccl_py.report.oracle import Expected, Verdict
from pccl_py.report.records import Evaluated, Event, Exited, Joined, Killed, Left, Started
from pccl_py.report.style import STYLE


def page(
    events: Sequence[Event], expected: Expected, verdicts: Sequence[Verdict], command: str
) -> str:
    """The whole page. events: by time; command: what was typed, for the page's foot."""
    began = events[0].time if events else 0.0
    seconds = events[-1].time - began if events else 0.0
    good = all(verdict.ok for verdict in verdicts)
    title = "A DiLoCo run that survived kill -9" if good else "A DiLoCo run that failed its checks"
    tests = [e for e in events if isinstance(e, Evaluated)]
    bigram = next((e.bigram_loss for e in tests if math.isfinite(e.bigram_loss)), math.nan)
    summaries = board.round_summaries(events)
    curve = loss_curve(
        [(float(s.round), s.loss) for s in summaries],
        [(float(e.round), e.valid_loss) for e in tests],
        bigram,
        _marks(events, expected, by_round=True, began=began),
        expected.rounds,
    )
    gantt = membership(
        expected.everybody,
        _bars(events, expected, began),
        _marks(events, expected, by_round=False, began=began),
        max(seconds, 1.0),
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pccl-py demo: {escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p class="sub">{len(expected.first)} workers train a byte-level GPT with pccl-py;
{escape(expected.victim)} is killed and restarted, {escape(expected.late)} joins later.
{expected.rounds} rounds in {seconds:.0f} seconds on one machine.</p>
<div class="facts">{_facts(events, expected, summaries)}</div>
<div class="grid2">
<figure class="card"><h2>Loss over rounds</h2>{curve}
<figcaption>Line: training loss, mean of the members' last inner steps. Dots: validation loss of the
outer parameters. Nats per byte.</figcaption></figure>
<figure class="card"><h2>Members over time</h2>{gantt}
<figcaption><span class="key member"></span> member&ensp;<span class="key starting"></span> starting
(Python, torch, waiting for the next safe point)</figcaption></figure>
</div>
<section class="card"><h2>Checks</h2><ul>{"".join(_verdict(v) for v in verdicts)}</ul></section>
<section class="card"><h2>Workers at the end</h2>
<div class="scroll">{_table(events, expected)}</div></section>
<p class="sub" style="margin-top:16px">Made by <code>{escape(command)}</code></p>
</body></html>
"""


def _facts(
    events: Sequence[Event], expected: Expected, summaries: Sequence[board.RoundSummary]
) -> str:
    tests = {e.round: e.valid_loss for e in events if isinstance(e, Evaluated)}
    start, end = tests.get(0, math.nan), tests.get(expected.rounds, math.nan)
    cost = oracle.kill_cost(events, expected)
    facts = [
        (f"{_number(start, 2)} → {_number(end, 2)}", "validation loss, nats per byte"),
        (board.bytes_text(sum(s.bytes_sent for s in summaries)), "sent by all workers"),
    ]
    if cost is not None:
        facts.append(
            (f"{cost.lost:.1f} s", f"lost by the survivors; a round takes {cost.usual:.1f} s")
        )
        facts.append((f"{_number(cost.away, 1)} s", "from the kill to being a member again"))
    return "".join(
        f'<p class="fact"><b>{escape(a)}</b><span>{escape(b)}</span></p>' for a, b in facts
    )


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _verdict(verdict: Verdict) -> str:
    kind, sign = ("ok", "✓") if verdict.ok else ("bad", "✗")
    return (
        f'<li><span class="{kind}">{sign}</span> {escape(verdict.name)}'
        f"<small>{escape(verdict.text)}</small></li>"
    )


def _table(events: Sequence[Event], expected: Expected) -> str:
    head = "<tr><th>worker</th><th>lives</th><th>round</th><th>loss</th><th>sent</th>"
    lines = [head + '<th class="hash">state hash</th></tr>']
    for row in board.rows(events, expected.everybody):
        lives = sum(1 for e in events if isinstance(e, Joined) and e.worker == row.worker)
        lines.append(
            f"<tr><td>{escape(row.worker)}</td><td>{lives}</td><td>{row.round}</td>"
            f"<td>{_number(row.loss, 3)}</td><td>{board.bytes_text(row.bytes_sent)}</td>"
            f'<td class="hash">{escape(row.digest[:16])}</td></tr>'
        )
    return f"<table>{''.join(lines)}</table>"


def _marks(
    events: Sequence[Event], expected: Expected, *, by_round: bool, began: float
) -> list[Mark]:
    """The kill, the return and the late joining, over rounds or over seconds."""
    lanes = {worker: lane for lane, worker in enumerate(expected.everybody)}
    marks: list[Mark] = []
    killed = False
    number = 0
    for event in events:
        if isinstance(event, Killed):
            killed = True
            at = number + 0.5 if by_round else event.time - began
            marks.append(Mark(at, "kill", f"{event.worker} killed", lanes[event.worker], True))
        elif isinstance(event, Joined):
            at = float(event.round) if by_round else event.time - began
            if event.worker == expected.victim and killed:
                marks.append(Mark(at, "back", "back", lanes[event.worker], False))
            elif event.worker == expected.late:
                marks.append(Mark(at, "join", f"{event.worker} joins", lanes[event.worker], False))
        number = max(number, getattr(event, "round", 0))
    return marks


def _bars(events: Sequence[Event], expected: Expected, began: float) -> list[Bar]:
    """Each life of each worker: from start to membership, from membership to its end."""
    bars: list[Bar] = []
    for lane, worker in enumerate(expected.everybody):
        started = joined = math.nan
        for event in (e for e in events if e.worker == worker):
            now = event.time - began
            if isinstance(event, Started):
                started, joined = now, math.nan
            elif isinstance(event, Joined):
                joined = now
                title = f"{worker} starts: {now - started:.1f} s"
                bars.append(Bar(lane, started, now, "starting", title))
            elif isinstance(event, Killed | Left | Exited) and math.isfinite(joined):
                title = f"{worker} is a member for {now - joined:.1f} s"
                bars.append(Bar(lane, joined, now, "member", title))
                joined = math.nan
    return bars
