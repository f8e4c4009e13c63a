"""Restart policy: decides which worker is started, signalled or given up, and the exit status.

Pure: `(state, event, now) -> (state, actions)`, called by `supervise` alone with a monotonic clock.
It must not know of processes, sockets or loops; a worker is a name here.

Each worker by itself (a failed one never takes the others with it):

    NEW --Begin--> RUNNING --exit 0--> DONE
                   RUNNING --other end, restarts left--> WAITING --its time--> RUNNING
                   RUNNING --other end, none left or hopeless--> FAILED
                   RUNNING, WAITING --StopRequested, then its end--> STOPPED (DONE if it exits 0)
                   RUNNING, WAITING --not 0, and all others are DONE--> FAILED

Nobody waits for ever for a finished run: when all that still run were started again and somebody is
done, `Look` asks every alone_s whether they wait in vain; on `Stranded` they are ended and FAILED.
"""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass, replace
from typing import assert_never

STABLE_S = 60.0  # a life this long was no failed start: the back-off begins anew
AT_START_S = 30.0  # an end in this time is taken for a failed start (importing torch takes seconds)
BACKOFF_MAX_S = 30.0
LOOK_MIN_S = 1.0  # between two looks at who is left over
FINISHED = "the others have finished"
HOPELESS = frozenset((2, 126, 127))  # usage; found but not executable; not found


class Phase(enum.Enum):
    """Where a worker is; see the table in the module's docstring."""

    NEW = "new"
    RUNNING = "running"
    WAITING = "waiting"  # for its next start
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


ENDED = frozenset((Phase.DONE, Phase.FAILED, Phase.STOPPED))


@dataclass(frozen=True, slots=True)
class Limits:
    """max_restarts: starts after the first, per worker. grace_s: between SIGTERM and SIGKILL.
    alone_s: how long restarted workers may wait to join when the others have finished."""

    max_restarts: int = 3
    grace_s: float = 10.0
    alone_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Worker:
    """since: when this life began, or (WAITING) when the next begins. streak: failed starts in a
    row. status: of the last end, as `subprocess` has it (negative: the signal); None before."""

    name: str
    phase: Phase = Phase.NEW
    restarts: int = 0
    streak: int = 0
    since: float = 0.0
    status: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """stop: the signal that ends the run, None while it goes on. kill_at: when patience ends.
    look_at: when to look whether those left over wait in vain; stranded: they did, and are ended.
    """

    limits: Limits
    workers: tuple[Worker, ...]
    stop: int | None = None
    kill_at: float | None = None
    look_at: float | None = None
    stranded: bool = False


@dataclass(frozen=True, slots=True)
class Begin:
    """Start everybody."""


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker's process ended. status: exit code, or minus the signal."""

    name: str
    status: int


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody wants the run to end (Ctrl-C, SIGTERM); the second time: at once."""

    signum: int


@dataclass(frozen=True, slots=True)
class Stranded:
    """Answer to `Look`: the run has no member, and every worker that runs waits to join it."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; due when `next_wake` says so, harmless otherwise."""


Event = Begin | Exited | StopRequested | Stranded | Tick


@dataclass(frozen=True, slots=True)
class Start:
    """Start the worker; restart: 0 for its first life."""

    name: str
    restart: int


@dataclass(frozen=True, slots=True)
class Signal:
    """Send `signum` to the worker's process group."""

    name: str
    signum: int


@dataclass(frozen=True, slots=True)
class Retry:
    """Tell people: the worker ended and starts again in `delay_s`; restart: the number of that."""

    name: str
    status: int
    delay_s: float
    restart: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell people: the worker ended and is not started again, for this reason."""

    name: str
    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class Look:
    """Find out whether `Stranded` holds, and say so if it does."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Tell people: these workers wait in vain to join and are ended now."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Nobody runs or waits: the run is over with this exit status."""

    code: int


Action = Start | Signal | Retry | GiveUp | Look | Abandon | Finish


def new(names: tuple[str, ...], limits: Limits) -> State:
    """The state before `Begin`; `names` are distinct and at least one."""
    assert names, "no workers"
    assert len(set(names)) == len(names), names
    assert min(limits.max_restarts, limits.grace_s, limits.alone_s) >= 0, limits
    return State(limits, tuple(Worker(name) for name in names))


def step(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """One event; `now` in seconds, never smaller than before."""
    state, actions = _step(state, event, now)
    left_over = _are_left_over(state)
    if left_over != (state.look_at is not None):
        state = replace(state, look_at=now + state.limits.alone_s if left_over else None)
    return state, actions


def _step(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    match event:
        case Begin():
            return _start_due(state, now, frozenset((Phase.NEW,)))
        case Exited():
            return _exited(state, event, now)
        case StopRequested():
            return _stop(state, event.signum, now)
        case Stranded():
            return _stranded(state, now)
        case Tick():
            return _tick(state, now)
    assert_never(event)


def next_wake(state: State) -> float | None:
    """When the next `Tick` is due on the clock of `step`; None: only an event changes anything."""
    due = [w.since for w in state.workers if w.phase is Phase.WAITING]
    due += [at for at in (state.kill_at, state.look_at) if at is not None]
    return min(due, default=None)


def backoff_s(streak: int) -> float:
    """Seconds before the next start after `streak` >= 1 failed ones in a row: 0, 1, 2, 4, … 30."""
    return 0.0 if streak <= 1 else min(BACKOFF_MAX_S, 2.0 ** min(streak - 2, 16))


def exit_code(state: State) -> int:
    """128 + signal when stopped, 0 when all ended well, 1 when some worker failed for good."""
    if state.stop is not None:
        return 128 + state.stop
    return 0 if all(w.phase is Phase.DONE for w in state.workers) else 1


def describe(status: int) -> str:
    """An end as people read it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _put(state: State, worker: Worker) -> State:
    return replace(
        state, workers=tuple(worker if w.name == worker.name else w for w in state.workers)
    )


