"""Whether a storm's log is one that must not be: pure functions, history in, what is wrong out.

`CHECKS` are the sentences that a storm proves; each has a test that it can fail. Whoever adds one
says in its text who, when and how much. What a member could check in its own memory (values) it
has said in its log; here that word is taken, and compared with the others'.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from pccl_py.report.oracle import Verdict
from stress.storm.history import History, Life, Membership
from stress.storm.nemesis import KILLS, LINKS
from stress.storm.records import (
    Calling,
    Closed,
    Exited,
    Flipped,
    Footprint,
    Joined,
    Left,
    Lost,
    OpEnd,
    Record,
    Stepped,
    Synced,
)

MARGIN_S = 5.0  # by which a call may outlive its deadline: this machine has other work
LEAVE_S = 30.0  # `leave` waits no longer, nor than its deadline
JOIN_S = 60.0  # the time-out that members give `join`
AT_ONCE_S = 1.0  # who tells of its end so soon after another's may have gone before it
PROGRESS_S = 10.0  # somebody ends a step in every such stretch
CALM_STEPS = 3  # that all take when the faults are over
CLOSE_S = 5.0  # a link with a wrong byte is closed
RSS_GROWTH_BYTES = 32 << 20  # of a process by all that it did: code it touched, fragments
SCRATCH_BYTES = 64 << 20  # that an engine may hold while it is a member
LASTING_S = 10.0  # an expulsion has its cause no longer ago than this and the detection time
ENDS = ("ok", "PeerLost")
NEEDS_ALL = ("all_gather", "reduce_scatter", "broadcast")  # a loss may end them

Wrongs = Iterator[str]
T = TypeVar("T", bound=Record)


def judge(history: History) -> list[Verdict]:
    """One verdict a sentence; its text has the first violations, or what was counted."""
    verdicts = []
    for sentence, check in CHECKS.items():
        wrongs = list(check(history))
        more = f" (and {len(wrongs) - 3} more)" if len(wrongs) > 3 else ""
        verdicts.append(Verdict(sentence, not wrongs, "; ".join(wrongs[:3]) + more))
    return verdicts


# ---------------------------------------------------------------- safety


def values(history: History) -> Wrongs:
    """Each member checked each op against its contributors."""
    for step in _of(history, Stepped):
        for op in step.ops:
            if op.wrong:
                yield f"{step.who}, line {step.line} step {step.step}, {op.kind}: {op.wrong}"


def agreement(history: History) -> Wrongs:
    """One outcome of each op, and the same bits, at all who live to tell."""
    seen: dict[tuple[int, int], dict[tuple[object, ...], list[str]]] = defaultdict(dict)
    for membership in history.memberships:
        for step in membership.told:
            outcome = tuple(_outcome(op) for op in step.ops)
            seen[step.line, step.step].setdefault(outcome, []).append(step.who)
    for (line, step), outcomes in seen.items():
        if len(outcomes) > 1:
            yield f"line {line} step {step}: {_sides(outcomes)}"


def _outcome(op: OpEnd) -> tuple[object, ...]:
    """Who contributed is known to all of an all_reduce only: after a repair a member knows it of
    its own block of a reduce_scatter."""
    told = (op.low, op.high) if op.kind == "all_reduce" else ()
    return op.kind, op.end, op.digest, *told


def _sides(outcomes: Mapping[object, Sequence[str]]) -> str:
    return " but ".join(f"{', '.join(who)} {what}" for what, who in outcomes.items())


def state(history: History) -> Wrongs:
    """The shared state is the same at all members after each step and each sync_state."""
    stepped: dict[tuple[int, int], dict[str, list[str]]] = defaultdict(dict)
    synced: dict[tuple[int, int], dict[str, list[str]]] = defaultdict(dict)
    for membership in history.memberships:
        for step in membership.told:
            stepped[step.line, step.step].setdefault(step.state, []).append(step.who)
        for sync in membership.told_syncs:
            synced[sync.line, sync.step].setdefault(sync.state, []).append(sync.who)
    for what, table in (("after step", stepped), ("synchronised at step", synced)):
        for (line, step), states in table.items():
            if len(states) > 1:
                yield f"line {line} {what} {step}: {_sides(states)}"


def views(history: History) -> Wrongs:
    """One line of views: an epoch has one membership, and a member's epochs only grow."""
    worlds: dict[int, tuple[tuple[str, ...], str]] = {}
    for step in _of(history, Stepped):
        world, first = worlds.setdefault(step.epoch, (step.world, step.who))
        if world != step.world:
            yield f"epoch {step.epoch}: {world} at {first}, {step.world} at {step.who}"
        if step.who not in step.world:
            yield f"epoch {step.epoch}: {step.who} acts in it and is no member"
    for membership in history.memberships:
        epochs = [membership.joined.epoch, *(step.epoch for step in membership.steps)]
        for before, after in pairwise(epochs):
            if after < before:
                yield f"{membership.who}: epoch {after} after {before}"


