"""The coordinator's process: the real machine, real bytes, the real journal; lives in turn.

It does what `server.py` does around the machine, with virtual time: decodes and authenticates,
numbers connections that have greeted, carries out actions in order, believes a loss when it is
told of one. A crash may come between any two actions and in the midst of an append; what the
journal had not synced by then is cut off at random.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from pccl_py.coordinator import events as ke
from pccl_py.coordinator import machine
from pccl_py.coordinator.connections import check_proof, refusal_of
from pccl_py.coordinator.journal import Journal
from pccl_py.coordinator.state import Config, State, initial
from pccl_py.coordinator.store import NotStored
from pccl_py.errors import RemoteProtocolError, UsageError
from pccl_py.protocol import encoding
from pccl_py.protocol import messages as m
from pccl_py.types import Record
from tests.simulator.network import CONTROL, COORDINATOR, Channel
from tests.simulator.scenario import DEADLINE_S, DETECTION_S
from tests.simulator.setting import Setting

SECRET = b"simulated"
PROGRESS_S = 0.7
RETRY_S = 0.5

Step = Callable[[State, ke.Event, float], tuple[State, Sequence[ke.Action]]]


class Crashed(Exception):
    """The process dies here, in the midst of what it does."""


class Wire:
    """One control connection. number: the machine's, 0 before the first greeting. peer: whose."""

    __slots__ = ("down", "is_up", "number", "peer", "up")

    def __init__(self, peer: int) -> None:
        self.peer, self.number = peer, 0
        self.is_up = True  # for the coordinator
        self.up: Channel
        self.down: Channel


