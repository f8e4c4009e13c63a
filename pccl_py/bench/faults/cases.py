"""The cases among real processes: a death, a stop, many deaths, a start, a coordinator's restart.

Each takes a `Nursery` and a number of trials and returns its `Figure`s. Victims die in the middle
of an op whose time without a death was measured just before, at moments that are spread evenly over
it; every value that survivors hold is checked, and that they all hold the same bits.

What a death costs: *detection* from the kill until the first survivor is told to flush, *repair*
from then until the last one has the op. *Beyond the lost work* is the time from the kill to that
end, less what was to be done in any case: the rest of the op as it takes without a death, or, if
that is longer, the share of the result that had to be reduced again, times the whole op's time.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from pccl_py.bench.faults import stage
from pccl_py.bench.faults.figures import MAX, About, Figure
from pccl_py.bench.faults.stage import Nursery, Peer, Stage
from pccl_py.errors import PcclError

DEADLINE_S = 20.0  # detection in 5 s, as by default
STOP_DEADLINE_S = 8.0  # detection in 2 s
GOAL_WORLD = 4  # the goals of a death and of a join are for this many members
STOP_CREWS = 5  # runs in which peers are stopped at the same time: nearly all of it is waiting
STOP_WORLD = 4
REFORM_WORLD = 16
RESTART_WORLD = 4
PAUSE_MS = 4.0  # between the ops of a loop
SETTLE_S = 0.05  # a loop runs so long before and after what happens in it
EARLIEST, LATEST = 0.1, 0.9  # share of the op's time at which a victim dies
GOLDEN = 0.618  # steps of this much fill an interval evenly, however many there are
MISSES_MAX = 4  # for each trial, kills that came when the op was over already
FLOAT_BYTES = 4

Progress = Callable[[str], None]


@dataclass(slots=True)
class _Tally:
    """Samples by figure, and what was wrong."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    wrong: int = 0

    def add(self, figure: str, value: float) -> None:
        self.samples.setdefault(figure, []).append(value)


@dataclass(frozen=True, slots=True)
class _Took:
    """One op at one peer; see `peer` for the times."""

    began_ns: int
    ended_ns: int
    repaired: int
    lost_ns: int
    flush_ns: int
    view_ns: int


def _time(at: Stage, start_ns: int, peers: Sequence[Peer]) -> list[_Took]:
    for peer in peers:
        peer.line.send("time", start_ns)
    return _took(at, peers)


def _took(at: Stage, peers: Sequence[Peer]) -> list[_Took]:
    return [_Took(*map(int, words[1:])) for words in at.answers(peers)]


def _plain_s(at: Stage, count: int) -> float:
    """One op without a death: until the last peer has it."""
    at.order("fill", count)
    start_ns = at.soon_ns()
    took = _time(at, start_ns, at.living())
    return (max(one.ended_ns for one in took) - start_ns) / 1e9


@dataclass(frozen=True, slots=True)
class _Death:
    """What the survivors of one kill in mid op saw. ended_ns: the last one has the op; redone:
    share of its elements; lost_ns: 0 if none saw a link break."""

    kill_ns: int
    lost_ns: int
    flush_ns: int
    view_ns: int
    ended_ns: int
    start_ns: int
    segments: int
    redone: float
    wrong: int


def _kill(
    at: Stage, victims: Sequence[int], count: int, after_s: float, number: int
) -> _Death | None:
    """An op in which victims are sent a signal; None if it was over when they were."""
    at.order("fill", count)
    expected, living = at.mask(), at.mask(victims)
    survivors = at.living(but=victims)
    start_ns = at.soon_ns()
    for peer in at.living():
        peer.line.send("time", start_ns)
    time.sleep(max(0.0, after_s + (start_ns - time.monotonic_ns()) / 1e9))
    kill_ns = min([at.kill(victim, number) for victim in victims])
    took = _took(at, survivors)
    verdicts = at.order("check", expected, living, to=survivors)
    wrong = sum(int(words[1]) for words in verdicts)
    wrong += sum(words[3] != verdicts[0][3] for words in verdicts)
    flushes = [one.flush_ns for one in took if one.flush_ns]
    if not flushes:
        if wrong:
            raise PcclError(f"{wrong} values of an op that nobody's death touched were wrong")
        return None
    return _Death(
        kill_ns=kill_ns,
        lost_ns=min((one.lost_ns for one in took if one.lost_ns), default=0),
        flush_ns=min(flushes),
        view_ns=max(one.view_ns for one in took),
        ended_ns=max(one.ended_ns for one in took),
        start_ns=start_ns,
        segments=max(one.repaired for one in took),
        redone=int(verdicts[0][2]) / count,
        wrong=wrong,
    )


