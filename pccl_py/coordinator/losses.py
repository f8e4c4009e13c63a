"""What the loss of a participant does to an op, class by class (layer 2): VIEWS §1, `OnLoss`.

Called by `verdicts` for an op that has ended at no reporter; knows nothing of texts, time-outs or
other ops. Two questions: may the op still be aborted, and is somebody gone without whom it cannot
be completed. One that may not be aborted and misses nobody goes on by repair.
"""

from __future__ import annotations

from typing import assert_never

from pccl_py.coordinator.cases import OpCase
from pccl_py.protocol.messages import OpReport
from pccl_py.types import OnLoss, PeerId


def is_retriable(op: OpCase) -> bool:
    """Whether an abort does no harm: nobody has returned the op, and no input is overwritten (R1).
    Each reporter is asked by the class and the root that it reports: they may disagree on those,
    too."""
    return all(
        _is_intact(op, op.reports[peer], mask)
        for peer, mask in op.masks.items()
        if peer in op.reports
    )


def is_unharmed(op: OpCase) -> bool:
    """Whether no input is overwritten, which is enough for an op that was not submitted alike: it
    cannot be completed, not even by a broadcast's survivors who have it all between them."""
    overwrites = (OnLoss.REPAIR, OnLoss.STRICT)
    return not any(
        mask and op.reports[peer].on_loss in overwrites
        for peer, mask in op.masks.items()
        if peer in op.reports
    )


def _is_intact(op: OpCase, report: OpReport, mask: int) -> bool:
    match report.on_loss:
        case OnLoss.REPAIR | OnLoss.STRICT:
            return not mask
        case OnLoss.SPREAD:
            # The input is its root's and not gone, nobody has returned, and who never submits it
            # cannot be made to.
            return report.root in op.staying or not mask
        case OnLoss.FIXED | OnLoss.EXCHANGE | OnLoss.TO_ROOT | OnLoss.FROM_ROOT:
            # Nobody returns one of these before all hold all; inputs are apart from results.
            return True
        case _:
            assert_never(report.on_loss)


def missed(op: OpCase) -> PeerId | None:
    """A participant that is gone and without which the op cannot be completed, or None. Whoever
    has not reported the op lacks everything: it may submit it later, for other members."""
    everywhere = op.somewhere == op.everything
    match op.on_loss:
        case OnLoss.REPAIR | OnLoss.SPREAD:
            rootless = op.root != 0 and op.root not in op.staying
            return op.root if rootless and not everywhere else None
        case OnLoss.STRICT:
            lost = (peer for peer in op.case.lost if peer in op.among)
            return None if everywhere else next(lost, None)
        case OnLoss.FIXED:
            return None if everywhere else next(iter(op.gone), None)
        case OnLoss.EXCHANGE:
            return _first_missing(op, op.staying)
        case OnLoss.TO_ROOT:
            if op.root not in op.staying:
                return op.root
            return _first_missing(op, (op.root,))
        case OnLoss.FROM_ROOT:
            served = all(op.has_from(receiver, op.root) for receiver in op.staying)
            return None if op.root in op.staying or served else op.root
        case _:
            assert_never(op.on_loss)


def _first_missing(op: OpCase, receivers: tuple[PeerId, ...]) -> PeerId | None:
    """The first sender that is gone before each of the receivers had all of it."""
    for sender in op.gone:
        if not all(op.has_from(receiver, sender) for receiver in receivers):
            return sender
    return None
