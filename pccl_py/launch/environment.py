"""The environment that a worker is born with: ours and torchrun's (DESIGN §2).

Pure; `supervise` calls it once per start. Reading the launcher's own environment is not done here:
the base is an argument. The names are torchrun's so that Lightning, Accelerate and plain
`init_process_group` recognise the worker; RANK and WORLD_SIZE are those of this launcher's workers
at start and do not follow the view (`comm.rank` does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# An outer torchrun's own wiring: left in place it would make a worker's `init_process_group` look
# for a store that we do not serve.
_FOREIGN = ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_ERROR_FILE")


@dataclass(frozen=True, slots=True)
class Place:
    """What is the same for all workers of one launcher. coordinator: HOST:PORT, or several with
    commas; secret None: as in the base; master_port: a port that was free at the start."""

    coordinator: str
    run: str
    group: str
    secret: str | None
    world_size: int
    max_restarts: int
    master_port: int


def worker_name(rank: int) -> str:
    """What a worker is called in prefixes, logs and, by default, in its run."""
    return f"w{rank}"


def for_worker(base: Mapping[str, str], place: Place, rank: int, restart: int) -> dict[str, str]:
    """The whole environment of worker `rank` in its life `restart` (0: the first)."""
    env = {name: value for name, value in base.items() if name not in _FOREIGN}
    if lowers_threads(base, place.world_size):
        env["OMP_NUM_THREADS"] = "1"
    env.setdefault("PYTHONUNBUFFERED", "1")
    if place.secret is not None:
        env["PCCL_SECRET"] = place.secret
    env |= {
        "PCCL_COORDINATOR": place.coordinator,
        "PCCL_RUN": place.run,
        "PCCL_GROUP": place.group,
        "RANK": str(rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(place.world_size),
        "GROUP_RANK": "0",
        "ROLE_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(place.master_port),
        "TORCHELASTIC_RUN_ID": place.run,
        "TORCHELASTIC_RESTART_COUNT": str(restart),
        "TORCHELASTIC_MAX_RESTARTS": str(place.max_restarts),
    }
    return env


def lowers_threads(base: Mapping[str, str], world_size: int) -> bool:
    """True when workers get OMP_NUM_THREADS=1: several of them, and the user said nothing."""
    return world_size > 1 and "OMP_NUM_THREADS" not in base
