"""Takes things out of a scenario for as long as what it shows is still there.

`shrink` knows nothing of what that is: it is given a question. Greedy, one thing at a time, over
and over, so what is left has nothing that could go alone; the order is that of what helps a reader
most: faults, ops, members, then whatever is unusual about the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import TypeVar

from tests.simulator.scenario import Scenario, Step

TRIES_MAX = 400
_T = TypeVar("_T", Scenario, Step)


def shrink(
    scenario: Scenario, shows: Callable[[Scenario], bool], tries_max: int = TRIES_MAX
) -> Scenario:
    """The smallest scenario found in so many tries of which `shows` is true, as it is of this."""
    tries = 0
    again = True
    while again:
        again = False
        for smaller in _smaller(scenario):
            tries += 1
            if tries > tries_max:
                return scenario
            if shows(smaller):
                scenario, again = smaller, True
                break
    return scenario


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    faults, steps = scenario.faults, scenario.steps
    if len(faults) > 3:
        yield replace(scenario, faults=faults[: len(faults) // 2])
        yield replace(scenario, faults=faults[len(faults) // 2 :])
    for at in range(len(faults)):
        yield replace(scenario, faults=faults[:at] + faults[at + 1 :])
    if len(steps) > 1:
        for at in range(len(steps)):
            yield replace(scenario, steps=steps[:at] + steps[at + 1 :])
    if scenario.world > 1:
        yield replace(scenario, world=scenario.world - 1)
    yield from _plainer(scenario)
    for at, step in enumerate(steps):
        for plain in _plainer(step):
            yield replace(scenario, steps=(*steps[:at], plain, *steps[at + 1 :]))


def _plainer(value: _T) -> Iterator[_T]:
    """The same with one field at its default."""
    for field in fields(value):
        if field.name in ("seed", "world", "until", "faults", "steps", "what", "at"):
            continue
        if getattr(value, field.name) != field.default:
            yield replace(value, **{field.name: field.default})
