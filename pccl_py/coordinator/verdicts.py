"""What becomes of each op when a view ends (layer 2): VIEWS §1, coordinator rule 3.

Called by `views` once per group and flush, with everything that the answers say and with the ring
of the next view; knows nothing of connections, timers or admission. Every op above `stable` gets
one verdict that is the same for all members; the rules are tried in the order of `_verdict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pccl_py.errors import Code
from pccl_py.protocol.messages import Answer, Mismatch, OpReport, OpStatus
from pccl_py.types import (
    HELD_BY_ALL,
    REDO,
    GroupRecord,
    Member,
    OnLoss,
    Outcome,
    PeerId,
    Record,
    Verdict,
    covered,
    members_text,
    op_text,
)


@dataclass(frozen=True, slots=True)
class Case:
    """One group at the end of a flush.

    old: its part of the last record. answers: of all who answered and were not expelled, in order
    of joining, leavers included. ring: the next view's. lost: members that are gone without having
    left. timeouts: op -> the blame as the asking peer saw it. mismatches: op -> who says so, what.
    """

    old: GroupRecord
    members: Mapping[PeerId, Member]
    answers: Mapping[PeerId, Answer]
    ring: tuple[PeerId, ...]
    lost: tuple[PeerId, ...]
    timeouts: Mapping[int, str]
    mismatches: Mapping[int, tuple[PeerId, Mismatch]]


Reports = Mapping[PeerId, OpReport]


def has_plan(record: Record) -> bool:
    """Whether somebody serves segments in this view, so that members owe a Repaired (R24)."""
    return any(group_has_plan(group) for group in record.groups)


def group_has_plan(group: GroupRecord) -> bool:
    return any(holder >= 0 for verdict in group.verdicts for holder in verdict.holders)


def decide(case: Case) -> tuple[GroupRecord, Mapping[int, frozenset[PeerId]]]:
    """The group's part of the next record, and the ops that timed out and are rolled forward, with
    the members whose deadline for them has passed."""
    stable = max([case.old.stable, *(answer.stable for answer in case.answers.values())])
    by_op = reports_by_op(case.answers)
    aborts = {v.op: v for v in case.old.verdicts if v.outcome is Outcome.ABORT}
    ops = sorted(op for op in {*by_op, *aborts} if not covered(op, stable))
    verdicts: list[Verdict] = []
    ended: set[int] = set()
    rolled: dict[int, frozenset[PeerId]] = {}
    for op in ops:
        reports = by_op.get(op, {})
        verdict = _verdict(case, op, reports, aborts.get(op))
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
    while stable + 1 in ended:
        stable += 1
    kept = tuple(verdict for verdict in verdicts if not covered(verdict.op, stable))
    return GroupRecord(case.old.group, case.ring, stable, kept), rolled


def reports_by_op(answers: Mapping[PeerId, Answer]) -> dict[int, dict[PeerId, OpReport]]:
    """The same reports, by op; within an op in order of joining."""
    by_op: dict[int, dict[PeerId, OpReport]] = {}
    for peer, answer in answers.items():
        for report in answer.ops:
            by_op.setdefault(report.op, {})[peer] = report
    return by_op


def timed_out(timeouts: Mapping[int, str], op: int, reports: Reports) -> bool:
    """Whether somebody's deadline for a running op has passed."""
    return op in timeouts or bool(late(reports))


def late(reports: Reports) -> frozenset[PeerId]:
    """The members whose deadline for a running op has passed."""
    running = (p for p, report in reports.items() if report.status is OpStatus.RUNNING)
    return frozenset(peer for peer in running if reports[peer].timed_out)


def final_mask(report: OpReport | None) -> int:
    """The segments that are final at a reporter, as an integer's bits; 0 without a report."""
    if report is None or report.status is OpStatus.RAISED:
        return 0
    everything = (1 << report.segments) - 1
    if report.status is OpStatus.STABLE:
        return everything
    return int.from_bytes(report.final, "little") & everything


def is_needed(leaver: PeerId, answers: Mapping[PeerId, Answer], stayers: Iterable[PeerId]) -> bool:
    """Whether a stayer of the leaver's group lacks a segment that the leaver has (R23)."""
    stayers = tuple(stayers)
    stable = max(answer.stable for answer in answers.values())
    for op, reports in reports_by_op(answers).items():
        mine = reports.get(leaver)
        if mine is None or mine.status is not OpStatus.RUNNING or covered(op, stable):
            continue
        if any(report.status is not OpStatus.RUNNING for report in reports.values()):
            continue  # decided already: stable at someone, or raised by someone
        held = final_mask(mine)
        if any(held & ~final_mask(reports.get(peer)) for peer in stayers):
            return True
    return False


