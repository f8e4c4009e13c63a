"""A very small coordinator: what becomes of each op when a view ends.

Written from VIEWS §1 and the rules for the other collectives alone; it shares no code with the
product. All members are indices of the cluster; a peer's id is 1000 + its index.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

RUNNING, STABLE, RAISED = 0, 1, 2
REDO, ALL = -1, -2
RUN, DONE, ABORT = 0, 1, 2
REPAIR, STRICT, FIXED, EXCHANGE, TO_ROOT, FROM_ROOT, SPREAD = range(7)
USAGE, PEER_LOST, DEADLINE = 1, 2, 3
NAMED = 1 << 32

Verdict = tuple[int, list[int], int, str]  # outcome, holders, status, text


@dataclass
class Row:
    """What one member reports of one op; final: per segment, or per member of the old ring."""

    status: int
    final: list[bool]
    on_loss: int
    root: int  # a peer's id, or 0
    among: list[int]  # participants
    code: int
    timed_out: bool

    def holds(self, i: int) -> bool:
        return self.status == STABLE or (self.status == RUNNING and self.final[i])


@dataclass
class Answer:
    """What one member answers to a flush."""

    stable: dict[int, int]  # per context
    ops: dict[int, Row]
    submitted: int = 0  # unnamed ops of the whole group


@dataclass
class Flush:
    """All that is known when a view ends: answers by member, leavers' included."""

    old: list[int]
    ring: list[int]
    answers: dict[int, Answer]
    aborts: dict[int, Verdict]
    mismatches: dict[int, str]  # op -> the field that differs
    random: random.Random
    verdicts: dict[int, Verdict] = field(default_factory=dict)

    def decide(self) -> tuple[dict[int, Verdict], int]:
        """The verdicts of the next view, and its stable."""
        stable = self.stables()
        rows: dict[int, dict[int, Row]] = {}
        for member, answer in self.answers.items():
            for op, row in answer.ops.items():
                rows.setdefault(op, {})[member] = row
        for op in sorted({*rows, *self.aborts}):
            case = Case(self, op, rows.get(op, {}))
            covered = not op & NAMED and op & 0xFFFFFFFF <= stable.get(op >> 33, 0)
            if covered and not op >> 33:
                continue
            verdict = (DONE, [], 0, "") if covered else case.verdict()
            if verdict[0] != ABORT or not case.raised_by_all():
                self.verdicts[op] = verdict
        return self.verdicts, stable.get(0, 0)

    def stables(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for answer in self.answers.values():
            for context, stable in answer.stable.items():
                found[context] = max(stable, found.get(context, 0))
        return found


class Case:
    """One op at the end of a view. N, gone: participants that stay, that do not."""

    def __init__(self, flush: Flush, op: int, rows: dict[int, Row]) -> None:
        self.flush, self.op, self.rows = flush, op, rows
        among = {m for row in rows.values() for m in row.among}
        self.staying = [m for m in flush.ring if m in among]
        self.gone = [m for m in flush.old if m in among and m not in flush.ring]
        first = next(iter(rows.values()), None)
        self.on_loss = first.on_loss if first else REPAIR
        self.root = first.root - 1000 if first and first.root else -1
        self.segments = max((len(row.final) for row in rows.values()), default=0)

    def raised_by_all(self) -> bool:
        return bool(self.rows) and all(
            m in self.rows and self.rows[m].status != RUNNING for m in self.staying
        )

    def has(self, member: int, i: int) -> bool:
        row = self.rows.get(member)
        return row is not None and i < len(row.final) and row.holds(i)

    def having(self, i: int) -> list[int]:
        return [m for m in self.staying if self.has(m, i)]

    def verdict(self) -> Verdict:
        if self.op in self.flush.aborts:
            return self.flush.aborts[self.op]
        for row in self.rows.values():
            if row.status == RAISED:
                return (ABORT, [], row.code, "raised before")
        if any(row.status == STABLE for row in self.rows.values()):
            return (DONE, [], 0, "")
        retriable, wrong = self.is_retriable(), self.flush.mismatches.get(self.op)
        rootless_gather = self.on_loss == TO_ROOT and self.root not in self.staying
        held = all(m in self.rows for m in self.staying) and all(
            self.has(m, i) for m in self.staying for i in range(self.segments)
        )
        if held and not rootless_gather and not (wrong and retriable):
            return (DONE, [], 0, "")
        if wrong and retriable:
            return (ABORT, [], PEER_LOST if wrong == "members" else USAGE, f"{wrong} differ")
        if self.is_lost():
            return (ABORT, [], PEER_LOST, "a member was lost")
        if retriable and any(row.timed_out for row in self.rows.values()):
            return (ABORT, [], DEADLINE, "too late")
        return (RUN, self.holders(), 0, "")

    def is_retriable(self) -> bool:
        nowhere = not any(self.has(m, i) for m in self.staying for i in range(self.segments))
        if self.on_loss in (REPAIR, STRICT):
            return nowhere
        return self.on_loss != SPREAD or self.root in self.staying or nowhere

    def is_lost(self) -> bool:
        everywhere = all(self.having(i) for i in range(self.segments))
        dead = [m for m in self.gone if m not in self.flush.answers]
        match self.on_loss:
            case 0 | 6:
                return self.root >= 0 and self.root not in self.staying and not everywhere
            case 1:
                return bool(dead) and not everywhere
            case 2:
                return bool(self.gone) and not everywhere
            case 3:
                return not all(self.has_from(m, g) for m in self.staying for g in self.gone)
            case 4:
                if self.root not in self.staying:
                    return True
                return not all(self.has_from(self.root, g) for g in self.gone)
            case _:
                served = all(self.has_from(m, self.root) for m in self.staying)
                return self.root not in self.staying and not served

    def has_from(self, member: int, sender: int) -> bool:
        return sender in self.flush.old and self.has(member, self.flush.old.index(sender))

    def holders(self) -> list[int]:
        """For each segment a member of the new ring that serves it, drawn from those that can."""
        if self.on_loss in (EXCHANGE, TO_ROOT, FROM_ROOT):
            return []
        holders = []
        for i in range(self.segments):
            having = self.having(i)
            if not having:
                holders.append(REDO)
            elif len(having) == len(self.staying):
                holders.append(ALL)
            else:
                holders.append(self.flush.ring.index(self.flush.random.choice(having)))
        return holders
