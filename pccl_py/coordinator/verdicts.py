"""What becomes of each op when a view ends (layer 2): VIEWS §1, coordinator rule 3.

Called by `views` once per group and flush, with everything that the answers say and with the ring
of the next view; knows nothing of connections, timers or admission. Every op above `stable` gets
one verdict that is the same for all members; the rules are tried in the order of `_verdict`. What
a loss does to an op is `losses`', what its error says is `blame`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pccl_py.coordinator import blame, losses
from pccl_py.coordinator.cases import (
    Case,
    OpCase,
    Reports,
    final_mask,
    is_covered,
    late,
    op_case,
    reports_by_op,
    stables,
    taking_part,
    timed_out,
)
from pccl_py.errors import Code
from pccl_py.protocol.messages import Answer, OpStatus
from pccl_py.types import (
    HELD_BY_ALL,
    REDO,
    GroupRecord,
    OnLoss,
    Outcome,
    PeerId,
    Record,
    Verdict,
    covered,
)

__all__ = [
    "Case", "decide", "final_mask", "group_has_plan", "has_plan", "is_needed", "reports_by_op",
]  # fmt: skip


def has_plan(record: Record) -> bool:
    """Whether somebody serves segments in this view, so that members owe a Repaired (R24)."""
    return any(group_has_plan(group) for group in record.groups)


def group_has_plan(group: GroupRecord) -> bool:
    return any(holder >= 0 for verdict in group.verdicts for holder in verdict.holders)


def decide(case: Case) -> tuple[GroupRecord, Mapping[int, frozenset[PeerId]]]:
    """The group's part of the next record, and the ops that timed out and are rolled forward, with
    the members whose deadline for them has passed."""
    stable = stables(case.answers)
    stable[0] = max(stable[0], case.old.stable)
    by_op = reports_by_op(case.answers)
    aborts = {v.op: v for v in case.old.verdicts if v.outcome is Outcome.ABORT}
    verdicts: list[Verdict] = []
    ended: set[int] = set()
    rolled: dict[int, frozenset[PeerId]] = {}
    for op in sorted({*by_op, *aborts}):
        reports = by_op.get(op, {})
        if _is_settled(case, op, reports, stable):
            continue
        verdict = _verdict(case, op, reports, aborts.get(op), stable)
        if verdict.outcome is Outcome.DONE:
            ended.add(op)
            if all(report.status is OpStatus.STABLE for report in reports.values()):
                continue
        elif verdict.outcome is Outcome.ABORT and _raised_by_all(case, reports):
            ended.add(op)
            continue
        elif verdict.outcome is Outcome.RUN and timed_out(case.timeouts, op, reports):
            rolled[op] = late(reports)
        verdicts.append(verdict)
    while stable[0] + 1 in ended:
        stable[0] += 1
    kept = tuple(verdict for verdict in verdicts if not covered(verdict.op, stable[0]))
    return GroupRecord(case.old.group, case.ring, stable[0], kept), rolled


def is_needed(
    leaver: PeerId,
    answers: Mapping[PeerId, Answer],
    stayers: Iterable[PeerId],
    ring: Sequence[PeerId],
) -> bool:
    """Whether a stayer lacks something of an op that it takes part in and that the leaver has
    (R23). All of one group; ring: the old one, which the answers speak of."""
    staying = frozenset(stayers)
    stable = stables(answers)
    for op, reports in reports_by_op(answers).items():
        mine = reports.get(leaver)
        if mine is None or mine.status is not OpStatus.RUNNING or is_covered(op, stable):
            continue
        if any(report.status is not OpStatus.RUNNING for report in reports.values()):
            continue  # decided already: stable at someone, or raised by someone
        held = 1 << ring.index(leaver) if mine.on_loss.is_exchange else final_mask(mine)
        others = staying.intersection(taking_part(ring, reports))
        if any(held & ~final_mask(reports.get(peer)) for peer in others):
            return True
    return False


def _is_settled(case: Case, op: int, reports: Reports, stable: Mapping[int, int]) -> bool:
    """Whether nobody needs a verdict: the record's own `stable` tells all, all who take part know
    already, or none of them stays. The record has no `stable` of other contexts."""
    if is_covered(op, stable):
        running = any(report.status is OpStatus.RUNNING for report in reports.values())
        return covered(op, stable[0]) or not running
    return bool(reports) and not any(p in case.ring for p in taking_part(case.old.ring, reports))


def _verdict(
    case: Case, op: int, reports: Reports, old_abort: Verdict | None, stable: Mapping[int, int]
) -> Verdict:
    if old_abort is not None:
        return old_abort
    for report in reports.values():
        if report.status is OpStatus.RAISED:
            return Verdict(op, Outcome.ABORT, code=report.code or Code.PEER_LOST, text=report.text)
    facts = op_case(case, op, reports)
    # Before "stable at one": what other participants hold says nothing about one's own.
    foreign = blame.foreign_text(facts)
    if foreign:
        return Verdict(op, Outcome.ABORT, code=Code.USAGE, text=foreign)
    stable_at_one = any(report.status is OpStatus.STABLE for report in reports.values())
    if stable_at_one or is_covered(op, stable):
        return Verdict(op, Outcome.DONE)
    if _is_done(facts):
        return Verdict(op, Outcome.DONE)
    abort = _abort(facts)
    if abort is not None:
        return abort
    return Verdict(op, Outcome.RUN, holders=_holders(facts))


def _is_done(op: OpCase) -> bool:
    """Whether all hold all. Members that each take themselves for a broadcast's source do, and do
    not hold the same; without a gather's destination all others hold all, and it is lost."""
    if op.on_loss is OnLoss.TO_ROOT and op.root not in op.staying:
        return False
    return op.is_held_by_all and blame.disagreement(op) is None


