"""Twin of pccl_py.bench.table, plot and machine."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from pccl_py.bench import machine, plot, results, table
from pccl_py.bench.rows import Row
from pccl_py.errors import PcclError
from tests.bench.test_plan import GOOD
from tests.bench.test_rows import row

PLAN = replace(GOOD, impls=("pccl", "gloo"))


def measured() -> list[Row]:
    return [
        row(impl, median_s=median_s, in_place=in_place)
        for impl, median_s in (("pccl", 0.5), ("gloo", 1.25))
        for in_place in (False, True)
    ]


def test_every_line_is_as_wide_as_its_titles() -> None:
    titles = table.heading(PLAN)[3]
    ours, theirs = table.lines(PLAN, measured())
    assert len(ours) == len(theirs) == len(titles)
    assert titles.split()[1:6] == ["size", "count", "type", "redop", "impl"]
    assert ours.split()[:5] == ["1K", "256", "float32", "sum", "pccl"]
    assert theirs.split()[-2:] == ["2.50", "0"]


def test_wrong_values_are_shown() -> None:
    found = measured()
    found[0] = replace(found[0], wrong=17)
    assert " 17 " in table.lines(PLAN, found)[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(5e-5, "0.0500"), (0.0123, "12.300"), (0.3, "300.0")]
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert table.milliseconds(seconds) == text


def test_markdown_has_a_table_per_world_and_the_machine() -> None:
    rows = [row(impl, world) for world in (4, 2) for impl in ("pccl", "gloo")]
    lines = table.markdown(machine.facts([("mpich", "5.0")]), rows).splitlines()
    titles = [line for line in lines if line.startswith("**")]
    assert titles == [f"**all_reduce, {n} processes, float32, in place**" for n in (4, 2)]
    assert lines[2].startswith("| size | pccl tcp | gloo tcp |")
    assert lines[4] == "| 1K | 500.0 | 500.0 | 0.00 | 1.00 | 0 |"
    assert any(line.startswith("- CPU: ") for line in lines)
    assert any(line.endswith("mpich 5.0") for line in lines)


def test_what_was_measured_alone_is_not_set_beside() -> None:
    rows = [row("pccl"), row("gloo"), row("gloo", size=4096)]
    assert "| 4K |" not in table.markdown((), rows)
    assert "| 1K |" in table.markdown((), rows)


def test_the_plot_is_well_formed_and_has_every_point() -> None:
    rows = [row(impl, world, size) for world in (2, 4) for impl in ("pccl", "gloo")
            for size in (1024, 4096, 16384)]  # fmt: skip
    rows += [replace(each, op="<&>") for each in rows if each.world == 2]
    root = ElementTree.fromstring(plot.svg([*rows, row(in_place=False)]))
    assert len(root.findall(".//{*}circle")) == len(rows)
    assert len(root.findall(".//{*}polyline")) == 6
    ElementTree.fromstring(plot.svg([row(size=1024)]))


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder, rows = tmp_path / "a/b", measured()
    results.make(folder)
    results.write(folder, rows, ("CPU: abacus",), ("a line",))
    assert results.read(folder / "rows.jsonl") == (rows, ["CPU: abacus"])
    assert (folder / "table.txt").read_text() == "# CPU: abacus\n#\na line\n"
    assert "- CPU: abacus" in (folder / "table.md").read_text()
    (folder / "empty").write_text("")
    for name in ("empty", "plot.svg", "none"):
        with pytest.raises(PcclError) as caught:
            results.read(folder / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(PcclError, match="--out"):
        results.make(folder / "empty")


def test_what_others_took_is_said(tmp_path: Path) -> None:
    moments = [machine.Moment(at_s, busy_s, own_s) for at_s, busy_s, own_s in
               ((0.0, 10.0, 1.0), (10.0, 10.0 + 10 * (os.cpu_count() or 1), 1.0))]  # fmt: skip
    assert machine.others(*moments) == ("other programs had 100% of the CPU meanwhile",)
    own = replace(moments[1], own_s=1 + 10 * (os.cpu_count() or 1))
    assert machine.others(moments[0], own) == ("other programs had 0% of the CPU meanwhile",)
    assert machine.others(None, own) == ()
    (tmp_path / "stat").write_text("cpu  100 0 200 9000 50 0 100 0 0 0\ncpu0 1 2 3\n")
    found = machine.moment(tmp_path / "stat")
    assert found is not None
    assert found.busy_s == 400 / os.sysconf("SC_CLK_TCK")
    assert machine.moment(tmp_path / "none") is None


def test_available_memory_is_known_here() -> None:
    available = machine.available_bytes()
    assert available is None or available > 0
