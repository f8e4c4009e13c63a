"""One worker's process: the real peer machine, an engine, a control connection, a user's program.

It does what `peer/control.py` does around the machine. Three parties take turns: libzmq and pccl-io
(stopped only by SIGSTOP), the control thread (also kept back while the program holds the GIL, then
finds its sockets in any order), and the user's thread, a generator that `program` writes. A process
ends by death, by leaving, or when its membership ends; its slot may then start another.
"""

from __future__ import annotations

import functools
import zlib
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace

from pccl_py.errors import Code
from pccl_py.peer import events as pe
from pccl_py.peer import machine, state
from pccl_py.protocol import encoding
from pccl_py.protocol import messages as m
from pccl_py.types import Member, Path, PeerId, Record
from tests.sim.cores import PEER_0
from tests.simulator import coordinator as k
from tests.simulator.engine import Engine
from tests.simulator.network import CONTROL, COORDINATOR
from tests.simulator.scenario import DEADLINE_S, DETECTION_S
from tests.simulator.setting import Setting

RECONNECT_S, RECONNECT_MAX_S = 0.05, 0.5
SILENCE_S = 0.6 * DETECTION_S

# A program yields what it waits for, and until when; it is sent whether that came true.
Wait = tuple[Callable[[], bool], float | None]
Body = Generator[Wait, bool, None]


@functools.lru_cache(maxsize=64)
def _decoded(data: bytes) -> m.Message:
    """An install says the same to all."""
    return encoding.decode(data)