def _verdict(case: Case, op: int, reports: Reports, old_abort: Verdict | None) -> Verdict:
    if old_abort is not None:
        return old_abort
    for report in reports.values():
        if report.status is OpStatus.RAISED:
            return Verdict(op, Outcome.ABORT, code=report.code or Code.PEER_LOST, text=report.text)
    masks = [final_mask(reports.get(peer)) for peer in case.ring]
    segments = max(report.segments for report in reports.values())
    everything = (1 << segments) - 1
    if any(report.status is OpStatus.STABLE for report in reports.values()):
        return Verdict(op, Outcome.DONE)
    held = all(peer in reports for peer in case.ring) and all(mask == everything for mask in masks)
    # Members that each take themselves for a broadcast's source all hold it, and not the same.
    if held and not _mismatch_text(case, op, reports):
        return Verdict(op, Outcome.DONE)
    somewhere = 0
    for mask in masks:
        somewhere |= mask
    abort = _abort(case, op, reports, somewhere, everything)
    if abort is not None:
        return abort
    return Verdict(op, Outcome.RUN, holders=_holders(case, reports, masks, segments))


def _abort(
    case: Case, op: int, reports: Reports, somewhere: int, everything: int
) -> Verdict | None:
    """The error that this op must end with, or None if it goes on. An op with a segment final
    somewhere is aborted only by a rule below that says why: its inputs may be gone (R1)."""
    root = next((report.root for report in reports.values() if report.root), PeerId(0))
    # A broadcast with a living root may be aborted all the same: its input is the root's and not
    # gone, nobody has returned, and who never submits it cannot be made to.
    retriable = root in case.ring or not somewhere
    if retriable:
        mismatch = _mismatch_text(case, op, reports)
        if mismatch:
            return Verdict(op, Outcome.ABORT, code=Code.USAGE, text=mismatch)
    if root and root not in case.ring and somewhere != everything:
        return Verdict(op, Outcome.ABORT, code=Code.PEER_LOST, text=_lost_text(case, op, root))
    if retriable and timed_out(case.timeouts, op, reports):
        text = _late_text(case, op, reports)
        return Verdict(op, Outcome.ABORT, code=Code.DEADLINE_EXCEEDED, text=text)
    strict = not root and any(report.on_loss is OnLoss.STRICT for report in reports.values())
    if strict and case.lost and somewhere != everything:
        text = _lost_text(case, op, case.lost[0])
        return Verdict(op, Outcome.ABORT, code=Code.PEER_LOST, text=text)
    return None


def _holders(case: Case, reports: Reports, masks: list[int], segments: int) -> tuple[int, ...]:
    """Per segment who serves it. Holders take turns, so that the work spreads over their links; a
    broadcast's root comes first, as it would without a fault."""
    if not any(masks):
        return ()
    root = next((report.root for report in reports.values() if report.root), PeerId(0))
    first = case.ring.index(root) if root in case.ring else -1
    holders: list[int] = []
    for segment in range(segments):
        bit = 1 << segment
        having = [index for index, mask in enumerate(masks) if mask & bit]
        if not having:
            holders.append(REDO)
        elif len(having) == len(case.ring):
            holders.append(HELD_BY_ALL)
        elif first in having:
            holders.append(first)
        else:
            holders.append(having[segment % len(having)])
    return tuple(holders)


def _raised_by_all(case: Case, reports: Reports) -> bool:
    return all(peer in reports and reports[peer].status is OpStatus.RAISED for peer in case.ring)


def _mismatch_text(case: Case, op: int, reports: Reports) -> str:
    """Both peers, the op, the field and both values; empty if the peers agree."""
    told = case.mismatches.get(op)
    if told is not None:
        peer, mismatch = told
        other = case.members.get(mismatch.other)
        mine = _value(case, mismatch, mismatch.mine)
        return (
            f"{op_text(op)}: {case.members[peer]} has {mismatch.field} {mine}, "
            f"{other if other is not None else 'a former member'} has "
            f"{_value(case, mismatch, mismatch.theirs)}; "
            "all members must submit the same ops with the same arguments"
        )
    one, *others = reports.items()
    for peer, report in others:
        if report.root != one[1].root:
            return (
                f"{op_text(op)}: {case.members[one[0]]} and {case.members[peer]} do not agree on "
                "the source; all members must submit the same ops with the same arguments"
            )
        if report.segments != one[1].segments:
            return (
                f"{op_text(op)}: {case.members[one[0]]} has {one[1].segments} segments, "
                f"{case.members[peer]} has {report.segments}; all members must submit the same ops "
                "with the same arguments"
            )
    return ""


def _value(case: Case, mismatch: Mismatch, text: str) -> str:
    """A value as people read it: a source is a member's name, not an id."""
    if mismatch.field == "src":
        try:
            member = case.members.get(PeerId(int(text, 16)))
        except ValueError:
            member = None
        text = str(member) if member is not None else text
    return text


def _late_text(case: Case, op: int, reports: Reports) -> str:
    """The blame line: who has not submitted the op; if all have, what a peer saw."""
    absent = [case.members[peer] for peer in case.ring if peer not in reports]
    if absent:
        return f"{op_text(op)} timed out: not submitted by {members_text(absent)}"
    detail = case.timeouts.get(op, "")
    return f"{op_text(op)} timed out{': ' + detail if detail else ''}"


def _lost_text(case: Case, op: int, peer: PeerId) -> str:
    member = case.members.get(peer)
    who = str(member) if member is not None else "a former member"
    return f"{op_text(op)} cannot be completed without {who}, which is gone; retry"
