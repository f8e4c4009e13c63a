"""The coordinator's shell: its only sockets, timers and signals (layer 4).

`pccl coordinator` calls `serve`; what to do is decided by the pure machine that is passed in. One
task reads the ROUTER, decodes, authenticates and queues events; exactly one task feeds the machine
and carries out its actions in order. A step's record is stored before anything else of that step is
done (R9); if that cannot be now, the step has not happened: the machine's state is a value, and the
old one stands. A third task watches the ROUTER's monitor; a fourth confirms losses. ROUTER facts
that shaped this (found by trying): routing ids are left to the ROUTER, since a duplicate is dropped
in silence; a DEALER reconnects in silence, so peers greet after every handshake; a broken
connection is named by its file descriptor only, which is reused at once, so a loss is believed when
a send to the routing id fails with EHOSTUNREACH.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeGuard, TypeVar, assert_never

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from pccl_py.config import Timers
from pccl_py.coordinator import tenure
from pccl_py.coordinator.connections import (
    LINKS_MAX,
    Connections,
    Link,
    check_proof,
    refusal_of,
)
from pccl_py.coordinator.events import (
    Action,
    Close,
    Disconnected,
    Event,
    Journal,
    JournalFailed,
    JournalWorks,
    Note,
    Received,
    Send,
    SetTimer,
    Started,
    Tick,
)
from pccl_py.coordinator.sockets import (
    PortInUse,
    hold,
    is_free,
    open_monitor,
    open_router,
    resolved,
)
from pccl_py.coordinator.store import Deposed, NotStored, Store
from pccl_py.errors import Code, PcclError, RemoteProtocolError, UsageError
from pccl_py.protocol import encoding
from pccl_py.protocol.endpoint import Endpoint
from pccl_py.protocol.messages import (
    CODES,
    FromCoordinator,
    FromPeer,
    Hello,
    InFlight,
    Inspect,
    Message,
    Refused,
    Status,
    StatusRequest,
    Waiting,
)

EVENTS_MAX = 1024
RETRY_S = 0.5  # how often it is tried whether the journal takes records again, a port is free

_AFTER_GREETING_S = (0.05, 0.5)
"""A peer that died right after its Hello may have been reported broken before that was read."""
_AFTER_BREAK_S = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""The monitor speaks from the I/O thread, a little before the ROUTER forgets the routing id."""

