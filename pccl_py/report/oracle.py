"""Judges a finished run of the demo: events in, verdicts out; pure.

Every check of `make demo`'s exit status is one function here, so that tests can show each of them
failing. What a check needs to know beside the events is in `Expected`. Called by `conduct`, which
prints the verdicts and turns one that failed into the exit status, and by `html`.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from pccl_py.report.records import (
    Evaluated,
    Event,
    Exited,
    Hung,
    Joined,
    Killed,
    Left,
    Reducing,
    Rounded,
    Started,
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the run was to be. first: workers from the start; victim: which of them is killed; late:
    the one that joins later; rounds: the last round; loss_limit: for the outer parameters' last
    validation loss, nats per byte, together with the bigram loss; None asks only that it fell;
    hang_s: silence of a member that counts as hanging."""

    first: tuple[str, ...]
    victim: str
    late: str
    rounds: int
    loss_limit: float | None
    hang_s: float = 30.0

    @property
    def everybody(self) -> tuple[str, ...]:
        return (*self.first, self.late)

    @property
    def survivors(self) -> tuple[str, ...]:
        return tuple(name for name in self.first if name != self.victim)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check's outcome. name: what must be true; text: what was found, one line."""

    name: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class KillCost:
    """What the kill cost, seconds. usual: the survivors' median time from round to round before the
    kill; longest: their longest one around it; away: from the kill until the victim was a member
    again, NaN if never. contributors: fewest inputs in the round that the kill met."""

    usual: float
    longest: float
    away: float
    contributors: int
    repaired: int

    @property
    def lost(self) -> float:
        """Seconds that the survivors lost; 0 if the round was no slower than usual."""
        return max(0.0, self.longest - self.usual)


def judge(events: Sequence[Event], expected: Expected) -> tuple[Verdict, ...]:
    """All checks, in the order in which they are shown."""
    return (
        same_state(events, expected),
        loss(events, expected),
        killed_and_back(events, expected),
        joined_late(events, expected),
        nobody_hung(events, expected),
        ended_well(events, expected),
    )


def same_state(events: Sequence[Event], expected: Expected) -> Verdict:
    """All members hold the same bits after every round, and everybody at the end."""
    name = "all members hold the same state"
    hashes: dict[int, dict[str, str]] = {}
    for event in events:
        if isinstance(event, Rounded | Left):
            seen = hashes.setdefault(event.round, {})
            if seen.setdefault(event.worker, event.digest) != event.digest:
                return Verdict(name, False, f"{event.worker} has two states at {event.round}")
    for number, seen in sorted(hashes.items()):
        if len(set(seen.values())) > 1:
            said = ", ".join(f"{who} {digest[:8]}" for who, digest in sorted(seen.items()))
            return Verdict(name, False, f"after round {number}: {said}")
    last = {e.worker: e for e in events if isinstance(e, Left) and e.round == expected.rounds}
    missing = [worker for worker in expected.everybody if worker not in last]
    if missing:
        return Verdict(name, False, f"no final state of {', '.join(missing)}")
    digest = last[expected.first[0]].digest
    text = f"{digest[:16]} at all {len(last)}; equal after each of {expected.rounds} rounds"
    return Verdict(name, True, text)


def loss(events: Sequence[Event], expected: Expected) -> Verdict:
    """The outer parameters learned: below the limit and the bigrams, or below the start."""
    name = "the outer parameters learned"
    tests = {event.round: event for event in events if isinstance(event, Evaluated)}
    start, end = tests.get(0), tests.get(expected.rounds)
    if start is None or end is None:
        when = "the start" if start is None else "the end"
        return Verdict(name, False, f"not evaluated at {when}")
    text = f"validation loss {start.valid_loss:.3f} -> {end.valid_loss:.3f} nats per byte"
    ok = end.valid_loss < start.valid_loss
    if expected.loss_limit is not None:
        text += f" (limit {expected.loss_limit}, byte bigrams {end.bigram_loss:.3f})"
        ok = ok and end.valid_loss <= expected.loss_limit and end.valid_loss < end.bigram_loss
    return Verdict(name, ok, text)


def killed_and_back(events: Sequence[Event], expected: Expected) -> Verdict:
    """The victim was killed, became a member again and caught up; the others lived on."""
    name = f"{expected.victim} was killed and came back"
    kill = next((e for e in events if isinstance(e, Killed)), None)
    if kill is None or kill.worker != expected.victim:
        return Verdict(name, False, "it was never killed")
    back = next((e for e in joins(events, expected.victim) if e.time > kill.time), None)
    if back is None:
        return Verdict(name, False, "it never became a member again")
    if not any(
        isinstance(e, Rounded) and e.worker == kill.worker and e.time > back.time for e in events
    ):
        return Verdict(name, False, f"it came back at round {back.round} and did no round")
    again = [w for w in expected.survivors if len(lives(events, w)) > 1]
    if again:
        return Verdict(name, False, f"{', '.join(again)} did not survive the kill")
    return Verdict(
        name, True, f"a member again after {back.time - kill.time:.1f} s, at round {back.round}"
    )


