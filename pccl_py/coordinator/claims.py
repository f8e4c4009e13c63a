"""Whose answer to a flush is believed (layer 2): that all hold an op, who does not hold it denies.

Called by `views` per group, before anything is decided. `stable` and OpStatus.STABLE speak of all
participants, so honest answers agree on them whatever was lost. Where they do not, somebody lies or
has gone wrong: who makes the claim is expelled if at least half of the answers deny it, else who
denies it. So nobody who stays is told that an op has ended which it cannot complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from pccl_py.coordinator.cases import final_mask
from pccl_py.protocol.messages import Answer, OpReport, OpStatus
from pccl_py.types import OnLoss, PeerId, context_of, is_named

CONTRADICTED = "its answer to a flush contradicts those of the others"


def unbelieved(answers: Mapping[PeerId, Answer]) -> frozenset[PeerId]:
    """The members of a group whose answers cannot be true beside the others'."""
    if len(answers) < 2:
        return frozenset()
    return _of_stable(answers) | _of_ops(answers)


def _of_stable(answers: Mapping[PeerId, Answer]) -> frozenset[PeerId]:
    """Of the group's unnamed ops: what is stable has been submitted by all, and is held by all."""
    lacked = {peer: _first_lacked(answer) for peer, answer in answers.items()}
    found: set[PeerId] = set()
    least = min(lacked.values())
    for claim in {answer.stable for answer in answers.values() if answer.stable >= least}:
        claimants = {peer for peer, answer in answers.items() if answer.stable == claim}
        deniers = {peer for peer, first in lacked.items() if first <= claim}
        found |= _judged(claimants, deniers, len(answers))
    return frozenset(found)


def _of_ops(answers: Mapping[PeerId, Answer]) -> frozenset[PeerId]:
    """Of ops that have ended well at one member, and at another of the same participants not."""
    reports: dict[tuple[int, bytes], dict[PeerId, OpReport]] = {}
    for peer, answer in answers.items():
        for report in answer.ops:
            reports.setdefault((report.op, report.among), {})[peer] = report
    found: set[PeerId] = set()
    fewest = min(answer.submitted for answer in answers.values())
    for (op, _), alike in reports.items():
        claimants = {p for p, report in alike.items() if report.status is OpStatus.STABLE}
        if not claimants:
            continue
        deniers = {p for p, report in alike.items() if _lacks(report)}
        of_all = not context_of(op) and not is_named(op)
        if of_all and op > fewest:
            deniers |= {peer for peer, answer in answers.items() if answer.submitted < op}
        if deniers:  # who is silent on an op of all says by its `stable` that it has ended
            found |= _judged(claimants, deniers, len(answers if of_all else alike))
    return frozenset(found)


def _first_lacked(answer: Answer) -> int:
    """The first unnamed op of the group that cannot be stable if this answer is true."""
    lacked = (r.op for r in answer.ops if not context_of(r.op) and not is_named(r.op) and _lacks(r))
    return min((answer.submitted + 1, *lacked))


def _lacks(report: OpReport) -> bool:
    """Whether it runs without all of its result. Only of an op whose result is everybody's does a
    report say so."""
    if report.status is not OpStatus.RUNNING or report.root:
        return False
    if report.on_loss not in (OnLoss.REPAIR, OnLoss.STRICT):
        return False
    return final_mask(report) != (1 << report.segments) - 1


def _judged(claimants: Set[PeerId], deniers: Set[PeerId], everybody: int) -> Set[PeerId]:
    return claimants if 2 * len(deniers) >= everybody else deniers
