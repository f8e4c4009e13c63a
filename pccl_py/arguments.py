"""What a caller may pass: one check per kind of argument (layer 1).

Called by `join`, the communicator, `Work` and the commands, before anything happens; each check
raises UsageError with one line that names the argument, whatever was passed.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import TypeGuard

from pccl_py.errors import UsageError
from pccl_py.protocol import shapes

RUN_BYTES_MAX = shapes.RUN_BYTES_MAX
NAME_BYTES_MAX = shapes.NAME_BYTES_MAX
GROUP_BYTES_MAX = shapes.GROUP_BYTES_MAX
LONGEST_S = 30 * 86400.0  # a wait beyond it is as good as one without end, and clocks do not wrap


def check_text(what: str, text: object, bytes_max: int) -> None:
    """Raises UsageError unless it is a printable text of 1 to bytes_max bytes of UTF-8."""
    right = is_utf8(text) and text.isprintable() and 0 < len(text.encode()) <= bytes_max
    if not right:
        raise UsageError(f"{what}={shown(text)} must be a printable text of 1 to {bytes_max} bytes")


def seconds(timeout: float | None, *, may_be_zero: bool = False) -> float | None:
    """A time-out in seconds; None (as long as it takes) also for infinity and for over 30 days.

    Raises UsageError unless it is a positive number of seconds (0 if that may be), or None."""
    if timeout is None:
        return None
    found = number(timeout)
    if not (found > 0 or (may_be_zero and found == 0)):
        must = "0 or more seconds" if may_be_zero else "a positive number of seconds"
        raise UsageError(f"timeout={shown(timeout)} must be {must}, or None")
    return found if found <= LONGEST_S else None


def number(value: object) -> float:
    """`value` as a float, NaN for what is no number or none that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):  # numpy's are
        return math.nan
    try:
        return float(value)
    except OverflowError:  # 10**400
        return math.nan


def check_flag(what: str, value: object) -> None:
    """Raises UsageError unless it is True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{what}={shown(value)} must be True or False")


def whole(value: object, low: int, high: int) -> int | None:
    """The integer from low to high that it is (numpy's are, too), or None; a bool is none."""
    if isinstance(value, bool):
        return None
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    return found if low <= found <= high else None


def is_whole(value: object, low: int, high: int) -> bool:
    """Whether it is such an integer."""
    return whole(value, low, high) is not None


def check_op_name(name: object) -> None:
    """Raises UsageError unless ops can be matched by it: a text that UTF-8 can write."""
    if not (is_utf8(name) and name):
        odd = isinstance(name, str) and name
        must = "be a text that UTF-8 can write" if odd else "be a text, and not empty"
        raise UsageError(f"name={shown(name)} must {must}")


def is_utf8(text: object) -> TypeGuard[str]:
    """Whether it is a text that UTF-8 can write: half a surrogate pair cannot be."""
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def shown(value: object) -> str:
    """`value` as an error text quotes it: short, on one line."""
    try:
        text = repr(value)
    except ValueError:  # an integer too long to be written
        text = type(value).__name__
    return text if len(text) <= 80 else text[:80] + "…"
