"""What people are told (layer 2): who waits for whom, and the answer to `pccl status`.

Called by `machine` after every event (`tell`) and by `inquiry` per StatusRequest; decides nothing
that another module reads. Waiting peers hear of a change at once, but not more often than
PACE_SHARE of progress_s, and the same text again every progress_s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

from pccl_py.coordinator import admission
from pccl_py.coordinator.state import State, Turn
from pccl_py.protocol.messages import InFlight, Waiting
from pccl_py.types import GroupRecord, Member, PeerId, members_text, peer_text

PACE_SHARE = 0.04
PATHS_SHOWN_MAX = 4096
OPS_SHOWN_MAX = 1024


def tell(turn: Turn) -> None:
    """Send Waiting to who waits if the text has changed, or if it is time to say it again. The text
    costs time proportional to the members, so it is not looked at in every step."""
    _tell_offerers(turn)
    state = turn.state
    if not state.pending:
        if state.told:
            turn.state = replace(state, told="", untold=frozenset())
        return
    due = not state.told or turn.now >= state.looked_at + _pace_s(state)
    if not due and not state.untold:
        return
    text = waiting_text(state)
    again = turn.now >= state.told_at + state.config.progress_s
    if due and (text != state.told or again):
        for peer in state.pending:
            turn.send(peer, Waiting(text))
        if text == state.told:  # it lasts: say it to the members concerned too
            _tell_members(turn, text)
        state = replace(state, told=text, told_at=turn.now)
    else:
        for peer in state.untold:
            turn.send(peer, Waiting(text))
    looked_at = turn.now if due else state.looked_at
    turn.state = replace(state, looked_at=looked_at, untold=frozenset())


def _tell_offerers(turn: Turn) -> None:
    """Who waits in sync_state hears which members have not called it, a little after each change:
    most elections are over before."""
    state, soft = turn.state, turn.soft
    counts = {key: len(offers) for key, offers in soft.offers.items()}
    if counts == soft.offers_told:
        if soft.offers_since is not None:
            turn.soft = replace(soft, offers_since=None)
        return
    if soft.offers_since is None and counts:
        turn.soft = replace(soft, offers_since=turn.now)
        return
    if soft.offers_since is not None and turn.now < soft.offers_since + _pace_s(state):
        return
    for key, offers in soft.offers.items():
        if counts[key] != soft.offers_told.get(key):
            text = _sync_text(state, key[0], frozenset(offers))
            for peer in offers if text else ():
                turn.send(peer, Waiting(text))
    turn.soft = replace(soft, offers_told=counts, offers_since=None)


def _sync_text(state: State, group: str, offered: frozenset[PeerId]) -> str:
    members = [state.members[peer] for peer in state.living()]
    late = [m for m in members if m.group == group and m.peer not in offered]
    return f"waiting for {members_text(late)} to call sync_state" if late else ""


def _pace_s(state: State) -> float:
    return PACE_SHARE * state.config.progress_s


def _tell_members(turn: Turn, text: str) -> None:
    round_ = turn.soft.admission
    if round_ is None:
        return
    late = set(awaited(turn.state))
    call = f"{len(turn.state.pending)} peers wait to join; please call comm.update()"
    in_sync = {peer for offers in turn.soft.offers.values() for peer in offers}
    for peer in turn.state.living():
        if peer in in_sync:  # who is held by sync_state, not by the admission, hears of that
            continue
        turn.send(peer, Waiting(call if peer in late else text))


def deadlines(state: State) -> list[float]:
    """When `tell` may have something to say though nothing happens."""
    times = [state.looked_at + _pace_s(state)] if state.pending else []
    since = state.soft.offers_since
    return times if since is None else [*times, since + _pace_s(state)]


def awaited(state: State) -> tuple[PeerId, ...]:
    """The members that a flush or an admission round waits for, in order of joining."""
    soft = state.soft
    if soft.flush is not None:
        return tuple(peer for peer in state.living() if peer in soft.flush.awaited)
    if soft.admission is not None:
        there = soft.admission.ats if soft.admission.targets is not None else soft.admission.sps
        return tuple(peer for peer in state.living() if peer not in there)
    return ()


def waiting_text(state: State) -> str:
    """What pending peers wait for; empty if nobody is pending."""
    if not state.pending:
        return ""
    if state.trouble is not None:
        return f"waiting for the coordinator: {state.trouble.reason}"
    if not state.living_count:
        here, wanted = len(state.pending), admission.wanted(state)
        return f"{here} of {wanted} peers are here, waiting for {max(0, wanted - here)} more"
    if state.disagreement and state.soft.admission is None:
        return f"the members do not stand at one safe point: {state.disagreement}"
    late = [state.members[peer] for peer in awaited(state)]
    if not late:
        return "waiting for the members' next view"
    if state.soft.flush is not None:
        return f"waiting for {members_text(late)} to answer a flush"
    return f"waiting for {members_text(late)} to reach a safe point (call comm.update())"


def status_json(state: State, now: float, answers: Mapping[PeerId, InFlight]) -> str:
    """Everything that an operator may ask, as JSON. Times in seconds. answers: what members have
    said of their ops in flight; of the others it is said that they have not."""
    config, soft = state.config, state.soft
    told = {peer: answer for peer, answer in answers.items() if state.is_living(peer)}
    rows = _ops(state, told)[:OPS_SHOWN_MAX]
    body = {
        "run": state.run,
        "epoch": state.epoch,
        "line": state.record.line if state.record is not None else 0,
        "members": [_member(state, state.members[peer]) for peer in state.living()],
        "pending": [
            {**_who(newcomer.member), "min_members": newcomer.min_members}
            for newcomer in state.pending.values()
        ],
        "detection_s": config.detection_s,
        "heartbeat_s": config.detection_s / 5,
        "deadline_s": config.deadline_s,
        "flush": None
        if soft.flush is None
        else {"reason": soft.flush.reason, "seconds": round(now - soft.flush.started, 3)},
        "admission": None
        if soft.admission is None
        else {
            "round": soft.admission.round[1],
            "seconds": round(now - soft.admission.started, 3),
            "targets": soft.admission.targets,
        },
        "journal": None
        if state.trouble is None
        else {"reason": state.trouble.reason, "seconds": round(now - state.trouble.since, 3)},
        "groups": [] if state.record is None else [_group(state, g) for g in state.record.groups],
        "paths": _paths(state),
        "ops": rows,
        "ops_more": sum(answer.running for answer in told.values()) - len(rows),
        "unanswered": [_who(state.members[peer]) for peer in state.living() if peer not in told],
        "awaited": [_who(state.members[peer]) for peer in awaited(state)],
        "syncs": _syncs(state),
        "waiting": waiting_text(state),
        "excluded": [[peer_text(a), peer_text(b)] for a, b in _excluded(state)],
    }
    return json.dumps(body)


def _ops(state: State, answers: Mapping[PeerId, InFlight]) -> list[dict[str, object]]:
    """The ops in flight, as each member sees them, the oldest first. Times in seconds."""
    rows = [(op.age_ms, peer, op) for peer, answer in answers.items() for op in answer.ops]
    rows.sort(key=lambda row: -row[0])
    return [
        {
            "member": state.members[peer].name,
            "member_id": f"{peer:016x}",
            "group": state.members[peer].group,
            "op": op.text,
            "op_id": op.op,
            "kind": op.kind.name.lower(),
            "bytes": op.nbytes,
            "bytes_missing": op.missing,
            "age_s": op.age_ms / 1000,
            "phase": op.phase.name.lower(),
            "awaited": [
                state.members[other].name if other in state.members else peer_text(other)
                for other in op.awaited
            ],
            "awaited_count": op.awaited_count,
            "timed_out": op.timed_out,
        }
        for _, peer, op in rows
    ]


def _syncs(state: State) -> list[dict[str, object]]:
    """Who waits in sync_state, and for whom."""
    return [
        {
            "group": group,
            "members": [state.members[peer].name for peer in offers if state.is_living(peer)],
            "awaited": [
                member.name
                for member in (state.members[peer] for peer in state.living())
                if member.group == group and member.peer not in offers
            ],
        }
        for (group, _), offers in state.soft.offers.items()
    ]


def _excluded(state: State) -> tuple[tuple[PeerId, PeerId], ...]:
    return state.record.excluded if state.record is not None else ()


def _group(state: State, group: GroupRecord) -> dict[str, object]:
    """The ring in its order, and the hub, by name."""
    return {
        "group": group.group,
        "ring": [state.members[peer].name for peer in group.ring],
        "hub": state.members[group.hub].name if group.hub else None,
        "large": group.large.name.lower(),
    }


def _paths(state: State) -> list[dict[str, object]]:
    """What members have told of their paths, each as its one end sees it, up to a bound."""
    rows = (
        (state.members[peer].name, state.members[path.peer].name, path)
        for peer, said in state.measured.items()
        for path in said.values()
        if state.is_living(peer) and state.is_living(path.peer)
    )
    return [
        {"from": one, "to": other, "rtt_ms": path.rtt_us / 1000, "rate": path.rate}
        for one, other, path in islice(rows, PATHS_SHOWN_MAX)
    ]


def _who(member: Member) -> dict[str, object]:
    return {
        "name": member.name,
        "id": f"{member.peer:016x}",
        "group": member.group,
        "host": member.host,
        "port": member.port,
    }


def _member(state: State, member: Member) -> dict[str, object]:
    assert state.record is not None
    group = [m.peer for m in state.record.members if m.group == member.group]
    return {
        **_who(member),
        "rank": group.index(member.peer),
        "connected": member.peer in state.connection_of,
        "deadline_s": state.deadlines.get(member.peer),
    }
