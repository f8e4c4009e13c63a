"""The control thread of one peer (layer 4): its DEALER socket, its clock, its engine's events.

`communicator` makes one Control per membership. The pure machine decides; this thread carries out.
One lock guards the machine's state, since `safe_point` is stepped in the user's thread: with nobody
pending, update() must cost microseconds and no message. Everything else reaches the machine through
the loop of this thread. What user threads wait for (admission, resumption, elections, the end) is
in `Mailbox`, under its own condition. libzmq's own thread answers heartbeats, so a program that
holds the GIL is not taken for dead.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

import uvloop
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from pccl_py.config import Timers
from pccl_py.dataplane.engine import Engine
from pccl_py.errors import (
    Code,
    CoordinatorLost,
    Evicted,
    LocalProtocolError,
    PcclError,
    ProtocolError,
    code_of,
    from_code,
)
from pccl_py.peer import machine, stalls
from pccl_py.peer.calls import Calls
from pccl_py.peer.events import (
    Action,
    Connected,
    Disconnected,
    Event,
    Fail,
    FlushEngine,
    Hold,
    Inspected,
    InspectEngine,
    InstallView,
    Left,
    Note,
    Progress,
    Received,
    Resume,
    SafePoint,
    Send,
    SetTimer,
    StateElected,
    Tick,
)
from pccl_py.peer.state import State
from pccl_py.protocol import encoding, shapes
from pccl_py.protocol.endpoint import Endpoint
from pccl_py.protocol.messages import CODES, FromCoordinator, FromPeer, Hello, Message
from pccl_py.types import Record

SEND_HWM = 4096
RECONNECT_MS = 50
RECONNECT_MAX_MS = 500
LINGER_MS = 200
SLICE_S = 0.1  # how long a wait sleeps before it looks for signals

_stall_log = logging.getLogger("pccl")

_FROM_COORDINATOR = frozenset(kind for code, kind in CODES.items() if code >= 64)


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """coordinators: numeric, all that are listed; one of them acts."""

    coordinators: tuple[Endpoint, ...]
    secret: bytes | None
    timers: Timers


class Mailbox:
    """What the control thread leaves for user threads. Every wait has a deadline and wakes often
    enough for Ctrl-C."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.record: Record | None = None
        self.reached = False  # the coordinator, ever
        self.connected = False  # to it, now
        self.failure: PcclError | None = None
        self.left = False
        self.resumed: bool | None = None  # the held update() goes on; True: the view has grown
        self.elections: dict[int, StateElected] = {}
        self.progress = ""

    def put(
        self,
        *,
        record: Record | None = None,
        connected: bool | None = None,
        failure: PcclError | None = None,
        left: bool = False,
        resumed: bool | None = None,
        election: StateElected | None = None,
        progress: str = "",
    ) -> None:
        """Leaves what is given and wakes whoever waits. Control thread only."""
        with self._condition:
            if record is not None:
                if record.fresh:
                    self.elections.clear()
                self.record = record
            if election is not None:
                self.elections[election.seq] = election
            self.connected = self.connected if connected is None else connected
            self.reached |= self.connected
            self.failure = failure or self.failure
            self.left |= left
            self.resumed = self.resumed if resumed is None else resumed
            self.progress = progress or self.progress
            self._condition.notify_all()

    def forget_progress(self) -> None:
        """What was awaited before is no news of what is awaited from now on. Any thread."""
        with self._condition:
            self.progress = ""

    def wait(self, done: Callable[[], bool], until: float | None) -> bool:
        """Until done(), a failure, or monotonic time `until` (None: without end). Raises the
        failure; returns whether done() holds."""
        with self._condition:
            while not done():
                if self.failure is not None:
                    raise self.failure
                left = SLICE_S if until is None else min(SLICE_S, until - time.monotonic())
                if left <= 0.0:
                    return False
                self._condition.wait(left)
            return True


