"""Whether what the survivors say of an op, and what is in their memory, can be: every result right,
the same end and the same bits at all, inputs as they were. It knows no more than the documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from stress.chaos.steps import JUNK, Array, Op, Said, block_count, values, weight

SEGMENTS_WANTED, SEGMENT_MIN, SEGMENT_MAX = 32, 16 << 10, 512 << 10
NEEDS_ALL = ("all_gather", "reduce_scatter", "all_to_all")
ANY_END = ("reduce", "broadcast", "gather", "scatter", "send", *NEEDS_ALL)  # PeerLost may end them


class Wrong(AssertionError):
    """What must not be: wrong (a value or an end), bits (they differ), mixture (of ends)."""

    def __init__(self, sort: str, text: str) -> None:
        super().__init__(f"{sort}: {text}")
        self.sort = sort


@dataclass(frozen=True)
class Witness:
    """One survivor: what it said of the op, and its memory."""

    name: str
    said: Said
    memory: memoryview

    def tensors(self, dtype: str, role: str) -> list[tuple[str, Array]]:
        return [
            (piece.whom, np.frombuffer(self.memory, dtype, piece.count, piece.at))
            for piece in self.said.pieces
            if piece.role == role
        ]

    def out(self, dtype: str) -> Array | None:
        found = self.tensors(dtype, "out")
        return found[0][1] if found else None


def check(
    op: Op, witnesses: Sequence[Witness], told: frozenset[str], died: frozenset[str] | None
) -> str:
    """How the op ended, by the word of the survivors. told: who was to do it. died: who of them did
    not live to tell, None if they may have known less of earlier deaths. Raises Wrong."""
    part = [w for w in witnesses if w.said.end != "none"]
    if not part:
        return "nobody"
    seen = {name for w in part for name in w.said.members} | set(filter(None, op.ends))
    gone = frozenset(seen - {w.name for w in part})
    ends = {w.said.end for w in part}
    if len(ends) > 1:
        said = {w.name: (w.said.end, w.said.text, w.said.members) for w in part}
        raise Wrong("mixture", f"{op}: {said}")
    end = ends.pop()
    _check_end(op, part, end, gone | told - {w.name for w in witnesses})
    if end == "PeerLost" and not op.timeout and _has_what_it_needs(op, part, died):
        raise Wrong("wrong", f"{op}: who it needs lives: {part[0].said.text}; gone {sorted(gone)}")
    for w in part:
        _check_inputs(op, w)
    if end == "ok":
        _CHECKS[op.kind](op, part, gone)
    elif op.kind == "all_reduce" and op.in_place:
        for w in part:
            _same(op, w, w.out(op.dtype), values(op, w.name), "an in-place input after an error")
    return end


def _check_end(op: Op, part: Sequence[Witness], end: str, gone: frozenset[str]) -> None:
    """gone: they may have submitted the op among others than the survivors saw."""
    changed = bool(gone) or len({w.said.members for w in part}) > 1
    fine = end == "ok" or (end == "DeadlineExceeded" and op.timeout > 0)
    if end == "PeerLost":
        fine = changed and (op.kind in ANY_END or op.strict)
    if not fine:
        raise Wrong("wrong", f"{op} ended with {end}: {part[0].said.text}; gone {sorted(gone)}")


def _has_what_it_needs(op: Op, part: Sequence[Witness], died: frozenset[str] | None) -> bool:
    """Whether no death can be the end of it: its root or its ends live, and the one who died saw
    what all saw, so that it cannot have submitted the op with another root."""
    here = {w.name for w in part}
    if op.kind == "send":
        return set(op.ends) <= here
    if any("members changed" in w.said.text for w in part):
        return False  # between a look and the call a rank may pass to another member
    alike = len({(w.said.members, w.said.root) for w in part}) == 1
    before = died is not None and len(died) <= 1 and died <= set(part[0].said.members)
    needs_root = op.kind in ("reduce", "broadcast", "scatter")
    return needs_root and alike and before and part[0].said.root in here


def _check_inputs(op: Op, w: Witness) -> None:
    for whom, tensor in w.tensors(op.dtype, "in"):
        wanted = values(op, w.name, whom, tensor.size)
        _same(op, w, tensor, wanted, f"an input (to {whom or 'all'})")


def _same(op: Op, w: Witness, got: Array | None, wanted: Array, what: str) -> None:
    if got is None or got.size != wanted.size or not np.array_equal(got, wanted):
        seen = None if got is None else got[got != wanted][:3] if got.size == wanted.size else got
        raise Wrong("wrong", f"{op}: {what} of {w.name} has {seen}")


# ---------------------------------------------------------------- reductions


def _reduced(op: Op, inputs: Mapping[str, Array]) -> Array:
    weights = np.array([weight(op, name) for name in inputs])
    table = np.stack(list(inputs.values()))
    if op.reduction == "max":
        return table.max(0)
    if op.reduction == "sum":
        return table.sum(0, dtype=table.dtype)
    if op.dtype == "int64":
        total = table.sum(0)
        return (total - np.fmod(total, len(inputs))) // len(inputs)
    if not op.weighted:
        return (table.sum(0, dtype=table.dtype) / len(inputs)).astype(table.dtype)
    if not weights.any():
        return np.full_like(table[0], np.nan)
    return (weights[:, None] * table.astype(float)).sum(0) / weights.sum()


def _segments(count: int, size: int) -> list[slice]:
    wanted = max(SEGMENT_MIN, min(SEGMENT_MAX, count * size // SEGMENTS_WANTED)) // size
    number = max(1, -(-count // wanted))
    each = max(1, -(-count // number))
    return [slice(i * each, min(count, (i + 1) * each)) for i in range(number)]


def _counted(op: Op, names: Sequence[str]) -> int:
    return sum(1 for name in names if not op.weighted or weight(op, name) > 0)


def _sets(op: Op, must: Sequence[str], may: Sequence[str], got: Array, who: str) -> list[int]:
    """How many contributed to each segment: all of `must`, and some of `may`."""
    options = []
    for size in range(len(may), -1, -1):
        for extra in combinations(sorted(may), size):
            names = (*must, *extra)
            if names:
                given = {name: values(op, name) for name in names}
                options.append((_counted(op, names), _reduced(op, given)))
    slack = 1e-5 if op.weighted else 0.0
    found = []
    for at in _segments(got.size, got.itemsize):
        for contributors, wanted in options:
            if np.allclose(got[at], wanted[at], slack, slack and 4.0, equal_nan=True):
                found.append(contributors)
                break
        else:
            one = got[at]
            bits = [int((one == wanted[at]).sum()) for _, wanted in options]
            raise Wrong(
                "wrong",
                f"{op}: {at} at {who} is nobody's sum: {one[:3]}; right elements by set {bits}",
            )
    return found


def _all_reduce(op: Op, part: Sequence[Witness], gone: frozenset[str]) -> None:
    first = part[0].out(op.dtype)
    assert first is not None
    for w in part[1:]:
        other = w.out(op.dtype)
        assert other is not None
        if other.tobytes() != first.tobytes():
            raise Wrong("bits", f"{op}: {part[0].name} and {w.name} differ")
    found = _sets(op, [w.name for w in part], sorted(gone), first, "all")
    for w in part:
        _check_contributors(op, w, found)


def _check_contributors(op: Op, w: Witness, found: Sequence[int]) -> None:
    told = (min(found), max(found))
    if op.count and not op.weighted and op.reduction != "max" and w.said.contributors != told:
        raise Wrong("wrong", f"{op}: {w.name} tells {w.said.contributors}, it is {told}")


def _took_itself_for_root(op: Op, w: Witness) -> bool:
    """It made memory for results and its rank passed on before the call: nobody looked at it."""
    outs = w.tensors(op.dtype, "out")
    return any(tensor.size for _, tensor in outs) and all((t == JUNK).all() for _, t in outs)


def _reduce(op: Op, part: Sequence[Witness], gone: frozenset[str]) -> None:
    _check_somebody_has_it(op, part)
    for w in part:
        got = w.out(op.dtype)
        if got is not None and not _took_itself_for_root(op, w):
            names = [other.name for other in part]
            found = _sets(op, names, sorted(gone), got, w.name)
            _check_contributors(op, w, found)


def _reduce_scatter(op: Op, part: Sequence[Witness], gone: frozenset[str]) -> None:
    members = _members(op, part)
    for w in part:
        size = block_count(op, "", w.name)
        given = {name: values(op, name, w.name, size) for name in members}
        got = w.out(op.dtype)
        assert got is not None
        _same(op, w, got, _reduced(op, given), "the block")


# ---------------------------------------------------------------- copies


def _members(op: Op, part: Sequence[Witness]) -> tuple[str, ...]:
    """Whom all of them took for the participants."""
    seen = {w.said.members for w in part}
    if len(seen) > 1:
        raise Wrong("wrong", f"{op} ended well among different members: {seen}")
    return seen.pop()


def _check_somebody_has_it(op: Op, part: Sequence[Witness]) -> None:
    """A result for one: if all agree on the root and it lives, it has it."""
    roots = {w.said.root for w in part}
    for w in part:
        if roots == {w.name} and op.count and _took_itself_for_root(op, w):
            raise Wrong("wrong", f"{op}: {w.name} was to have it and has nothing")


def _root(op: Op, part: Sequence[Witness]) -> str:
    """Whose values they have. Several may be taken for the root in a look before a death."""
    roots = sorted({w.said.root for w in part})
    for w in part:
        out = w.out(op.dtype)
        for root in roots if out is not None and out.size else ():
            if _has_it_from(op, w, root):
                return root
    return roots[0]


def _has_it_from(op: Op, w: Witness, root: str) -> bool:
    out = w.out(op.dtype)
    whom = w.name if op.kind == "scatter" else ""
    return out is None or np.array_equal(out, values(op, root, whom, out.size))


def _broadcast(op: Op, part: Sequence[Witness], gone: frozenset[str]) -> None:
    root = _root(op, part)
    roots = {w.said.root for w in part}
    if (len(roots) > 1 or roots & gone) and all(
        w.said.root != w.name and _took_itself_for_root(op, w) for w in part
    ):
        return  # the rank passed on to one of them, who then gave what it had
    for w in part:
        if w.name != root and w.out(op.dtype) is not None:
            _same(op, w, w.out(op.dtype), values(op, root), "what was broadcast")


def _all_gather(op: Op, part: Sequence[Witness], gone: frozenset[str]) -> None:
    _members(op, part)
    for w in part:
        _check_blocks(op, w)


def _check_blocks(op: Op, w: Witness) -> None:
    for whom, tensor in w.tensors(op.dtype, "out"):
        whom_to = w.name if op.kind == "all_to_all" else ""
        wanted = values(op, whom, whom_to, block_count(op, whom, w.name))
        _same(op, w, tensor, wanted, f"the block of {whom}")


def _gather(op: Op, part: Sequence[Witness], gone: frozenset[str]) -> None:
    _check_somebody_has_it(op, part)
    for w in part:
        if not _took_itself_for_root(op, w):
            _check_blocks(op, w)  # the root's; others have none


def _scatter(op: Op, part: Sequence[Witness], gone: frozenset[str]) -> None:
    root = _root(op, part)
    for w in part:
        wanted = values(op, root, w.name, block_count(op, "", w.name))
        _same(op, w, w.out(op.dtype), wanted, "the block")


def _send(op: Op, part: Sequence[Witness], gone: frozenset[str]) -> None:
    for w in part:
        if w.name == op.ends[1]:
            _same(op, w, w.out(op.dtype), values(op, op.ends[0]), "what was sent")


def _nothing(op: Op, part: Sequence[Witness], gone: frozenset[str]) -> None:
    """A barrier."""


_CHECKS = {
    "all_reduce": _all_reduce,
    "reduce": _reduce,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "gather": _gather,
    "scatter": _scatter,
    "all_to_all": _all_gather,
    "send": _send,
    "barrier": _nothing,
}
