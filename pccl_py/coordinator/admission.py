"""How newcomers enter: the first view, and rounds of safe points (layer 2; VIEWS coordinator 5).

Called by `machine` after every event (`advance`) and for Sp and At. A round asks all members where
they are, names per group the first safe point that nobody has passed, and installs the larger view
when all stand there with their ops ended. A member that calls update() again at a position it has
passed (a loop that waits for others) stands there too: if all stand at equal positions they are
taken as they stand; if not, the round is taken back after EARLY_HOLD_S so that nobody whose ops the
others need is kept.
"""

from __future__ import annotations

from dataclasses import replace

from pccl_py.coordinator import routes, topology, views
from pccl_py.coordinator.grown import put
from pccl_py.coordinator.state import EARLY_HOLD_S, GROUP_MAX, Admission, Newcomer, State, Turn
from pccl_py.protocol.messages import Ask, At, Release, Sp, Target
from pccl_py.types import GroupRecord, Member, PeerId, Record


def advance(turn: Turn) -> None:
    """Admit, start a round, go on with it, or take it back."""
    state = turn.state
    if state.soft.flush is not None or state.trouble is not None:
        return
    waits = any(peer in state.connection_of for peer in state.pending)
    if not state.living_count:
        if waits and _pending_count(state) >= wanted(state):
            _enlarge(turn, admissible(state))
    elif not waits:
        release(turn, "nobody waits any more")
    elif state.soft.admission is not None:
        _go_on(turn, state.soft.admission)
    elif turn.now >= state.retry_at and admissible(state):
        _ask(turn)


def deadlines(state: State) -> list[float]:
    """When `advance` may have something to do though nothing happens."""
    admission = state.soft.admission
    if admission is None:
        waits = bool(state.pending) and bool(state.living_count) and state.soft.flush is None
        return [state.retry_at] if waits and state.retry_at > 0 else []
    times = [admission.started + state.config.deadline_s]
    if admission.early_since is not None:
        times.append(admission.early_since + EARLY_HOLD_S)
    return times


def wanted(state: State) -> int:
    """How many must be there for a first view: the most that anybody who waits asks for."""
    return max((newcomer.min_members for newcomer in state.pending.values()), default=0)


def _pending_count(state: State) -> int:
    return sum(1 for peer in state.pending if peer in state.connection_of)


def admissible(state: State) -> dict[PeerId, Newcomer]:
    """Pending peers that are connected and for whom their group has room."""
    if not state.pending:
        return {}
    room: dict[str, int] = {}
    for peer in state.living():
        group = state.members[peer].group
        room[group] = room.get(group, GROUP_MAX) - 1
    ready: dict[PeerId, Newcomer] = {}
    for peer, newcomer in state.pending.items():
        group = newcomer.member.group
        if peer in state.connection_of and room.get(group, GROUP_MAX) > 0:
            room[group] = room.get(group, GROUP_MAX) - 1
            ready[peer] = newcomer
    return ready


def sp(turn: Turn, peer: PeerId, message: Sp) -> None:
    """A member holds from now on and says where it is."""
    admission = turn.soft.admission
    if admission is None or message.round != admission.round:
        return
    sps = put(admission.sps, peer, message)
    turn.soft = replace(turn.soft, admission=replace(admission, sps=sps))


def at(turn: Turn, peer: PeerId, message: At) -> None:
    """A member stands at a safe point and its ops have ended."""
    admission = turn.soft.admission
    if admission is None or message.round != admission.round or admission.targets is None:
        return
    early = admission.early_since
    if message.position < admission.targets[turn.state.members[peer].group] and early is None:
        early = turn.now
    ats = put(admission.ats, peer, message.position)
    turn.soft = replace(turn.soft, admission=replace(admission, ats=ats, early_since=early))


def remind(turn: Turn, peer: PeerId) -> None:
    """Tell a member that has said Hello again what the round wants of it."""
    admission = turn.soft.admission
    if admission is None:
        return
    epoch = turn.state.epoch
    turn.send(peer, Ask(epoch, admission.round))
    if admission.targets is not None:
        target = admission.targets[turn.state.members[peer].group]
        turn.send(peer, Target(epoch, admission.round, target))


def _ask(turn: Turn) -> None:
    state = turn.state
    number = (state.boot, state.rounds + 1)
    admission = Admission(number, turn.now, {}, None, {}, None)
    turn.state = replace(state, rounds=state.rounds + 1)
    turn.soft = replace(turn.soft, admission=admission)
    message = Ask(state.epoch, number)
    for peer in state.living():
        turn.send(peer, message)


