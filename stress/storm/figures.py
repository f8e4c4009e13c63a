"""What a storm is summed up in: faults, how long the others needed after each, the size of the
world over time. Pure; for the page and the one line that is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stress.storm.history import History, Membership
from stress.storm.nemesis import LINKS
from stress.storm.records import Fault, Stepped

LOSING = ("kill", "stop")  # after these there is a new view without it
BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # upper ends; the last holds the rest


@dataclass(frozen=True, slots=True)
class Recovery:
    """seconds: from the fault until the last of the survivors had ended a step again: after a kill
    or a stop one in a later view, else the one that the fault met."""

    fault: Fault
    seconds: float


def recoveries(history: History) -> list[Recovery]:
    """Of those faults that something could be waited for after."""
    found = []
    for fault in history.faults:
        ends = [
            end
            for membership in history.memberships
            if membership.joined.at <= fault.at < membership.ended
            and (membership.who not in fault.whom or fault.kind in LINKS)
            and (end := _again(membership, fault)) is not None
        ]
        if ends:
            found.append(Recovery(fault, max(ends) - fault.at))
    return found


def _again(membership: Membership, fault: Fault) -> float | None:
    epoch = membership.joined.epoch
    for step in membership.steps:
        if step.at <= fault.at:
            epoch = step.epoch
        elif fault.kind not in LOSING or step.epoch > epoch:
            return step.at
    return None


def histogram(values: Sequence[float]) -> list[int]:
    """How many are in each of BUCKETS_S."""
    counts = [0] * len(BUCKETS_S)
    for value in values:
        place = next((i for i, end in enumerate(BUCKETS_S) if value <= end), len(BUCKETS_S) - 1)
        counts[place] += 1
    return counts


def quantile(values: Sequence[float], share: float) -> float:
    """Of at least one value: the least that so many are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def worlds(history: History) -> list[tuple[float, int]]:
    """(when, members) at each change that a step has seen."""
    found: list[tuple[float, int]] = []
    epoch = 0
    for step in sorted(steps_of(history), key=lambda one: one.at):
        if step.epoch > epoch:
            epoch = step.epoch
            found.append((step.at, len(step.world)))
    return found


def steps_of(history: History) -> list[Stepped]:
    return [step for membership in history.memberships for step in membership.steps]


def faults_by_kind(history: History) -> Counter[str]:
    return Counter(fault.kind for fault in history.faults)


def ends_by_kind(history: History) -> Counter[str]:
    return Counter(f"{op.kind} {op.end}" for step in steps_of(history) for op in step.ops)


def summary(history: History) -> str:
    """One line of what there was."""
    steps = steps_of(history)
    ops = sum(len(step.ops) for step in steps)
    repaired = sum(op.repaired > 0 for step in steps for op in step.ops)
    lost = sum(membership.end == "lost" for membership in history.memberships)
    sizes = [len(step.world) for step in steps] or [0]
    faults = ", ".join(f"{n} {kind}" for kind, n in sorted(faults_by_kind(history).items()))
    return (
        f"{len(history.lives)} processes, worlds of {min(sizes)} to {max(sizes)}, {ops} ops, "
        f"{repaired} repaired, {lost} expelled; {faults}"
    )
