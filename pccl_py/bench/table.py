"""Measured rows as text: the terminal's table, size by size, and Markdown; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pccl_py.bench import rows, sizes, values
from pccl_py.bench.conduct import Measured
from pccl_py.bench.plan import OURS, Plan
from pccl_py.bench.rows import Row

MODE_TITLES = {"out": "out-of-place", "in": "in-place"}
_LEFT = (("size", 9), ("count", 11), ("type", 9), ("redop", 6), ("impl", 8))
_TIMES = (
    ("median", 9), ("min", 9), ("max", 9), ("algbw", 7), ("busbw", 7), ("#wrong", 7),
)  # fmt: skip


def heading(plan: Plan) -> list[str]:
    """The lines above the first row."""
    left = _joined(_LEFT)
    block = _joined(_TIMES)
    ratios = "".join(f"  {f'x {impl}':>9}" for impl in plan.impls if impl != OURS)
    titles = [MODE_TITLES[mode] for mode in plan.modes]
    over = " " * len(left) + "".join(f"  {title:^{len(block) + len(ratios)}}" for title in titles)
    units = " " * len(left) + f"  {_joined(_UNITS)}{' ' * len(ratios)}" * len(titles)
    what = f"{plan.op.name}, {plan.world} processes, {transport(plan.impls)}"
    return [
        f"# {what}; median, min and max of {plan.repeats} repeats; x: times faster",
        "#",
        "#" + over[1:].rstrip(),
        "#" + (left + f"  {block}{ratios}" * len(titles))[1:],
        "#" + units[1:].rstrip(),
    ]


def transport(impls: Sequence[str]) -> str:
    """How the bytes travel, for a title."""
    return "TCP on loopback" + (" (mpi-shm: shared memory)" if "mpi-shm" in impls else "")


_UNITS = (("(ms)", 9), ("(ms)", 9), ("(ms)", 9), ("(GB/s)", 7), ("(GB/s)", 7), ("", 7))


def _joined(cells: Sequence[tuple[str, int]]) -> str:
    return " ".join(f"{text:>{width}}" for text, width in cells)


def lines(plan: Plan, measured: Sequence[Measured]) -> list[str]:
    """One size: a line per implementation, ratios on ours."""
    found = {(each.row.impl, each.mode): each.row for each in measured}
    out = []
    for impl in plan.impls:
        first = found[impl, plan.modes[0]]
        redop = plan.reduce if plan.op.reduces else "none"
        item = values.item_bytes(first.dtype)
        texts = (sizes.text(first.bytes), str(first.bytes // item), first.dtype, redop, impl)
        line = _joined([(text, width) for text, (_, width) in zip(texts, _LEFT, strict=True)])
        for mode in plan.modes:
            line += f"  {_times(found[impl, mode])}{_ratios(plan, found, impl, mode)}"
        out.append(line.rstrip())
    return out


def _times(row: Row) -> str:
    texts = (
        *(milliseconds(seconds) for seconds in (row.median_s, row.min_s, row.max_s)),
        f"{row.algbw / 1e9:.3f}",
        f"{row.busbw / 1e9:.3f}",
        str(row.wrong),
    )
    return _joined([(text, width) for text, (_, width) in zip(texts, _TIMES, strict=True)])


def _ratios(plan: Plan, found: Mapping[tuple[str, str], Row], impl: str, mode: str) -> str:
    peers = [peer for peer in plan.impls if peer != OURS]
    if impl != OURS:
        return " " * 11 * len(peers)
    ours = found[OURS, mode]
    return "".join(f"  {rows.ratio(ours, found[peer, mode]):>9.2f}" for peer in peers)


def milliseconds(seconds: float) -> str:
    """Three or four digits that matter."""
    ms = seconds * 1e3
    return f"{ms:.4f}" if ms < 1 else f"{ms:.3f}" if ms < 100 else f"{ms:.1f}"


def markdown(title: str, machine: Sequence[str], measured: Sequence[Row]) -> str:
    """All rows as a Markdown table per world, ours beside the others."""
    text = [f"# {title}", "", *(f"- {fact}" for fact in machine), ""]
    for world in sorted({row.world for row in measured}):
        text += [f"## {world} processes", "", *_grid([r for r in measured if r.world == world]), ""]
    return "\n".join(text)


def _grid(measured: Sequence[Row]) -> list[str]:
    impls = list(dict.fromkeys(row.impl for row in measured))
    peers = [impl for impl in impls if impl != OURS]
    titles = ["size", *(f"{impl} ms" for impl in impls), f"{OURS} busbw GB/s"]
    titles += [f"x {peer}" for peer in peers] + ["#wrong"]
    found = {(row.bytes, row.impl): row for row in measured}
    grid = [_cells(titles), _cells(["---:"] * len(titles))]
    for size in dict.fromkeys(row.bytes for row in measured):
        ours = found[size, OURS]
        here = [found[size, impl] for impl in impls]
        cells = [sizes.text(size), *(milliseconds(row.median_s) for row in here)]
        cells += [f"{ours.busbw / 1e9:.2f}"]
        cells += [f"{rows.ratio(ours, found[size, peer]):.2f}" for peer in peers]
        grid.append(_cells([*cells, str(sum(row.wrong for row in here))]))
    return grid


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"
