"""What every member computes: the ops of a step, the values it gives, whether a result can be.

Step n's ops follow from the seed and n alone, so whoever has the shared state knows them. A member
gives `pattern x 3^slot`: a sum divided by the pattern shows in base 3 who contributed to each
element, and that nobody did twice. All numbers are whole and exact in every dtype. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

SLOTS = 12  # 63 * (3^12 - 1) / 2 < 2^24: exact in float32, too
_PATTERN_MAX = 63
_PATTERN = np.random.default_rng(7).integers(1, _PATTERN_MAX + 1, 1 << 16)
KINDS = ("all_reduce", "all_reduce", "broadcast", "all_gather", "reduce_scatter", "barrier")
DTYPES = ("float64", "int64", "float32")


@dataclass(frozen=True, slots=True)
class Op:
    """count: elements of a tensor or block. turn: root, modulo the members."""

    number: int
    kind: str
    dtype: str
    count: int
    turn: int
    strict: bool
    in_place: bool


def ops_of(seed: int, step: int, count_max: int) -> tuple[Op, ...]:
    """A step's ops, all in flight at once; the first is an all_reduce that all take part in, so
    that nobody is ever two steps ahead of another."""
    rng = random.Random(f"{seed}/{step}")
    ops = []
    for number in range(rng.choice((1, 1, 2, 4))):
        kind = rng.choice(KINDS) if number else "all_reduce"
        size = rng.choice((0, 1, 1000, 9000, count_max // 8, count_max))
        count = size if kind == "all_reduce" else size // 4
        ops.append(
            Op(number, kind, rng.choice(DTYPES), count, rng.randrange(SLOTS),
               rng.random() < 0.3, rng.random() < 0.6)
        )  # fmt: skip
    return tuple(ops)


def pattern(op: Op) -> Array:
    """Numbers from 1 to 63, others for each op."""
    whole = np.resize(_PATTERN, op.count + 64)
    return whole[op.number * 7 : op.number * 7 + op.count].astype(op.dtype)


def given(op: Op, slot: int) -> Array:
    """What the member in that slot puts in."""
    return pattern(op) * np.array(3**slot, op.dtype)


def slot_of(name: str) -> int:
    """A member is called by its process and its slot: p17.3."""
    return int(name.rpartition(".")[2])


def contributors(op: Op, got: Array) -> list[frozenset[int]] | str:
    """The sets of slots whose sum the elements are, each set once; or what is wrong."""
    if got.size != op.count:
        return f"{got.size} elements, not {op.count}"
    base = pattern(op)
    whole = got.astype(np.float64)
    if not np.isfinite(whole).all():
        return "not finite"
    quotients = whole / base
    found = []
    for one in np.unique(quotients):
        slots = _digits(float(one))
        if slots is None:
            at = int(np.flatnonzero(quotients == one)[0])
            return f"element {at} of {got.size} is nobody's sum: {got[at]} = {base[at]} x {one}"
        found.append(slots)
    return found


def _digits(number: float) -> frozenset[int] | None:
    """The slots whose digit in base 3 is 1; None where one is 2: somebody counted twice."""
    if number != int(number) or not 0 < number < 3**SLOTS:
        return None
    left, slots = int(number), []
    for slot in range(SLOTS):
        left, digit = divmod(left, 3)
        if digit == 2:
            return None
        if digit:
            slots.append(slot)
    return frozenset(slots)


def wrong_sum(op: Op, got: Array, me: int, members: Sequence[int], told: tuple[int, int]) -> str:
    """What is wrong with an all_reduce's result, or nothing. told: OpInfo's contributors."""
    if op.count == 0:
        return ""
    sets = contributors(op, got)
    if isinstance(sets, str):
        return sets
    for one in sets:
        if me not in one:
            return f"the sum of slots {sorted(one)} is not of slot {me}, which holds it"
        if not one <= set(members):
            return f"the sum of slots {sorted(one)}, of whom not all are members {sorted(members)}"
    sizes = [len(one) for one in sets]
    if (min(sizes), max(sizes)) != told:
        return f"{min(sizes)} to {max(sizes)} contributed; the op tells {told[0]} to {told[1]}"
    return ""


def wrong_copy(op: Op, got: Array, source: int) -> str:
    """What is wrong with a copy of what `source` gave."""
    if np.array_equal(got, given(op, source)):
        return ""
    return f"not what slot {source} gave: {contributors(op, got)}"


def wrong_total(op: Op, got: Array, members: Sequence[int]) -> str:
    """What is wrong with a sum that needs all members."""
    sets = contributors(op, got) if op.count else [frozenset(members)]
    if sets == [frozenset(members)]:
        return ""
    return f"not the sum of slots {sorted(members)}: {sets}"


def advance(state: Mapping[str, Array], outcomes: Sequence[int]) -> None:
    """The shared state after a step whose ops ended so (digests): the same at all, if they are."""
    step, few, bulk = state["step"], state["few"], state["bulk"]
    for number, outcome in enumerate(outcomes):
        few[:] = (few * 31 + outcome) % ((1 << 31) - 1)
        bulk[(int(step[0]) * 64 + number * 8) % bulk.size] = outcome
    step += 1


def fresh_state() -> dict[str, Array]:
    return {
        "step": np.zeros(1, np.int64),
        "few": np.arange(64, dtype=np.int64),
        "bulk": np.zeros(32768, np.int64),
        "fixed": np.arange(5000, dtype=np.float32),
    }
