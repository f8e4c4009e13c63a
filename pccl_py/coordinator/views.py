"""The end of a view and the next one: flush, decide, install (layer 2; VIEWS coordinator 1-4).

Called by `machine` after every event: `advance` looks at what is known and starts, goes on with or
concludes a flush. Message handlers elsewhere only record facts. A flush never resumes the old
epoch; it ends in a new view, maybe of the same members. What becomes of an op is `verdicts`', which
ring is `topology`'s, by which routes is `routes`', newcomers are `admission`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pccl_py.coordinator import claims, routes, topology, verdicts
from pccl_py.coordinator.events import Journal
from pccl_py.coordinator.state import (
    CHANCE_S,
    EDGE_GRACE_S,
    EXCLUDED_MAX,
    FORMER_MAX,
    LEFT,
    PATIENCE_SHARE,
    Edge,
    FlushRun,
    OpKey,
    Rolled,
    Soft,
    State,
    Turn,
)
from pccl_py.protocol.messages import Answer, Bye, EvictedMsg, Flush, Install, OpStatus
from pccl_py.types import GroupRecord, Member, Outcome, PeerId, Record, op_text

TOO_LATE = "a timed-out op was not repaired here in time"


def advance(turn: Turn) -> None:
    """Start a flush if there is reason, conclude it if all that is awaited is there."""
    if turn.state.record is None or not turn.state.living_count:
        if turn.soft.flush is not None:
            turn.soft = replace(turn.soft, flush=None)
        return
    if turn.state.trouble is not None:  # nobody is stopped for a view that cannot come
        return
    if turn.soft.flush is None:
        reason = _why_flush(turn.state, turn.now)
        if reason:
            _begin(turn, reason)
    if turn.soft.flush is not None and _is_complete(turn.state, turn.soft.flush, turn.now):
        _conclude(turn, turn.soft.flush)


def deadlines(state: State) -> list[float]:
    """When `advance` may have something to do though nothing happens."""
    times = [e.at + EDGE_GRACE_S for pair, e in state.soft.evidence.items() if _both(state, pair)]
    if state.soft.flush is not None:
        if not state.soft.flush.is_answered:
            times.append(state.soft.flush.started + state.config.deadline_s)
    elif state.living_count:
        times.extend(rolled.until for rolled in state.rolled.values())
        times.extend(_patience(state))
    return times


def _why_flush(state: State, now: float) -> str:
    """Evidence starts a flush at once; wishes wait until the last plan is carried out (R24), but
    not for ever: it may be what they are about that it waits for."""
    soft = state.soft
    for peer, reason in soft.gone.items():
        return f"{state.members[peer]} is gone: {reason}"
    for pair, evidence in soft.evidence.items():
        if now >= evidence.at + EDGE_GRACE_S and _both(state, pair):
            one, other = (state.members[peer] for peer in pair)
            return f"broken edge {one} - {other}: {evidence.reason}"
    if soft.stopped:
        return "a member stands in a flush of a former life"
    for (_, op), rolled in state.rolled.items():
        if now >= rolled.until:
            return f"{op_text(op)} was rolled forward, and its second deadline is over"
    wish = _wish(state)
    if wish and (_is_carried_out(state) or any(now >= until for until in _patience(state))):
        return wish
    return ""


def _patience(state: State) -> list[float]:
    """Until when members' wishes wait for a plan, if they do."""
    wished = state.soft.wished
    if wished is None or _is_carried_out(state):
        return []
    return [wished + PATIENCE_SHARE * state.config.detection_s]


def _wish(state: State) -> str:
    soft = state.soft
    for key in (*soft.timeouts, *soft.mismatches):
        if key not in state.rolled:
            what = "timed out" if key in soft.timeouts else "was submitted differently"
            return f"{op_text(key[1])} {what}"
    if soft.leaving:
        return "a member leaves"
    return "an engine's table is full" if soft.refresh else soft.reroute


def _is_carried_out(state: State) -> bool:
    """Whether nobody has anything of the last plan left to do."""
    assert state.record is not None
    if not verdicts.has_plan(state.record):
        return True
    return len(state.soft.repaired) >= state.living_count


def _both(state: State, pair: Edge) -> bool:
    """Whether both ends of a lost link live and are connected: otherwise it may be a death."""
    return all(state.is_living(peer) and peer in state.connection_of for peer in pair)


def _begin(turn: Turn, reason: str) -> None:
    """A flush cancels an admission round; the install that ends it releases who holds."""
    state = turn.state
    awaited = state.living()
    turn.soft = replace(
        turn.soft,
        flush=FlushRun(turn.now, reason, frozenset(awaited), {}),
        admission=None,
    )
    turn.note("flush", ("epoch", str(state.epoch)), ("reason", reason))
    message = Flush(state.epoch)
    for peer in awaited:
        turn.send(peer, message)


def _is_complete(state: State, flush: FlushRun, now: float) -> bool:
    """All living members have answered and are connected, and no lost link is so young that it
    may turn out to be a death."""
    if not flush.is_answered or any(peer in flush.answers for peer in state.absent_until):
        return False
    return not any(
        now < evidence.at + EDGE_GRACE_S and _both(state, pair)
        for pair, evidence in state.soft.evidence.items()
    )


