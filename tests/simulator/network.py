"""Virtual time, and what carries bytes: an event queue and channels (one direction, in order).

Nothing here knows what travels. A channel delays what it carries at random, keeps it while its way
is blocked (as TCP would, sending again), and when its sender dies it loses what had not left yet.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable

COORDINATOR = -1  # its place; those of peers are their indices
CONTROL, DATA = "control", "data"

Way = tuple[int, int, str]  # from, to, plane


class Clock:
    """What is to happen, in order of time. `now`: virtual seconds; it never goes back."""

    def __init__(self) -> None:
        self.now = 1.0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0

    def at(self, when: float, act: Callable[..., None], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._queue, (max(when, self.now), self._count, act, arguments))

    def after(self, seconds: float, act: Callable[..., None], *arguments: object) -> None:
        self.at(self.now + seconds, act, *arguments)

    def step(self) -> None:
        """The next thing happens."""
        self.now, _, act, arguments = heapq.heappop(self._queue)
        act(*arguments)


class Network:
    """Who reaches whom, and how fast. delivered: what has arrived anywhere so far."""

    def __init__(self, clock: Clock, rng: random.Random, delay_s: float) -> None:
        self.clock, self.random, self.delay_s = clock, rng, delay_s
        self.delivered = 0
        self.slow: Counter[int] = Counter()
        self._cut: Counter[Way] = Counter()
        self._stuck: dict[Channel, None] = {}  # in order, so that a seed replays

    def delay(self, source: int, target: int) -> float:
        factor = 20.0 if self.slow and (self.slow[source] or self.slow[target]) else 1.0
        spread = self.random.random()
        return self.delay_s * factor * (0.5 + spread * (8.0 if spread > 0.95 else 1.0))

    def is_blocked(self, way: Way) -> bool:
        return bool(self._cut) and self._cut[way] > 0

    def block(self, *ways: Way) -> None:
        self._cut.update(ways)

    def unblock(self, *ways: Way) -> None:
        """What was kept goes on its way again."""
        self._cut.subtract(ways)
        self._cut += Counter()
        for channel in [c for c in self._stuck if not self.is_blocked(c.way)]:
            channel.flow()

    def unblock_all(self) -> None:
        self._cut.clear()
        self.unblock()

    def keep(self, channel: Channel) -> None:
        self._stuck[channel] = None

    def forget(self, channel: Channel) -> None:
        self._stuck.pop(channel, None)


class Channel:
    """One direction of one connection. receive: called with each thing that arrives, in order; the
    last one is None, when the sender has closed or died."""

    __slots__ = ("_first_lost", "_last_at", "_net", "_stuck", "arrived", "is_open", "receive",
                 "sent", "way")  # fmt: skip

    def __init__(self, net: Network, way: Way, receive: Callable[[object], None]) -> None:
        self._net, self.way, self.receive = net, way, receive
        self.is_open = True
        self.sent = self.arrived = 0
        self._last_at = 0.0
        self._first_lost: int | None = None
        self._stuck: list[tuple[int, object]] = []

    def send(self, thing: object) -> None:
        if self.is_open and self._first_lost is None:
            self._put(thing)

    def _put(self, thing: object) -> None:
        self.sent += 1
        net = self._net
        when = net.clock.now + net.delay(self.way[0], self.way[1])
        self._last_at = max(self._last_at, when)
        net.clock.at(self._last_at, self._arrive, self.sent, thing)

    def _arrive(self, number: int, thing: object) -> None:
        if not self.is_open:
            return
        if self._stuck or self._net.is_blocked(self.way):
            self._stuck.append((number, thing))
            self._net.keep(self)
            return
        self._deliver(number, thing)

    def _deliver(self, number: int, thing: object) -> None:
        if thing is not None and self._first_lost is not None and number >= self._first_lost:
            return
        self.arrived = number
        self._net.delivered += thing is not None
        self.receive(thing)

    def flow(self) -> None:
        """What was stuck goes on, before what comes after it."""
        self._net.forget(self)
        seconds = self._net.delay(self.way[0], self.way[1])
        self._net.clock.after(seconds, self._unstick)

    def _unstick(self) -> None:
        if self._net.is_blocked(self.way):
            self._net.keep(self)
            return
        stuck, self._stuck = self._stuck, []
        for number, thing in stuck:
            if self.is_open:
                self._deliver(number, thing)

    def end(self, *, lossy: bool) -> None:
        """The sender closes it. lossy: it has died, and some of what is under way is lost."""
        if not self.is_open or self._first_lost is not None:
            return
        kept = self._net.random.randint(self.arrived, self.sent) if lossy else self.sent
        self._first_lost = kept + 1
        self._put(None)

    def drop(self) -> None:
        """The receiver wants no more of it."""
        self.is_open = False
        self._stuck.clear()
        self._net.forget(self)
