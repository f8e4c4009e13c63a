"""The order of things: for each size warm up, repeat with all implementations in turn, verify.

A B A B …, so that whatever else the machine does hits all alike. Before each repeat the buffers are
loaded again (untimed), then every rank starts at one instant of the monotonic clock; an op's time
is that until the last rank has it. A repeat of a quick op is several of them in a row, since
starting together is no better than the scheduler. Called by the command; orders `crew.Group`s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pccl_py.bench import ceiling, loopback, rows, sizes, values
from pccl_py.bench.lines import IN_PLACE, OUT_OF_PLACE
from pccl_py.bench.plan import OURS, Plan
from pccl_py.bench.rows import Row
from pccl_py.errors import PcclError

REPEAT_S = 0.05  # a repeat lasts about this long, or one op
INNER_MAX = 1000
LEAD_S = 0.002  # from the order to the start, and as much for each ten ranks more


class Orders(Protocol):
    """`crew.Group`."""

    def order(self, *words: object) -> list[list[str]]: ...


@dataclass(slots=True)
class Entrant:
    """One implementation at one size, in place or not. word: its name in orders; inner: ops in a
    row; repeats_s: of one op; peak_bytes: of its largest process."""

    impl: str
    in_place: bool
    group: Orders
    word: str
    inner: int = 1
    repeats_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def mode(self) -> str:
        return IN_PLACE if self.in_place else OUT_OF_PLACE


def run(
    plan: Plan,
    groups: Mapping[str, Orders],
    count_messages: Callable[[], int],
    progress: Callable[[str], None],
    count_loopback: Callable[[], int | None] = loopback.received_bytes,
) -> Iterator[Sequence[Row]]:
    """For each size its rows: by implementation, out of place before in place.

    Raises PcclError when an implementation that is said to use TCP did not (`count_loopback`)."""
    for size in plan.sizes:
        progress(f"{plan.op.name} of {sizes.text(size)}")
        yield _one_size(plan, size, groups, count_messages, count_loopback)


def _one_size(
    plan: Plan,
    size: int,
    groups: Mapping[str, Orders],
    count_messages: Callable[[], int],
    count_loopback: Callable[[], int | None],
) -> Sequence[Row]:
    count = plan.elements(size)
    for group in {id(group): group for group in map(groups.__getitem__, plan.impls)}.values():
        group.order("prepare", plan.op.name, count, plan.dtype, plan.reduce)
    entrants = [
        Entrant(impl, in_place, groups[impl], impl)
        for impl in plan.impls
        for in_place in plan.modes
    ]
    for entrant in entrants:
        _warm_up(entrant, plan)
    before = count_messages()
    for _ in range(plan.repeats):
        for entrant in entrants:
            entrant.repeats_s.append(_repeat(entrant, plan.world))
    messages = count_messages() - before
    return [_verified(entrant, plan, count, messages, count_loopback) for entrant in entrants]


def _warm_up(entrant: Entrant, plan: Plan) -> None:
    """At least one op; decides on the ceiling's segment and on how many ops make a repeat."""
    words = [entrant.impl]
    if entrant.impl == "ceiling":
        words = [f"ceiling@{segment}" for segment in ceiling.SEGMENTS]
    best: dict[str, float] = {}
    for word in words:
        entrant.word = word
        entrant.inner = 1
        quickest = min(_repeat(entrant, plan.world) for _ in range(max(1, plan.warm_ups)))
        entrant.inner = inner_for(quickest)
        best[word] = _repeat(entrant, plan.world) if entrant.inner > 1 else quickest
    entrant.word = min(best, key=lambda word: best[word])
    entrant.inner = inner_for(best[entrant.word])
    entrant.peak_bytes = 0


def inner_for(op_s: float) -> int:
    """How many ops of this length make a repeat."""
    return max(1, min(INNER_MAX, round(REPEAT_S / max(op_s, 1e-9))))


def _repeat(entrant: Entrant, world: int) -> float:
    """Seconds of one op."""
    entrant.group.order("fill", entrant.mode)
    lead_s = LEAD_S * (1 + world / 10)
    start_ns = time.monotonic_ns() + int(lead_s * 1e9)
    answers = entrant.group.order("time", entrant.word, entrant.mode, entrant.inner, start_ns)
    entrant.peak_bytes = max(entrant.peak_bytes, *(int(words[2]) for words in answers))
    return max(int(words[1]) for words in answers) / 1e9 / entrant.inner


def _check_transport(impl: str, least: int, before: int | None, after: int | None) -> None:
    if impl not in loopback.OVER_TCP or before is None or after is None:
        return
    if after - before < least:
        raise PcclError(
            f"{impl} did not go over TCP: {after - before} bytes crossed the loopback interface, "
            f"{least} are the least; its row would compare something else"
        )


def _verified(
    entrant: Entrant,
    plan: Plan,
    count: int,
    messages: int,
    count_loopback: Callable[[], int | None],
) -> Row:
    size = count * values.item_bytes(plan.dtype)
    before = count_loopback()
    answers = entrant.group.order("check", entrant.word, entrant.mode)
    least = plan.op.crosses(size, plan.world) if plan.world > 1 else 0
    _check_transport(entrant.impl, least, before, count_loopback())
    wrong = rows.count_wrong(
        [int(words[1]) for words in answers],
        [words[2] for words in answers],
        same_everywhere=plan.op.same_everywhere,
    )
    times = rows.times(entrant.repeats_s)
    algbw, busbw = rows.bandwidths(size, times.median_s, plan.op.busbw(plan.world))
    route, links, transport = (None if word == "-" else word for word in answers[0][3:6])
    return Row(
        op=plan.op.name,
        impl=entrant.impl,
        world=plan.world,
        bytes=size,
        dtype=plan.dtype,
        codec="none",
        route=route,
        links=None if links is None else int(links),
        median_s=times.median_s,
        min_s=times.min_s,
        max_s=times.max_s,
        algbw=algbw,
        busbw=busbw,
        wrong=wrong,
        rss_peak_bytes=entrant.peak_bytes,
        coordinator_messages=messages if entrant.impl == OURS else None,
        in_place=entrant.in_place,
        transport=transport,
    )
