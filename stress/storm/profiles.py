"""The kinds of storm: how many members, what happens to them and how often. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """world: members at the start; floor, ceiling: living processes that the nemesis keeps to;
    weights: of the kinds of faults; pause_s: between two of them, from and to; count_max: elements
    of the largest op; pace_s: members' pause between two steps; proxied: links go through the
    relay."""

    world: int
    floor: int
    ceiling: int
    weights: Mapping[str, float]
    pause_s: tuple[float, float]
    count_max: int
    pace_s: float
    proxied: bool = True
    deadline_s: float = 12.0


_STORM = {
    "join": 5.0,
    "kill": 3.0,
    "stillborn": 2.0,  # killed on its way in
    "leave": 1.0,
    "stop": 0.6,
    "nap": 1.0,
    "cut": 1.0,
    "hold": 0.5,
    "slow": 1.0,
    "corrupt": 2.0,
    "coordinator": 3.0,
}

PROFILES = {
    # Everything, as fast as two cores take it.
    "storm": Profile(6, 4, 12, _STORM, (0.2, 1.5), 400_000, 0.005),
    # Everything, beside other work: for `make test`.
    "suite": Profile(4, 3, 5, _STORM, (0.4, 1.6), 40_000, 0.04),
    # PCCL's own stress: every 0.5 to 2 s a peer is started or killed, ten at most.
    "pccl": Profile(
        4, 2, 10, {"join": 6.0, "kill": 4.0}, (0.5, 2.0), 1_000_000, 0.0, proxied=False
    ),
}
