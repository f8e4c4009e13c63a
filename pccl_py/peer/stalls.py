"""Ops that take long (layer 2): when a line is due, and what it says.

Called by `control` with what the engine tells of the ops in flight; logs nothing itself. An op gets
its first line when it is older than the detection time, and each next one at twice the age, so that
a slow op and a stuck one both say who is awaited, and neither fills a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pccl_py.peer.events import Inspected
from pccl_py.types import OpInFlight, Record, peer_text

LINES_MAX = 4  # at one look: ops that are stuck together are stuck for one reason


@dataclass(frozen=True, slots=True)
class Stalls:
    """due: op -> at which age (seconds) it gets its next line."""

    due: Mapping[int, float]


NONE = Stalls({})


def look(
    stalls: Stalls, told: Inspected, record: Record | None, first_s: float
) -> tuple[Stalls, tuple[str, ...]]:
    """The lines that are due, the oldest op's first, and when the next ones are. record: whose
    names to use. first_s: the age at which an op is worth a line."""
    due = {op.op: stalls.due.get(op.op, first_s) for op in told.ops}
    late = [op for op in told.ops if op.age_ms / 1000 >= due[op.op]]
    lines = [_line(op, record) for op in late[:LINES_MAX]]
    if len(late) > LINES_MAX:
        lines.append(f"{len(late) - LINES_MAX} more ops have not ended either")
    return Stalls({**due, **{op.op: op.age_ms / 500 for op in late}}), tuple(lines)


def _line(op: OpInFlight, record: Record | None) -> str:
    line = (
        f"{op.text} has not ended for {op.age_ms / 1000:.1f} s: waiting for {op.phase.text}, "
        f"{op.missing} of {op.nbytes} bytes missing"
    )
    if not op.awaited:
        return line
    names = ", ".join(_name(peer, record) for peer in op.awaited)
    more = op.awaited_count - len(op.awaited)
    return f"{line}, awaiting {names}" + (f" and {more} more" if more > 0 else "")


def _name(peer: int, record: Record | None) -> str:
    member = record.member(peer) if record is not None else None
    return f"peer {peer_text(peer)}" if member is None else str(member)
