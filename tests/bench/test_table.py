"""Twin of pccl_py.bench.table, plot and machine."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from pccl_py.bench import machine, plot, table
from pccl_py.bench.conduct import Measured
from tests.bench.test_plan import GOOD
from tests.bench.test_rows import row

PLAN = replace(GOOD, impls=("pccl", "gloo"))


def measured() -> list[Measured]:
    return [
        Measured(mode, row(impl, median_s=median_s))
        for impl, median_s in (("pccl", 0.5), ("gloo", 1.25))
        for mode in ("out", "in")
    ]


def test_every_line_is_as_wide_as_its_titles() -> None:
    titles = table.heading(PLAN)[3]
    ours, theirs = table.lines(PLAN, measured())
    assert len(ours) == len(titles)
    assert len(theirs) <= len(titles)
    assert titles.split()[1:6] == ["size", "count", "type", "redop", "impl"]
    assert ours.split()[:5] == ["1K", "256", "float32", "sum", "pccl"]
    assert ours.split()[-1] == "2.50"


def test_wrong_values_are_shown() -> None:
    found = measured()
    found[0] = replace(found[0], row=replace(found[0].row, wrong=17))
    assert " 17 " in table.lines(PLAN, found)[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(5e-5, "0.0500"), (0.0123, "12.300"), (0.3, "300.0")]
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert table.milliseconds(seconds) == text


def test_markdown_has_a_table_per_world_and_the_machine() -> None:
    rows = [row(impl, world) for world in (4, 2) for impl in ("pccl", "gloo")]
    text = table.markdown("all_reduce", machine.facts(), rows)
    lines = text.splitlines()
    titles = [line for line in lines if line.startswith("## ")]
    assert titles == ["## 2 processes", "## 4 processes"]
    assert any(line.startswith("- CPU: ") for line in lines)
    assert lines[-1] == "| 1K | 500.0 | 500.0 | 0.00 | 1.00 | 0 |"


def test_the_plot_is_well_formed_and_has_every_point() -> None:
    rows = [row(impl, world, size) for world in (2, 4) for impl in ("pccl", "gloo")
            for size in (1024, 4096, 16384)]  # fmt: skip
    root = ElementTree.fromstring(plot.svg("all_reduce <&>", rows))
    assert len(root.findall(".//{*}circle")) == len(rows)
    assert len(root.findall(".//{*}polyline")) == 4
    ElementTree.fromstring(plot.svg("one point", [row(size=1024)]))


def test_available_memory_is_known_here() -> None:
    available = machine.available_bytes()
    assert available is None or available > 0