def _finish_if_over(state: State, actions: tuple[Action, ...]) -> tuple[State, tuple[Action, ...]]:
    if all(w.phase in ENDED for w in state.workers):
        return replace(state, kill_at=None), (*actions, Finish(exit_code(state)))
    return state, actions


def _start_due(
    state: State, now: float, phases: frozenset[Phase]
) -> tuple[State, tuple[Action, ...]]:
    actions: list[Action] = []
    for worker in state.workers:
        if worker.phase in phases and worker.since <= now:
            state = _put(state, replace(worker, phase=Phase.RUNNING, since=now))
            actions.append(Start(worker.name, worker.restarts))
    return state, tuple(actions)


def _exited(state: State, event: Exited, now: float) -> tuple[State, tuple[Action, ...]]:
    worker = next(w for w in state.workers if w.name == event.name)
    assert worker.phase is Phase.RUNNING, worker
    life_s = now - worker.since
    worker = replace(worker, status=event.status)
    if event.status == 0 and not state.stranded:  # else our SIGTERM ended it well
        return _done(state, worker)
    if state.stop is not None:
        return _finish_if_over(_put(state, replace(worker, phase=Phase.STOPPED)), ())
    reason = ""
    if state.stranded:
        reason = "it waited alone to join a run that has finished"
    elif _others_are_done(state, worker):
        reason = FINISHED
    elif event.status in HOPELESS and life_s < AT_START_S:
        reason = "starting it again would not help"
    elif worker.restarts >= state.limits.max_restarts:
        reason = f"no restarts left of {state.limits.max_restarts}"
    if reason:
        state = _put(state, replace(worker, phase=Phase.FAILED))
        return _finish_if_over(state, (GiveUp(worker.name, event.status, reason),))
    streak = 1 if life_s >= STABLE_S else worker.streak + 1
    delay_s = backoff_s(streak)
    restart = worker.restarts + 1
    waiting = replace(
        worker, phase=Phase.WAITING, restarts=restart, streak=streak, since=now + delay_s
    )
    state, starts = _start_due(_put(state, waiting), now, frozenset((Phase.WAITING,)))
    return state, (Retry(worker.name, event.status, delay_s, restart), *starts)


def _done(state: State, worker: Worker) -> tuple[State, tuple[Action, ...]]:
    """The worker has finished; one that waits for its next start and is the last has no use."""
    state = _put(state, replace(worker, phase=Phase.DONE))
    actions: list[Action] = []
    for other in state.workers:
        if other.phase is Phase.WAITING and _others_are_done(state, other):
            state = _put(state, replace(other, phase=Phase.FAILED))
            assert other.status is not None, other
            actions.append(GiveUp(other.name, other.status, FINISHED))
    return _finish_if_over(state, tuple(actions))


def _others_are_done(state: State, worker: Worker) -> bool:
    others = [w for w in state.workers if w.name != worker.name]
    return bool(others) and all(w.phase is Phase.DONE for w in others)


def _are_left_over(state: State) -> bool:
    """Whether somebody has finished and all others live again: they may wait in vain."""
    living = [w for w in state.workers if w.phase not in ENDED]
    return (
        state.stop is None
        and not state.stranded
        and any(w.phase is Phase.DONE for w in state.workers)
        and bool(living)
        and all(w.phase is Phase.RUNNING and w.restarts for w in living)
    )


def _stranded(state: State, now: float) -> tuple[State, tuple[Action, ...]]:
    if not _are_left_over(state):  # one has ended, or a stop was asked for meanwhile
        return state, ()
    names = tuple(w.name for w in state.workers if w.phase is Phase.RUNNING)
    state = replace(state, stranded=True, kill_at=now + state.limits.grace_s)
    return state, (Abandon(names), *(Signal(name, signal.SIGTERM) for name in names))


def _stop(state: State, signum: int, now: float) -> tuple[State, tuple[Action, ...]]:
    running = [w.name for w in state.workers if w.phase is Phase.RUNNING]
    if state.stop is not None:
        state = replace(state, kill_at=None)
        return state, tuple(Signal(name, signal.SIGKILL) for name in running)
    idle = (Phase.NEW, Phase.WAITING)
    workers = tuple(
        replace(w, phase=Phase.STOPPED) if w.phase in idle else w for w in state.workers
    )
    state = replace(state, workers=workers, stop=signum, kill_at=now + state.limits.grace_s)
    return _finish_if_over(state, tuple(Signal(name, signal.SIGTERM) for name in running))


def _tick(state: State, now: float) -> tuple[State, tuple[Action, ...]]:
    if state.kill_at is not None and state.kill_at <= now:
        running = [w.name for w in state.workers if w.phase is Phase.RUNNING]
        state = replace(state, kill_at=None)
        return state, tuple(Signal(name, signal.SIGKILL) for name in running)
    if state.look_at is not None and state.look_at <= now:
        return replace(state, look_at=now + max(LOOK_MIN_S, state.limits.alone_s)), (Look(),)
    return _start_due(state, now, frozenset((Phase.WAITING,)))
