"""The coordinator's machine with 10,000 members, no sockets: the CPU of one join and of one death.

The machine is the real one, fed with everything that its peers would say; each of their answers is
decoded, what goes to all of them is encoded once, as in the shell. The journal is left out. Groups
have at most 1,024 members, so they are in ten.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from pccl_py.bench.faults.crowd import answered
from pccl_py.coordinator import machine, state
from pccl_py.coordinator.events import Action, Disconnected, Event, Received, Send
from pccl_py.errors import PcclError
from pccl_py.protocol import encoding
from pccl_py.protocol.messages import Answer, At, FromCoordinator, Hello, Lost, Sp
from pccl_py.types import GroupRecord, Member, PeerId, Record

RUN = "simulated"
DETECTION_S, DEADLINE_S = 5.0, 600.0
GROUPS = 10


class Simulation:
    """A coordinator, and peers that answer at once, in the order in which they are asked."""

    def __init__(self, count: int) -> None:
        """count: members, connected."""
        config = state.Config(run=RUN, detection_s=DETECTION_S, deadline_s=DEADLINE_S)
        self._now = 0.0
        self._told: FromCoordinator | None = None
        self._said: bytes | None = None  # what each peer answers to that
        self._count = count
        members = [_member(number) for number in range(count)]
        groups = tuple(
            GroupRecord(f"g{at}", tuple(m.peer for m in members if m.group == f"g{at}"))
            for at in range(GROUPS)
        )
        record = Record(1, 7, True, tuple(members), groups)
        self._state = replace(
            state.initial(config),
            boot=2,
            record=record,
            members={member.peer: member for member in members},
            peer_of={number: member.peer for number, member in enumerate(members)},
            connection_of={member.peer: number for number, member in enumerate(members)},
        )

    @property
    def epoch(self) -> int:
        return self._state.epoch

    @property
    def world(self) -> int:
        return self._state.living_count

    def join(self) -> float:
        """One newcomer enters; CPU seconds. Raises PcclError if it does not."""
        began_s = time.process_time()
        self._run(Received(self._count, _hello(self._count, 0)))
        took_s = time.process_time() - began_s
        self._count += 1
        self._check(members=self.world)
        return took_s

    def die(self, number: int) -> float:
        """One member is gone: a neighbour has lost its link, its connection broke. CPU seconds."""
        before = self.world
        reporter = (number + GROUPS) % self._count
        lost = Lost(self.epoch, _member(number).peer, "connection reset")
        began_s = time.process_time()
        self._run(Received(reporter, lost), Disconnected(number, "gone"))
        took_s = time.process_time() - began_s
        self._check(members=before - 1)
        return took_s

    def _check(self, members: int) -> None:
        record = self._state.record
        if record is None or len(record.members) != members or self._state.soft.flush is not None:
            raise PcclError(f"the coordinator did not come to a view of {members} members")

    def _run(self, *events: Event) -> None:
        """Feeds events, then what the peers answer, until all are silent."""
        queue = deque[Event](events)
        while queue:
            self._now += 1e-6
            self._state, actions = machine.step(self._state, queue.popleft(), self._now)
            queue.extend(self._answers(actions))

    def _answers(self, actions: Sequence[Action]) -> list[Event]:
        answers: list[Event] = []
        for action in actions:
            if not isinstance(action, Send):
                continue
            if self._told is not action.message:
                self._told = action.message
                encoding.encode(action.message)
                answer = answered(action.message)
                self._said = None if answer is None else encoding.encode(answer)
            if self._said is not None:
                message = encoding.decode(self._said)
                assert isinstance(message, Sp | At | Answer)
                answers.append(Received(action.connection, message))
        return answers


def _member(number: int) -> Member:
    return Member(PeerId(1000 + number), f"s{number}", f"g{number % GROUPS}", "127.0.0.1", 1)


def _hello(number: int, epoch: int) -> Hello:
    who = _member(number)
    return Hello(RUN, who.peer, who.name, who.group, who.host, who.port, 1, epoch, False, None,
                 bytes(16), b"")  # fmt: skip