def _deaths(
    at: Stage,
    trials: int,
    count: int,
    victims_of: Callable[[int], Sequence[int]],
    after: Callable[[Sequence[int]], None],
) -> Iterator[tuple[_Death, float]]:
    """Each trial's death, and the op's time without one. `after`: bury the victims, replace them.
    Raises PcclError when kills keep coming too late."""
    done = misses = 0
    plain_s = [_plain_s(at, count) for _ in range(3)]
    while done < trials:
        plain_s.append(_plain_s(at, count))
        usual_s = statistics.median(plain_s[-5:])
        share = EARLIEST + (LATEST - EARLIEST) * ((done + misses) * GOLDEN % 1.0)
        victims = victims_of(done + misses)
        death = _kill(at, victims, count, share * usual_s, signal.SIGKILL)
        after(victims)
        if death is None:
            misses += 1
            if misses > MISSES_MAX * trials:
                raise PcclError(f"{misses} kills came when the op was over: the load is too uneven")
            continue
        done += 1
        yield death, usual_s


def _add_death(tally: _Tally, death: _Death, usual_s: float) -> None:
    tally.wrong += death.wrong
    tally.add("without", usual_s)
    tally.add("with", (death.ended_ns - death.start_ns) / 1e9)
    if death.lost_ns:
        tally.add("evidence", (death.lost_ns - death.kill_ns) / 1e9)
    tally.add("detection", (death.flush_ns - death.kill_ns) / 1e9)
    if death.view_ns > death.flush_ns:  # else the op ended before the control thread noted it
        tally.add("flush", (death.view_ns - death.flush_ns) / 1e9)
    tally.add("repair", (death.ended_ns - death.flush_ns) / 1e9)
    after_s = (death.ended_ns - death.kill_ns) / 1e9
    left_s = usual_s - (death.kill_ns - death.start_ns) / 1e9
    tally.add("beyond", after_s - max(left_s, death.redone * usual_s))
    tally.add("segments", death.segments)
    tally.add("redone", 100 * death.redone)


# ---------------------------------------------------------------- a death, and a join


