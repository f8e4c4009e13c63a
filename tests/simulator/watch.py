"""Named invariants of a simulated run, checked as things happen, and the corners that it came by.

`Watch` is told what every party does and looks at all of them at once, as nobody in the system can.
`Violation` names the invariant. What an op's result must be is `tests/sim/oracle`'s, written from
the specification; which corners there are is DESIGN §3's list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pccl_py.coordinator import events as ke
from pccl_py.coordinator import invariants
from pccl_py.coordinator import state as ks
from pccl_py.errors import Code
from pccl_py.peer import events as pe
from pccl_py.peer.state import End
from pccl_py.protocol import messages as m
from pccl_py.types import Outcome, Record
from tests.sim import oracle
from tests.sim.cores import PEER_0
from tests.sim.programs import (
    ALL_GATHER,
    ALL_REDUCE,
    BROADCAST,
    REDUCE,
    Memory,
    Submission,
)
from tests.simulator.scenario import DEADLINE_S, DETECTION_S

if TYPE_CHECKING:
    from tests.simulator.process import Process
    from tests.simulator.setting import Setting

CORNERS = (
    "in place: a sender died with copies under way",
    "time-outs are agreed: aborted for all",
    "time-outs are agreed: rolled forward",
    "who is late is not who is dead",
    "second failures: a death during a flush",
    "second failures: a flush before the plan was carried out",
    "early return: who returned first is gone",
    "wrongly expelled: told, and joins again",
    "admission with ops in flight",
    "half-installed view sent again",
    "no coordinator and a death at once",
    "no coordinator: outcome unknown",
    "program order: a mismatch is a UsageError",
    "the second newcomer",
)
OK, OVER = 0, (Code.EVICTED, Code.COORDINATOR_LOST)
# A call's own deadline, one more if it is rolled forward, a flush that waits for who is late, and
# what it takes to see that somebody is gone.
CALL_S = 2 * DEADLINE_S + 2 * DETECTION_S
ROUNDS_TO_BE_CURRENT = 4

Key = tuple[int, str, int]  # line, group, op


class Violation(AssertionError):
    """An invariant does not hold; its name comes first."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


@dataclass(slots=True)
class Call:
    """An op at one process, from submission on."""

    key: Key
    sub: Submission
    memory: Memory
    peers: tuple[int, ...]
    began: float
    timeout: float


@dataclass(frozen=True, slots=True)
class Ended:
    """How an op ended at one process; digest: of what all who have it have alike, or empty."""

    status: int
    low: int
    high: int
    digest: bytes
    text: str


@dataclass(slots=True)
class Facts:
    """What the oracle of tests/sim asks of a cluster."""

    segment: int
    nodes: Sequence[object]
    history: dict[int, tuple[int, ...]]


@dataclass(slots=True)
class Node:
    """What it asks of a member."""

    index: int
    kept: dict[int, Memory]
    results: dict[int, tuple[int, int, int, int, str]]


@dataclass(slots=True)
class Line:
    """One group in one line, since when: who was in which of its views, by epoch."""

    began: float
    history: dict[int, tuple[int, ...]] = field(default_factory=dict)