def ends(history: History) -> Wrongs:
    """An op ends with an error only where a member was lost and it cannot do without; or, when the
    coordinator was away for long, with its deadline."""
    for membership in history.memberships:
        known = [membership.joined.epoch] * 2  # two steps ago: the others may be one ahead of it
        for step in membership.steps:
            for op in step.ops:
                where = f"{step.who}, line {step.line} step {step.step}, {op.kind}"
                if op.end == "DeadlineExceeded" and _was_away(history, step.at):
                    continue
                if op.end not in ENDS:
                    yield f"{where}: {op.end}: {op.text}"
                elif op.end == "PeerLost" and not (op.strict or op.kind in NEEDS_ALL):
                    yield f"{where}: PeerLost, although it goes on without: {op.text}"
                elif op.end == "PeerLost" and step.epoch == known[0]:
                    yield f"{where}: PeerLost in an unchanged view: {op.text}"
            known = [known[1], step.epoch]


def expulsions(history: History) -> Wrongs:
    """A membership ends by an error only where its member seemed dead: it was stopped, or all its
    ways to another were broken. A wrong byte costs its link and nothing else, and a coordinator
    that comes back costs nobody anything."""
    reach = LASTING_S + history.began.detection_s
    for membership in history.memberships:
        lost = membership.lost
        if lost is not None:
            faults = history.faults_on(lost.who, lost.at - reach, lost.at)
            was_stopped = any(f.kind == "stop" for f in faults)
            soon = [m.ended - lost.at for m in history.memberships]  # these may have been gone
            is_cut_off = any(
                _is_cut_off(history, membership, apart_s)
                for apart_s in (0.0, *(s for s in soon if 0.0 < s <= AT_ONCE_S))
            )
            # An op of who was stopped may be over its deadline before the coordinator is back.
            misses_it = was_stopped or _was_away(history, lost.at)
            if not {
                "Evicted": was_stopped or is_cut_off,
                "CoordinatorLost": misses_it,
            }.get(lost.error, False):
                kinds = sorted({f.kind for f in faults})
                yield f"{lost.who} at {lost.at:.1f} s: {lost.error}, after {kinds}: {lost.text}"


def _was_away(history: History, at: float) -> bool:
    """Whether the coordinator was so long in the last deadline that ops may have ended by that."""
    away_s = history.without_coordinator_s(at - history.began.deadline_s, at)
    return away_s > history.began.detection_s


def _is_cut_off(history: History, one: Membership, apart_s: float) -> bool:
    """Whether it had lost its link to a member, and whoever else there was had lost that to one of
    the two: nobody was left to pass frames on. A link that broke is not used again as long as both
    ends stay. apart_s: whose end is no later after its own is not counted."""
    there = [
        m
        for m in history.memberships
        if m.who != one.who and m.joined.at < one.ended < m.ended - apart_s
    ]
    broken = {
        frozenset((a.who, b.who))
        for fault in history.faults
        if fault.kind in LINKS and fault.at <= one.ended
        for a in (one, *there)
        for b in there
        if {a.who, b.who} == set(fault.whom) and fault.at >= max(a.joined.at, b.joined.at)
    }
    lost = [m.who for m in there if frozenset((one.who, m.who)) in broken]
    return any(
        all(
            frozenset((one.who, m.who)) in broken or frozenset((other, m.who)) in broken
            for m in there
            if m.who != other
        )
        for other in lost
    )


# ---------------------------------------------------------------- liveness


def deadlines(history: History) -> Wrongs:
    """No call outlives its deadline by more than MARGIN_S, time in which it was stopped apart."""
    limit = history.began.deadline_s + MARGIN_S
    for who, what, start, end in _calls(history):
        life = history.lives[who]
        seconds = end - start - life.stopped_s(start, end)
        bound = _bound(what, limit)
        if seconds > bound:
            yield f"{who}, {what} at {start:.1f} s: {seconds:.1f} s, over {bound:.0f} s"


def _bound(what: str, limit: float) -> float:
    if what == "join":
        return JOIN_S + MARGIN_S
    return min(limit, LEAVE_S + MARGIN_S) if what == "leave" else limit


def _calls(history: History) -> Iterator[tuple[str, str, float, float]]:
    """(who, what, from, to) of every call; one that never returned ends when its process does."""
    open_calls: dict[str, Calling] = {}
    for record in history.records:
        match record:
            case Calling():
                open_calls[record.who] = record
            case Stepped():
                open_calls.pop(record.who, None)
                yield from _calls_of_step(record)
            case Synced() | Joined() | Left():
                call = open_calls.pop(record.who, None)
                if call is not None:
                    yield record.who, call.what, call.at, record.at
            case Lost() | Exited():
                call = open_calls.pop(record.who, None)
                if call is not None:
                    yield record.who, call.what, call.at, record.at
            case _:
                pass
    for call in open_calls.values():
        yield call.who, call.what, call.at, math.inf


def _calls_of_step(step: Stepped) -> Iterator[tuple[str, str, float, float]]:
    for op in step.ops:
        yield step.who, f"step {step.step} {op.kind}", step.began, step.began + op.seconds
    yield step.who, f"step {step.step} update", step.at - step.update_s, step.at


