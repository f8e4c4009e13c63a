"""One run of the whole system under one seed: members, a coordinator, faults, and then calm.

`Run` makes what the scenario names, lets things happen in order of virtual time, ends all faults at
`until` and goes on until every living peer is current and has done its rounds well. It raises
`Violation` where an invariant does not hold.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from pccl_py.coordinator import machine
from pccl_py.protocol import encoding
from pccl_py.protocol import messages as m
from tests.simulator import faults
from tests.simulator.coordinator import Coordinator, Step
from tests.simulator.engine import Engine
from tests.simulator.network import CONTROL, COORDINATOR, DATA
from tests.simulator.process import SILENCE_S, Process
from tests.simulator.program import Program
from tests.simulator.scenario import NEWCOMERS_MAX, Fault, Scenario
from tests.simulator.setting import Setting
from tests.simulator.watch import Violation

EVENTS_MIN = 300  # delivered
FINE_ROUNDS = 2
CALM_S = 40.0  # until then all are current, or somebody waits for ever
PROCESSES_MAX = 40
MEMORY = Path("/dev/shm")  # a disk would only be slower


@dataclass
class Plants:
    """What a test puts wrong on purpose. step: in place of the coordinator's machine; syncs: False
    for a journal whose appends do not reach the disk; engine: called with each new engine."""

    step: Step = machine.step
    syncs: bool = True
    engine: Callable[[Engine], None] = lambda engine: None


class Run(Setting):
    def __init__(
        self,
        core: ModuleType,
        scenario: Scenario,
        *,
        folder: Path,
        tell: Callable[[str], None] | None = None,
        plants: Plants | None = None,
    ) -> None:
        super().__init__(core, scenario, tell)
        self.plants = plants or Plants()
        self.programs: dict[int, Program] = {}
        self.restart_after: dict[int, float] = {}  # by process; 0: nobody restarts it
        self.down_s = 0.1
        self.hunted: Fault | None = None
        self._newcomers = 0
        self._slots = scenario.world - 1  # the last one in use
        self.coordinator = Coordinator(self, folder, self.plants.step, syncs=self.plants.syncs)
        self.coordinator.start()
        for slot in range(scenario.world):
            begins = bool(scenario.begin >> slot & 1)
            delay = self.random.random() * 0.02
            self.clock.after(delay, self.start_process, slot, begins, scenario.world)
        for fault in scenario.faults:
            self.clock.at(1.0 + fault.at, faults.carry_out, self, fault)
        self.clock.at(1.0 + scenario.until, self._heal)

    # ------------------------------------------------------------ processes

    def living(self) -> list[Process]:
        return [process for process in self.processes if process.is_alive]

    def start_process(self, slot: int, begins: bool, min_members: int = 1) -> Process | None:
        if len(self.processes) >= PROCESSES_MAX:
            return None
        group = "ab"[slot % self.scenario.groups]
        process = Process(self, slot, group, min_members, begins=begins)
        self.plants.engine(process.engine)
        process.trace(f"starts in slot {slot}")
        program = self.programs[process.index] = Program(process)
        process.run(program.body())
        return process

    def newcomer(self, *, begins: bool) -> Process | None:
        if self._newcomers >= NEWCOMERS_MAX:
            return None
        self._newcomers += 1
        self._slots += 1
        return self.start_process(self._slots, begins)

    def process_ended(self, process: Process) -> None:
        program = self.programs[process.index]
        again = self.restart_after.get(process.index)
        if again is None:
            again = 0.0 if program.is_leaving else 0.01 + 0.1 * self.random.random()
        if again:
            self.clock.after(again, self.start_process, process.slot, process.begins)

    def op_ended(self, process: Process, op: int) -> None:
        fault = self.hunted
        if fault is None or process.ended[op][0] or fault.who % 3 != process.slot % 3:
            return
        others = [p for p in self.living() if p is not process and op in p.running]
        if others:
            self.hunted = None
            self.seen["fault: die_early"] += 1
            self.restart_after[process.index] = fault.seconds
            self.clock.after(0.0, process.die)

    def coordinator_died(self) -> None:
        self.clock.after(self.down_s, self.coordinator.start)

    # ------------------------------------------------------------ the network

    def watch_silence(self, source: int, target: int, plane: str) -> None:
        """What `target` hears of `source` has stopped; if it goes on so, it draws conclusions."""
        seconds = SILENCE_S * (1.0 + 0.2 * self.random.random())
        act = self._silence if plane == CONTROL else self._dark_link
        self.clock.after(seconds, act, source, target)

    def _dark_link(self, source: int, target: int) -> None:
        if self.processes[source].is_paused or self.net.is_blocked((source, target, DATA)):
            self.processes[target].engine.silent(self.processes[source].peer)

    def _silence(self, source: int, target: int) -> None:
        boss = self.coordinator
        stopped = boss.is_paused if source == COORDINATOR else self.processes[source].is_paused
        if not (stopped or self.net.is_blocked((source, target, CONTROL))):
            return
        process = self.processes[source if target == COORDINATOR else target]
        if target != COORDINATOR:
            process.silent()
        elif (wire := boss.of_peer(process.peer)) is not None:
            boss.silent(wire)

    def empty_disk(self) -> None:
        self.coordinator.is_full = False

    def is_hello(self, data: bytes) -> bool:
        return isinstance(encoding.decode(data), m.Hello)

    # ------------------------------------------------------------ calm

    def _heal(self) -> None:
        """All faults are over. More join, so that all begin a line together, and nobody is alone in
        a group."""
        self.trace("!", "calm")
        self.calm_at = self.clock.now
        self.hunted = None
        self.refused.clear()
        self.net.slow.clear()
        self.net.unblock_all()
        boss = self.coordinator
        boss.crash_in = ""
        boss.is_full = False
        if boss.is_paused:
            boss.pause(paused=False)
        for process in self.living():
            process.pause(paused=False)
            process.hold_gil(held=False)
        boss.start()
        least = 2 * self.scenario.groups
        if self.watch.latest is None:
            least = self.scenario.world  # the first view waits for so many
        for _ in range(max(self.scenario.groups, least - len(self.living()))):
            self._slots += 1
            self.start_process(self._slots, begins=False)

    def _is_current(self, process: Process) -> bool:
        latest = self.watch.latest
        program = self.programs[process.index]
        return process.record == latest and program.fine >= FINE_ROUNDS

    def _is_over(self) -> bool:
        if self.calm_at is None or self.net.delivered < EVENTS_MIN:
            return False
        return all(self._is_current(process) for process in self.living())

    def run(self, events_max: int = 0) -> None:
        """To the end, or until so many events have been delivered. Raises Violation."""
        clock = self.clock
        while not events_max or self.net.delivered < events_max:
            for _ in range(50):
                clock.step()
            if self._is_over():
                break
            if self.calm_at is not None and clock.now > self.calm_at + CALM_S:
                who = [f"{p.index}: {self.programs[p.index].fine} rounds, view "
                       f"{p.record and p.record.epoch}, {[hex(op) for op in p.running]}"
                       for p in self.living()]  # fmt: skip
                raise Violation("after faults stop every peer is current within k rounds", str(who))
        self.watch.check_end()


def simulate(
    core: ModuleType,
    scenario: Scenario,
    *,
    tell: Callable[[str], None] | None = None,
    plants: Plants | None = None,
    events_max: int = 0,
) -> tuple[Run, Violation | None]:
    """Runs a scenario; what was broken, if anything was."""
    folder = Path(tempfile.mkdtemp(prefix="pccl-sim-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        run = Run(core, scenario, folder=folder, tell=tell, plants=plants)
        try:
            run.run(events_max)
        except Violation as broken:
            return run, broken
        except AssertionError as broken:  # a bug that the code itself has found
            return run, Violation("assertions hold", repr(broken))
        finally:
            run.coordinator.close()
        return run, None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
