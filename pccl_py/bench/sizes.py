"""Sizes as people write them, and the sweep from one to another; pure.

`1K` is 1024 bytes, as in nccl-tests. Called by the command for its arguments and by the table.
"""

from __future__ import annotations

import re

from pccl_py.errors import UsageError

SIZE_BYTES_MAX = 1 << 40
_UNITS = ("", "K", "M", "G")
_SIZE = re.compile(r"([0-9]{1,13})([KMG]?)(?:i?B)?", re.IGNORECASE)


def parse(text: str) -> int:
    """Bytes of `4096`, `64K`, `1M`, `2G` (also `64KiB`). Raises UsageError."""
    found = _SIZE.fullmatch(text.strip())
    size = int(found[1]) << 10 * _UNITS.index(found[2].upper()) if found else 0
    if not 1 <= size <= SIZE_BYTES_MAX:
        raise UsageError(f"size {text!r} must be a number of bytes from 1 to 1024G, like 64K")
    return size


def text(size: int) -> str:
    """The shortest exact form: 65536 is `64K`, 1000 is `1000`."""
    unit = 0
    while size and size % 1024 == 0 and unit < len(_UNITS) - 1:
        size, unit = size // 1024, unit + 1
    return f"{size}{_UNITS[unit]}"


def sweep(begin: int, end: int, factor: int) -> tuple[int, ...]:
    """begin, begin * factor, … up to end, which it may leave out. Raises UsageError."""
    if begin > end:
        raise UsageError(f"-b {text(begin)} is more than -e {text(end)}")
    if factor < 2:
        raise UsageError(f"-f {factor} must be 2 or more")
    found = []
    while begin <= end:
        found.append(begin)
        begin *= factor
    return tuple(found)
