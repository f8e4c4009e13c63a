"""Which cases are played, in which order and size: `pccl bench faults` from its options.

A case that fails is told and the others go on. Called by the command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pccl_py.bench.faults import cases, scale, stage, versus
from pccl_py.bench.faults.cases import Progress
from pccl_py.bench.faults.figures import Figure
from pccl_py.bench.faults.stage import Nursery
from pccl_py.errors import PcclError, UsageError

_HALF = cases.REFORM_WORLD // 2
ROWS = {
    "sigkill": ("sigkill", "join"),
    "reform": (f"{_HALF} deaths", f"{_HALF} joins", "start"),
    "sigstop": ("sigstop",),
    "restart": ("restart",),
    "scale": ("storm", "simulated"),
}
"""What `Figure.case` says in the rows of each case that can be asked for."""
CASES = tuple(ROWS)
WORLDS = (2, 4, 8, 16)
WORLD_MAX = (
    16  # members contribute powers of two; float32 holds 24 bits of a sum, a pattern takes 3
)
TRIALS = 30
GLOO_WORLD = 4
GLOO_TRIALS_MAX = 10
STORM = 1000
SIMULATED = 10_000
FEW = 10  # as many trials of what takes seconds, or does not vary, for each as of the others

Play = Callable[[Progress], list[Figure]]


@dataclass(frozen=True, slots=True)
class Programme:
    """cases: of CASES; worlds: of the deaths; trials: of each."""

    cases: Sequence[str] = CASES
    worlds: Sequence[int] = WORLDS
    trials: int = TRIALS
    versus_gloo: bool = False

    def __post_init__(self) -> None:
        strange = [case for case in self.cases if case not in CASES]
        if strange or not self.cases:
            raise UsageError(f"--case {','.join(strange)!r} must be of {cases_text()}")
        if not all(2 <= world <= WORLD_MAX for world in self.worlds):
            raise UsageError(f"--world must be from 2 to {WORLD_MAX} for faults")
        if self.trials < 1:
            raise UsageError("-n must be 1 or more")


def cases_text() -> str:
    """The cases as people read them, with the rows that each gives where those have other names."""
    shown = (
        case if rows == (case,) else f"{case} (rows: {', '.join(rows)})"
        for case, rows in ROWS.items()
    )
    return ", ".join(shown)


def size_of(world: int) -> int:
    """Bytes of the op in which a member dies: 64 MiB up to 4 members, and what takes about as long
    on few cores for more."""
    return (64 << 20) if world <= 4 else (16 << 20) if world <= 8 else (4 << 20)


def played(
    programme: Programme, progress: Progress, failed: Callable[[str], None]
) -> Iterator[list[Figure]]:
    """The figures of each case as it ends. `failed` is told why a case has none."""
    plays: list[tuple[str, Play]] = []
    with stage.Nursery("peer") as peers:
        if "sigkill" in programme.cases:
            plays += [(f"SIGKILL at world {world}", _death(peers, programme, world))
                      for world in programme.worlds]  # fmt: skip
            if programme.versus_gloo:
                plays.append(("gloo", partial(_gloo, min(programme.trials, GLOO_TRIALS_MAX))))
        plays += _others(peers, programme)
        for name, play in plays:
            try:
                yield play(progress)
            except (PcclError, OSError) as error:
                failed(f"{name}: {getattr(error, 'strerror', None) or error}")


def _death(peers: Nursery, programme: Programme, world: int) -> Play:
    return partial(cases.death, peers, world, size_of(world), programme.trials)


def _others(peers: Nursery, programme: Programme) -> list[tuple[str, Play]]:
    trials = programme.trials
    few = max(1, trials // FEW)
    found: dict[str, list[tuple[str, Play]]] = {
        "reform": [
            ("deaths at once", partial(cases.reform, peers, size_of(cases.REFORM_WORLD), trials)),
            ("start", partial(cases.start, peers, trials)),
        ],
        "sigstop": [("SIGSTOP", partial(cases.stop, peers, 16 << 20, trials))],
        "restart": [("coordinator restarts", partial(cases.restart, peers, trials))],
        "scale": [
            ("a storm", partial(_storm, few)),
            ("simulated", partial(scale.simulated, SIMULATED, few)),
        ],
    }
    return [play for case in programme.cases for play in found.get(case, [])]


def _storm(trials: int, progress: Progress) -> list[Figure]:
    with stage.Nursery("crowd") as crowd:
        return scale.storm(crowd, STORM, trials, progress)


def _gloo(trials: int, progress: Progress) -> list[Figure]:
    with stage.Nursery("gloo") as nursery:
        return versus.gloo(nursery, GLOO_WORLD, size_of(GLOO_WORLD), trials, progress)