class Watch:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.latest: Record | None = None  # durable, and the last
        self.boot = 0
        self.installed: dict[int, Record] = {}
        self.epochs: dict[int, int] = {}  # by process
        self.calls: dict[tuple[int, int], Call] = {}
        self.outcomes: dict[Key, dict[int, Ended]] = {}
        self.timed_out: set[Key] = set()
        self.lied: set[int] = set()
        self.lines: dict[tuple[int, str], Line] = {}
        self.ghosts: list[Memory] = []
        self.elections: dict[tuple[int, str, int], dict[Process, pe.StateElected]] = {}
        self.first_told: dict[tuple[int, str, int], int] = {}  # in which life of the coordinator
        self.poor_rounds: dict[int, int] = {}
        self.history_of: dict[int, list[bytes]] = {}  # what peers have said, of late
        self.begun: set[int] = set()  # newcomers whose loops begin with update()
        self.longest = 0.0

    def require(self, holds: bool, name: str, detail: str) -> None:
        if not holds:
            raise Violation(name, detail)

    def corner(self, name: str) -> None:
        assert name in CORNERS
        self.setting.seen[f"corner: {name}"] += 1
        self.setting.trace("", f"corner: {name}")

    # ------------------------------------------------------------ the coordinator

    def coordinator_started(self, boot: int, record: Record | None) -> None:
        self.require(boot > self.boot, "at most one coordinator acts", f"boot {boot} twice")
        self.boot = boot
        epoch = record.epoch if record is not None else 0
        most = max(self.installed, default=0)
        self.require(epoch >= most, "no view that was sent is forgotten", f"{epoch} < {most}")
        self.latest = record
        if record is not None:  # perhaps one whose append was not over
            self._remember(record)

    def _remember(self, record: Record) -> None:
        for group in record.groups:
            line = self.lines.setdefault((record.line, group.group), Line(self.setting.clock.now))
            line.history[record.epoch] = tuple(peer - PEER_0 for peer in group.ring)

    def coordinator_stepped(
        self, before: ks.State, event: ke.Event, after: ks.State, actions: Sequence[ke.Action]
    ) -> None:
        if not isinstance(event, ke.Started):
            try:
                invariants.check(before, after, actions)
            except AssertionError as broken:
                raise Violation("the coordinator's own", str(broken)) from broken
        flush, now = before.soft.flush, self.setting.clock.now
        if flush is not None and len(after.soft.gone) > len(before.soft.gone) and (
            after.record is before.record
        ):  # fmt: skip
            self.corner("second failures: a death during a flush")
        match event:
            case ke.Received(message=m.Answer()) if flush and now - flush.started > 0.08:
                self.corner("who is late is not who is dead")
            case ke.Received(message=m.Hello(epoch=epoch)):
                again = before.record is not None and 0 < epoch == before.epoch - 1
                if again and before.boot > 1:
                    self.corner("half-installed view sent again")
            case _:
                pass
        if flush is None and after.soft.flush is not None and before.record is not None:
            owed = any(h >= 0 for g in before.record.groups for v in g.verdicts for h in v.holders)
            if owed and len(before.soft.repaired) < before.living_count:
                self.corner("second failures: a flush before the plan was carried out")
        if after.rolled.keys() - before.rolled.keys():
            self.corner("time-outs are agreed: rolled forward")

    def journaled(self, record: Record) -> None:
        """The record is durable, as far as the coordinator knows."""
        before, self.latest = self.latest, record
        self._remember(record)
        for group in record.groups:
            old = before.groups if before is not None else ()
            known = {v.op for g in old if g.group == group.group for v in g.verdicts}
            for verdict in group.verdicts:
                if verdict.outcome is not Outcome.ABORT or verdict.op in known:
                    continue
                if verdict.code == Code.DEADLINE_EXCEEDED:
                    self.corner("time-outs are agreed: aborted for all")
                elif verdict.code == Code.USAGE:
                    self.corner("program order: a mismatch is a UsageError")
        if record.fresh:
            self._newcomers(before, record)

    def _newcomers(self, before: Record | None, record: Record) -> None:
        """A newcomer whose loop begins with update() is a member, and another one enters."""
        first = {p for p in self.begun if record.member(p) is not None}
        others = any(
            not process.begins and record.member(process.peer) is not None
            for process in self.setting.processes
        )
        new = {x.peer for x in record.members if before is None or before.member(x.peer) is None}
        if first - new and others:
            self.corner("the second newcomer")
        if before is not None:
            self.begun |= {p for p in new if self.setting.processes[p - PEER_0].begins}

    def sends(self, record: Record, *, durable: bool) -> None:
        self.require(durable, "a view is durable before it is sent", f"view {record.epoch}")

    # ------------------------------------------------------------ peers

    def installs(self, process: Process, record: Record) -> None:
        last = self.epochs.get(process.index, 0)
        self.require(record.epoch > last, "epochs only grow", f"{process.index}: {record.epoch}")
        self.epochs[process.index] = record.epoch
        same = self.installed.setdefault(record.epoch, record) == record
        self.require(same, "views of equal epoch are equal", f"view {record.epoch}")
        if record.fresh:
            for index, op in self.calls:
                ended = index != process.index
                self.require(ended, "a new line finds no op in flight", f"{op:#x} at {index}")

    def peer_stepped(self, process: Process, event: pe.Event) -> None:
        if isinstance(event, pe.OpTimedOut):
            call = self.calls.get((process.index, event.op))
            if call is not None:
                self.timed_out.add(call.key)
                self.setting.seen["fault: time-out"] += 1
        elif process.machine.end is End.FAILED and process.failure:
            if process.failure == Code.COORDINATOR_LOST:
                self.corner("no coordinator: outcome unknown")
            elif process.failure == Code.EVICTED:
                self.corner("wrongly expelled: told, and joins again")

    def elected(self, process: Process, line: int, election: pe.StateElected) -> None:
        """Each member of a line's sync is told the same, by whichever life of the coordinator. It
        may elect anew only if all who knew are dead, or no members any more."""
        self.require(not election.error, "members elect one state", f"{election}")
        key = (line, process.group, election.seq)
        known = self.elections.setdefault(key, {})
        known[process] = election
        record = self.latest
        assert record is not None
        told = {p: e for p, e in known.items() if p.is_alive and record.member(p.peer) is not None}
        same = len(set(told.values())) <= 1
        self.require(same, "members elect one state", f"{[(p.index, e) for p, e in told.items()]}")
        if self.first_told.setdefault(key, self.boot) < self.boot:
            again = "elected anew" if len(set(known.values())) > 1 else "told by a later life"
            self.setting.seen[f"state: {again}"] += 1
        self.setting.seen["state: elected"] += 1

    def said(self, process: Process, data: bytes) -> None:
        self.history_of.setdefault(process.index, []).append(data)

    def enters_line(self, process: Process, line: tuple[int, ...]) -> None:
        self.require(process.index in line, "a member is in its own view", f"{process.index}")

    def held(self, process: Process) -> None:
        if process.running:
            self.corner("admission with ops in flight")

    def leaves(self, process: Process) -> None:
        self.setting.seen["fault: leave"] += 1

    def lies(self, process: Process) -> None:
        self.setting.seen["fault: mismatch"] += 1

    def dies(self, process: Process) -> None:
        mine = [op for (index, op) in self.calls if index == process.index]
        others = [c for (index, _), c in self.calls.items() if index != process.index]
        if any(c.memory.data is not None and not c.sub.separate for c in others) and any(
            end.outwards.sent > end.outwards.arrived for end in process.engine.ends.values()
        ):
            self.corner("in place: a sender died with copies under way")
        if any(
            process.index in self.outcomes.get(c.key, ()) and
            self.outcomes[c.key][process.index].status == OK for c in others
        ):  # fmt: skip
            self.corner("early return: who returned first is gone")
        if not self.setting.coordinator.is_up and others and not process.failure:
            self.corner("no coordinator and a death at once")
        for op in mine:
            del self.calls[process.index, op]

    def broken_rule(self, index: int, reason: str) -> None:
        raise Violation("honest members break no rule of the wire", f"says {index}: {reason}")

    # ------------------------------------------------------------ ops

    def submits(
        self, process: Process, sub: Submission, memory: Memory, peers: tuple[int, ...],
        timeout: float,
    ) -> None:  # fmt: skip
        assert process.record is not None
        key = (process.record.line, process.group, sub.op_id)
        self.calls[process.index, sub.op_id] = Call(
            key, sub, memory, peers, self.setting.clock.now, timeout
        )

    def ended(self, process: Process, op: int, result: tuple[int, int, int, int, str]) -> None:
        call = self.calls.pop((process.index, op), None)
        self.require(call is not None, "an op ends once", f"{op:#x} at {process.index}")
        assert call is not None
        took = self.setting.clock.now - call.began
        kept = call.memory.copy()
        call.memory.scribble()
        self.ghosts.append(call.memory)
        status, low, high, _, text = result
        if status in OVER:
            return
        node = Node(process.index, {op: kept}, {op: result})
        told = f"{call.sub} at {process.index}: {result}"
        try:
            oracle.assert_sources_intact(call.sub, node, kept, raised=status != OK)
        except AssertionError as broken:
            raise Violation("inputs are restored on error", f"{broken} {result}") from broken
        if status == OK:
            ended = Ended(status, low, high, _digest(call.sub, process.index, kept), text)
            first = self._same_as(call, ended)
            if first is None or not ended.digest:
                self._check_values(call, node, told)
        else:
            ended = Ended(status, 0, 0, b"", text)
            self._check_reason(call, status, told)
        self._check_agreement(process, call, ended, told)
        self.outcomes.setdefault(call.key, {})[process.index] = ended
        limit = call.timeout + CALL_S
        self.longest = max(self.longest, took - call.timeout)
        blame = f"{took:.2f} s, not {limit:.2f}: {told}"
        self.require(took <= limit + process.stopped_s, "no call outlives its deadline", blame)

    def _same_as(self, call: Call, ended: Ended) -> Ended | None:
        for other in self.outcomes.get(call.key, {}).values():
            if other == ended:
                return other
        return None

    def _check_values(self, call: Call, node: Node, told: str) -> None:
        line = self.lines[call.key[0], call.key[1]]
        everybody = range(len(self.setting.processes))
        facts = Facts(self.setting.scenario.segment, everybody, line.history)
        try:
            oracle.Values(facts, call.sub, [node]).check()  # type: ignore[arg-type, list-item]
        except AssertionError as broken:
            name = "a result is the reduction of exactly its contributors"
            raise Violation(name, f"{broken} {told}") from broken

    def _check_agreement(self, process: Process, call: Call, ended: Ended, told: str) -> None:
        """Among the members of the latest view; who is no member speaks for nobody."""
        latest = self.latest
        if latest is None or latest.member(process.peer) is None:
            return
        for index, other in self.outcomes.get(call.key, {}).items():
            if latest.member(index + PEER_0) is None:
                continue
            beside = f"{told}, but {index}: {other}"
            self.require(
                (other.status == OK) == (ended.status == OK),
                "no success beside a failure", beside,
            )  # fmt: skip
            self.require(other.status == ended.status, "survivors agree on an outcome", beside)
            if ended.status != OK:
                continue
            if call.sub.kind in (ALL_REDUCE, REDUCE):
                same = (other.low, other.high) == (ended.low, ended.high)
                if call.sub.kind == ALL_REDUCE:
                    self.require(same, "survivors agree on the contributors", beside)
            if ended.digest and other.digest:
                same = ended.digest == other.digest
                self.require(same, "survivors have the same bits", beside)

    def _check_reason(self, call: Call, status: int, told: str) -> None:
        """An error is one that what happened explains."""
        name = "an error has a reason"
        views = list(self.lines[call.key[0], call.key[1]].history.values())
        gone = set(call.sub.peers or views[0]).difference(views[-1])
        match status:
            case Code.DEADLINE_EXCEEDED:
                self.require(call.key in self.timed_out, name, told)
            case Code.PEER_LOST:
                needed = call.sub.kind != ALL_REDUCE or call.sub.strict
                self.require(needed and bool(gone), name, told)
            case Code.USAGE:
                lied = self.setting.seen["fault: mismatch"] > 0
                moved = call.sub.kind != ALL_REDUCE and bool(gone)
                self.require(lied or moved, name, told)
            case _:
                self.require(False, name, told)

    # ------------------------------------------------------------ the end

    def round_over(self, process: Process, *, well: bool) -> None:
        if not well:
            poor = self.poor_rounds[process.index] = self.poor_rounds.get(process.index, 0) + 1
            self.require(
                poor <= ROUNDS_TO_BE_CURRENT,
                "after faults stop every peer is current within k rounds", f"{process.index}",
            )  # fmt: skip

    def check_end(self) -> None:
        """All has come to rest."""
        touched = any(not ghost.is_as_scribbled() for ghost in self.ghosts)
        self.require(not touched, "memory of ended ops is left alone", "")


def _digest(sub: Submission, index: int, memory: Memory) -> bytes:
    """Of what must be alike at all; empty where each has something else."""
    if sub.kind in (ALL_REDUCE, BROADCAST) and memory.data is not None:
        return b"-" + hashlib.blake2b(memory.data.tobytes(), digest_size=16).digest()
    if sub.kind == ALL_GATHER:
        blob = b"".join(b"-" if a is None else a.tobytes() for a in memory.receives or ())
        who = repr(memory.peers).encode()
        return b"-" + hashlib.blake2b(who + blob, digest_size=16).digest()
    return b""