class Process:
    def __init__(
        self, setting: Setting, slot: int, group: str, min_members: int, *, begins: bool
    ) -> None:
        """begins: its loop begins with update(), not ends."""
        self.setting, self.slot = setting, slot
        self.index = len(setting.processes)
        setting.processes.append(self)
        self.peer = PeerId(PEER_0 + self.index)
        self.group, self.begins = group, begins
        self.is_alive, self.is_paused, self.is_busy = True, False, False
        self.stopped_s = 0.0  # how long faults keep its threads from running, in all
        self.engine = Engine(setting, self)
        self.machine = state.initial(
            run="sim", peer=self.peer, name=f"w{self.index}", group=group, host="127.0.0.1",
            port=1000 + self.index, min_members=min_members, detection_s=DETECTION_S,
            deadline_s=DEADLINE_S,
        )  # fmt: skip
        # the mailbox
        self.record: Record | None = None
        self.failure = 0
        self.has_left = False
        self.resumed: bool | None = None
        self.elections: dict[int, pe.StateElected] = {}
        # what waits for a turn
        self._backlog: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._messages: deque[bytes] = deque()
        self._events: deque[pe.Event] = deque()
        self._turn_due = False
        # the control connection
        self._wire: k.Wire | None = None
        self._queued: list[bytes] = []  # of a connection that broke, for the next one
        self._tries = 0
        self._timer: float | None = None
        self._epochs = 0
        # the user's thread
        self.body: Body | None = None
        self._waits: Wait | None = None
        self.submitted = 0
        self.counts: dict[int, int] = {}
        self.running: set[int] = set()  # ops
        self.ended: dict[int, tuple[int, int, int, int, str]] = {}

    def trace(self, what: str) -> None:
        self.setting.trace(str(self.index), what)

    # ------------------------------------------------------------ turns

    def gate(self, act: Callable[..., None], *arguments: object) -> None:
        """What its threads in C do: not while it is stopped, never when it is dead."""
        if self.is_paused:
            self._backlog.append((act, arguments))
        elif self.is_alive:
            act(*arguments)

    def pause(self, *, paused: bool) -> None:
        self.is_paused = paused
        while not self.is_paused and self._backlog and self.is_alive:
            act, arguments = self._backlog.popleft()
            act(*arguments)
        self._take_turn()

    def hold_gil(self, *, held: bool) -> None:
        self.is_busy = held
        self._take_turn()

    def pause_over(self) -> None:
        self.pause(paused=False)

    def gil_over(self) -> None:
        self.hold_gil(held=False)

    def post(self, event: pe.Event) -> None:
        """An event for the control thread. Any thread."""
        self._events.append(event)
        self._soon()

    def _soon(self) -> None:
        """The control thread runs, at once or a little later."""
        if self._turn_due or self.is_busy:
            return
        self._turn_due = True
        rng = self.setting.random
        self.setting.clock.after(
            0.0 if rng.random() < 0.7 else 0.0005 * rng.random(), self.gate, self._take_turn
        )

    def _take_turn(self) -> None:
        self._turn_due = False
        rng = self.setting.random
        while self.is_alive and not self.is_busy and not self.is_paused:
            if self._messages and (not self._events or rng.random() < 0.5):
                message = _decoded(self._messages.popleft())
                self._step(pe.Received(message))  # type: ignore[arg-type]
            elif self._events:
                self._step(self._events.popleft())
            else:
                break
        self.wake()

    # ------------------------------------------------------------ the machine

    def _step(self, event: pe.Event) -> None:
        if self.setting.traces:
            self.trace(f"< {k._short(event)}")
        self.machine, actions = machine.step(self.machine, event, self.setting.clock.now)
        self._carry_out(actions)
        self.setting.watch.peer_stepped(self, event)

    def _carry_out(self, actions: tuple[pe.Action, ...]) -> None:
        for action in actions:
            self._do(action)

    def _do(self, action: pe.Action) -> None:
        match action:
            case pe.Send(message):
                self._send(message)
            case pe.InstallView(record):
                self._install(record)
            case pe.FlushEngine(epoch):
                self.engine.flush(epoch)
            case pe.Resume(grown):
                self.resumed = grown
            case pe.StateElected(seq=seq):
                self.elections[seq] = action
                assert self.record is not None
                self.setting.watch.elected(self, self.record.line, action)
            case pe.Left():
                self.has_left = True
            case pe.Fail(code, text):
                self.trace(f"fails: {Code(code).name} {text}")
                self.failure = code
                self.engine.fail(code, text)
            case pe.SetTimer(at):
                self._timer = at
                if at is not None:
                    self.setting.clock.at(at, self.gate, self._tick, at)

    def _install(self, record: Record) -> None:
        self.setting.watch.installs(self, record)
        self.trace(f"installs view {record.epoch}")
        if record.fresh:
            self.submitted = 0
            self.counts.clear()
            self.elections.clear()
        self.record = record
        self.engine.set_view(record)
        if self.setting.scenario.far:
            mates = [member.peer for member in self.group_members() if member.peer != self.peer]
            self.post(pe.PathsMeasured(tuple(self._path(peer) for peer in mates)))

    def _path(self, peer: PeerId) -> Path:
        """As both ends measure it, in this run."""
        ends = (self.setting.scenario.seed, *sorted((self.peer, peer)))
        drawn = zlib.crc32(repr(ends).encode())
        return Path(peer, 500 + drawn % 100_000, (1 + drawn % 7) * 20_000_000)

    def _tick(self, at: float) -> None:
        if self._timer == at:
            self.post(pe.Tick())

    # ------------------------------------------------------------ the control connection

    def connect(self) -> None:
        """libzmq calls until somebody answers."""
        if not self.is_alive or self._wire is not None:
            return
        net, here = self.setting.net, self.index
        trip = net.delay(here, COORDINATOR) + net.delay(COORDINATOR, here)
        self.setting.clock.after(trip, self.gate, self._try)

    def _try(self) -> None:
        boss, net = self.setting.coordinator, self.setting.net
        if self._wire is not None or self.engine.is_failed or self.has_left:
            return
        ways = ((self.index, COORDINATOR, CONTROL), (COORDINATOR, self.index, CONTROL))
        if not boss.is_up or boss.is_paused or any(net.is_blocked(way) for way in ways):
            self._tries += 1
            again = min(RECONNECT_S * 2**self._tries, RECONNECT_MAX_S)
            self.setting.clock.after(again, self.gate, self._try)
            return
        self._tries = 0
        self._wire = wire = k.link(self.setting, self.peer, self.index, self._received)
        for data in self._queued:
            wire.up.send(data)
        self._queued.clear()
        self.post(pe.Connected())

    def _received(self, data: object) -> None:
        self.gate(self._take_message, data)

    def _take_message(self, data: object) -> None:
        if data is None:
            self._break()
            return
        assert isinstance(data, bytes)
        self.setting.heard.setdefault(self.index, []).append(data)
        self._messages.append(data)
        self._soon()

    def _break(self) -> None:
        """The connection is gone; what the control thread has not read of it, it still will."""
        wire = self._wire
        if wire is None:
            return
        self._wire = None
        wire.down.drop()
        wire.up.end(lossy=False)
        self.post(pe.Disconnected())
        self.setting.clock.after(RECONNECT_S, self.gate, self.connect)

    def flap(self) -> None:
        """The control connection breaks, at this end."""
        self._break()

    def silent(self) -> None:
        """libzmq has heard nothing for too long."""
        self.gate(self._break)

    @property
    def wire(self) -> k.Wire | None:
        return self._wire

    def _send(self, message: m.FromPeer) -> None:
        if isinstance(message, m.Hello):
            nonce = self.setting.random.getrandbits(128).to_bytes(16, "big")
            secret = k.SECRET if self.setting.scenario.secret else None
            message = encoding.signed_hello(secret, replace(message, nonce=nonce))
        if self.setting.traces:
            self.trace(f"> {k._short(message)}")
        data = encoding.encode(message)
        if self._wire is not None:
            self._wire.up.send(data)
            self.setting.watch.said(self, data)
        elif not isinstance(message, m.Hello):
            self._queued.append(data)

    # ------------------------------------------------------------ the user's thread

    def run(self, body: Body) -> None:
        self.body = body
        self._wait(next(body))

    def wake(self) -> None:
        """The user's thread looks whether what it waits for is there."""
        if self._waits is None or not self.is_alive or self.is_busy or self.is_paused:
            return
        if self.failure or self._waits[0]():
            self._go_on(True)

    def _go_on(self, came: bool) -> None:
        body = self.body
        assert body is not None
        self._waits = None
        if self.failure:
            self.end()
            return
        try:
            self._wait(body.send(came))
        except StopIteration:
            self.end()

    def _wait(self, waits: Wait) -> None:
        self._waits = waits
        if waits[1] is not None:
            self.setting.clock.at(waits[1], self.gate, self._over, waits)
        self.setting.clock.after(0.0, self.gate, self.wake)

    def _over(self, waits: Wait) -> None:
        if self._waits is waits and not self.is_busy:
            self._go_on(waits[0]())
        elif self._waits is waits:
            self.setting.clock.after(0.01, self.gate, self._over, waits)

    def op_ended(self, op: int, result: tuple[int, int, int, int, str]) -> None:
        self.running.discard(op)
        self.ended[op] = result
        if self.setting.traces:
            self.trace(f"op {op:#x} ends: {result}")
        self.setting.watch.ended(self, op, result)
        if self._waits is not None:
            self.setting.clock.after(0.0, self.gate, self.wake)
        self.setting.op_ended(self, op)

    def safe_point(self, position: int) -> bool:
        """As Control.safe_point: the machine, in the user's thread. True: held."""
        self.resumed = None
        self.machine, actions = machine.step(
            self.machine, pe.SafePoint(position), self.setting.clock.now
        )
        held = any(isinstance(action, pe.Hold) for action in actions)
        self._carry_out(tuple(a for a in actions if not isinstance(a, pe.Hold)))
        return held

    def group_members(self) -> tuple[Member, ...]:
        """The group's members in rank order."""
        assert self.record is not None
        return tuple(x for x in self.record.members if x.group == self.group)

    # ------------------------------------------------------------ the end

    def end(self) -> None:
        """The program is over: it has left, or its membership has ended; the process exits."""
        self.die(why="exits")

    def die(self, why: str = "is killed") -> None:
        if not self.is_alive:
            return
        self.trace(why)
        self.setting.watch.dies(self)
        self.is_alive = False
        self._waits = None
        if self.body is not None and not self.body.gi_running:
            self.body.close()
        self.engine.die()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.down.drop()
            wire.up.end(lossy=True)
        self.setting.process_ended(self)