@dataclass(frozen=True, slots=True)
class _Stay:
    """Who is in the next view, and by which routes, per group in the groups' old order. chances:
    broken edges that are tried again."""

    routes: Mapping[str, routes.Choice]
    members: tuple[Member, ...]
    excluded: tuple[Edge, ...]
    chances: tuple[Edge, ...]
    left: tuple[PeerId, ...]
    evicted: Mapping[PeerId, str]


def _conclude(turn: Turn, flush: FlushRun) -> None:
    """Make the next view of those who answered, with a verdict on every op (coordinator 3, 4)."""
    state = turn.state
    record = state.record
    assert record is not None
    expelled = _expelled(state, flush, turn.now)
    answers = {p: flush.answers[p] for p in state.living() if p not in expelled}
    stay = _who_stays(state, answers, expelled, turn.now)
    groups = []
    rolled: dict[OpKey, Rolled] = {}
    for old in record.groups:
        choice = stay.routes.get(old.group)
        if choice is None or not choice.ring:
            continue
        case = _case(state, old.group, answers, stay)
        group, late = verdicts.decide(case)
        groups.append(choice.of(group))
        rolled.update(_rolled(state, group, late, turn.now))
    chances = {pair: at for pair, at in state.chances.items() if turn.now < at + CHANCE_S}
    chances |= dict.fromkeys(stay.chances, turn.now)
    turn.state = replace(turn.state, rolled=rolled, chances=chances)
    _part(turn, stay)
    if not stay.members:
        turn.note("emptied", ("epoch", str(record.epoch)))
        return
    next_record = Record(
        line=record.line,
        epoch=record.epoch + 1,
        fresh=False,
        members=stay.members,
        groups=tuple(groups),
        excluded=stay.excluded,
    )
    install(turn, next_record, frozenset())


def _rolled(
    state: State, group: GroupRecord, late: Mapping[int, frozenset[PeerId]], now: float
) -> dict[OpKey, Rolled]:
    """The ops that go on though they have timed out, in this flush or before; one that was given a
    second deadline keeps it until it is over."""
    rolled: dict[OpKey, Rolled] = {}
    for verdict in group.verdicts:
        key = (group.group, verdict.op)
        old = state.rolled.get(key)
        if verdict.outcome is not Outcome.RUN or (verdict.op not in late and old is None):
            continue
        until = now + state.config.deadline_s
        if old is not None and now < old.until:
            until = old.until
        before = old.late if old is not None else frozenset[PeerId]()
        rolled[key] = Rolled(until, late.get(verdict.op, frozenset()) | before)
    return rolled


def _expelled(state: State, flush: FlushRun, now: float) -> dict[PeerId, str]:
    """Living members that the next view is better without, and why."""
    expelled = dict.fromkeys(_laggards(state, flush, now), TOO_LATE)
    by_group: dict[str, dict[PeerId, Answer]] = {}
    for peer, answer in flush.answers.items():
        by_group.setdefault(state.members[peer].group, {})[peer] = answer
    for answers in by_group.values():
        expelled |= dict.fromkeys(claims.unbelieved(answers), claims.CONTRADICTED)
    return expelled


def _laggards(state: State, flush: FlushRun, now: float) -> frozenset[PeerId]:
    """Members that have not repaired an op whose second deadline has passed too. If nobody in the
    group has, it is not their fault that they have not, and nobody is expelled."""
    assert state.record is not None
    laggards: set[PeerId] = set()
    for group in state.record.groups:
        answers = {p: a for p, a in flush.answers.items() if state.members[p].group == group.group}
        overdue = [
            op
            for op, reports in verdicts.reports_by_op(answers).items()
            if (rolled := state.rolled.get((group.group, op))) is not None
            and now >= rolled.until
            and any(report.status is OpStatus.RUNNING for report in reports.values())
        ]
        behind = answers.keys() - state.soft.repaired
        if overdue and verdicts.group_has_plan(group) and len(behind) < len(answers):
            laggards |= behind
    return frozenset(laggards)


def _who_stays(
    state: State, answers: Mapping[PeerId, Answer], expelled: Mapping[PeerId, str], now: float
) -> _Stay:
    assert state.record is not None
    soft = state.soft
    staying = {p for p, a in answers.items() if not (a.leaving or p in soft.leaving)}
    by_group: dict[str, list[PeerId]] = {}
    for peer in answers:
        by_group.setdefault(state.members[peer].group, []).append(peer)
    left: list[PeerId] = []
    evicted = {**soft.gone, **expelled}
    excluded = _excluded(state, answers)
    chances: list[Edge] = []
    chosen: dict[str, routes.Choice] = {}
    for group, peers in by_group.items():
        own = {p: answers[p] for p in peers}
        stayers = [p for p in peers if p in staying]
        old = state.record.of_group(group).ring
        kept = [
            p
            for p in peers
            if p in staying or (stayers and verdicts.is_needed(p, own, stayers, old))
        ]
        left += [p for p in peers if p not in staying and p not in kept]
        ring, dropped, again = _route(state, kept, excluded, now)
        chances += again
        broken = [pair for pair in excluded if pair not in again]
        chosen[group] = routes.choose(ring, state.record.of_group(group), state.measured, broken)
        evicted.update((peer, "no route to it avoids the broken links") for peer in dropped)
    inside = {peer for choice in chosen.values() for peer in choice.ring}
    return _Stay(
        chosen,
        tuple(state.members[p] for p in answers if p in inside),
        tuple(pair for pair in excluded if inside.issuperset(pair) and pair not in chances),
        tuple(chances),
        tuple(left),
        evicted,
    )


