"""What was measured, as rows: a figure of one case, its goal, and whether it is met; pure.

A row is what `--json` prints, with exactly the fields of `Figure` in their order. The cases make
them, the command prints them; nothing here knows a process.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pccl_py.bench import sizes

MEDIAN, MAX = "median", "max"
_COLUMNS = (
    ("case", -8), ("impl", -5), ("world", 6), ("size", 6), ("figure", -44), ("n", 4),
    ("median", 9), ("p90", 9), ("max", 9), ("goal", 14),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a case. bytes: of the op under way, 0 if none matters; unit: "s", or what is
    counted; n: samples; goal: what `goal_of` ("median" or "max") must not exceed, None: reported
    only; wrong: values that were wrong anywhere in the case (an op that raises ends its case)."""

    case: str
    impl: str
    world: int
    bytes: int
    figure: str
    unit: str
    n: int
    median: float
    p90: float
    max: float
    goal: float | None = None
    goal_of: str = MEDIAN
    wrong: int = 0

    @property
    def is_met(self) -> bool:
        """True also where there is no goal, if nothing was wrong."""
        reached = self.median if self.goal_of == MEDIAN else self.max
        return not self.wrong and (self.goal is None or reached <= self.goal)


@dataclass(frozen=True, slots=True)
class About:
    """What the figures of one case share; see `Figure`."""

    case: str
    world: int
    bytes: int = 0
    impl: str = "pccl"
    wrong: int = 0

    def of(
        self,
        figure: str,
        samples: Sequence[float],
        goal: float | None = None,
        goal_of: str = MEDIAN,
        unit: str = "s",
    ) -> Figure:
        """The figure of at least one sample."""
        return Figure(
            self.case, self.impl, self.world, self.bytes, figure, unit, len(samples),
            statistics.median(samples), percentile(samples, 0.9), max(samples),
            goal, goal_of, self.wrong,
        )  # fmt: skip


def percentile(samples: Sequence[float], share: float) -> float:
    """The least sample that at least `share` of all do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def as_json(figure: Figure) -> str:
    """The row as one line of JSON; `met` is None where there is no goal."""
    met = None if figure.goal is None else figure.is_met
    return json.dumps({**dataclasses.asdict(figure), "met": met})


# ---------------------------------------------------------------- for people


def heading() -> str:
    return "# " + _joined([title for title, _ in _COLUMNS])


def line(figure: Figure) -> str:
    """The table's line of a figure; times in milliseconds."""
    goal = ""
    if figure.goal is not None:
        goal = f"{figure.goal_of} {_number(figure.goal, figure.unit)}"
    bad = f"  {figure.wrong} WRONG" if figure.wrong else ""
    texts = (
        figure.case, figure.impl, str(figure.world),
        sizes.text(figure.bytes) if figure.bytes else "-",
        f"{figure.figure}, {'ms' if figure.unit == 's' else figure.unit}", str(figure.n),
        *(_number(number, figure.unit) for number in (figure.median, figure.p90, figure.max)),
        goal,
    )  # fmt: skip
    mark = "" if figure.goal is None else " met" if figure.is_met else " NOT MET"
    return "  " + _joined(texts) + mark + bad


def _joined(texts: Sequence[str]) -> str:
    cells = (
        f"{text:<{-width}}" if width < 0 else f"{text:>{width}}"
        for text, (_, width) in zip(texts, _COLUMNS, strict=True)
    )
    return " ".join(cells)


def _number(number: float, unit: str) -> str:
    if unit != "s":
        return f"{number:g}" if number == int(number) else f"{number:.2f}"
    ms = number * 1e3
    return f"{ms:.2f}" if abs(ms) < 10 else f"{ms:.1f}" if abs(ms) < 1000 else f"{ms:.0f}"


def verdict(figures: Sequence[Figure]) -> list[str]:
    """What the figures amount to: how many goals are met, and each that is not."""
    aims = [figure for figure in figures if figure.goal is not None]
    met = sum(figure.is_met for figure in aims)
    lines = [f"# {met} of {len(aims)} goals met"]
    for figure in aims:
        if not figure.is_met:
            reached = figure.median if figure.goal_of == MEDIAN else figure.max
            lines.append(
                f"# not met: {figure.case} at world {figure.world}: {figure.figure}: "
                f"{figure.goal_of} {_number(reached, figure.unit)}, goal "
                f"{_number(figure.goal or 0.0, figure.unit)} "
                f"{'ms' if figure.unit == 's' else figure.unit}"
            )
    return lines
