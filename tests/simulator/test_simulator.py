"""The whole system in one process: seeds that hold, faults that are planted and must be found.

`make sim` runs many more seeds, `make sim-nightly` more still. Each corner of DESIGN §3 has a
scenario of its own in scenarios/, the shortest that comes by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from pccl_py.coordinator import events as ke
from pccl_py.coordinator import machine
from pccl_py.coordinator.state import State
from pccl_py.types import Record
from tests.sim.programs import ALL_REDUCE
from tests.simulator.campaign import EXPECTED, Tally, run_seeds
from tests.simulator.engine import Engine
from tests.simulator.run import Plants, simulate
from tests.simulator.scenario import Fault, Scenario, Step, draw, parse
from tests.simulator.shrink import shrink
from tests.simulator.watch import CORNERS

SEEDS = 60
SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


def test_seeds(core: ModuleType) -> None:
    tally = run_seeds(0, SEEDS)
    assert not tally.broken, tally.broken
    assert tally.fewest >= 300


def test_a_seed_is_one_run(core: ModuleType) -> None:
    for seed in (3, 5):
        told: list[list[str]] = [[], []]
        for lines in told:
            simulate(core, draw(seed), tell=lines.append)
        assert told[0] == told[1]
        assert len(told[0]) > 300


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenarios(core: ModuleType, path: Path) -> None:
    text = path.read_text()
    run, broken = simulate(core, parse(text))
    assert broken is None
    corners = [line.removeprefix("# shows ") for line in text.splitlines() if "# shows" in line]
    assert [name for name in corners if not run.seen[name]] == []


def test_each_corner_has_its_scenario() -> None:
    shown = {line for path in SCENARIOS for line in path.read_text().splitlines()}
    assert [name for name in CORNERS if f"# shows corner: {name}" not in shown] == []


def test_a_scenario_is_its_text() -> None:
    for seed in range(50):
        scenario = draw(seed)
        assert parse(scenario.text()) == scenario
    with pytest.raises(ValueError, match="no such line"):
        parse("rum seed=1")


# ---------------------------------------------------------------- planted faults


def found(core: ModuleType, plants: Plants, name: str, seeds: Sequence[int]) -> Scenario:
    """The first of some seeds in which a planted fault breaks that invariant, shrunk."""

    def fails(scenario: Scenario) -> bool:
        broken = simulate(core, scenario, plants=plants)[1]
        return broken is not None and broken.name == name

    for seed in seeds:
        if fails(draw(seed)):
            return shrink(draw(seed), fails, 40)
    raise AssertionError(f"none of {len(seeds)} seeds found it")


def counts_twice(engine: Engine) -> None:
    """After a view change what was to be added is in the destination already, as where an input
    was not restored; the whole value is wrong, and alike at all."""
    install: Callable[[Record], None] = engine._set_view

    def wrongly(record: Record) -> None:
        for call in engine.setting.watch.calls.values():
            if call.sub.kind == ALL_REDUCE and call.memory.data is not None and not record.fresh:
                call.memory.data += 1
        install(record)

    engine._set_view = wrongly  # type: ignore[method-assign]


def test_a_wrong_sum_is_caught_and_shrunk(core: ModuleType) -> None:
    name = "a result is the reduction of exactly its contributors"
    small = found(core, Plants(engine=counts_twice), name, range(60))
    assert len(small.faults) <= 2
    assert len(small.steps) <= 2


def test_one_wrong_bit_is_caught(core: ModuleType) -> None:
    """At one member only, as its op ends."""

    def spoils(engine: Engine) -> None:
        ended = engine.owner.op_ended

        def wrongly(op: int, result: tuple[int, int, int, int, str]) -> None:
            call = engine.setting.watch.calls[engine.owner.index, op]
            data = call.memory.data
            if data is not None and data.nbytes and engine.owner.index == 1 and not result[0]:
                data.view("u1")[-1] ^= 1
            ended(op, result)

        engine.owner.op_ended = wrongly  # type: ignore[method-assign]

    scenario = Scenario(steps=(Step(),), until=0.5)
    broken = simulate(core, scenario, plants=Plants(engine=spoils))[1]
    assert broken is not None
    assert broken.name in (
        "survivors have the same bits", "a result is the reduction of exactly its contributors"
    )  # fmt: skip


def test_a_journal_that_is_not_synced_is_caught_and_shrunk(core: ModuleType) -> None:
    name = "a view is durable before it is sent"
    small = found(core, Plants(syncs=False), name, range(5))
    assert small.faults == ()


def sends_first(state: State, event: ke.Event, now: float) -> tuple[State, Sequence[ke.Action]]:
    """Views are sent, and journaled when there is time."""
    after, actions = machine.step(state, event, now)
    late = [action for action in actions if isinstance(action, ke.Journal)]
    return after, (*(a for a in actions if not isinstance(a, ke.Journal)), *late)


def test_sending_before_journaling_is_caught(core: ModuleType) -> None:
    broken = simulate(core, Scenario(), plants=Plants(step=sends_first))[1]
    assert broken is not None
    assert "journaled before it is sent" in str(broken)


def test_what_is_rare_is_told() -> None:
    tally = Tally(seeds=200, delivered=60_000, fewest=300)
    tally.seen.update(dict.fromkeys(EXPECTED, 2))
    assert tally.rare() == []
    tally.seen[EXPECTED[3]] = 1
    assert tally.rare() == [EXPECTED[3]]
    assert sum("TOO RARE" in line for line in tally.lines()) == 1


def test_a_fault_that_cannot_be_is_none(core: ModuleType) -> None:
    lonely = Scenario(world=1, faults=(Fault("cut", 0.3), Fault("bridge", 0.3)), until=0.6)
    run, broken = simulate(core, lonely)
    assert broken is None
    assert not run.seen["fault: cut"]
    assert not run.seen["fault: bridge"]