def progress(history: History) -> Wrongs:
    """Somebody ends a step in every PROGRESS_S, from the first view to the calm; time without a
    coordinator apart, in which ops that have lost somebody wait for it."""
    until = history.calm.at if history.calm else history.over
    joined = [record.at for record in _of(history, Joined)]
    if not joined:
        yield "nobody ever joined"
        return
    times = sorted(step.at for step in _of(history, Stepped) if step.at <= until)
    for before, after in pairwise([min(joined), *times, until]):
        if after - before - history.without_coordinator_s(before, after) > PROGRESS_S:
            yield f"nobody ended a step from {before:.1f} s to {after:.1f} s"


def recovery(history: History) -> Wrongs:
    """When the faults are over all who live take CALM_STEPS steps, and in one view."""
    if history.calm is None:
        yield "the storm did not come to its calm"
        return
    for who in history.calm.remain:
        memberships = history.lives[who].memberships
        steps = [s for m in memberships for s in m.steps if s.at > history.calm.at]
        is_leaving = any(f.kind == "leave" for f in history.faults_on(who, 0.0, math.inf))
        if len(steps) < CALM_STEPS and not is_leaving:
            yield f"{who} took {len(steps)} steps after the last fault"


def newcomers(history: History) -> Wrongs:
    """Who was started becomes a member, unless it was killed on its way in."""
    for life in history.lives.values():
        if not life.memberships and not _was_killed(history, life.who):
            yield f"{life.who}, started at {life.spawned:.1f} s, never joined"


def coordinator(history: History) -> Wrongs:
    """A coordinator that was killed is there again."""
    for fault in history.faults:
        if fault.kind == "coordinator" and fault.number not in history.healed:
            yield f"killed at {fault.at:.1f} s, it did not come back"


# ---------------------------------------------------------------- what is left


def _was_killed(history: History, who: str) -> bool:
    return any(f.kind in KILLS for f in history.faults_on(who, 0.0, math.inf))


def exits(history: History) -> Wrongs:
    """Who was killed ends by that; everybody else, the coordinator too, with status 0."""
    for life in history.lives.values():
        killed = _was_killed(history, life.who)
        wanted = -9 if killed else 0
        if life.exited is None:
            yield f"{life.who} did not end"
        elif life.exited.status != wanted:
            yield f"{life.who} ended with {life.exited.status}, not {wanted}"
    status = [record.status for record in _of(history, Exited) if record.who == "coordinator"]
    if status != [0]:
        yield f"the coordinator ended with {status}"


def footprints(history: History) -> Wrongs:
    """Who has left holds the descriptors and threads that it held before it joined, and not much
    more memory; so does a coordinator whose run is empty again. Nor does a member's memory grow."""
    taken = {(record.who, record.when): record for record in _of(history, Footprint)}
    for (who, when), record in taken.items():
        if when == "after":
            before = taken[who, "before"]
            held, holds = (before.fds, before.threads), (record.fds, record.threads)
            if held != holds:
                yield f"{who}: (descriptors, threads) were {held} before, are {holds} after"
            yield from _grown(before, record, RSS_GROWTH_BYTES)
        elif when == "last" and (who, "member") in taken:
            yield from _grown(taken[who, "member"], record, RSS_GROWTH_BYTES + SCRATCH_BYTES)


def _grown(before: Footprint, after: Footprint, limit: int) -> Wrongs:
    grown = after.rss - before.rss
    if grown > limit:
        yield (
            f"{after.who}: {grown >> 20} MiB more at {after.at:.0f} s ({after.when}) than at "
            f"{before.at:.0f} s ({before.when}), {limit >> 20} are allowed"
        )


def wrong_bytes(history: History) -> Wrongs:
    """A link on which a bit was turned is closed."""
    closed = {record.link: record.at for record in _of(history, Closed)}
    for flip in _of(history, Flipped):
        late = closed.get(flip.link, math.inf) - flip.at
        stopped = max((_stopped(history.lives[w], flip.at) for w in flip.whom), default=0.0)
        if late > CLOSE_S + stopped:
            yield f"link {flip.link} of {' and '.join(flip.whom)}: open {late:.1f} s after the flip"


def _stopped(life: Life, since: float) -> float:
    return life.stopped_s(since, since + CLOSE_S)


def _of(history: History, kind: type[T]) -> Iterator[T]:
    return (record for record in history.records if isinstance(record, kind))


CHECKS: Mapping[str, Callable[[History], Wrongs]] = {
    "every value is its contributors' sum": values,
    "every op has one outcome, with the same bits at all": agreement,
    "the shared state is the same at all": state,
    "there is one line of views": views,
    "an op fails only when it lost whom it needs": ends,
    "nobody is expelled who did not seem dead": expulsions,
    "no call outlives its deadline": deadlines,
    "the run makes progress in every 10 s with a coordinator": progress,
    "all are current when the faults are over": recovery,
    "newcomers become members": newcomers,
    "the coordinator comes back": coordinator,
    "every process ends as it should": exits,
    "nothing is left behind": footprints,
    "a wrong byte costs its link": wrong_bytes,
}
