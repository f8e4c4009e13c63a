"""What a flush has found out, group by group and op by op (layer 2): facts, no decisions.

`views` makes a `Case` per group, `verdicts` an `OpCase` per op of it; `losses` and `blame` read
them. Participants are an op's own: the whole group, or the members of a sub-group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pccl_py.protocol.messages import Answer, Mismatch, OpReport, OpStatus
from pccl_py.types import GroupRecord, Member, OnLoss, PeerId, context_of, is_named, op_id

Reports = Mapping[PeerId, OpReport]


@dataclass(frozen=True, slots=True)
class Case:
    """One group at the end of a flush.

    old: its part of the last record. answers: of all who answered and were not expelled, in order
    of joining, leavers included. ring: the next view's. lost: members that are gone without having
    left. timeouts: op -> the blame as the asking peer saw it. mismatches: op -> who says so, what.
    changed: the members may not be those that the line began with.
    """

    old: GroupRecord
    members: Mapping[PeerId, Member]
    answers: Mapping[PeerId, Answer]
    ring: tuple[PeerId, ...]
    lost: tuple[PeerId, ...]
    timeouts: Mapping[int, str]
    mismatches: Mapping[int, tuple[PeerId, Mismatch]]
    changed: bool = False


@dataclass(frozen=True, slots=True)
class OpCase:
    """One op at the end of a flush: somebody has reported it, and nobody that it has ended.

    among: its participants in the old ring's order; staying: those in the next view, in its ring's
    order. masks: what each of `staying` has final, 0 without a report; everything: the mask of all
    segments, or of all ring members for an exchange. on_loss, root: as the first reporter says.
    """

    case: Case
    op: int
    reports: Reports
    among: tuple[PeerId, ...]
    staying: tuple[PeerId, ...]
    masks: Mapping[PeerId, int]
    segments: int
    on_loss: OnLoss
    root: PeerId

    @property
    def everything(self) -> int:
        return (1 << self.segments) - 1

    @property
    def somewhere(self) -> int:
        """The segments that are final at one participant at least."""
        union = 0
        for mask in self.masks.values():
            union |= mask
        return union

    @property
    def gone(self) -> tuple[PeerId, ...]:
        """Participants that are not in the next view, dead or left."""
        return tuple(peer for peer in self.among if peer not in self.staying)

    @property
    def is_held_by_all(self) -> bool:
        """Whether all participants have submitted it and hold all that they are to hold."""
        return all(p in self.reports and self.masks[p] == self.everything for p in self.staying)

    def has_from(self, receiver: PeerId, sender: PeerId) -> bool:
        """Of an exchange: whether `receiver` holds all that `sender` was to send it."""
        ring = self.case.old.ring
        return sender in ring and bool(self.masks[receiver] >> ring.index(sender) & 1)


def op_case(case: Case, op: int, reports: Reports) -> OpCase:
    """One op of a group; `reports` is not empty."""
    among = taking_part(case.old.ring, reports)
    staying = tuple(peer for peer in case.ring if peer in among)
    first = next(iter(reports.values()))
    return OpCase(
        case,
        op,
        reports,
        among,
        staying,
        {peer: final_mask(reports.get(peer)) for peer in staying},
        max(report.segments for report in reports.values()),
        first.on_loss,
        first.root,
    )


def taking_part(ring: Sequence[PeerId], reports: Reports) -> tuple[PeerId, ...]:
    """An op's participants in ring order: all that any report of it names, and who reports it."""
    if not all(report.among for report in reports.values()):
        return tuple(ring)
    bits = 0
    for report in reports.values():
        bits |= int.from_bytes(report.among, "little")
    return tuple(peer for i, peer in enumerate(ring) if bits >> i & 1 or peer in reports)


def named_by(ring: Sequence[PeerId], report: OpReport) -> tuple[PeerId, ...]:
    """The participants that one report names."""
    if not report.among:
        return tuple(ring)
    bits = int.from_bytes(report.among, "little")
    return tuple(peer for i, peer in enumerate(ring) if bits >> i & 1)


def reports_by_op(answers: Mapping[PeerId, Answer]) -> dict[int, dict[PeerId, OpReport]]:
    """The same reports, by op; within an op in order of joining."""
    by_op: dict[int, dict[PeerId, OpReport]] = {}
    for peer, answer in answers.items():
        for report in answer.ops:
            by_op.setdefault(report.op, {})[peer] = report
    return by_op


def final_mask(report: OpReport | None) -> int:
    """The segments that are final at a reporter, as an integer's bits; 0 without a report."""
    if report is None or report.status is OpStatus.RAISED:
        return 0
    everything = (1 << report.segments) - 1
    if report.status is OpStatus.STABLE:
        return everything
    return int.from_bytes(report.final, "little") & everything


def timed_out(timeouts: Mapping[int, str], op: int, reports: Reports) -> bool:
    """Whether somebody's deadline for a running op has passed."""
    return op in timeouts or bool(late(reports))


def late(reports: Reports) -> frozenset[PeerId]:
    """The members whose deadline for a running op has passed."""
    running = (p for p, report in reports.items() if report.status is OpStatus.RUNNING)
    return frozenset(peer for peer in running if reports[peer].timed_out)


def stables(answers: Mapping[PeerId, Answer]) -> dict[int, int]:
    """Per context the highest stable that anybody answers; context 0 is the group's own."""
    highest = {0: max((answer.stable for answer in answers.values()), default=0)}
    for answer in answers.values():
        for context, stable in answer.contexts:
            highest[context] = max(stable, highest.get(context, 0))
    return highest


def is_covered(op: int, stable: Mapping[int, int]) -> bool:
    """Whether its context's stable speaks of this op; of named ops none does."""
    context = context_of(op)
    return not is_named(op) and op <= op_id(stable.get(context, 0), context=context)
