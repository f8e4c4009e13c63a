"""The two charts of the report as inline SVG; pure text making, no library, no script.

`html` calls it. Colours are CSS variables of the page, so that a chart follows its light or dark
theme. Lengths are in the view box's units, of which a phone shows about three quarters per pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 460, 34, 12, 34, 34
LANE = 30  # height of one worker's lane

Kind = Literal["kill", "back", "join"]
_MARKS: dict[Kind, str] = {"kill": "✕", "back": "▲", "join": "◆"}


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at `x` (a round or a second). label: a word or two; lane: of the
    worker in a membership chart; left: the label stands left of its line."""

    x: float
    kind: Kind
    label: str
    lane: int
    left: bool


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of a worker's time, seconds. kind: its CSS class; title: what a pointer shows."""

    lane: int
    start: float
    end: float
    kind: Literal["starting", "member"]
    title: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear map of [low, high] to [start, end] in the view box."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from `low` to `high`, both finite and low <= high."""
    rough = (high - low or 1.0) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def loss_curve(
    points: Sequence[tuple[float, float]],
    tests: Sequence[tuple[float, float]],
    bigram: float,
    marks: Sequence[Mark],
    rounds: int,
) -> str:
    """Training loss over rounds, with the validation losses as dots. points, tests: (round, nats
    per byte); bigram: a line at that height, none if NaN."""
    height = 280
    values = [y for _, y in (*points, *tests) if math.isfinite(y)]
    if math.isfinite(bigram):
        values.append(bigram)
    if not values:
        return "<p>no round was finished</p>"
    x = Axis(0, rounds, LEFT, WIDTH - RIGHT)
    low = math.floor(min(values) * 2) / 2
    y = Axis(low, max(*values, low + 0.5), height - BOTTOM, TOP)
    parts = [frame(height, "Training loss over rounds"), _grid(x, y, "round")]
    parts += [_mark_line(mark, x, TOP, height - BOTTOM) for mark in marks]
    if math.isfinite(bigram):
        level = y.at(bigram)
        parts.append(
            f'<line class="bigram" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
            f'y1="{level:.1f}" y2="{level:.1f}"/>'
        )
        parts.append(label(WIDTH - RIGHT, level - 5, f"byte bigrams {bigram:.2f}", "end", "muted"))
    path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points if math.isfinite(b))
    parts.append(f'<polyline class="curve" points="{path}"/>')
    for a, b in tests:
        if math.isfinite(b):
            anchor = "start" if a < rounds / 2 else "end"
            shift = 8 if anchor == "start" else 0
            parts.append(f'<circle class="test" cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="4.5"/>')
            parts.append(
                label(x.at(a) + shift, y.at(b) + (4 if shift else -10), f"{b:.2f}", anchor)
            )
    return "".join([*parts, "</svg>"])


def membership(
    workers: Sequence[str], bars: Sequence[Bar], marks: Sequence[Mark], seconds: float
) -> str:
    """Who was a member when: a lane per worker over the run's `seconds`."""
    height = TOP + LANE * len(workers) + BOTTOM
    x = Axis(0, seconds, LEFT, WIDTH - RIGHT)
    parts = [frame(height, "Membership over time"), columns(x, TOP, height - BOTTOM, "seconds")]
    for lane, worker in enumerate(workers):
        parts.append(label(LEFT - 8, TOP + LANE * lane + LANE / 2 + 4, worker, "end"))
    for bar in bars:
        wide = max(1.0, x.at(bar.end) - x.at(bar.start))
        parts.append(
            f'<rect class="{bar.kind}" x="{x.at(bar.start):.1f}" y="{TOP + LANE * bar.lane + 6}" '
            f'width="{wide:.1f}" height="{LANE - 12}" rx="3">'
            f"<title>{escape(bar.title)}</title></rect>"
        )
    for mark in marks:
        middle = TOP + LANE * mark.lane + LANE / 2
        parts.append(_mark_line(mark, x, TOP, height - BOTTOM))
        parts.append(f'<circle class="halo" cx="{x.at(mark.x):.1f}" cy="{middle}" r="9"/>')
        parts.append(label(x.at(mark.x), middle + 4.5, _MARKS[mark.kind], "middle", mark.kind))
    return "".join([*parts, "</svg>"])


def frame(height: float, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'


def label(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
    )


def _grid(x: Axis, y: Axis, x_name: str) -> str:
    parts = []
    for value in ticks(y.low, y.high, 5):
        level = y.at(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
            f'y1="{level:.1f}" y2="{level:.1f}"/>'
        )
        parts.append(label(LEFT - 6, level + 4, f"{value:g}", "end", "muted"))
    return "".join(parts) + columns(x, y.end, y.start, x_name)


def columns(x: Axis, top: float, bottom: float, name: str) -> str:
    parts = [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>',
        label(WIDTH - RIGHT, bottom + 29, name, "end", "muted"),
    ]
    for value in ticks(x.low, x.high, 6):
        parts.append(label(x.at(value), bottom + 15, f"{value:g}", "middle", "muted"))
        parts.append(
            f'<line class="grid" x1="{x.at(value):.1f}" x2="{x.at(value):.1f}" '
            f'y1="{top}" y2="{bottom}"/>'
        )
    return "".join(parts)


def _mark_line(mark: Mark, x: Axis, top: float, bottom: float) -> str:
    """A line across the chart; its label stands on top, beside the line."""
    at = x.at(mark.x)
    anchor, shift = ("end", 3) if mark.left else ("start", -3)
    return (
        f'<line class="mark {mark.kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 6}" y2="{bottom}"/>'
        + label(at + shift, top - 12, mark.label, anchor, mark.kind)
    )