def _route(
    state: State, kept: Sequence[PeerId], excluded: Sequence[Edge], now: float
) -> tuple[tuple[PeerId, ...], tuple[PeerId, ...], list[Edge]]:
    """The ring, who is dropped, and which edges have another chance. A link may have broken for one
    wrong byte: nobody is dropped for it before its ends have tried once more; but who is cut off
    from all of several others has no link to try."""
    ring, dropped = topology.route(kept, excluded)
    if not dropped:
        return ring, dropped, []
    broken = Counter(peer for pair in excluded if set(pair) <= set(kept) for peer in pair)
    alone = {peer for peer in kept if 1 < broken[peer] == len(kept) - 1}
    tried = [
        pair
        for pair in excluded
        if alone.intersection(pair) or now < state.chances.get(pair, -CHANCE_S) + CHANCE_S
    ]
    more, fewer = topology.route(kept, tried)
    if len(fewer) >= len(dropped):
        return ring, dropped, []
    return more, fewer, [pair for pair in excluded if pair not in tried and set(pair) <= set(kept)]


def _excluded(state: State, answers: Mapping[PeerId, Answer]) -> tuple[Edge, ...]:
    """Broken edges between members that answered: the record's, reported ones, answered ones."""
    assert state.record is not None
    edges = dict.fromkeys(state.record.excluded)
    edges.update(dict.fromkeys(topology.edge(a, b) for a, b in state.soft.evidence))
    present = [pair for pair in edges if pair[0] in answers and pair[1] in answers]
    return tuple(present[:EXCLUDED_MAX])


def _case(state: State, group: str, answers: Mapping[PeerId, Answer], stay: _Stay) -> verdicts.Case:
    assert state.record is not None
    soft = state.soft
    old = state.record.of_group(group)
    return verdicts.Case(
        old=old,
        members=state.members,
        answers={p: a for p, a in answers.items() if state.members[p].group == group},
        ring=stay.routes[group].ring,
        lost=tuple(p for p in stay.evicted if state.members[p].group == group),
        timeouts={op: detail for (g, op), (_, detail) in soft.timeouts.items() if g == group},
        mismatches={op: told for (g, op), told in soft.mismatches.items() if g == group},
        changed=state.shrunk or set(old.ring) != set(stay.routes[group].ring),
    )


def _part(turn: Turn, stay: _Stay) -> None:
    """Say farewell to who is not in the next view."""
    gone = {**turn.soft.gone, **dict.fromkeys(stay.left, LEFT), **stay.evicted}
    turn.soft = replace(turn.soft, gone=gone, flush=None, leaving=frozenset(), repaired=frozenset())
    for peer in stay.left:
        turn.note("left", ("peer", str(turn.state.members[peer])))
        turn.send(peer, Bye())
    for peer, reason in stay.evicted.items():
        turn.note("evicted", ("peer", str(turn.state.members[peer])), ("reason", reason))
        turn.send(peer, EvictedMsg(reason))


def _remembered(state: State) -> Mapping[PeerId, str]:
    """`former` and who is gone now: ids that must never be members again (R12); beyond a bound the
    oldest are forgotten."""
    if not state.soft.gone:
        return state.former
    former = {**state.former, **state.soft.gone}
    for peer in list(former)[: max(0, len(former) - FORMER_MAX)]:
        del former[peer]
    return former


def install(turn: Turn, record: Record, newcomers: frozenset[PeerId]) -> None:
    """Journal the record, make it the state, and send it to all its members (R9)."""
    state = turn.state
    assert state.run is not None
    members = {member.peer: member for member in record.members}
    absent = {p: t for p, t in state.absent_until.items() if p in members or p in state.pending}
    turn.actions.append(Journal(record, state.run))
    turn.state = replace(
        state,
        record=record,
        members=members,
        shrunk=not record.fresh and (state.shrunk or members.keys() != state.members.keys()),
        newcomers=newcomers,
        absent_until=absent,
        unheard={p: t for p, t in state.unheard.items() if p in members},
        former=_remembered(state),
        measured={p: rows for p, rows in state.measured.items() if p in members},
        rolled={} if record.fresh else state.rolled,
        plans={} if record.fresh else state.plans,
        disagreement="" if record.fresh else state.disagreement,
        soft=Soft(),
    )
    turn.note(
        "view",
        ("epoch", str(record.epoch)),
        ("line", str(record.line)),
        ("members", " ".join(member.name for member in record.members[:64])),
    )
    message = Install(record)  # one for all: the shell encodes it once
    for peer in members:
        turn.send(peer, message)
