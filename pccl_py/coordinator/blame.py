"""The texts of aborted ops (layer 2): which op, who, and what to do.

Called by `verdicts`; decides nothing but whether the reports of one op agree. What a text calls an
op is replaced by the user's own name for it at the peer.
"""

from __future__ import annotations

from pccl_py.coordinator.cases import Case, OpCase, named_by
from pccl_py.errors import Code
from pccl_py.protocol.messages import Mismatch, OpReport
from pccl_py.types import Member, OnLoss, PeerId, members_text, op_text, peer_text

_PEER_FIELDS = ("src", "dst", "root")
_MEMBERS_FIELD = "members"
_SOURCE, _DESTINATION, _SIZE = "source", "destination", "size in segments"

_WORDS = {
    OnLoss.REPAIR: "all_reduce",
    OnLoss.STRICT: "all_reduce with strict=True",
    OnLoss.FIXED: "all_gather or reduce_scatter",
    OnLoss.EXCHANGE: "all_to_all",
    OnLoss.TO_ROOT: "gather or send",
    OnLoss.FROM_ROOT: "scatter",
    OnLoss.SPREAD: "broadcast",
}


def disagreement(op: OpCase) -> tuple[Code, str] | None:
    """The error of an op that was not submitted alike, or None if the participants agree."""
    told = op.case.mismatches.get(op.op)
    if told is not None:
        peer, mismatch = told
        is_rank = mismatch.field in _PEER_FIELDS  # who has a rank follows from who is a member
        if mismatch.field == _MEMBERS_FIELD or (is_rank and op.case.changed):
            return Code.PEER_LOST, _changed_text(op)
        mine, theirs = (_value(op.case, mismatch, t) for t in (mismatch.mine, mismatch.theirs))
        who = (peer, mismatch.other)
        return Code.USAGE, _unlike_text(op, who, mismatch.field, mine, theirs)
    (one, first), *others = op.reports.items()
    for peer, report in others:
        for field, mine, theirs in _fields(op.case, first, report):
            if mine != theirs:
                if op.case.changed and field in _of_members(first):
                    return Code.PEER_LOST, _changed_text(op)
                return Code.USAGE, _unlike_text(op, (one, peer), field, mine, theirs)
    return None


def foreign_text(op: OpCase) -> str:
    """Who submitted the op among whom, if that is not the same for all; else empty. Then two
    sub-groups have one number."""
    ring = op.case.old.ring
    (one, first), *others = op.reports.items()
    for peer, report in others:
        mine, theirs = named_by(ring, first), named_by(ring, report)
        if mine != theirs:
            return (
                f"{op_text(op.op)}: {_who(op.case, one)} submitted it among {_names(op, mine)}, "
                f"{_who(op.case, peer)} among {_names(op, theirs)}: two sub-groups or tags have "
                "come to one number; use other members or another tag"
            )
    return ""


def late_text(op: OpCase) -> str:
    """Who has not submitted the op; if all have, what a peer saw."""
    absent = [_member(op.case, peer) for peer in op.staying if peer not in op.reports]
    if absent:
        return f"{op_text(op.op)} timed out: not submitted by {members_text(absent)}"
    detail = op.case.timeouts.get(op.op, "")
    for peer in op.staying:  # the engine knows ids alone
        detail = detail.replace(f"peer {peer_text(peer)}", _who(op.case, peer))
    return f"{op_text(op.op)} timed out{': ' + detail if detail else ''}"


def lost_text(op: OpCase, peer: PeerId) -> str:
    return (
        f"{op_text(op.op)} cannot be completed without {_who(op.case, peer)}, which is gone; retry"
    )


def _of_members(report: OpReport) -> tuple[str, ...]:
    """The fields of an op that follow from who is a member: a right program submits others after a
    death than before. If it is the program after all, the engines will find out in the retry."""
    if report.on_loss is OnLoss.FIXED:
        return (_SOURCE, _DESTINATION, _SIZE)
    return (_SOURCE, _DESTINATION)


def _changed_text(op: OpCase) -> str:
    return f"{op_text(op.op)}: the members changed while it was being submitted; retry"


def _unlike_text(op: OpCase, who: tuple[PeerId, PeerId], field: str, mine: str, theirs: str) -> str:
    one, other = (_who(op.case, peer) for peer in who)
    return f"{op_text(op.op)}: {one} has {field} {mine}, {other} has {theirs}; {_must(op)}"


def _fields(case: Case, one: OpReport, other: OpReport) -> tuple[tuple[str, str, str], ...]:
    """What all reports of one op have in common: the field's name and both values, for people."""
    spreads = one.on_loss in (OnLoss.SPREAD, OnLoss.FROM_ROOT)
    return (
        ("kind", _words(one), _words(other)),
        (_SOURCE if spreads else _DESTINATION, _who(case, one.root), _who(case, other.root)),
        (_SIZE, str(one.segments), str(other.segments)),
    )


def _words(report: OpReport) -> str:
    """What a report can be of, as a user calls it."""
    if report.on_loss is OnLoss.REPAIR and report.root:
        return "reduce"
    return _WORDS[report.on_loss]


def _must(op: OpCase) -> str:
    whole = len(op.among) == len(op.case.old.ring)
    who = "all members" if whole else f"all of {_names(op, op.among)}"
    return f"{who} must submit the same ops with the same arguments"


def _names(op: OpCase, peers: tuple[PeerId, ...]) -> str:
    return members_text([_member(op.case, peer) for peer in peers])


def _member(case: Case, peer: PeerId) -> Member:
    return case.members[peer]


def _who(case: Case, peer: PeerId) -> str:
    member = case.members.get(peer)
    return str(member) if member is not None else "a former member"


def _value(case: Case, mismatch: Mismatch, text: str) -> str:
    """A value as people read it: a source is a member's name, not an id."""
    if mismatch.field in _PEER_FIELDS:
        try:
            member = case.members.get(PeerId(int(text, 16)))
        except ValueError:
            member = None
        text = str(member) if member is not None else text
    return text