def joined_late(events: Sequence[Event], expected: Expected) -> Verdict:
    """The late worker entered a run that was under way, and did rounds with it."""
    name = f"{expected.late} joined the running run"
    entry = next(iter(joins(events, expected.late)), None)
    if entry is None:
        return Verdict(name, False, "it never became a member")
    if entry.round == 0:
        return Verdict(name, False, "it began a run of its own, at round 0")
    done = [e for e in events if isinstance(e, Rounded) and e.worker == expected.late]
    text = f"as rank {entry.rank} of {entry.world} at round {entry.round}, {len(done)} rounds done"
    return Verdict(name, bool(done), text)


def nobody_hung(events: Sequence[Event], expected: Expected) -> Verdict:
    """No member was silent for `hang_s` between joining and ending."""
    name = "no member hung"
    hung = [event for event in events if isinstance(event, Hung)]
    if hung:
        said = ", ".join(f"{e.worker} for {e.seconds:.0f} s" for e in hung)
        return Verdict(name, False, f"no progress: {said}")
    longest, who = 0.0, expected.first[0]
    for pid, times in _progress(events).items():
        for before, after in pairwise(times):
            if after - before > longest:
                longest, who = after - before, _name(events, pid)
    text = f"longest silence of a member {longest:.1f} s ({who})"
    return Verdict(name, longest < expected.hang_s, text)


def ended_well(events: Sequence[Event], expected: Expected) -> Verdict:
    """Everybody's last life ended with 0, and nobody died but the one that was killed."""
    name = "every worker ended in good order"
    killed = {event.pid for event in events if isinstance(event, Killed)}
    bad: list[str] = []
    for worker in expected.everybody:
        ends = [e for e in events if isinstance(e, Exited) and e.worker == worker]
        deaths = [e for e in ends if e.status != 0]
        bad += [
            f"{worker} ({e.pid}) {status_text(e.status)}"
            for e in deaths
            if not (e.pid in killed and e.status == -signal.SIGKILL)
        ]
        if not ends:
            bad.append(f"{worker} did not end")
        elif ends[-1].status != 0 and ends[-1].pid in killed:
            bad.append(f"{worker} stayed dead")
    text = "; ".join(bad) or f"exit status 0 of all {len(expected.everybody)}"
    return Verdict(name, not bad, text)


def kill_cost(events: Sequence[Event], expected: Expected) -> KillCost | None:
    """None when nobody was killed or the survivors did too little to tell."""
    kill = next((e for e in events if isinstance(e, Killed)), None)
    if kill is None:
        return None
    usual: list[float] = []
    around: list[float] = []
    hit: list[Rounded] = []
    for worker in expected.survivors:
        done = sorted(
            (e for e in events if isinstance(e, Rounded) and e.worker == worker),
            key=lambda e: e.time,
        )
        for before, after in pairwise(done):
            if after.time <= kill.time:
                usual.append(after.time - before.time)
            elif before.time <= kill.time:
                around.append(after.time - before.time)
                hit.append(after)
    if not usual or not around:
        return None
    back = next((e.time for e in joins(events, kill.worker) if e.time > kill.time), math.nan)
    return KillCost(
        usual=median(usual),
        longest=max(around),
        away=back - kill.time,
        contributors=min(e.contributors_min for e in hit),
        repaired=max(e.repaired for e in hit),
    )


def joins(events: Iterable[Event], worker: str) -> list[Joined]:
    """All entries of a worker into the run, in order."""
    return [event for event in events if isinstance(event, Joined) and event.worker == worker]


def lives(events: Iterable[Event], worker: str) -> list[int]:
    """The pids of a worker's processes, in order, each once."""
    return list(dict.fromkeys(e.pid for e in events if e.worker == worker and e.pid > 0))


def status_text(status: int) -> str:
    """An exit status as people read it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"died of {signal.Signals(-status).name}"
    except ValueError:
        return f"died of signal {-status}"


def _progress(events: Iterable[Event]) -> dict[int, list[float]]:
    """Per process, when it showed life as a member, and the end of that."""
    found: dict[int, list[float]] = {}
    for event in sorted(events, key=lambda e: e.time):
        match event:
            case Joined():
                found.setdefault(event.pid, []).append(event.time)
            case Rounded() | Reducing() | Evaluated() | Left() | Exited():
                if event.pid in found:
                    found[event.pid].append(event.time)
            case Started() | Killed() | Hung():
                pass
    return found


def _name(events: Iterable[Event], pid: int) -> str:
    return next(event.worker for event in events if event.pid == pid)