class Coordinator:
    """is_up: there is a process; is_paused: it is stopped. boots: how often it was started."""

    def __init__(
        self, setting: Setting, folder: Path, step: Step = machine.step, *, syncs: bool = True
    ) -> None:
        """syncs: False is a disk that does not keep what it was told to."""
        self.setting, self.folder, self.step, self._syncs = setting, folder, step, syncs
        self.is_up = self.is_paused = self.is_full = False
        self.boots = 0
        self.crash_in = ""  # "torn": in the next append; "half": after some of the next installs
        self.state: State
        self.wires: dict[int, Wire] = {}
        self._journal: Journal
        self._durable = self._unsynced = 0  # bytes of the journal's whole entries, and of the rest
        self._last_number = 0
        self._life = 0
        self._is_stuck = False
        self._own: deque[ke.Event] = deque()
        self._backlog: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._encoded: dict[int, tuple[object, bytes]] = {}

    # ------------------------------------------------------------ lives

    def start(self) -> None:
        setting = self.setting
        if self.is_up:
            return
        was_full, self.is_full = self.is_full, False  # a boot takes a few bytes only
        self._journal = Journal(self.folder, sync=self._sync)
        self.is_full, self._is_stuck = was_full, False
        self._durable, self._unsynced = self._journal._end, 0
        self.is_up, self._life = True, self._life + 1
        self.boots += 1
        config = Config(None, DETECTION_S, DEADLINE_S, PROGRESS_S)
        self.state, self.wires, self._own = initial(config), {}, deque()
        self._timer: float | None = None
        past = self._journal.remembered
        setting.trace("K", f"starts, boot {past.boot}, epoch {past.record and past.record.epoch}")
        setting.watch.coordinator_started(past.boot, past.record)
        self._feed(ke.Started(past.boot, past.record, past.run))

    def _sync(self, fd: int) -> None:
        """In place of fsync; a torn crash comes before it has done its work."""
        if self.crash_in == "torn" and self.is_up:
            raise Crashed
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def try_rival(self) -> None:
        """A second coordinator on the same state directory is refused while there is one."""
        try:
            journal = Journal(self.folder, sync=self._sync)
        except UsageError:
            self.setting.seen["fault: rival"] += 1
            return
        except NotStored:  # there is none, and the disk is full
            return
        journal.close()
        self.setting.watch.require(not self.is_up, "at most one coordinator acts", "two journals")

    def crash(self) -> None:
        """SIGKILL, or the machine loses power: what was not synced may be cut."""
        if not self.is_up:
            return
        setting = self.setting
        self.is_up = self.is_paused = False
        self._backlog.clear()
        self.crash_in = ""
        self._lose_tail()
        self._journal.close()
        setting.trace("K", "is killed")
        for wire in self.wires.values():
            self._cut_off(wire, lossy=True)
        self.wires = {}
        setting.coordinator_died()

    def _lose_tail(self) -> None:
        """What was written and not synced goes, or the last part of it does."""
        if not self._unsynced:
            return
        kept = self.setting.random.randint(0, self._unsynced)
        os.truncate(self.folder / "journal", self._durable + kept)
        self.setting.seen["journal: torn tail cut"] += 1
        self.setting.trace("K", f"keeps {kept} of {self._unsynced} unsynced bytes of its journal")
        self._unsynced = 0

    def close(self) -> None:
        """At the end of a run."""
        if self.is_up:
            self._journal.close()

    def pause(self, *, paused: bool) -> None:
        self.is_paused = paused
        while not self.is_paused and self._backlog and self.is_up:
            act, arguments = self._backlog.popleft()
            act(*arguments)

    def gate(self, act: Callable[..., None], *arguments: object) -> None:
        """A stopped process does it when it goes on, a dead one never."""
        if self.is_paused:
            self._backlog.append((act, arguments))
        elif self.is_up:
            act(*arguments)

    # ------------------------------------------------------------ connections

    def accept(self, wire: Wire) -> None:
        self.wires[id(wire)] = wire

    def received(self, wire: Wire, data: object) -> None:
        self.gate(self._receive, wire, data)

    def _receive(self, wire: Wire, data: object) -> None:
        if not wire.is_up:
            return
        if data is None:
            self._lost_wire(wire, "the control connection is gone")
            return
        assert isinstance(data, bytes)
        try:
            message = encoding.decode(data)
        except RemoteProtocolError as error:
            self._deliver(wire, refusal_of(error))
            raise AssertionError(f"a peer sent what cannot be read: {error}") from None
        if isinstance(message, m.Hello):
            refusal = check_proof(SECRET if self.setting.scenario.secret else None, message)
            assert refusal is None, refusal
            if not wire.number:
                self._last_number += 1
                wire.number = self._last_number
        if wire.number:  # else something that was queued for a former life (V11)
            self._feed(ke.Received(wire.number, message))  # type: ignore[arg-type]

    def silent(self, wire: Wire) -> None:
        """libzmq's heartbeats are not answered."""
        self.gate(self._lost_wire, wire, "silent")

    def _lost_wire(self, wire: Wire, reason: str) -> None:
        """Believed after a while, as the server probes it."""
        if not wire.is_up or not self.is_up:
            return
        self._cut_off(wire, lossy=False)
        self.wires.pop(id(wire), None)
        if wire.number:
            late = self.setting.random.choice((0.0, 0.01, 0.03, 0.1))
            life = self._life
            self.setting.clock.after(late, self.gate, self._disconnected, wire, reason, life)

    def _disconnected(self, wire: Wire, reason: str, life: int) -> None:
        if life == self._life:
            self._feed(ke.Disconnected(wire.number, reason))

    def _cut_off(self, wire: Wire, *, lossy: bool) -> None:
        wire.is_up = False
        wire.up.drop()
        wire.down.end(lossy=lossy)

    def of_peer(self, peer: int) -> Wire | None:
        """The newest connection of a peer."""
        return next((w for w in reversed(self.wires.values()) if w.peer == peer), None)

    # ------------------------------------------------------------ the machine

    def _feed(self, event: ke.Event) -> None:
        """Steps the machine with an event and those that come of it."""
        self._own.append(event)
        try:
            while self._own:
                self._step(self._own.popleft())
        except Crashed:
            self.crash()

    def _step(self, event: ke.Event) -> None:
        setting, before = self.setting, self.state
        if setting.traces:
            setting.trace("K", f"< {_short(event)}")
        self.state, actions = self._stepped(event)
        try:
            self._make_durable(actions)
        except NotStored as error:  # as if it had not happened, but for this
            self.state = before
            self.state, actions = self._stepped(ke.JournalFailed(str(error.strerror)))
            self._carry_out_all(actions)
            self._stick()
            self.state, actions = self._stepped(event)
        self._carry_out_all(actions)

    def _stepped(self, event: ke.Event) -> tuple[State, Sequence[ke.Action]]:
        before = self.state
        after, actions = self.step(before, event, self.setting.clock.now)
        self.setting.watch.coordinator_stepped(before, event, after, actions)
        return after, actions

    def _make_durable(self, actions: Sequence[ke.Action]) -> None:
        """Before anything else of the step is done (R9)."""
        for action in actions:
            if not isinstance(action, ke.Journal):
                continue
            record, setting = action.record, self.setting
            if setting.traces:
                setting.trace("K", f"view {record.epoch} {_members(record)}")
            before = self._journal._end
            try:
                self._journal.append(record, action.run)
            except Crashed:
                self._unsynced = self._journal._wanted_bytes
                raise
            if self._syncs or self._journal._end < before:
                self._durable = self._journal._end
            else:
                self._unsynced = self._journal._end - self._durable
            setting.watch.journaled(record)

    def _stick(self) -> None:
        """The journal takes no record: it is tried until it does."""
        if not self._is_stuck:
            self._is_stuck = True
            self.setting.seen["fault: k_full"] += 1
            self.setting.clock.after(RETRY_S, self.gate, self._retry, self._life)

    def _retry(self, life: int) -> None:
        if life != self._life or not self._is_stuck:
            return
        try:
            self._journal.probe()
        except NotStored:
            self.setting.clock.after(RETRY_S, self.gate, self._retry, life)
            return
        except Crashed:
            self.crash()
            return
        self._is_stuck = False
        self._feed(ke.JournalWorks())

    def _carry_out_all(self, actions: Sequence[ke.Action]) -> None:
        setting = self.setting
        installs = 0
        half = setting.random.randint(0, 2) if self.crash_in == "half" else -1
        for action in actions:
            if isinstance(action, ke.Send) and isinstance(action.message, m.Install):
                if installs == half:
                    setting.seen["fault: k_half"] += 1
                    raise Crashed
                installs += 1
            self._carry_out(action)

    def _carry_out(self, action: ke.Action) -> None:
        match action:
            case ke.Send(number, message):
                wire = next((w for w in self.wires.values() if w.number == number), None)
                if wire is not None:
                    self._deliver(wire, message)
            case ke.Close(number):
                wire = next((w for w in self.wires.values() if w.number == number), None)
                if wire is not None:
                    self._cut_off(wire, lossy=False)
                    self.wires.pop(id(wire))
                    self._own.append(ke.Disconnected(number, "closed by the coordinator"))
            case ke.Journal():
                pass  # done, before all others
            case ke.SetTimer(at):
                self._timer = at
                if at is not None:
                    slack = 0.001 * self.setting.random.random()
                    self.setting.clock.at(at + slack, self.gate, self._tick, at, self._life)
            case ke.Note(name, values):
                if self.setting.traces:
                    self.setting.trace("K", f"# {name} {dict(values)}")

    def _tick(self, at: float, life: int) -> None:
        if self._timer == at and life == self._life:
            self._timer = None
            self._feed(ke.Tick())

    def _deliver(self, wire: Wire, message: m.FromCoordinator) -> None:
        if self.setting.traces and not isinstance(message, m.Waiting):
            self.setting.trace("K", f"> {wire.peer - 1000} {_short(message)}")
        if isinstance(message, m.Install):
            self.setting.watch.sends(message.record, durable=not self._unsynced)
        wire.down.send(self._bytes(message))

    def _bytes(self, message: m.FromCoordinator) -> bytes:
        """An install is the same for all its members, byte for byte."""
        if not isinstance(message, m.Install):
            return encoding.encode(message)
        known = self._encoded.get(message.record.epoch)
        if known is None or known[0] is not message.record:
            known = (message.record, encoding.encode(message))
            self._encoded[message.record.epoch] = known
        return known[1]


def link(setting: Setting, peer: int, index: int, to_peer: Callable[[object], None]) -> Wire:
    """A new control connection between the coordinator and a peer."""
    wire = Wire(peer)
    wire.up = Channel(setting.net, (index, COORDINATOR, CONTROL),
                      lambda data: setting.coordinator.received(wire, data))  # fmt: skip
    wire.down = Channel(setting.net, (COORDINATOR, index, CONTROL), to_peer)
    setting.coordinator.accept(wire)
    return wire


def _members(record: Record) -> str:
    names = " ".join(str(member.peer - 1000) for member in record.members)
    verdicts = [v for group in record.groups for v in group.verdicts]
    told = " ".join(f"{v.op:#x}:{v.outcome.name}{list(v.holders)}{v.text[:40]}" for v in verdicts)
    return f"of [{names}]{' fresh' if record.fresh else ''} {told}"


def _short(message: object) -> str:
    if isinstance(message, m.Install):
        return f"Install({message.record.epoch})"
    text = repr(message)
    return text if len(text) < 260 else text[:260] + "..."
