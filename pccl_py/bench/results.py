"""A folder of results: rows, table, plot and the machine; and rows read again from a file.

`rows.jsonl` is what `--json` writes, `machine.txt` says what they were measured on, `table.txt` is
the terminal's table, `table.md` and `plot.svg` are made of the first two. Called by the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pccl_py.bench import machine, plot, rows, table
from pccl_py.bench.rows import Row
from pccl_py.errors import ResourceError, UsageError

ROWS, MACHINE, TEXT, MARKDOWN, PLOT = (
    "rows.jsonl", "machine.txt", "table.txt", "table.md", "plot.svg",
)  # fmt: skip


def make(folder: Path) -> None:
    """So that a folder that cannot be is known before hours of work. Raises ResourceError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(error.errno, f"--out {folder}: {error.strerror}") from None


def write(folder: Path, measured: Sequence[Row], facts: Sequence[str], text: Sequence[str]) -> None:
    """Everything, replacing what was there; the folder exists. text: the terminal's lines. Raises
    ResourceError."""
    files = {
        ROWS: "".join(rows.as_json(row) + "\n" for row in measured),
        MACHINE: "".join(fact + "\n" for fact in facts),
        TEXT: "".join(line + "\n" for line in (*(f"# {fact}" for fact in facts), "#", *text)),
        MARKDOWN: table.markdown(facts, measured),
        PLOT: plot.svg(measured),
    }
    try:
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ResourceError(error.errno, f"--out {folder}: {error.strerror}") from None


def read(path: Path) -> tuple[Sequence[Row], Sequence[str]]:
    """The rows of a JSON lines file, and the machine: as told by a `machine.txt` beside it, else
    this one. Raises UsageError, ResourceError."""
    beside = path.with_name(MACHINE)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        facts = beside.read_text(encoding="utf-8").splitlines() if beside.is_file() else []
    except OSError as error:
        raise ResourceError(error.errno, f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text") from error
    found = [rows.from_json(line) for line in lines if line.strip()]
    if not found:
        raise UsageError(f"{path} holds no rows")
    return found, facts or machine.facts()