class Control:
    """The thread. `start` returns at once; `mailbox` tells what happens."""

    def __init__(self, config: ControlConfig, state: State, engine: Engine) -> None:
        self.mailbox = Mailbox()
        self._config = config
        self._engine = engine
        self._state = state
        self._lock = threading.Lock()
        self._log = logging.getLogger("pccl.peer")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._calls: Calls | None = None
        self._stalls = stalls.NONE
        # What the user calls the ops in flight, by id; who keeps those sets it before `start`.
        self.called: Callable[[], Mapping[int, str]] = dict
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._body, name="pccl-control", daemon=True)

    # ------------------------------------------------------------ other threads

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def post(self, event: Event) -> None:
        """Hands an event to the control thread. Any thread; never blocks."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._on_event, event)

    def safe_point(self, position: int) -> bool:
        """The user's thread is at a safe point: True if it must be held. Microseconds."""
        with self._lock:
            self.mailbox.resumed = None
            self._state, actions = machine.step(self._state, SafePoint(position), time.monotonic())
        held = any(isinstance(action, Hold) for action in actions)
        rest = tuple(action for action in actions if not isinstance(action, Hold))
        if rest and self._loop is not None:
            self._loop.call_soon_threadsafe(self._carry_out, rest)
        return held

    def stop(self) -> None:
        """Ends the thread, with last words sent. Any other thread; blocks for up to a second."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def abandon_after_fork(self) -> None:
        """In a forked child: closes the inherited connection, so that the child does not hide its
        parent's death."""
        if self._calls is not None:
            for fd in self._calls.take_fds():
                os.close(fd)

    # ------------------------------------------------------------ the thread

    def _body(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        finally:
            self._ready.set()
            if self._stop is not None and self._stop.is_set():
                self.mailbox.put(failure=Evicted("the communicator was closed meanwhile"))
            else:  # a bug, told by threading.excepthook; nobody may wait for ever because of it
                self._on_failure(CoordinatorLost("the control thread has ended"))

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_ends(asyncio.current_task()))
        self._stop = asyncio.Event()
        context = zmq.asyncio.Context()
        socket = _open_dealer(context, self._config)
        self._socket = socket
        calls = self._calls = Calls(socket, self._config.coordinators)
        monitor = socket.get_monitor_socket(
            zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._loop.add_reader(self._engine.event_fd, self._on_engine)
        self._ready.set()
        self._look_now_and_then()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._receive(socket)),
                    group.create_task(self._watch(monitor, calls)),
                ]
                calls.begin()
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            self._loop.remove_reader(self._engine.event_fd)
            if self._timer is not None:
                self._timer.cancel()
            self._calls = None
            self._socket = None
            socket.disable_monitor()
            monitor.close(linger=0)
            socket.close(linger=LINGER_MS)
            context.term()

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            try:
                message = encoding.decode(frames[-1])
            except ProtocolError as error:
                text = f"the coordinator sent what it must not: {error}"
                if self.mailbox.record is None:
                    listed = ", ".join(map(str, self._config.coordinators))
                    text += f"; is {listed} the coordinator's port?"
                self._on_failure(from_code(Code.PROTOCOL, text))
                continue
            if _is_for_peer(message):
                self._on_event(Received(message))

    async def _watch(self, monitor: zmq.asyncio.Socket, calls: Calls) -> None:
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())
            kind = event["event"]
            address = event["endpoint"].decode(errors="replace")
            if kind == zmq.EVENT_CONNECTED:
                calls.connected(address, int(event["value"]))
            elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                if calls.answered(address):
                    self.mailbox.put(connected=True)
                    self._on_event(Connected())
            elif calls.broke(address):
                self.mailbox.put(connected=False)
                self._on_event(Disconnected())

    def _on_engine(self) -> None:
        while (event := self._engine.next_event()) is not None:
            self._on_event(self._inspected(event) if isinstance(event, Inspected) else event)

    def _inspected(self, told: Inspected) -> Inspected:
        """The ops as the user calls them: the engine knows a named one by its hash alone. What
        takes long gets its line in the log."""
        names = self.called()
        ops = (
            replace(op, called=shapes.clip(names.get(op.op, ""), shapes.CALLED_BYTES_MAX))
            for op in told.ops
        )
        told = replace(told, ops=tuple(ops))
        record, first_s = self.mailbox.record, self._config.timers.detection_s
        self._stalls, lines = stalls.look(self._stalls, told, record, first_s)
        for line in lines:
            _stall_log.warning("%s", line)
        return told

    def _look_now_and_then(self) -> None:
        """While ops are in flight: for how long, and for whom?"""
        if self._loop is None or self._socket is None:
            return
        self._loop.call_later(self._config.timers.detection_s / 2, self._look_now_and_then)
        if self._engine.stats().ops_running:
            self._engine.inspect()

    def _on_event(self, event: Event) -> None:
        with self._lock:
            self._state, actions = machine.step(self._state, event, time.monotonic())
        self._carry_out(actions)

    def _carry_out(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            self._do(action)

    def _do(self, action: Action) -> None:
        mail = self.mailbox
        match action:
            case Send(message):
                self._send(message)
            case InstallView(record):
                self._install(record)
            case InspectEngine():
                self._engine.inspect()
            case FlushEngine(epoch):
                self._engine.flush(epoch)
            case Resume(grown):
                mail.put(resumed=grown)
            case StateElected():
                mail.put(election=action)
            case Progress(text):
                mail.put(progress=text)
            case Left():
                mail.put(left=True)
            case Fail(code, text):
                self._on_failure(from_code(code, text))
            case SetTimer(at):
                self._set_timer(at)
            case Note(name, fields):
                self._log.info("%s %s", name, " ".join(f"{k}={v}" for k, v in fields))
            case Hold():
                raise AssertionError("only safe_point is answered with Hold")

    def _install(self, record: Record) -> None:
        """An op must not return before the view that it ended in is seen; in a new line nothing may
        be submitted before the engine numbers from 0 again."""
        if not record.fresh:
            self.mailbox.put(record=record)
        try:
            self._engine.set_view(record)
        except PcclError as error:  # what was agreed cannot be done here: this peer is out
            self._on_failure(error)
            return
        if record.fresh:
            self.mailbox.put(record=record)

    def _on_failure(self, error: PcclError) -> None:
        """Terminal for this peer id: every op and every waiter gets the error."""
        if self.mailbox.failure is None:
            self._engine.fail(code_of(error), str(error))
            self.mailbox.put(failure=error)

    def _set_timer(self, at: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None and self._loop is not None:
            delay = max(0.0, at - time.monotonic())
            self._timer = self._loop.call_later(delay, self._on_event, Tick())

    def _send(self, message: FromPeer) -> None:
        if self._socket is None:
            return
        try:
            data = self._encoded(message)
        except LocalProtocolError as error:  # said to nobody, it would be waited for: fail at once
            kind = type(message).__name__
            self._on_failure(LocalProtocolError(f"{kind} cannot be sent: {error}"))
            return
        sent = self._socket.send(data, flags=zmq.NOBLOCK)
        assert isinstance(sent, asyncio.Future)
        assert sent.done(), "NOBLOCK is settled at once"
        if sent.exception() is not None:
            # The queue is full: nobody reads at the other end; or it is lost, and we are about to
            # hear of it. What still holds is said again after the next Hello.
            self._log.warning("the coordinator does not read: %s was not sent", type(message))

    def _encoded(self, message: FromPeer) -> bytes:
        if isinstance(message, Hello):
            fresh = replace(message, nonce=secrets.token_bytes(16))
            message = encoding.signed_hello(self._config.secret, fresh)
        return encoding.encode(message)


def _open_dealer(context: zmq.asyncio.Context, config: ControlConfig) -> zmq.asyncio.Socket:
    socket = context.socket(zmq.DEALER)
    silence_ms = max(1, int(600 * config.timers.detection_s))
    options = {
        zmq.SNDHWM: SEND_HWM,
        zmq.RCVHWM: SEND_HWM,
        zmq.MAXMSGSIZE: encoding.MESSAGE_BYTES_MAX,
        zmq.LINGER: LINGER_MS,
        zmq.RECONNECT_IVL: RECONNECT_MS,
        zmq.RECONNECT_IVL_MAX: RECONNECT_MAX_MS,
        zmq.HEARTBEAT_IVL: max(1, int(1000 * config.timers.heartbeat_s)),
        zmq.HEARTBEAT_TIMEOUT: silence_ms,
        zmq.HEARTBEAT_TTL: max(100, silence_ms),
        # With several, nothing may be queued for one that is only being called.
        zmq.IMMEDIATE: int(len(config.coordinators) > 1),
    }
    for option, value in options.items():
        socket.setsockopt(option, value)
    return socket


def _is_for_peer(message: Message) -> TypeGuard[FromCoordinator]:
    return type(message) in _FROM_COORDINATOR


_Told = Callable[[asyncio.AbstractEventLoop, dict[str, object]], None]


def _ends(main: asyncio.Task[None] | None) -> _Told:
    """What becomes of an error in a callback: a bug ends the thread, or others would wait for what
    it left undone."""

    def told(loop: asyncio.AbstractEventLoop, bug: dict[str, object]) -> None:
        loop.default_exception_handler(bug)
        if main is not None:
            main.cancel()

    return told