def _abort(op: OpCase) -> Verdict | None:
    """The error that this op must end with, or None if it goes on. An op that somebody may have
    returned, or whose inputs may be gone, is aborted only if it cannot be completed (R1)."""
    retriable = losses.is_retriable(op)
    unlike = blame.disagreement(op) if losses.is_unharmed(op) else None
    if unlike is not None:
        return Verdict(op.op, Outcome.ABORT, code=unlike[0], text=unlike[1])
    missed = losses.missed(op)
    if missed is not None:
        text = blame.lost_text(op, missed)
        return Verdict(op.op, Outcome.ABORT, code=Code.PEER_LOST, text=text)
    if retriable and timed_out(op.case.timeouts, op.op, op.reports):
        text = blame.late_text(op)
        return Verdict(op.op, Outcome.ABORT, code=Code.DEADLINE_EXCEEDED, text=text)
    return None


def _holders(op: OpCase) -> tuple[int, ...]:
    """Per segment who serves it. Holders take turns, so that the work spreads over their links; a
    broadcast's root comes first, as it would without a fault. Exchanges are sent anew, whole."""
    if op.on_loss.is_exchange or not op.somewhere:
        return ()
    place = {peer: index for index, peer in enumerate(op.case.ring)}
    holders: list[int] = []
    for segment in range(op.segments):
        bit = 1 << segment
        having = [peer for peer, mask in op.masks.items() if mask & bit]
        if not having:
            holders.append(REDO)
        elif len(having) == len(op.staying):
            holders.append(HELD_BY_ALL)
        elif op.on_loss is OnLoss.SPREAD and op.root in having:
            holders.append(place[op.root])
        else:
            holders.append(place[having[segment % len(having)]])
    return tuple(holders)


def _raised_by_all(case: Case, reports: Reports) -> bool:
    """Whether no participant is left that has yet to raise it; nobody's word is no word."""
    staying = [p for p in case.ring if p in taking_part(case.old.ring, reports)]
    return bool(reports) and all(
        peer in reports and reports[peer].status is not OpStatus.RUNNING for peer in staying
    )
