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
    "abort", "aligned_alloc", "calloc", "free", "malloc", "posix_memalign", "realloc",
    "memchr", "memcmp", "memcpy", "memmove", "memset",
    "strcmp", "strdup", "strlen", "strncmp", "strndup", "strnlen", "snprintf", "vsnprintf", "qsort",
    "bsearch",
}  # fmt: skip
ALLOWED_PREFIXES = ("__stack_chk_", "__cpu_", "_GLOBAL_OFFSET_TABLE_")
# The base file that ends the process writes why.
ALLOWED_IN = {"check": {"fprintf", "stderr"}}
GLOBAL_KINDS = "bBdDC"  # writable memory
FORTIFIED = ("__", "_chk")  # __snprintf_chk is snprintf


def symbols(obj: Path) -> list[tuple[str, str]]:
    """(kind letter of nm, name) of each symbol of `obj`."""
    out = subprocess.run(["nm", str(obj)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in out.splitlines()]
    return [(row[-2], row[-1].split("@")[0]) for row in rows]


def plain(symbol: str) -> str:
    before, after = FORTIFIED
    if symbol.startswith(before) and symbol.endswith(after):
        return symbol.removeprefix(before).removesuffix(after)
    return symbol


def offences(objects: list[Path]) -> list[str]:
    """What `objects`, which may use each other, may not need or have, one line each."""
    read = {obj: symbols(obj) for obj in objects}
    own = {name for rows in read.values() for kind, name in rows if kind == "T"}
    found = []
    for obj, rows in read.items():
        allowed = ALLOWED | ALLOWED_IN.get(obj.stem, set())
        for kind, name in rows:
            if kind in GLOBAL_KINDS:
                found.append(f"{obj.name}: global {name}")
            elif kind != "U" or name in own or name.startswith(ALLOWED_PREFIXES):
                continue
            elif plain(name) not in allowed:
                found.append(f"{obj.name}: needs {name}")
    return sorted(found)


def main(folder: str) -> None:
    pure = build.c_sources(build.ROOT, pure_only=True)
    found = offences([Path(folder) / f"{path.stem}.o" for path in pure])
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main(sys.argv[1])
