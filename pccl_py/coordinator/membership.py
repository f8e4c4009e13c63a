"""Who is there: Hello, disconnection, evidence, wishes, deaths (layer 2; VIEWS K1, K6, K7).

Called by `machine` per message; records facts in the state, brings a peer that says Hello up to
date, and by the clock turns absence into death (`expire`). What follows from a fact - a flush, an
admission - is `views`' and `admission`'s.
"""

from __future__ import annotations

from dataclasses import replace

from pccl_py.coordinator import admission
from pccl_py.coordinator.events import Close, Connection, Disconnected, Send, Started
from pccl_py.coordinator.grown import drop, put
from pccl_py.coordinator.state import (
    ABSENCE_SHARE,
    LEFT,
    OUT_OF_REACH_SHARE,
    PENDING_MAX,
    WISHES_MAX,
    Evidence,
    Newcomer,
    State,
    Turn,
)
from pccl_py.errors import Code
from pccl_py.protocol.messages import (
    Answer,
    Bye,
    EvictedMsg,
    Flush,
    Hello,
    Install,
    Leave,
    Lost,
    Mismatch,
    Refresh,
    Refused,
    Release,
    Repaired,
    Timeout,
)
from pccl_py.types import Member, PeerId

WRONG_RUN = "this coordinator serves another run; check --run / PCCL_RUN"


def started(turn: Turn, event: Started) -> None:
    """A new life: the journaled record is the view; nobody is dead before detection_s (K7)."""
    state = turn.state
    record = event.record
    members = {member.peer: member for member in record.members} if record is not None else {}
    turn.state = replace(
        state,
        boot=event.boot,
        run=event.run if event.run is not None else state.run,
        record=record,
        members=members,
        shrunk=record is not None and not record.fresh,
        newcomers=frozenset(members) if record is not None and record.fresh else frozenset(),
        absent_until=dict.fromkeys(members, turn.now + state.config.detection_s),
        unheard=dict.fromkeys(members, turn.now + ABSENCE_SHARE * state.config.detection_s),
    )


def hello(turn: Turn, connection: Connection, message: Hello) -> None:
    """Somebody says who it is: a member back again, a newcomer, or somebody who is out (K6)."""
    state = turn.state
    if state.run is not None and message.run != state.run:
        refuse(turn, connection, Code.USAGE, WRONG_RUN)
        return
    if state.peer_of.get(connection, message.peer) != message.peer:
        refuse(turn, connection, Code.PROTOCOL, "one connection, two peer ids")
        disconnected(turn, Disconnected(connection, "two peer ids"))
        return
    if state.run is None:
        turn.state = replace(state, run=message.run)
    peer = message.peer
    if state.is_living(peer):
        at_epoch = message.epoch == state.epoch
        behind = message.epoch == state.epoch - 1 and message.epoch > 0
        if at_epoch or behind or (message.epoch == 0 and peer in state.newcomers):
            _attach(turn, connection, message)
            _bring_up_to_date(turn, peer, message)
            return
    elif message.epoch == 0 and peer not in state.former and peer not in state.members:
        _newcomer(turn, connection, message)
        return
    stranger = "this id is not a member of the current view"
    reason = state.soft.gone.get(peer) or state.former.get(peer) or stranger
    farewell = Bye() if reason == LEFT else EvictedMsg(reason)
    turn.actions.append(Send(connection, farewell))


def refuse(turn: Turn, connection: Connection, code: Code, text: str) -> None:
    turn.actions.append(Send(connection, Refused(code, text)))
    turn.actions.append(Close(connection))
    turn.note("refused", ("text", text))


def disconnected(turn: Turn, event: Disconnected) -> None:
    """A control connection is gone; its peer has a while to come back."""
    state = turn.state
    peer = state.peer_of.get(event.connection)
    if peer is None:
        return
    peer_of = drop(state.peer_of, event.connection)
    if state.connection_of.get(peer) != event.connection:
        turn.state = replace(state, peer_of=peer_of)
        return
    absent = state.absent_until
    if state.is_living(peer) or peer in state.pending:
        absent = put(absent, peer, turn.now + ABSENCE_SHARE * state.config.detection_s)
    turn.state = replace(
        state,
        peer_of=peer_of,
        connection_of=drop(state.connection_of, peer),
        deadlines=drop(state.deadlines, peer),
        absent_until=absent,
    )
    turn.note("disconnected", ("peer", f"{peer:016x}"), ("reason", event.reason))


