"""One peer's side of the protocol as a pure machine (layer 2): (state, event, now) -> (state,
actions).

Called by `control` with what the connection, the engine, the user's thread and the clock say; does
no input or output. Requests are state (R15): an event records a fact and tells it once; `_hello`
and `_install` tell all facts that still hold again.

    Connected               -> Hello, then all that still holds
    Received(Install)       -> InstallView, Resume, then all that still holds in the new epoch
    Received(Flush)         -> FlushEngine; Flushed -> Answer        (stopped until the install)
    Received(Ask, Target, Release), SafePoint, Drained               safe_points
    PathsMeasured -> Measured, sometimes                             measures
    Received(Inspect) -> InspectEngine; Inspected -> InFlight
    LinkLost, OpTimedOut, OpMismatched, EngineRepaired, EngineFull, WantLeave, WantState -> told
    Received(Bye) -> Left; Received(EvictedMsg, Refused) -> Fail; unreachable too long -> Fail

After Left or Fail nothing happens any more: the id is used up (R12).
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from pccl_py.errors import Code
from pccl_py.peer import measures, safe_points
from pccl_py.peer.events import (
    Action,
    Connected,
    Disconnected,
    Drained,
    EngineFull,
    EngineRepaired,
    Event,
    Fail,
    Flushed,
    FlushEngine,
    ForgetState,
    Inspected,
    InspectEngine,
    InstallView,
    Left,
    LinkLost,
    Note,
    OpMismatched,
    OpSettled,
    OpTimedOut,
    PathsMeasured,
    Progress,
    Received,
    Resume,
    SafePoint,
    SetTimer,
    StateElected,
    Tick,
    WantLeave,
    WantState,
)
from pccl_py.peer.state import WISHES_MAX, End, State, Turn
from pccl_py.protocol.messages import (
    Answer,
    Ask,
    Bye,
    Elected,
    EvictedMsg,
    Flush,
    FromCoordinator,
    Hello,
    InFlight,
    Inspect,
    Install,
    Leave,
    Lost,
    Mismatch,
    Offer,
    OpStatus,
    Refresh,
    Refused,
    Release,
    Repaired,
    StateError,
    StatePlan,
    Status,
    Target,
    Timeout,
    Waiting,
)
from pccl_py.types import Outcome, PeerId, Record, Verdict, covered, op_text

__all__ = ["step"]

_NOBODY = PeerId(0)


def step(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """What the peer knows and does after `event`. `now`: monotonic seconds, never less than in the
    step before."""
    if state.end is not End.NO:
        return state, ()
    turn = Turn(state, now, [])
    match event:
        case Connected():
            _connected(turn)
        case Disconnected():
            away = now if state.away_since is None else state.away_since
            turn.state = replace(state, connected=False, away_since=away)
        case Received(message=message):
            _received(turn, message)
        case SafePoint():
            safe_points.safe_point(turn, event)
        case Drained():
            safe_points.drained(turn, event)
        case Flushed():
            _flushed(turn, event)
        case PathsMeasured():
            measures.measured(turn, event)
        case Inspected():
            _inspected(turn, event)
        case Tick():  # it is used up, also if it came a little early: ask again
            turn.state = replace(turn.state, timer=None)
        case _:
            _fact(turn, event)
    _settle(turn)
    return turn.state, tuple(turn.actions)


# ---------------------------------------------------------------- connection


def _connected(turn: Turn) -> None:
    greetings = turn.state.greetings + 1
    state = replace(turn.state, connected=True, away_since=None, greetings=greetings)
    turn.state = state
    who = state.identity
    hello = Hello(
        run=who.run,
        peer=who.peer,
        name=who.name,
        group=who.group,
        host=who.host,
        port=who.port,
        min_members=who.min_members,
        epoch=state.epoch,
        stopped=state.stopped,
        holding=state.round,
        nonce=b"",
        proof=b"",
        deadline_ms=who.deadline_ms,
    )
    turn.send(hello)
    if state.record is None:
        return
    for other, reason in state.lost.items():
        turn.send(Lost(state.epoch, other, reason))
    if state.repaired:
        turn.send(Repaired(state.epoch))
    if state.full:
        turn.send(Refresh(state.epoch))
    _say_wishes(turn)
    safe_points.say_at(turn)
    measures.forgotten(turn)


def _say_wishes(turn: Turn) -> None:
    """What outlives a view: said again after each Hello and each install."""
    state = turn.state
    for op, detail in state.timed_out.items():
        turn.send(Timeout(state.epoch, op, detail))
    for mismatch in state.mismatched.values():
        _say_mismatch(turn, mismatch)
    if state.leaving:
        turn.send(Leave(state.epoch))
    known = state.elected
    if known is not None:  # another member may have missed it, and the coordinator forgotten
        told = (known.seq, known.revision, known.donor, known.dirty, known.error)
        turn.send(Elected(state.epoch, *told))
    for offer in state.offers:
        _offer(turn, offer)


def _say_mismatch(turn: Turn, event: OpMismatched) -> None:
    epoch = turn.state.epoch
    turn.send(Mismatch(epoch, event.op, event.other, event.field, event.mine, event.theirs))


def _offer(turn: Turn, want: WantState) -> None:
    state = turn.state
    turn.send(Offer(state.epoch, want.seq, want.revision, want.keys, state.greetings))


# ---------------------------------------------------------------- messages


def _received(turn: Turn, message: FromCoordinator) -> None:
    state = turn.state
    match message:
        case Install():
            _install(turn, message.record)
        case Flush():
            if message.epoch == state.epoch and state.record is not None:
                turn.state = replace(state, stopped=True)
                turn.actions.append(FlushEngine(message.epoch))
                turn.actions.append(Note("flush", (("epoch", str(message.epoch)),)))
        case Ask():
            if message.epoch == state.epoch:
                safe_points.asked(turn, message)
        case Target():
            if message.epoch == state.epoch:
                safe_points.targeted(turn, message)
        case Release():
            if message.epoch == state.epoch:
                safe_points.released(turn, message)
        case StatePlan():
            plan = (message.revision, message.donor, message.dirty)
            _elected(turn, StateElected(message.seq, *plan, ""), message.greeting)
        case StateError():
            refused = StateElected(message.seq, 0, _NOBODY, (), message.text)
            _elected(turn, refused, message.greeting)
        case Waiting():
            turn.actions.append(Progress(message.text))
        case Bye():
            turn.state = replace(state, end=End.LEFT)
            turn.actions.append(Left())
        case EvictedMsg():
            _fail(turn, Code.EVICTED, f"evicted: {message.reason}; join again")
        case Refused():
            known = message.code in set(Code) and message.code != Code.OK
            _fail(turn, Code(message.code) if known else Code.PROTOCOL, message.text)
        case Inspect():
            turn.state = replace(state, inspecting=message.round)
            turn.actions.append(InspectEngine())
        case Status():
            pass  # answers nothing that a peer asks
        case _:
            assert_never(message)


def _fail(turn: Turn, code: Code, text: str) -> None:
    turn.state = replace(turn.state, end=End.FAILED)
    turn.actions.append(Fail(code, text))


def _install(turn: Turn, record: Record) -> None:
    """VIEWS peer rule 6, the control side of it."""
    state = turn.state
    me = state.identity.peer
    if record.epoch <= state.epoch:
        return
    if record.member(me) is None:
        _fail(turn, Code.EVICTED, f"evicted: not a member of view {record.epoch}; join again")
        return
    if state.record is not None and record.epoch != state.epoch + 1:
        text = f"evicted: view {record.epoch} came after view {state.epoch}; join again"
        _fail(turn, Code.EVICTED, text)
        return
    held = state.standing is not None
    known = set() if state.record is None else {member.peer for member in state.record.members}
    grown = any(member.peer not in known for member in record.members)
    turn.resume_at()
    state = turn.state
    verdicts = {v.op: v for v in record.of_group(state.identity.group).verdicts}
    stable = record.of_group(state.identity.group).stable
    open_ops = {
        op
        for op in (*state.timed_out, *state.mismatched)
        if not record.fresh and _is_undecided(op, verdicts, stable)
    }
    turn.state = replace(
        state,
        record=record,
        stopped=False,
        passed=0 if record.fresh else state.passed,
        round=None,
        target=None,
        lost={},
        timed_out={op: d for op, d in state.timed_out.items() if op in open_ops},
        mismatched={op: m for op, m in state.mismatched.items() if op in open_ops},
        repaired=False,
        full=False,
        elected=None if record.fresh else state.elected,
    )
    turn.actions.append(InstallView(record))
    if held:
        turn.actions.append(Resume(grown))
    turn.actions.append(Note("view", (("epoch", str(record.epoch)),)))
    _say_wishes(turn)


def _is_undecided(op: int, verdicts: dict[int, Verdict], stable: int) -> bool:
    """Whether the flush did not know of a time-out or mismatch of this op: a plain redo means that
    nothing was final anywhere, and then it would have been aborted. An op that was rolled forward
    has its second deadline at the coordinator, which asks by itself when that is over."""
    if covered(op, stable):
        return False
    verdict = verdicts.get(op)
    return verdict is None or (verdict.outcome is Outcome.RUN and not verdict.holders)


def _elected(turn: Turn, outcome: StateElected, greeting: int) -> None:
    """Only what answers the last Hello counts: since then, another life of the coordinator may have
    heard from here that nothing is known."""
    state = turn.state
    want = next((offer for offer in state.offers if offer.seq == outcome.seq), None)
    if want is None or greeting != state.greetings:
        return
    offers = tuple(offer for offer in state.offers if offer.seq != outcome.seq)
    known = state.elected
    latest = outcome if known is None or outcome.seq > known.seq else known
    turn.state = replace(state, offers=offers, elected=latest)
    strange = set(outcome.dirty) - {each.key for each in want.keys}
    if strange:
        text = f"sync_state: told to fetch {min(strange)!r}, which is no key here"
        outcome = StateElected(outcome.seq, 0, _NOBODY, (), text)
    turn.actions.append(outcome)


# ---------------------------------------------------------------- engine and user


def _inspected(turn: Turn, event: Inspected) -> None:
    """For the coordinator, if it asked; the control thread asks for reasons of its own, too."""
    asked = turn.state.inspecting
    if asked is not None:
        turn.state = replace(turn.state, inspecting=None)
        turn.send(InFlight(turn.state.epoch, asked, event.ops, event.running))


def _flushed(turn: Turn, event: Flushed) -> None:
    """The engine has stopped: answer (R6). Ops that are not reported as running have ended, so
    their time-outs are no wish any more."""
    state = turn.state
    if event.epoch != state.epoch or not state.stopped:
        return
    running = {report.op for report in event.ops if report.status is OpStatus.RUNNING}
    turn.state = replace(
        state,
        timed_out={op: d for op, d in state.timed_out.items() if op in running},
        mismatched={op: m for op, m in state.mismatched.items() if op in running},
    )
    turn.send(
        Answer(
            event.epoch,
            event.submitted,
            event.stable,
            event.contexts,
            event.ops,
            tuple(state.lost),
            state.leaving,
        )
    )


Fact = (
    LinkLost | OpTimedOut | OpSettled | OpMismatched | EngineRepaired | EngineFull | WantState
    | ForgetState | WantLeave
)  # fmt: skip


def _fact(turn: Turn, event: Fact) -> None:
    """Record something that now holds, and tell it."""
    state = turn.state
    epoch = state.epoch
    match event:
        case LinkLost(other=other, reason=reason):
            if event.epoch == epoch and _is_in_use(state, other):
                turn.state = replace(state, lost={**state.lost, other: reason})
                turn.send(Lost(epoch, other, reason))
                told = (("peer", f"{other:016x}"), ("reason", reason))
                turn.actions.append(Note("link-lost", told))
        case OpTimedOut(op=op, detail=detail):
            if op not in state.timed_out and len(state.timed_out) < WISHES_MAX:
                turn.state = replace(state, timed_out={**state.timed_out, op: detail})
                turn.send(Timeout(epoch, op, detail))
        case OpSettled(op=op):
            waiting = {key: text for key, text in state.timed_out.items() if key != op}
            turn.state = replace(state, timed_out=waiting)
        case OpMismatched(op=op):
            if op not in state.mismatched and len(state.mismatched) < WISHES_MAX:
                turn.state = replace(state, mismatched={**state.mismatched, op: event})
                _say_mismatch(turn, event)
        case EngineRepaired():
            if event.epoch == epoch:
                turn.state = replace(state, repaired=True)
                turn.send(Repaired(epoch))
        case EngineFull():
            turn.state = replace(state, full=True)
            turn.send(Refresh(epoch))
        case WantState(seq=seq):
            others = tuple(offer for offer in state.offers if offer.seq != seq)
            turn.state = replace(state, offers=(*others, event))
            _offer(turn, event)
        case ForgetState(seq=seq):
            offers = tuple(offer for offer in state.offers if offer.seq != seq)
            turn.state = replace(state, offers=offers)
        case WantLeave():
            turn.state = replace(state, leaving=True)
            if state.record is not None:
                turn.send(Leave(epoch))
        case _:
            assert_never(event)


def _is_in_use(state: State, other: PeerId) -> bool:
    """Whether a lost link to `other` is news: a member, over an edge not excluded already (R22)."""
    if state.record is None or other in state.lost or state.record.member(other) is None:
        return False
    me = state.identity.peer
    return not any({me, other} == set(pair) for pair in state.record.excluded)


def _settle(turn: Turn) -> None:
    """A peer without a coordinator goes on by itself, until it needs a verdict and cannot get one
    for detection_s: then the outcome is unknown (peer rule 10)."""
    state = turn.state
    if state.end is not End.NO:
        return
    at: float | None = None
    if state.away_since is not None and state.timed_out:
        at = state.away_since + state.detection_s
        if turn.now >= at:
            ops = ", ".join(op_text(op) for op in list(state.timed_out)[:4])
            seconds = turn.now - state.away_since
            _fail(
                turn,
                Code.COORDINATOR_LOST,
                f"coordinator unreachable for {seconds:.1f} s; outcome of {ops} unknown, "
                "join again when it is back, and synchronise state",
            )
            return
    measures.advance(turn)
    state = turn.state
    tell_at = measures.deadline(state)
    if tell_at is not None:
        at = tell_at if at is None else min(at, tell_at)
    if at != state.timer:
        turn.state = replace(state, timer=at)
        turn.actions.append(SetTimer(at))
