"""Measured rows as text: the terminal's table, size by size, and Markdown; pure."""

from __future__ import annotations

from collections.abc import Sequence

from pccl_py.bench import rows, sizes, values
from pccl_py.bench.plan import OURS, Plan
from pccl_py.bench.rows import Row

MODE_TITLES = {False: "out-of-place", True: "in-place"}
_LEFT = (("size", 9), ("count", 11), ("type", 9), ("redop", 6), ("impl", 11))
_TIMES = (
    ("median", 8), ("min", 8), ("max", 8), ("algbw", 7), ("busbw", 7), ("x", 6), ("#wrong", 7),
)  # fmt: skip
_UNITS = (("(ms)", 8), ("(ms)", 8), ("(ms)", 8), ("(GB/s)", 7), ("(GB/s)", 7), ("", 6), ("", 7))


def heading(plan: Plan) -> list[str]:
    """The lines above the first row."""
    left, block, units = (_joined(cells) for cells in (_LEFT, _TIMES, _UNITS))
    over = "".join(f"  {MODE_TITLES[mode]:^{len(block)}}" for mode in plan.modes)
    beside = [impl for impl in plan.impls if impl != OURS]
    meaning = f"; x: {OURS} is so many times faster" if beside else ""
    processes = f"{plan.world} process{'es' if plan.world > 1 else ''}"
    return [
        f"# {plan.op.name}, {processes}; {plan.repeats} repeats{meaning}",
        "#",
        "#" + (" " * len(left) + over)[1:].rstrip(),
        "#" + (left + f"  {block}" * len(plan.modes))[1:].rstrip(),
        "#" + (" " * len(left) + f"  {units}" * len(plan.modes))[1:].rstrip(),
    ]


def _joined(cells: Sequence[tuple[str, int]]) -> str:
    return " ".join(f"{text:>{width}}" for text, width in cells)


def lines(plan: Plan, measured: Sequence[Row]) -> list[str]:
    """One size: a line per implementation."""
    found = {(row.impl, row.in_place): row for row in measured}
    out = []
    for impl in plan.impls:
        first = found[impl, plan.modes[0]]
        redop = plan.reduce if plan.op.reduces else "none"
        item = values.item_bytes(first.dtype)
        texts = (sizes.text(first.bytes), str(first.bytes // item), first.dtype, redop, impl)
        line = _joined([(text, width) for text, (_, width) in zip(texts, _LEFT, strict=True)])
        for mode in plan.modes:
            line += f"  {_times(found[impl, mode], found[OURS, mode])}"
        out.append(line.rstrip())
    return out


def _times(row: Row, ours: Row) -> str:
    texts = (
        *(milliseconds(seconds) for seconds in (row.median_s, row.min_s, row.max_s)),
        f"{row.algbw / 1e9:.3f}",
        f"{row.busbw / 1e9:.3f}",
        "" if row.impl == OURS else f"{rows.ratio(ours, row):.2f}",
        str(row.wrong),
    )
    return _joined([(text, width) for text, (_, width) in zip(texts, _TIMES, strict=True)])


def milliseconds(seconds: float) -> str:
    """Three or four digits that matter."""
    ms = seconds * 1e3
    return f"{ms:.4f}" if ms < 1 else f"{ms:.3f}" if ms < 100 else f"{ms:.1f}"


def markdown(machine: Sequence[str], measured: Sequence[Row]) -> str:
    """All rows as Markdown: a table per op, world and mode, ours beside the others; then what they
    were measured on."""
    text: list[str] = []
    for key in dict.fromkeys(map(_title, measured)):
        text += [f"**{key}**", "", *_grid([row for row in measured if _title(row) == key]), ""]
    text += ["Milliseconds, medians of interleaved repeats; ×: times faster than that one.", ""]
    return "\n".join([*text, *(f"- {fact}" for fact in machine), ""])


def _title(row: Row) -> str:
    mode = "in place" if row.in_place else "out of place"
    return f"{row.op}, {row.world} process{'es' if row.world > 1 else ''}, {row.dtype}, {mode}"


def _grid(measured: Sequence[Row]) -> list[str]:
    impls = {row.impl: row.transport for row in measured}
    peers = [impl for impl in impls if impl != OURS]
    titles = ["size"]
    titles += [impl if impl.endswith("-shm") else f"{impl} {via or ''}".strip()
               for impl, via in impls.items()]  # fmt: skip
    titles += ["busbw GB/s", *(f"× {peer}" for peer in peers), "wrong"]
    found = {(row.bytes, row.impl): row for row in measured}
    grid = [_cells(titles), _cells(["---:"] * len(titles))]
    for size in dict.fromkeys(row.bytes for row in measured):
        here = [found[size, impl] for impl in impls if (size, impl) in found]
        if len(here) < len(impls) or OURS not in impls:
            continue  # measured otherwise: there is nothing to set beside
        ours = found[size, OURS]
        cells = [sizes.text(size), *(milliseconds(row.median_s) for row in here)]
        cells += [f"{ours.busbw / 1e9:.2f}"]
        cells += [f"{rows.ratio(ours, found[size, peer]):.2f}" for peer in peers]
        grid.append(_cells([*cells, str(sum(row.wrong for row in here))]))
    return grid


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"
