"""What goes wrong in a simulated run: one function per kind of fault, by name.

A fault is carried out at its time on the processes that hold its slots then; where it makes no
sense there (nobody to kill) nothing happens. `seen` counts those that took place. Each lasts as
long as it says and then is over; `heal` ends all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulator.network import CONTROL, COORDINATOR, DATA, Way
from tests.simulator.process import SILENCE_S, Process
from tests.simulator.scenario import Fault

if TYPE_CHECKING:
    from tests.simulator.run import Run


def carry_out(run: Run, fault: Fault) -> None:
    run.trace("!", f"{fault}")
    if KINDS[fault.what](run, fault):
        run.seen[f"fault: {fault.what}"] += 1


def _at(run: Run, slot: int) -> Process | None:
    """The living process in a slot, or in one beside it."""
    living = run.living()
    return next(
        (p for p in living if p.slot == slot), living[slot % len(living)] if living else None
    )


def _kill(run: Run, fault: Fault) -> bool:
    process = _at(run, fault.who)
    if process is None:
        return False
    run.restart_after[process.index] = fault.seconds
    process.die()
    return True


def _die_early(run: Run, fault: Fault) -> bool:
    """Right after it has returned an op that others have not."""
    run.hunted = fault
    return False


def _pause(run: Run, fault: Fault) -> bool:
    process = _at(run, fault.who)
    if process is None or process.is_paused:
        return False
    process.pause(paused=True)
    process.stopped_s += fault.seconds
    run.watch_silence(process.index, COORDINATOR, CONTROL)
    for other in run.living():
        if other is not process:
            run.watch_silence(process.index, other.index, DATA)
    run.clock.after(fault.seconds, process.pause_over)
    return True


def _busy(run: Run, fault: Fault) -> bool:
    process = _at(run, fault.who)
    if process is None or process.is_busy:
        return False
    process.hold_gil(held=True)
    process.stopped_s += fault.seconds
    run.clock.after(fault.seconds, process.gil_over)
    return True


def _k_crash(run: Run, fault: Fault) -> bool:
    """Now, or in the next append, or in the next installs; it is started again in any case."""
    boss = run.coordinator
    if not boss.is_up:
        return False
    mode = ("", "torn", "half")[fault.how % 3]
    run.down_s = fault.seconds
    boss.crash_in = mode
    if not mode:
        boss.crash()
    return True


def _k_full(run: Run, fault: Fault) -> bool:
    """No record can be stored for a while."""
    run.coordinator.is_full = True
    run.clock.after(fault.seconds, run.empty_disk)
    return False  # counted when it is met


def _k_pause(run: Run, fault: Fault) -> bool:
    boss = run.coordinator
    if not boss.is_up or boss.is_paused:
        return False
    boss.pause(paused=True)
    for process in run.living():
        run.watch_silence(COORDINATOR, process.index, CONTROL)
    run.clock.after(fault.seconds, lambda: boss.pause(paused=False))
    return True


def _block(run: Run, ways: list[Way], seconds: float) -> None:
    run.net.block(*ways)
    for source, target, plane in ways:
        run.watch_silence(source, target, plane)
    run.clock.after(seconds, run.net.unblock, *ways)


def _both(one: int, other: int, *planes: str) -> list[Way]:
    return [way for plane in planes for way in ((one, other, plane), (other, one, plane))]


def _isolate(run: Run, fault: Fault) -> bool:
    process = _at(run, fault.who)
    if process is None:
        return False
    ways = _both(process.index, COORDINATOR, CONTROL)
    for other in run.living():
        if other is not process:
            ways += _both(process.index, other.index, DATA)
    _block(run, ways, fault.seconds)
    return True


def _one_way(run: Run, fault: Fault) -> bool:
    """How: to the coordinator, from it, or from one member to another."""
    one, other = _at(run, fault.who), _at(run, fault.other)
    if one is None or other is None or (fault.how == 2 and one is other):
        return False
    ways: list[Way] = [
        (one.index, COORDINATOR, CONTROL), (COORDINATOR, one.index, CONTROL),
        (one.index, other.index, DATA),
    ]  # fmt: skip
    _block(run, [ways[fault.how % 3]], fault.seconds)
    return True


def _bridge(run: Run, fault: Fault) -> bool:
    """Two halves that only one member reaches both."""
    living = run.living()
    if len(living) < 3:
        return False
    bridge = living[fault.who % len(living)]
    ways: list[Way] = []
    for one in living:
        for other in living:
            apart = (fault.how >> one.slot % 9 ^ fault.how >> other.slot % 9) & 1
            if one.index < other.index and bridge not in (one, other) and apart:
                ways += _both(one.index, other.index, DATA)
    if ways:
        _block(run, ways, fault.seconds)
    return bool(ways)


def _cut(run: Run, fault: Fault) -> bool:
    """The links of a pair break, and calls are refused for a while."""
    one, other = _at(run, fault.who), _at(run, fault.other)
    if one is None or other is None or one is other:
        return False
    pair = frozenset((one.index, other.index))
    run.refused.add(pair)
    run.clock.after(fault.seconds, run.refused.discard, pair)
    for end in list(one.engine.ends.values()):
        if end.peer == other.peer:
            one.gate(one.engine.reset, end)
    return True


def _reset(run: Run, fault: Fault) -> bool:
    """One link breaks; it may be called again at once."""
    one, other = _at(run, fault.who), _at(run, fault.other)
    if one is None or other is None or one is other:
        return False
    ends = [end for end in one.engine.ends.values() if end.peer == other.peer]
    if ends:
        one.gate(one.engine.reset, ends[0])
    return bool(ends)


def _control(run: Run, fault: Fault) -> bool:
    """Only the control plane: a living, working member looks dead."""
    process = _at(run, fault.who)
    if process is None:
        return False
    _block(run, _both(process.index, COORDINATOR, CONTROL), fault.seconds)
    return True


def _flap(run: Run, fault: Fault) -> bool:
    process = _at(run, fault.who)
    if process is None or process.wire is None:
        return False
    process.gate(process.flap)
    return True


def _slow(run: Run, fault: Fault) -> bool:
    process = _at(run, fault.who)
    if process is None:
        return False
    run.net.slow[process.index] += 1
    run.clock.after(fault.seconds, lambda: run.net.slow.subtract((process.index,)))
    return True


def _join(run: Run, fault: Fault) -> bool:
    return run.newcomer(begins=fault.how % 2 == 1) is not None


def _storm(run: Run, fault: Fault) -> bool:
    joined = [run.newcomer(begins=i % 2 == 1) for i in range(fault.how)]
    return sum(one is not None for one in joined) > 2


def _join_die(run: Run, fault: Fault) -> bool:
    newcomer = run.newcomer(begins=False)
    if newcomer is not None:
        run.restart_after[newcomer.index] = 0.0
        run.clock.after(fault.seconds, newcomer.die)
    return newcomer is not None


def _leave(run: Run, fault: Fault) -> bool:
    process = _at(run, fault.who)
    if process is None or len(run.living()) < 2:
        return False
    run.programs[process.index].is_leaving = True
    return False  # counted when it does


def _mismatch(run: Run, fault: Fault) -> bool:
    process = _at(run, fault.who)
    if process is not None and len(run.living()) > 1:
        run.programs[process.index].lies = True
    return False  # counted when it does


def _stale(run: Run, fault: Fault) -> bool:
    """A member says once more what it has said before, on the connection that it has now."""
    process = _at(run, fault.who)
    said = run.watch.history_of.get(process.index) if process is not None else None
    if process is None or process.wire is None or not said:
        return False
    again = said[-1 - fault.how % min(len(said), 6)]
    if not run.is_hello(again):
        process.wire.up.send(again)
    heard = run.heard.get(process.index)
    if heard:
        process.wire.down.send(heard[-1 - fault.how % min(len(heard), 6)])
    return True


def _rival(run: Run, fault: Fault) -> bool:
    run.coordinator.try_rival()
    return False  # counted there


KINDS: dict[str, Callable[[Run, Fault], bool]] = {
    "kill": _kill,
    "die_early": _die_early,
    "pause": _pause,
    "busy": _busy,
    "k_crash": _k_crash,
    "k_full": _k_full,
    "k_pause": _k_pause,
    "isolate": _isolate,
    "one_way": _one_way,
    "bridge": _bridge,
    "cut": _cut,
    "reset": _reset,
    "control": _control,
    "flap": _flap,
    "slow": _slow,
    "join": _join,
    "storm": _storm,
    "join_die": _join_die,
    "leave": _leave,
    "mismatch": _mismatch,
    "stale": _stale,
    "rival": _rival,
}
__all__ = ["KINDS", "SILENCE_S", "carry_out"]