def _attach(turn: Turn, connection: Connection, message: Hello) -> None:
    state, peer = turn.state, message.peer
    old = state.connection_of.get(peer)
    peer_of = state.peer_of
    if old is not None and old != connection:
        turn.actions.append(Close(old))
        peer_of = drop(peer_of, old)
    turn.state = replace(
        state,
        peer_of=put(peer_of, connection, peer),
        connection_of=put(state.connection_of, peer, connection),
        absent_until=drop(state.absent_until, peer),
        unheard=drop(state.unheard, peer),
    )
    if message.deadline_ms:
        deadlines = put(turn.state.deadlines, peer, message.deadline_ms / 1000)
        turn.state = replace(turn.state, deadlines=deadlines)


def _bring_up_to_date(turn: Turn, peer: PeerId, message: Hello) -> None:
    """Say again what a living member may have missed."""
    state = turn.state
    assert state.record is not None
    if message.epoch != state.epoch:
        turn.send(peer, Install(state.record))
    if state.soft.flush is not None:
        turn.send(peer, Flush(state.epoch))
    elif message.epoch == state.epoch:
        if message.stopped:
            _stands(turn)
        elif state.soft.admission is not None:
            admission.remind(turn, peer)
        elif message.holding is not None:
            turn.send(peer, Release(state.epoch, message.holding))
    elif state.soft.admission is not None:
        admission.remind(turn, peer)


def _newcomer(turn: Turn, connection: Connection, message: Hello) -> None:
    state = turn.state
    config, deadline_s = state.config, message.deadline_ms / 1000
    if config.strict and 0 < deadline_s < config.detection_s:
        text = (
            f"deadline_s={deadline_s:g} is shorter than the {config.detection_s:g} s in which this "
            f"run finds a silent member (its coordinator has --deadline {config.deadline_s:g}): "
            "give join a longer one, or the coordinator a shorter one"
        )
        refuse(turn, connection, Code.USAGE, text)
        return
    if message.peer not in state.pending and len(state.pending) >= PENDING_MAX:
        text = f"{PENDING_MAX} peers are waiting already; try again later"
        refuse(turn, connection, Code.RESOURCE, text)
        return
    member = Member(message.peer, message.name, message.group, message.host, message.port)
    _attach(turn, connection, message)
    newcomer = Newcomer(member, message.min_members)
    turn.state = replace(
        turn.state,
        pending=put(turn.state.pending, message.peer, newcomer),
        untold=turn.state.untold | {message.peer},
    )


def lost(turn: Turn, peer: PeerId, message: Lost) -> None:
    """Evidence of a lost link to a living member."""
    _suspect(turn, peer, message.other, message.reason)


def _suspect(turn: Turn, peer: PeerId, other: PeerId, reason: str) -> None:
    known = turn.soft.evidence
    if turn.state.is_living(other) and other != peer and (peer, other) not in known:
        turn.soft = replace(
            turn.soft, evidence=put(known, (peer, other), Evidence(turn.now, reason))
        )


def answered(turn: Turn, peer: PeerId, message: Answer) -> None:
    """A member has stopped in this epoch and says how its ops stand; the newest answer counts."""
    flush = turn.soft.flush
    if flush is None:  # a Flush of a former life was read only after this life's greeting (R14)
        _stands(turn)
        return
    if peer not in flush.asked:
        return
    turn.soft = replace(
        turn.soft,
        flush=replace(flush, answers=put(flush.answers, peer, message)),
    )
    for other in message.unreachable:
        _suspect(turn, peer, other, "unreachable")


def _stands(turn: Turn) -> None:
    """A member has stopped for a flush that this life knows nothing of."""
    turn.soft = replace(turn.soft, stopped=True)


Wish = Timeout | Mismatch | Refresh | Leave | Repaired


def wish(turn: Turn, peer: PeerId, message: Wish) -> None:
    """What a member asks of the next view, or has finished in this one."""
    if turn.soft.wished is None and not isinstance(message, Repaired):
        turn.soft = replace(turn.soft, wished=turn.now)
    soft = turn.soft
    group = turn.state.members[peer].group
    match message:
        case Timeout(op=op, detail=detail):
            soft = turn.soft = replace(soft, overdue=soft.overdue | {peer})
            rolled = turn.state.rolled.get((group, op))
            if rolled is not None and peer in rolled.late:  # its second deadline is over too
                over = replace(rolled, until=turn.now)
                turn.state = replace(turn.state, rolled=put(turn.state.rolled, (group, op), over))
                soft = turn.soft
            if len(soft.timeouts) < WISHES_MAX and (group, op) not in soft.timeouts:
                timeouts = put(soft.timeouts, (group, op), (peer, detail))
                turn.soft = replace(soft, timeouts=timeouts)
        case Mismatch(op=op):
            if len(soft.mismatches) < WISHES_MAX and (group, op) not in soft.mismatches:
                mismatches = put(soft.mismatches, (group, op), (peer, message))
                turn.soft = replace(soft, mismatches=mismatches)
        case Refresh():
            turn.soft = replace(soft, refresh=True)
        case Leave():
            turn.soft = replace(soft, leaving=soft.leaving | {peer})
        case Repaired():
            turn.soft = replace(soft, repaired=soft.repaired | {peer})