def death(nursery: Nursery, world: int, size: int, trials: int, progress: Progress) -> list[Figure]:
    """SIGKILL of one member in mid all-reduce, in place; then a new one joins the running rest."""
    tally = _Tally()
    with stage.opened(nursery, DEADLINE_S) as at:
        at.fill_up(world)

        def replace(victims: Sequence[int]) -> None:
            at.bury(victims)
            _join(at, victims, tally)

        found = _deaths(at, trials, size // FLOAT_BYTES, lambda trial: [trial % world], replace)
        for number, (one, usual_s) in enumerate(found, 1):
            _add_death(tally, one, usual_s)
            progress(f"SIGKILL at world {world}: {number} of {trials}")
    about = About("sigkill", world, size, wrong=tally.wrong)
    found_in = tally.samples
    figures = [
        about.of("op without a death", found_in["without"]),
        about.of("op with one", found_in["with"]),
        about.of("detection: kill to first flush", found_in["detection"]),
        about.of("flush to the last member's new view", found_in["flush"]),
        about.of("repair: flush to the op's end", found_in["repair"]),
        about.of("beyond the lost work", found_in["beyond"], 0.1 if world == GOAL_WORLD else None),
        about.of("segments redone or fetched", found_in["segments"], unit="segments"),
        about.of("of the result reduced again", found_in["redone"], unit="%"),
    ]
    if "evidence" in found_in:
        figures.insert(2, about.of("kill to first evidence", found_in["evidence"]))
    joining = About("join", world, wrong=tally.wrong)
    join_s, stall_s = (0.5, 0.05) if world == GOAL_WORLD else (None, None)
    figures += [
        joining.of("join() to the first shared op", found_in["join"], join_s),
        joining.of("join() to its return", found_in["admitted"]),
        joining.of("longest gap between members' ops", found_in["stall"], stall_s),
        joining.of("usual gap between members' ops", found_in["gap"]),
    ]
    return figures


def _join(at: Stage, slots: Sequence[int], tally: _Tally) -> None:
    """New members in these slots, while the others work in a loop."""
    members = at.living()
    for peer in members:
        peer.line.send("loop", PAUSE_MS)
    newcomers = at.fork(slots)
    time.sleep(SETTLE_S)
    for peer in newcomers:
        peer.line.send("enter", *at.entry(peer, 1), PAUSE_MS)
    entered = stage.by_slot(newcomers, at.answers(newcomers))
    time.sleep(SETTLE_S)
    at.living()[0].line.send("stop")
    looped = stage.by_slot(at.living(), at.answers(at.living()))
    tally.wrong += sum(numbers[1] != at.mask() for numbers in looped.values())
    called_ns = min(numbers[0] for numbers in entered.values())
    tally.add("join", (max(numbers[2] for numbers in entered.values()) - called_ns) / 1e9)
    tally.add("admitted", (max(numbers[1] for numbers in entered.values()) - called_ns) / 1e9)
    ours = [looped[peer.slot] for peer in members]
    tally.add("stall", max(numbers[3] for numbers in ours) / 1e9)
    tally.add("gap", statistics.median(numbers[2] for numbers in ours) / 1e9)


# ---------------------------------------------------------------- many at once


def reform(nursery: Nursery, size: int, trials: int, progress: Progress) -> list[Figure]:
    """Half of 16 members die at once in mid op, then as many join at once."""
    tally = _Tally()
    world, half = REFORM_WORLD, REFORM_WORLD // 2

    def victims_of(trial: int) -> Sequence[int]:
        return [(trial + 2 * at) % world for at in range(half)]

    with stage.opened(nursery, DEADLINE_S) as at:
        at.fill_up(world)

        def replace(victims: Sequence[int]) -> None:
            at.bury(victims)
            _join(at, victims, tally)

        found = _deaths(at, trials, size // FLOAT_BYTES, victims_of, replace)
        for number, (one, usual_s) in enumerate(found, 1):
            _add_death(tally, one, usual_s)
            tally.add("reformed", (one.ended_ns - one.kill_ns) / 1e9)
            progress(f"{half} deaths at once: {number} of {trials}")
    about = About(f"{half} deaths", world, size, wrong=tally.wrong)
    joins = About(f"{half} joins", world, wrong=tally.wrong)
    found_in = tally.samples
    return [
        about.of("op without a death", found_in["without"]),
        about.of("detection: kill to first flush", found_in["detection"]),
        about.of("flush to the last member's new view", found_in["flush"]),
        about.of("kill to the op's end: re-formed", found_in["reformed"], 1.0),
        joins.of("first join() to all in one op: re-formed", found_in["join"], 1.0),
        joins.of("longest gap between members' ops", found_in["stall"]),
    ]


def start(nursery: Nursery, trials: int, progress: Progress) -> list[Figure]:
    """16 peers join an empty run at once, reduce, and leave."""
    tally = _Tally()
    world = REFORM_WORLD
    with stage.opened(nursery, DEADLINE_S) as at:
        for trial in range(trials):
            peers = at.fork(range(world))
            for peer in peers:
                peer.line.send("enter", *at.entry(peer, world), PAUSE_MS)
            entered = stage.by_slot(peers, at.answers(peers)).values()
            peers[0].line.send("stop")
            tally.wrong += sum(int(words[2]) != at.mask() for words in at.answers(peers))
            called_ns = min(numbers[0] for numbers in entered)
            tally.add("start", (max(numbers[2] for numbers in entered) - called_ns) / 1e9)
            at.order("leave")
            at.bury(range(world))
            progress(f"start of {world}: {trial + 1} of {trials}")
    about = About("start", world, wrong=tally.wrong)
    return [about.of("first join() to all in one op", tally.samples["start"], 1.0)]


# ---------------------------------------------------------------- a stop


def stop(nursery: Nursery, size: int, trials: int, progress: Progress) -> list[Figure]:
    """SIGSTOP of one of 4 members in mid all-reduce, in several runs side by side."""
    tally = _Tally()
    count = size // FLOAT_BYTES
    with ExitStack() as stack:
        stages = [
            stack.enter_context(stage.opened(nursery, STOP_DEADLINE_S))
            for _ in range(min(STOP_CREWS, trials))
        ]
        for at in stages:
            at.fill_up(STOP_WORLD)
        done = 0
        while done < trials:
            stopped = stages[: trials - done]
            _stop_all(stopped, done % STOP_WORLD, count, tally)
            done += len(stopped)
            progress(f"SIGSTOP: {done} of {trials}")
    detection_s = STOP_DEADLINE_S / 4
    about = About("sigstop", STOP_WORLD, size, wrong=tally.wrong)
    return [
        about.of("detection: stop to first flush", tally.samples["detection"]),
        about.of("stop to the op's end: routed around", tally.samples["around"], detection_s, MAX),
    ]


def _stop_all(stages: Sequence[Stage], victim: int, count: int, tally: _Tally) -> None:
    """One op on each stage, in which its victim is stopped at once; then it is replaced."""
    for at in stages:
        at.order("fill", count)
    starts = []
    for at in stages:
        starts.append(at.soon_ns())
        for peer in at.living():
            peer.line.send("time", starts[-1])
    stops = []
    for at, start_ns in zip(stages, starts, strict=True):
        time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        stops.append(at.kill(victim, signal.SIGSTOP))
    for at, stop_ns in zip(stages, stops, strict=True):
        survivors = at.living(but=[victim])
        took = _took(at, survivors)
        verdicts = at.order("check", at.mask(), at.mask([victim]), to=survivors)
        tally.wrong += sum(int(words[1]) for words in verdicts)
        tally.wrong += sum(words[3] != verdicts[0][3] for words in verdicts)
        flushes = [one.flush_ns for one in took if one.flush_ns]
        if flushes:
            tally.add("detection", (min(flushes) - stop_ns) / 1e9)
            tally.add("around", (max(one.ended_ns for one in took) - stop_ns) / 1e9)
        at.bury([victim])
        _join(at, [victim], tally)


# ---------------------------------------------------------------- the coordinator


def restart(nursery: Nursery, trials: int, progress: Progress) -> list[Figure]:
    """The coordinator is killed and started again while 4 members work; one joins at the end."""
    tally = _Tally()
    ops = 0
    with stage.opened(nursery, DEADLINE_S) as at:
        at.fill_up(RESTART_WORLD)
        for trial in range(trials):
            for peer in at.living():
                peer.line.send("loop", PAUSE_MS)
            time.sleep(SETTLE_S)
            killed_ns = at.kill_coordinator()
            at.restart_coordinator()
            tally.add("listening", (time.monotonic_ns() - killed_ns) / 1e9)
            time.sleep(SETTLE_S)
            at.living()[0].line.send("stop")
            looped = stage.by_slot(at.living(), at.answers(at.living())).values()
            ops += max(numbers[0] for numbers in looped)
            tally.wrong += sum(numbers[1] != at.mask() for numbers in looped)
            tally.add("usual", statistics.median(numbers[4] for numbers in looped) / 1e9)
            tally.add("longest", max(numbers[5] for numbers in looped) / 1e9)
            progress(f"coordinator restarts: {trial + 1} of {trials}")
        _join(at, [RESTART_WORLD], tally)
    usual_s = statistics.median(tally.samples["usual"])
    about = About("restart", RESTART_WORLD, 1024, wrong=tally.wrong)
    return [
        about.of("kill to listening again", tally.samples["listening"]),
        about.of("usual op", tally.samples["usual"]),
        about.of("longest op", tally.samples["longest"], max(10 * usual_s, 0.5), MAX),
        about.of("ops, none failed", [ops], unit="ops"),
        about.of("then join() to the first shared op", tally.samples["join"]),
    ]
