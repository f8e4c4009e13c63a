"""The coordinator with many peers: 1,000 real connections, 10,000 simulated members.

The thousand are raw control peers in one process, in the clear (CURVE is another matter); the ten
thousand have no sockets. Samples are few: what is measured does not vary with a kill's moment.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pccl_py.bench.faults.cases import Progress
from pccl_py.bench.faults.figures import MAX, About, Figure
from pccl_py.bench.faults.simulated import Simulation
from pccl_py.bench.faults.stage import Nursery
from pccl_py.bench.lines import gather
from pccl_py.coordinator import embedded

ANSWER_S = 120.0
STORM_S = 3.0
VIEWS_MAX = 20
CPU_S = 1.0


def storm(nursery: Nursery, count: int, trials: int, progress: Progress) -> list[Figure]:
    """`count` peers say Hello to a fresh coordinator at once. nursery: of `crowd`."""
    took: list[float] = []
    views: list[float] = []
    for trial in range(trials):
        with (
            tempfile.TemporaryDirectory(prefix="pccl-faults-") as folder,
            embedded.start(state_dir=Path(folder), log_path=Path(folder) / "log") as coordinator,
        ):
            peer = nursery.fork(0)
            try:
                peer.line.send("storm", coordinator.address, count)
                ((_, first_ns, last_ns, epoch, _),) = gather([peer.line], ANSWER_S)
            finally:
                nursery.kill(peer)
        took.append((int(last_ns) - int(first_ns)) / 1e9)
        views.append(int(epoch))
        progress(f"{count} peers at once: {trial + 1} of {trials}")
    about = About("storm", count)
    return [
        about.of("first Hello to all members, no CURVE", took, STORM_S),
        about.of("views until then", views, VIEWS_MAX, MAX, unit="views"),
    ]


def simulated(count: int, trials: int, progress: Progress) -> list[Figure]:
    """CPU of one join and of one death in the pure coordinator."""
    simulation = Simulation(count)
    joins: list[float] = []
    deaths: list[float] = []
    for trial in range(trials):
        joins.append(simulation.join())
        deaths.append(simulation.die(trial))
        progress(f"{count} simulated: {trial + 1} of {trials}")
    about = About("simulated", count)
    return [
        about.of("CPU of one join", joins, CPU_S),
        about.of("CPU of one death", deaths, CPU_S),
    ]