def _go_on(turn: Turn, admission: Admission) -> None:
    state = turn.state
    count = state.living_count
    if admission.targets is None:
        if len(admission.sps) == count:
            _aim(turn, admission)
        elif turn.now >= admission.started + state.config.deadline_s:
            _give_up(turn, "")
        return
    if len(admission.ats) == count:
        text = _disagreement(state, admission)
        if text:
            _give_up(turn, text)
        else:
            _enlarge(turn, admissible(state))
    elif admission.early_since is not None and turn.now >= admission.early_since + EARLY_HOLD_S:
        release(turn, "not all stand at the same repeated safe point")
        _ask(turn)
    elif turn.now >= admission.started + state.config.deadline_s:
        _give_up(turn, "")


def _aim(turn: Turn, admission: Admission) -> None:
    """The first safe point that nobody in the group has passed and all can reach (K5)."""
    state = turn.state
    targets: dict[str, int] = {}
    for peer, answer in admission.sps.items():
        group = state.members[peer].group
        target = max(answer.passed + 1, answer.submitted)
        targets[group] = max(targets.get(group, 0), target)
    turn.soft = replace(turn.soft, admission=replace(admission, targets=targets))
    by_group: dict[str, list[PeerId]] = {}
    for peer in admission.sps:
        by_group.setdefault(state.members[peer].group, []).append(peer)
    for group, peers in by_group.items():
        message = Target(state.epoch, admission.round, targets[group])  # encoded once for all
        for peer in peers:
            turn.send(peer, message)


def _disagreement(state: State, admission: Admission) -> str:
    """Why members that all stand at a safe point do not stand at the same one; empty if they do."""
    first: dict[str, PeerId] = {}
    for peer in state.living():
        group = state.members[peer].group
        other = first.setdefault(group, peer)
        here, there = admission.ats[peer], admission.ats[other]
        if here != there:
            return (
                f"{state.members[other]} stands at a safe point after {there} ops, "
                f"{state.members[peer]} after {here}: all programs must call comm.update() at the "
                "same places"
            )
    return ""


def release(turn: Turn, why: str) -> None:
    """Take a round back: who holds goes on (R16)."""
    admission = turn.soft.admission
    if admission is None:
        return
    turn.soft = replace(turn.soft, admission=None)
    turn.note("released", ("round", str(admission.round)), ("why", why))
    message = Release(turn.state.epoch, admission.round)
    for peer in turn.state.living():
        turn.send(peer, message)


def _give_up(turn: Turn, disagreement: str) -> None:
    """Take the round back and let the members work for a while before the next one."""
    release(turn, disagreement or "the deadline has passed")
    retry_at = turn.now + turn.state.config.progress_s
    turn.state = replace(turn.state, retry_at=retry_at, disagreement=disagreement)


def _enlarge(turn: Turn, ready: dict[PeerId, Newcomer]) -> None:
    """Install a new line's first view: members and newcomers, no op, no plan (K5)."""
    state = turn.state
    old = state.record
    members = [state.members[peer] for peer in state.living()]
    members += [newcomer.member for newcomer in ready.values()]
    excluded = tuple(
        pair for pair in (old.excluded if old else ()) if all(state.is_living(p) for p in pair)
    )
    names = dict.fromkeys(member.group for member in members)
    groups = tuple(_group(state, members, name, excluded) for name in names)
    record = Record(
        line=(old.line if old else 0) + 1,
        epoch=state.epoch + 1,
        fresh=True,
        members=tuple(members),
        groups=groups,
        excluded=excluded,
    )
    pending = {peer: who for peer, who in state.pending.items() if peer not in ready}
    turn.state = replace(state, pending=pending)
    views.install(turn, record, frozenset(ready))


def _group(
    state: State, members: list[Member], name: str, excluded: tuple[topology.Edge, ...]
) -> GroupRecord:
    ring = _ring(members, name, excluded)
    groups = state.record.groups if state.record is not None else ()
    old = next((group for group in groups if group.group == name), None)
    choice = routes.choose(ring, old, state.measured, excluded)
    return choice.of(GroupRecord(name, choice.ring))


def _ring(
    members: list[Member], group: str, excluded: tuple[topology.Edge, ...]
) -> tuple[PeerId, ...]:
    """A ring for all of the group. Nobody is dropped: newcomers have no broken edge, and each one
    among the members keeps its relay."""
    joined = [member.peer for member in members if member.group == group]
    ring, dropped = topology.route(joined, excluded)
    assert not dropped
    return ring
