"""Bus bandwidth over size as one SVG, hand-made; pure. A row of panels per op, a panel per world, a
curve per implementation; nothing is loaded from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pccl_py.bench import sizes
from pccl_py.bench.rows import Row

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 46, 44
COLOURS = {
    "pccl": "#2f6fde", "gloo": "#b45f06", "ceiling": "#626b76", "mpi": "#157f4a",
    "mpi-shm": "#8a3ffc", "mpich": "#157f4a", "mpich-shm": "#7fb54a", "openmpi": "#c2185b",
    "openmpi-shm": "#8a3ffc",
}  # fmt: skip
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1b1f24}.t{font-size:14px;font-weight:600}"
    ".g{stroke:#e6e8eb}.m{fill:#626b76}polyline{fill:none;stroke-width:2}"
)


def svg(measured: Sequence[Row]) -> str:
    """The plot, of at least one row; what was measured in place too is shown in place only."""
    ops = list(dict.fromkeys(row.op for row in measured))
    in_place = {row.op for row in measured if row.in_place}
    shown = [row for row in measured if row.in_place == (row.op in in_place)]
    worlds = sorted({row.world for row in shown})
    width, height = WIDTH * len(worlds), HEIGHT * len(ops)
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
        f'<style>{_STYLE}</style><rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for down, op in enumerate(ops):
        here = [row for row in shown if row.op == op]
        top = max(row.busbw for row in here) / 1e9 or 1.0
        for across, world in enumerate(worlds):
            rows = [row for row in here if row.world == world]
            name = f"{op}, {world} process{'es' if world > 1 else ''}: bus bandwidth, GB/s"
            at = f"{across * WIDTH} {down * HEIGHT}"
            text += [f'<g transform="translate({at})">', *_panel(name, rows, top), "</g>"]
    return "\n".join([*text, "</svg>", ""])


def _panel(name: str, rows: Sequence[Row], top: float) -> list[str]:
    if not rows:  # this op at this world was not measured
        return []
    least, most = min(row.bytes for row in rows), max(row.bytes for row in rows)

    def x(size: int) -> float:
        span = math.log2(most / least) or 1.0
        return LEFT + math.log2(size / least) / span * (WIDTH - LEFT - RIGHT)

    def y(gigabytes: float) -> float:
        return HEIGHT - BOTTOM - gigabytes / top * (HEIGHT - TOP - BOTTOM)

    text = [f'<text class="t" x="{LEFT}" y="18">{escape(name)}</text>']
    for tick in range(5):
        value = top * tick / 4
        text.append(f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" '
                    f'y2="{y(value):.1f}"/><text class="m" text-anchor="end" x="{LEFT - 6}" '
                    f'y="{y(value) + 4:.1f}">{value:.2f}</text>')  # fmt: skip
    shown = sorted({row.bytes for row in rows})
    for size in shown[:: max(1, len(shown) // 6)]:
        text.append(f'<text class="m" text-anchor="middle" x="{x(size):.1f}" '
                    f'y="{HEIGHT - BOTTOM + 18}">{sizes.text(size)}</text>')  # fmt: skip
    for at, impl in enumerate(dict.fromkeys(row.impl for row in rows)):
        colour = COLOURS.get(impl, "#000000")
        mine = [row for row in rows if row.impl == impl]
        points = " ".join(f"{x(row.bytes):.1f},{y(row.busbw / 1e9):.1f}" for row in mine)
        text.append(f'<polyline points="{points}" stroke="{colour}"/>')
        text.append(f'<text x="{LEFT + 78 * at}" y="36" style="fill:{colour}">● {impl}</text>')
        for row in mine:
            text.append(f'<circle cx="{x(row.bytes):.1f}" cy="{y(row.busbw / 1e9):.1f}" r="3" '
                        f'fill="{colour}"><title>{escape(impl)} {sizes.text(row.bytes)}: '
                        f'{row.median_s * 1e3:.3f} ms</title></circle>')  # fmt: skip
    return text
