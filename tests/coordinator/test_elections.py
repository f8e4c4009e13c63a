"""Members and lives of the coordinator in any order: who is a member knows one outcome of a sync.

Real machines on both sides, and between them what a network does: messages that come late, those
of a former connection that are read after its end was heard of, or after a new one's Hello.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from pccl_py.coordinator import events as ke
from pccl_py.coordinator import machine as coordinator
from pccl_py.coordinator import shared_state
from pccl_py.coordinator.state import Config, initial
from pccl_py.peer import events as pe
from pccl_py.peer import machine as peer
from pccl_py.peer import state as ps
from pccl_py.protocol import messages as m
from pccl_py.types import PeerId, Record

CONFIG = Config("r", 5.0, 20.0)
MEMBERS, STEPS, WALKS = 4, 200, 400


class Mate:
    """A member: what it knows, what is under way to it and from it. link: the connection's number,
    0: none. up: on it, to the coordinator; queued: for the next one; inbox, events: unread."""

    def __init__(self, number: int) -> None:
        self.peer = PeerId(number)
        self.state = ps.initial(
            run="r", peer=self.peer, name=f"w{number}", group="g", host="h", port=1,
            min_members=MEMBERS, detection_s=5.0,
        )  # fmt: skip
        self.is_alive = True
        self.link = 0
        self.up: list[m.FromPeer] = []
        self.queued: list[m.FromPeer] = []
        self.down: list[m.FromCoordinator] = []
        self.inbox: list[m.FromCoordinator] = []
        self.events: list[pe.Event] = []
        self.outcome: pe.StateElected | None = None
        self.wanted = False
        self.offer: m.Offer | None = None


class Walk:
    def __init__(self, seed: int, *, forgetful: bool = False) -> None:
        """forgetful: who knows an outcome offers again, as if it did not."""
        self.random, self.forgetful = random.Random(seed), forgetful
        self.now = 0.0
        self.boot = self.links = 0
        self.journal: Record | None = None
        self.greeted: set[int] = set()
        self.seen: Counter[str] = Counter()
        self.mates = [Mate(number) for number in range(1, MEMBERS + 1)]
        self.start()

    # ------------------------------------------------------------ the coordinator

    def start(self) -> None:
        self.boot += 1
        self.state = initial(CONFIG)
        self.feed(ke.Started(self.boot, self.journal, "r"))

    def feed(self, event: ke.Event) -> None:
        self.state, actions = coordinator.step(self.state, event, self.now)
        for action in actions:
            match action:
                case ke.Journal(record=record):
                    self.journal = record
                case ke.Send(connection=link, message=message):
                    for mate in self.mates:
                        if mate.link == link:
                            mate.down.append(message)
                case _:
                    pass

    def crash(self) -> None:
        self.greeted.clear()
        for mate in self.mates:
            self.cut(mate)
        self.start()

    # ------------------------------------------------------------ connections

    def cut(self, mate: Mate) -> None:
        """What was under way down arrives in part; what was under way up is lost."""
        if mate.link:
            mate.inbox += mate.down[: self.random.randint(0, len(mate.down))]
            mate.events.append(pe.Disconnected())
            link, mate.link = mate.link, 0
            mate.up, mate.down = [], []
            if link in self.greeted:
                self.greeted.discard(link)
                self.feed(ke.Disconnected(link, "gone"))

    def call(self, mate: Mate) -> None:
        if not mate.link:
            self.links += 1
            mate.link, mate.up, mate.queued = self.links, mate.queued, []
            mate.events.append(pe.Connected())

    def take(self, mate: Mate) -> None:
        if mate.up:
            message = mate.up.pop(0)
            if isinstance(message, m.Hello):
                self.greeted.add(mate.link)
            if mate.link in self.greeted:
                self.feed(ke.Received(mate.link, message))

    # ------------------------------------------------------------ members

    def read(self, mate: Mate) -> None:
        if mate.down and self.random.random() < 0.7:
            mate.inbox.append(mate.down.pop(0))
        if mate.inbox and (not mate.events or self.random.random() < 0.5):
            self.step(mate, pe.Received(mate.inbox.pop(0)))
        elif mate.events:
            self.step(mate, mate.events.pop(0))

    def step(self, mate: Mate, event: pe.Event) -> None:
        mate.state, actions = peer.step(mate.state, event, self.now)
        for action in actions:
            match action:
                case pe.Send(message=message):
                    if isinstance(message, m.Offer):
                        mate.offer = message
                    elif isinstance(message, m.Elected) and self.forgetful:
                        assert mate.offer is not None
                        greeting = mate.state.greetings
                        message = replace(mate.offer, epoch=message.epoch, greeting=greeting)
                    if mate.link:
                        mate.up.append(message)
                    elif not isinstance(message, m.Hello):
                        mate.queued.append(message)
                case pe.FlushEngine(epoch=epoch):
                    mate.events.append(pe.Flushed(epoch, 0, 0, (), ()))
                case pe.StateElected():
                    mate.outcome = action
                    self.check()
                case _:
                    pass

    def want(self, mate: Mate) -> None:
        if mate.state.record is not None and not mate.wanted:
            mate.wanted = True
            digests = [bytes([self.random.randrange(2)] * 16) for _ in "ab"]
            keys = tuple(m.StateKey(*pair) for pair in zip("ab", digests, strict=True))
            self.step(mate, pe.WantState(1, self.random.randrange(2), keys))

    def check(self) -> None:
        record = self.journal
        assert record is not None
        told = {x.outcome for x in self.mates if x.is_alive and record.member(x.peer) is not None}
        assert len(told - {None}) <= 1, told
        everybody = {x.outcome for x in self.mates} - {None}
        self.seen["elected anew" if len(everybody) > 1 else "elected"] += 1
        self.seen["told by a later life"] += self.boot > 1

    # ------------------------------------------------------------ in any order

    def go(self) -> Counter[str]:
        rng, mates = self.random, self.mates
        for mate in mates:
            self.call(mate)
        while any(mate.state.record is None for mate in mates):
            self.forth(rng.choice(mates))
        for _ in range(STEPS):
            mate = rng.choice(mates)
            what = rng.random() / (6 if self.is_critical() else 1)
            if what < 0.01:
                self.crash()
            elif what < 0.02:
                self.cut(mate)
            elif what < 0.025 and sum(x.is_alive for x in mates) > 1:
                mate.is_alive = False
                self.cut(mate)
            elif what < 0.045:
                self.wait()
            elif not mate.is_alive:
                pass
            elif rng.random() < 0.1:
                self.call(mate)
            elif rng.random() < 0.1:
                self.want(mate)
            else:
                self.forth(mate)
        self.calm()
        return self.seen

    def is_critical(self) -> bool:
        """Some know an outcome and some do not: much goes wrong then."""
        return len({mate.outcome is None for mate in self.mates if mate.is_alive}) == 2

    def calm(self) -> None:
        """Nothing goes wrong any more: who is a member comes to know the outcome."""
        for _ in range(60):
            for mate in self.mates:
                if mate.is_alive:
                    self.call(mate)
                    self.want(mate)
                    while mate.up or mate.down or mate.inbox or mate.events:
                        self.forth(mate)
            self.wait()
        for mate in self.mates:
            if mate.is_alive and mate.state.end is ps.End.NO:
                assert mate.outcome is not None, f"{mate.peer} waits for ever"

    def wait(self) -> None:
        self.now += 0.5
        if self.state.timer is not None and self.now >= self.state.timer:
            self.feed(ke.Tick())

    def forth(self, mate: Mate) -> None:
        self.random.choice((self.take, self.read))(mate)


def walks(count: int, *, forgetful: bool = False) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in range(count):
        seen += Walk(seed, forgetful=forgetful).go()
    return seen


def test_members_know_one_outcome() -> None:
    seen = walks(WALKS)
    assert min(seen[name] for name in ("elected", "elected anew", "told by a later life")) > 5, seen


def test_offers_alone_would_not_do() -> None:
    """As before there was Elected: a new life elects without those who have died since."""
    with pytest.raises(AssertionError, match="StateElected"):
        walks(WALKS, forgetful=True)


def test_what_members_know_must_be_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_state, "known", lambda turn, peer, message: None)
    with pytest.raises(AssertionError, match="waits for ever"):
        walks(WALKS)