_log = logging.getLogger("pccl.coordinator")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the shell needs to know. run: None adopts the first joiner's; parent_pid: end when it is
    no longer our parent."""

    bind: Endpoint
    timers: Timers
    run: str | None = None
    secret: bytes | None = None
    place: tenure.Place = field(default_factory=tenure.Place)
    parent_pid: int | None = None


async def serve(
    config: ServerConfig,
    ready: Callable[[str, int], None],
    state: S,
    step: Callable[[S, Event, float], tuple[S, Sequence[Action]]],
) -> None:
    """Run a coordinator until SIGTERM or SIGINT; `ready(host, port)` is called when it listens,
    which a standby does only when it acts.

    Raises UsageError (off loopback without a secret, a standby on port 0, a state directory in use
    or of another run), ResourceError (port in use, disk). Runs on the main thread, because of
    the signals.
    """
    host = resolved(config.bind)
    if not host.is_loopback and config.secret is None:
        raise UsageError(
            f"refusing to listen on {config.bind} without a run secret: "
            "set PCCL_SECRET or PCCL_SECRET_FILE, or bind to 127.0.0.1"
        )
    if config.place.standby and config.bind.port == 0:
        raise UsageError(
            f"--standby with --bind {config.bind}: choose the port, or no peer can list it in "
            'join("one:PORT,two:PORT")'
        )
    end = tenure.End(config.parent_pid)
    place = config.place
    while True:
        try:
            await _act(config, place, host, ready, end, state, step)
            return
        except Deposed as error:
            place = tenure.retired(place, error)
            _log.warning("acts no more: %s", error.strerror)
        except PortInUse as error:
            if not place.standby:
                raise
            # The store is given back meanwhile: another standby may act, if its port is free.
            _log.warning("cannot take over, and stands by until that is free: %s", error.strerror)
            while True:
                if await end.within(RETRY_S):
                    return
                if is_free(host):
                    break


async def _act(
    config: ServerConfig,
    place: tenure.Place,
    host: Endpoint,
    ready: Callable[[str, int], None],
    end: tenure.End,
    state: S,
    step: Callable[[S, Event, float], tuple[S, Sequence[Action]]],
) -> None:
    """Wait until it is for us to act, then act until the end. Raises Deposed."""
    with hold(host, place.standby) as held:
        async with tenure.begin(place, config.run, end) as store:
            held.close()
            if store is None:
                return
            with open_router(host, config.timers) as router:
                port = int(router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
                shell = _Shell(config, router, store, state, step)
                await shell.run(lambda: ready(config.bind.host, port), end)


class _Shell(Generic[S]):
    """The tasks around one machine. Nothing here is touched from another thread."""

    def __init__(
        self,
        config: ServerConfig,
        router: zmq.asyncio.Socket,
        store: Store,
        state: S,
        step: Callable[[S, Event, float], tuple[S, Sequence[Action]]],
    ) -> None:
        self._config = config
        self._router = router
        self._store = store
        self._state = state
        self._step = step
        self._connections = Connections()
        self._events: asyncio.Queue[Event] = asyncio.Queue(EVENTS_MAX)
        self._own_events: deque[Event] = deque()  # of the stepping task, which must not wait
        self._tick_at: float | None = None
        self._probes: list[tuple[float, int]] = []  # heap of (monotonic seconds, link number)
        self._probes_changed = asyncio.Event()
        self._is_stuck = asyncio.Event()  # the journal takes no record
        self._last_sent: tuple[FromCoordinator, bytes] | None = None
        self._messages = 0  # received and sent, those for a status apart

    async def run(self, ready: Callable[[], None], end: tenure.End) -> None:
        remembered = self._store.remembered
        run = remembered.run if self._config.run is None else self._config.run
        self._own_events.append(Started(remembered.boot, remembered.record, run))
        with open_monitor(self._router) as monitor:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._advance()),
                        group.create_task(self._receive()),
                        group.create_task(self._watch_monitor(monitor)),
                        group.create_task(self._probe()),
                        group.create_task(self._store.guard()),
                        group.create_task(self._retry()),
                    ]
                    ready()
                    await end.wait()
                    for task in tasks:
                        task.cancel()
            except ExceptionGroup as errors:
                expected, unexpected = errors.split(PcclError)
                if expected is None or unexpected is not None:
                    raise
                raise expected.exceptions[0] from None
        _log.info("stopped")

    # ------------------------------------------------------------ reading

    async def _receive(self) -> None:
        while True:
            frames = await self._router.recv_multipart(copy=False)
            event = await self._judge(frames)
            if event is not None:
                await self._events.put(event)

    async def _judge(self, frames: Sequence[zmq.Frame]) -> Event | None:
        """The event that a message amounts to, if any; refuses and bans who breaks the rules."""
        routing_id = frames[0].bytes
        if self._connections.is_banned(routing_id):
            return None
        link = self._connections.of_id(routing_id)
        known = link is not None
        body = frames[-1]
        if not known and len(body) > encoding.GREETING_BYTES_MAX:
            # No greeting is so long. A peer's socket may first repeat what it had queued for our
            # former life (V11), so this is no offence.
            return None
        try:
            if len(frames) != 2:
                raise RemoteProtocolError(f"a message of {len(frames) - 1} parts")
            message = encoding.decode(body.buffer)
            if not _is_from_peer(message):
                raise RemoteProtocolError(f"{type(message).__name__} is not for a coordinator")
        except RemoteProtocolError as error:
            return await self._refuse(routing_id, refusal_of(error))
        self._messages += not isinstance(message, StatusRequest | InFlight)
        match message:
            case Hello() | StatusRequest():
                refusal = check_proof(self._config.secret, message)
                if refusal is None and not known and len(self._connections) >= LINKS_MAX:
                    refusal = Refused(Code.RESOURCE, f"{LINKS_MAX} connections are open already")
                if refusal is not None:
                    return await self._refuse(routing_id, refusal)
                if link is None:
                    link = self._greeted(routing_id, body)
                return Received(link.number, message)
            case _:
                return None if link is None else Received(link.number, message)

    def _greeted(self, routing_id: bytes, body: zmq.Frame) -> Link:
        fd = body.get(zmq.SRCFD)
        assert isinstance(fd, int)
        for older in self._connections.at_fd(fd):
            self._suspect(older, _AFTER_BREAK_S)
        link = self._connections.add(routing_id, fd)
        self._suspect(link, _AFTER_GREETING_S)
        return link

    async def _refuse(self, routing_id: bytes, refusal: Refused) -> Event | None:
        """Tell, ignore from now on, log one line; the loss of a known peer is an event."""
        _log.warning("refused a connection: %s", encoding.printable(refusal.text))
        await self._deliver(routing_id, encoding.encode(refusal))
        self._connections.ban(routing_id)
        link = self._connections.of_id(routing_id)
        if link is None:
            return None
        self._connections.drop(link)
        return Disconnected(link.number, f"refused: {encoding.printable(refusal.text)}")

    # ------------------------------------------------------------ the machine

    async def _advance(self) -> None:
        """The one task that steps the machine and carries out what it wants, in order."""
        while True:
            event = await self._next_event()
            now = time.monotonic()
            self._store.check()
            state, actions = self._step(self._state, event, now)
            try:
                await self._make_durable(actions)
            except NotStored as error:
                reason = encoding.printable(error.strerror or str(error))
                self._state, actions = self._step(self._state, JournalFailed(reason), now)
                await self._carry_out(actions)
                self._is_stuck.set()
                state, actions = self._step(self._state, event, now)
                assert not any(isinstance(action, Journal) for action in actions)
            self._state = state
            await self._carry_out(actions)

    async def _make_durable(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Journal):
                await self._store.append(action.record, action.run)

    async def _retry(self) -> None:
        """Tell the machine when the journal takes records again."""
        while True:
            await self._is_stuck.wait()
            await asyncio.sleep(RETRY_S)
            try:
                await self._store.probe()
            except NotStored:
                continue
            self._is_stuck.clear()
            await self._events.put(JournalWorks())

    async def _next_event(self) -> Event:
        if self._own_events:
            return self._own_events.popleft()
        if self._tick_at is None:
            return await self._events.get()
        wait_s = self._tick_at - time.monotonic()
        if wait_s > 0.0:
            try:
                async with asyncio.timeout(wait_s):
                    return await self._events.get()
            except TimeoutError:
                pass
        self._tick_at = None
        return Tick()

    async def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            await self._do(action)

    async def _do(self, action: Action) -> None:
        match action:
            case Send(number, message):
                await self._send(number, self._counted(message))
            case Close(number):
                link = self._connections.of_number(number)
                if link is not None:
                    self._lose(link, "closed by the coordinator")
            case Journal():
                pass  # done, before all others
            case SetTimer(at):
                self._tick_at = at
            case Note(name, fields, grave):
                values = " ".join(f"{key}={encoding.printable(text)}" for key, text in fields)
                level = logging.WARNING if grave else logging.INFO
                _log.log(level, "%s", f"{name} {values}".rstrip())
            case _:
                assert_never(action)

    def _counted(self, message: FromCoordinator) -> FromCoordinator:
        """The message, counted; a Status also tells the count, which the machine cannot know."""
        if isinstance(message, Status):
            body = json.loads(message.json) | {"control_messages": self._messages}
            return Status(json.dumps(body))
        self._messages += not isinstance(message, Inspect)
        return message

    async def _send(self, number: int, message: FromCoordinator) -> None:
        link = self._connections.of_number(number)
        if link is None:  # it broke a moment ago, and the machine will hear of it
            return
        failure = await self._deliver(link.routing_id, self._encoded(message))
        if failure is not None:
            self._lose(link, failure)

    def _encoded(self, message: FromCoordinator) -> bytes:
        """What goes to all members, a view say, is one message and is encoded once."""
        if self._last_sent is None or self._last_sent[0] is not message:
            self._last_sent = (message, encoding.encode(message))
        return self._last_sent[1]

    def _lose(self, link: Link, reason: str) -> None:
        """Hear no more of this link; the machine is told next, in this same task. Also after a
        Close: else a member that it refused would stay one that never breaks its connection."""
        self._connections.drop(link)
        self._connections.ban(link.routing_id)
        self._own_events.append(Disconnected(link.number, reason))

    async def _deliver(self, routing_id: bytes, data: bytes) -> str | None:
        """Queue `data` for a connection; None, or why that cannot be."""
        try:
            await self._router.send_multipart([routing_id, data], flags=zmq.NOBLOCK)
        except zmq.Again:
            return "it does not read what it is sent"
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return "the control connection is gone"
        return None

    # ------------------------------------------------------------ losses

    async def _watch_monitor(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            fd = parse_monitor_message(await monitor.recv_multipart())["value"]
            for link in self._connections.at_fd(int(fd)):
                self._suspect(link, _AFTER_BREAK_S)

    def _suspect(self, link: Link, delays_s: Sequence[float]) -> None:
        now = time.monotonic()
        for delay_s in delays_s:
            heapq.heappush(self._probes, (now + delay_s, link.number))
        self._probes_changed.set()

    async def _probe(self) -> None:
        """Send suspected links a word that peers ignore: who cannot be reached is lost."""
        word = encoding.encode(Waiting(""))
        while True:
            number = await self._next_suspect()
            link = self._connections.of_number(number)
            if link is None:
                continue
            failure = await self._deliver(link.routing_id, word)
            if failure is not None:
                self._connections.drop(link)
                self._connections.ban(link.routing_id)
                await self._events.put(Disconnected(number, failure))

    async def _next_suspect(self) -> int:
        while True:
            self._probes_changed.clear()
            wait_s = self._probes[0][0] - time.monotonic() if self._probes else None
            if wait_s is not None and wait_s <= 0.0:
                return heapq.heappop(self._probes)[1]
            try:
                async with asyncio.timeout(wait_s):
                    await self._probes_changed.wait()
            except TimeoutError:
                pass


_FROM_PEER = frozenset(kind for code, kind in CODES.items() if code < 64)


def _is_from_peer(message: Message) -> TypeGuard[FromPeer]:
    return type(message) in _FROM_PEER