def expire(turn: Turn) -> None:
    """Absence becomes death: at once if a member has lost its link to the absent one too (in a new
    life of the coordinator: if all others have, or have had time to come back), else when the time
    is over. A flush that is not answered until the deadline is a death as well, and long before for
    who has no data link to anybody: the next view has no place for it anyway."""
    state = turn.state
    dead: dict[PeerId, str] = {}
    forgotten: list[PeerId] = []
    for peer, until in state.absent_until.items():
        if peer in state.pending:
            if turn.now >= until:
                forgotten.append(peer)
        elif not state.is_living(peer):
            forgotten.append(peer)
        elif _named_by(state, peer) and (
            turn.now >= state.unheard.get(peer, turn.now) or _named_by_all(state, peer)
        ):
            dead[peer] = "its connections broke"
        elif turn.now >= until:
            dead[peer] = "its control connection broke and did not come back"
    flush = state.soft.flush
    if flush is not None and turn.now >= flush.started + state.config.deadline_s:
        for peer in flush.awaited:
            dead.setdefault(peer, "it did not answer a flush before the deadline")
    for peer, until in _out_of_reach(state).items():
        if turn.now >= until:
            dead.setdefault(peer, "all its data links are lost and it does not answer a flush")
    if dead or forgotten:
        _bury(turn, dead, forgotten)


def _out_of_reach(state: State) -> dict[PeerId, float]:
    """Whom a flush awaits though all links between it and the others of its group are lost, of
    whom some have answered; and until when it may. Its engine may stand still."""
    flush, record, lost = state.soft.flush, state.record, state.soft.evidence
    found: dict[PeerId, float] = {}
    if flush is None or record is None or not lost:
        return found
    broken = {frozenset(pair) for pair in (*lost, *record.excluded)}
    newest = max(flush.started, *(evidence.at for evidence in lost.values()))
    for peer in flush.awaited:
        group = state.members[peer].group
        others = [p for p in state.living() if p != peer and state.members[p].group == group]
        answered = any(other in flush.answers for other in others)
        if answered and all(frozenset((peer, other)) in broken for other in others):
            found[peer] = newest + OUT_OF_REACH_SHARE * state.config.detection_s
    return found


def _named_by(state: State, peer: PeerId) -> bool:
    return any(
        other == peer and state.is_living(reporter) for reporter, other in state.soft.evidence
    )


def _named_by_all(state: State, peer: PeerId) -> bool:
    """Whether all who may live have come back, half of the members at least, and have no link to it
    any more."""
    others = [other for other in state.living() if other != peer]
    naming = [other for other in others if (other, peer) in state.soft.evidence]
    missing = [other for other in others if other in state.unheard and _named_by(state, other)]
    return len(naming) + len(missing) == len(others) and len(naming) > len(missing)


def _bury(turn: Turn, dead: dict[PeerId, str], forgotten: list[PeerId]) -> None:
    state = turn.state
    flush = state.soft.flush
    if flush is not None:  # whoever dies meanwhile is struck, its answer too (R25)
        flush = replace(
            flush,
            asked=flush.asked.difference(dead),
            answers={p: a for p, a in flush.answers.items() if p not in dead},
        )
    soft = replace(
        state.soft,
        gone={**state.soft.gone, **dead},
        evidence={
            pair: e for pair, e in state.soft.evidence.items() if not dead.keys() & set(pair)
        },
        repaired=state.soft.repaired.difference(dead),
        leaving=state.soft.leaving.difference(dead),
        overdue=state.soft.overdue.difference(dead),
        flush=flush,
    )
    turn.state = replace(
        state,
        soft=soft,
        absent_until=drop(state.absent_until, *dead, *forgotten),
        unheard=drop(state.unheard, *dead),
        pending=drop(state.pending, *forgotten),
    )
    for peer, reason in dead.items():
        turn.note("lost", ("peer", str(state.members[peer])), ("reason", reason))
    if not turn.state.living_count:  # no view follows that would tell them
        for peer, reason in soft.gone.items():
            turn.send(peer, Bye() if reason == LEFT else EvictedMsg(reason))


def deadlines(state: State) -> list[float]:
    """When `expire` may have something to do though nothing happens."""
    named = [until for peer, until in state.unheard.items() if _named_by(state, peer)]
    return [*state.absent_until.values(), *named, *_out_of_reach(state).values()]
