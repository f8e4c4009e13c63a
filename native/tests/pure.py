"""Names what the pure C objects need from outside, and fails on anything but the list below: the
pure core and the kernels make no system call, read no clock, and keep no global.

Called by `make check` with the folder of objects, and by tests/test_tidy.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pccl_py.dataplane import build

ALLOWED = {
    "abort", "calloc", "free", "malloc", "realloc",
    "memchr", "memcmp", "memcpy", "memmove", "memset",
    "strcmp", "strlen", "strncmp", "strnlen", "snprintf", "vsnprintf", "qsort",
}  # fmt: skip
ALLOWED_PREFIXES = ("pc_", "__stack_chk_", "__cpu_", "_GLOBAL_OFFSET_TABLE_")
# The base file that ends the process writes why.
ALLOWED_IN = {"check": {"fprintf", "stderr"}}
FORTIFIED = ("__", "_chk")  # __snprintf_chk is snprintf


def undefined(obj: Path) -> set[str]:
    """Symbols that `obj` takes from elsewhere."""
    out = subprocess.run(["nm", "-u", str(obj)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in out.splitlines() if line.strip()}


def mutable(obj: Path) -> set[str]:
    """Symbols of `obj` in writable memory: globals, which the core must not have."""
    out = subprocess.run(["nm", str(obj)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in out.splitlines()]
    return {row[-1] for row in rows if len(row) == 3 and row[1] in "bBdDC"}


def plain(symbol: str) -> str:
    before, after = FORTIFIED
    if symbol.startswith(before) and symbol.endswith(after):
        return symbol.removeprefix(before).removesuffix(after)
    return symbol


def offences(obj: Path) -> list[str]:
    """What `obj` may not need or have, one line each."""
    allowed = ALLOWED | ALLOWED_IN.get(obj.stem, set())
    foreign = [
        s for s in undefined(obj) if not s.startswith(ALLOWED_PREFIXES) and plain(s) not in allowed
    ]
    return sorted(
        [f"{obj.name}: needs {symbol}" for symbol in foreign]
        + [f"{obj.name}: global {symbol}" for symbol in mutable(obj)]
    )


def pure_objects(folder: Path) -> list[Path]:
    return [folder / f"{path.stem}.o" for path in build.c_sources(build.ROOT, pure_only=True)]


def main(folder: str) -> None:
    found = [line for obj in pure_objects(Path(folder)) for line in offences(obj)]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main(sys.argv[1])
