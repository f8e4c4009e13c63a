"""What everything in a simulated run shares: its scenario, clock, network, seed, witnesses.

`run` makes one; processes and engines find each other through it. It decides nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from tests.simulator.network import Clock, Network
from tests.simulator.scenario import Scenario
from tests.simulator.watch import Watch

if TYPE_CHECKING:
    from tests.simulator.coordinator import Coordinator
    from tests.simulator.engine import Engine
    from tests.simulator.process import Process


class Setting:
    """seen: how often each corner and each kind of fault occurred. refused: pairs of peers whose
    calls are refused. calm_at: when all faults were over, None before that."""

    def __init__(
        self, core: ModuleType, scenario: Scenario, tell: Callable[[str], None] | None = None
    ) -> None:
        self.core, self.scenario = core, scenario
        self.random = random.Random(scenario.seed)
        self.clock = Clock()
        self.net = Network(self.clock, self.random, scenario.delay)
        self.seen: Counter[str] = Counter()
        self.watch = Watch(self)
        self.processes: list[Process] = []
        self.coordinator: Coordinator
        self.refused: set[frozenset[int]] = set()
        self.calm_at: float | None = None
        self.heard: dict[int, list[bytes]] = {}  # what peers have been told, of late
        self._tell = tell

    @property
    def traces(self) -> bool:
        return self._tell is not None

    def trace(self, who: str, what: str) -> None:
        if self._tell is not None:
            self._tell(f"{self.clock.now - 1.0:9.4f} {self.net.delivered:5d} {who:>4} {what}")

    def process_ended(self, process: Process) -> None:
        """A process is gone."""

    def op_ended(self, process: Process, op: int) -> None:
        """An op has ended at one process."""

    def coordinator_died(self) -> None:
        """It was killed, or has crashed."""

    def of_peer(self, peer: int) -> Process | None:
        """The process of a peer's id."""
        index = peer - 1000
        return self.processes[index] if 0 <= index < len(self.processes) else None

    def engine_of(self, peer: int) -> Engine | None:
        """The engine of a living peer."""
        process = self.of_peer(peer)
        return process.engine if process is not None and process.is_alive else None
