"""One peer's engine: a real C core, and in Python what `io.c` and `conn.c` do around it.

Links are called by the end with the smaller id; a link that breaks is told once per view and called
again when the core wants it; links to who is no member any more are closed at the install. Bytes
arrive in pieces, sometimes straight in the payload's place. What the engine says goes to `owner` as
the events of the peer machine; how an op ended, to `owner.op_ended`.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pccl_py.dataplane.rows import op_report
from pccl_py.peer import events as pe
from pccl_py.types import PeerId, Record
from tests.sim import cores
from tests.sim.cluster import EV_BAD, EV_ENDED
from tests.sim.programs import Memory, Submission
from tests.simulator.network import DATA, Channel
from tests.simulator.setting import Setting

RETRY_S, AWAIT_S = 0.5, 1.0  # PC_RETRY_NS, PC_AWAIT_NS
HANDSHAKE_S = 10.0
LONG_S = 0.005  # a round trip: a long path, for some scenarios
NEVER = (1 << 64) - 1
SCRATCH = 1 << 14


class Owner(Protocol):
    """The process that an engine is of."""

    index: int
    is_alive: bool
    is_paused: bool

    def gate(self, act: Callable[..., None], *arguments: object) -> None: ...
    def post(self, event: pe.Event) -> None: ...
    def op_ended(self, op: int, result: tuple[int, int, int, int, str]) -> None: ...


@dataclass(slots=True)
class Mate:
    """Another member, as the engine knows it."""

    linked: int = 0
    calling: int = 0
    retry_at: float = 0.0
    is_told: bool = False


class End:
    """One engine's end of a link. held: bytes that arrived and that the core did not take yet;
    flying: how many are on their way to the far end."""

    __slots__ = (
        "engine", "far", "flying", "held", "inwards", "is_linked", "link", "outwards", "peer"
    )  # fmt: skip

    def __init__(self, engine: Engine, peer: int, link: int) -> None:
        self.engine, self.peer, self.link = engine, peer, link
        self.held = bytearray()
        self.flying = 0
        self.is_linked = True
        self.inwards: Channel
        self.outwards: Channel
        self.far: End


class Engine:
    def __init__(self, setting: Setting, owner: Owner) -> None:
        self.setting, self.owner = setting, owner
        self.ffi, self.lib = setting.core.ffi, setting.core.lib
        self.peer = cores.PEER_0 + owner.index
        knobs = setting.scenario
        self.core: Any = cores.new_core(
            setting.core, self.peer, segment=knobs.segment, scratch=SCRATCH,
            small=knobs.small, checksum=knobs.checksum,
        )  # fmt: skip
        self.mates: dict[int, Mate] = {}
        self.ends: dict[int, End] = {}  # by the core's link id
        self.is_failed = False
        self._commands: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._tick_at = float("inf")
        self._event = self.ffi.new("struct pc_core_event *")
        self._slices = self.ffi.new("struct pc_slice[32]")
        self._where = self.ffi.new("uint8_t **")

    # ------------------------------------------------------------ commands, in order, soon

    def command(self, act: Callable[..., None], *arguments: object) -> None:
        """pccl-io does it when it gets to it: mostly at once."""
        self._commands.append((act, arguments))
        if len(self._commands) > 1 or self.setting.random.random() < 0.2:
            lag = 0.0003 * self.setting.random.random()
            self.setting.clock.after(lag, self.owner.gate, self._work)
        else:
            self._work()

    def _work(self) -> None:
        while self._commands and self.owner.is_alive:
            act, arguments = self._commands.popleft()
            act(*arguments)
            self.settle()

    def set_view(self, record: Record) -> None:
        self.command(self._set_view, record)

    def flush(self, epoch: int) -> None:
        self.command(self._flush, epoch)

    def submit(self, sub: Submission, memory: Memory, timeout_s: float) -> None:
        until = self.setting.clock.now + timeout_s
        self.command(self._submit, sub, memory, until)

    def fail(self, code: int, text: str) -> None:
        self.command(self._fail, code, text)

    def _set_view(self, record: Record) -> None:
        me = record.member(self.peer)
        assert me is not None
        if self.is_failed:
            return
        part = record.of_group(me.group)
        place = {peer: index for index, peer in enumerate(part.ring)}
        cuts = [(place[a], place[b]) for a, b in record.excluded if a in place and b in place]
        self._take_mates(part.ring, {part.ring[b if a == place[self.peer] else a]
                                     for a, b in cuts if place[self.peer] in (a, b)})  # fmt: skip
        view, _keep = cores.view_row(
            self.ffi,
            epoch=record.epoch,
            fresh=record.fresh,
            place=place[self.peer],
            peers=part.ring,
            cuts=cuts,
            stable=part.stable,
            verdicts=[(v.op, v.outcome, v.holders, v.code, v.text) for v in part.verdicts],
            hub=place.get(part.hub, -1),
            large=int(part.large),
        )
        assert self.lib.pc_core_set_view(self.core, view, self.now_ns) == 0
        for end in list(self.ends.values()):
            self._feed(end)

    def _take_mates(self, ring: tuple[PeerId, ...], unreached: set[PeerId]) -> None:
        for end in list(self.ends.values()):
            if end.peer in self.mates and (end.peer not in ring or end.peer in unreached):
                self._close(end)
        self.mates = {p: self.mates.get(p) or Mate() for p in ring if p != self.peer}
        for peer, mate in self.mates.items():
            mate.is_told = False
            mate.linked = sum(end.peer == peer for end in self.ends.values())
            if peer in unreached:
                mate.retry_at = 0.0
            elif self.peer < peer:
                self._want(peer)
            elif not mate.linked and not mate.calling and not mate.retry_at:
                self._retry(peer, AWAIT_S)

    def _flush(self, epoch: int) -> None:
        """Repeated flushes are answered again; one of another epoch is not."""
        if not self.lib.pc_core_flush(self.core, epoch):
            return
        report = self.lib.pc_core_report(self.core)
        ops = tuple(op_report(report.ops[i]) for i in range(report.op_count))
        rows = (report.contexts[i] for i in range(report.context_count))
        contexts = tuple((row.context, row.stable) for row in rows)
        answer = pe.Flushed(report.epoch, report.submitted, report.stable, contexts, ops)
        self.lib.pc_core_report_free(report)
        self.owner.post(answer)

    def _submit(self, sub: Submission, memory: Memory, until: float) -> None:
        left_ns = max(1, int((until - self.setting.clock.now) * 1e9))
        if self.is_failed:
            self.owner.op_ended(sub.op_id, (4, 0, 0, 0, "the engine has failed"))
            return
        row, _keep = cores.op_row(self.ffi, sub, memory, self.owner.index, left_ns)
        assert self.lib.pc_core_submit(self.core, row, sub.op_id, self.now_ns) == 0

    def _fail(self, code: int, text: str) -> None:
        if not self.is_failed:
            self.is_failed = True
            for end in list(self.ends.values()):
                self._close(end)
            self.mates = {}
            self.lib.pc_core_fail(self.core, code, text.encode()[:1023], self.now_ns)

    def answer_now(self) -> list[pe.OpReport]:
        """All that the core remembers of ops."""
        report = self.lib.pc_core_report(self.core)
        ops = [op_report(report.ops[i]) for i in range(report.op_count)]
        self.lib.pc_core_report_free(report)
        return ops

    # ------------------------------------------------------------ the loop

    @property
    def now_ns(self) -> int:
        return int(self.setting.clock.now * 1e9)

    def settle(self) -> None:
        """As pc_io_turn: time, events, bytes out, events."""
        self.lib.pc_core_tick(self.core, self.now_ns)
        self._tell()
        for end in list(self.ends.values()):
            self._transmit(end)
        while peer := self.lib.pc_core_wanted(self.core):
            self._want(peer)
        self._tell()
        deadline = self.lib.pc_core_deadline(self.core)
        at = deadline / 1e9 + 1e-6
        if deadline != NEVER and (at < self._tick_at or self._tick_at < self.setting.clock.now):
            self._tick_at = at
            self.setting.clock.at(at, self.owner.gate, self._tick)

    def _tick(self) -> None:
        self._tick_at = float("inf")
        if self.owner.is_alive:
            self.settle()

    def _tell(self) -> None:
        lib, row = self.lib, self._event
        while lib.pc_core_next_event(self.core, row, self.now_ns):
            event = row.event
            kind = event.type
            if kind == EV_ENDED:
                r = row.result
                if row.timed_out:
                    self.owner.post(pe.OpSettled(r.op))
                text = self.ffi.string(r.text).decode()
                self.owner.op_ended(
                    r.op, (r.status, r.contributors_min, r.contributors_max, r.repaired, text)
                )
            elif kind == EV_BAD:
                reason = self.ffi.string(event.reason).decode()
                self.setting.watch.broken_rule(self.owner.index, reason)
            elif kind == lib.PCCL_EVENT_REPAIRED:
                self.owner.post(pe.EngineRepaired(event.epoch))
            elif kind == lib.PCCL_EVENT_TIMEOUT:
                self.owner.post(pe.OpTimedOut(event.op, self.ffi.string(event.reason).decode()))
            elif kind == lib.PCCL_EVENT_MISMATCH:
                texts = (
                    self.ffi.string(t).decode() for t in (event.field, event.mine, event.theirs)
                )
                self.owner.post(pe.OpMismatched(event.op, PeerId(event.peer), *texts))
            else:
                assert kind == lib.PCCL_EVENT_FULL
                self.owner.post(pe.EngineFull())

    def _transmit(self, end: End) -> None:
        """All that the core has for a link, as far as the network takes it."""
        window, rng, buffer = self.setting.scenario.window, self.setting.random, self.ffi.buffer
        while end.is_linked and end.flying < window:
            count = self.lib.pc_core_tx(self.core, end.link, self._slices)
            if not count:
                return
            blob = b"".join([buffer(s.ptr, s.len)[:] for s in self._slices[0:count]])
            blob = blob[: window - end.flying]
            self.lib.pc_core_sent(self.core, end.link, len(blob))
            end.flying += len(blob)
            if len(blob) > 1 and rng.random() < 0.2:
                cut = rng.randrange(1, len(blob))
                end.outwards.send(blob[:cut])
                blob = blob[cut:]
            end.outwards.send(blob)

    def arrived(self, end: End, blob: object) -> None:
        self.owner.gate(self._take, end, blob)

    def _take(self, end: End, blob: object) -> None:
        if not self.owner.is_alive or not end.is_linked:
            return
        if blob is None:
            self._broke(end, "link closed by the other end")
        else:
            assert isinstance(blob, bytes)
            end.held += blob
            self._feed(end)
            was_full = end.far.flying >= self.setting.scenario.window
            end.far.flying -= len(blob)
            if was_full:
                end.far.engine.room(end.far)
        self.settle()

    def room(self, end: End) -> None:
        """What was sent has arrived: there is room for more on that link."""
        self.setting.clock.after(0.0, self.owner.gate, self._room, end)

    def _room(self, end: End) -> None:
        if self.owner.is_alive and end.is_linked:
            self._transmit(end)

    def _feed(self, end: End) -> None:
        """Gives the core what has arrived; it may leave the rest until the next view."""
        lib, held = self.lib, end.held
        while held and end.is_linked:
            space = lib.pc_core_rx_space(self.core, end.link, self._where)
            if space and self.setting.random.random() < 0.5:
                n = min(space, len(held))
                self.ffi.memmove(self._where[0], held, n)
                lib.pc_core_rx_done(self.core, end.link, n)
            else:
                n = lib.pc_core_feed(self.core, end.link, self.ffi.from_buffer(held), len(held))
                if not n:
                    return
            end.held = held = held[n:]
        if end.is_linked and not held:
            lib.pc_core_feed(self.core, end.link, self.ffi.NULL, 0)

    # ------------------------------------------------------------ links

    def _want(self, peer: int) -> None:
        mate = self.mates.get(peer)
        if mate and not mate.linked and not mate.calling and not mate.retry_at:
            mate.calling += 1
            call(self, peer)

    def _retry(self, peer: int, seconds: float) -> None:
        mate = self.mates[peer]
        mate.retry_at = at = self.setting.clock.now + seconds
        self.setting.clock.after(seconds, self.owner.gate, self._again, peer, at)

    def _again(self, peer: int, at: float) -> None:
        mate = self.mates.get(peer)
        if mate and mate.retry_at == at and self.owner.is_alive:
            mate.retry_at = 0.0
            if not mate.linked:
                self._want(peer)

    def called(self, peer: int, reason: str) -> None:
        """A call to `peer` has ended; reason: why there is no link, or empty."""
        mate = self.mates.get(peer)
        if mate is None:
            return
        mate.calling = max(0, mate.calling - 1)
        if reason and not mate.linked:
            self._retry(peer, RETRY_S)
            self._lost(peer, reason)
            self.settle()

    def attach(self, peer: int) -> End:
        """A link to `peer` is up; its channels are the caller's to set."""
        is_long = 2.0 * self.setting.scenario.delay >= LONG_S
        end = End(self, peer, self.lib.pc_core_link_new(self.core, peer, int(is_long)))
        self.ends[end.link] = end
        if peer in self.mates:
            self.mates[peer].linked += 1
            self.mates[peer].retry_at = 0.0
        return end

    def reset(self, end: End) -> None:
        """The link breaks; the other end hears of it by itself."""
        if end.is_linked and self.owner.is_alive:
            self._broke(end, "link: Connection reset by peer")
            self.settle()

    def silent(self, peer: int) -> None:
        """Nothing was heard on the links to a peer for too long."""
        for end in list(self.ends.values()):
            if end.peer == peer:
                self.owner.gate(self.reset, end)

    def _broke(self, end: End, reason: str) -> None:
        self._close(end)
        if end.peer in self.mates:
            self._lost(end.peer, reason)

    def _close(self, end: End) -> None:
        if end.is_linked:
            self._detach(end)
            self.lib.pc_core_link_free(self.core, end.link)
            if end.peer in self.mates:
                self.mates[end.peer].linked -= 1

    def _detach(self, end: End) -> None:
        end.is_linked = False
        del self.ends[end.link]
        end.inwards.drop()
        end.outwards.end(lossy=False)

    def _lost(self, peer: int, reason: str) -> None:
        mate = self.mates[peer]
        if not mate.is_told:
            mate.is_told = True
            epoch = self.lib.pc_core_epoch(self.core)
            self.owner.post(pe.LinkLost(epoch, PeerId(peer), reason))

    def die(self) -> None:
        """The process is gone; what its kernel had not sent may be lost."""
        for end in list(self.ends.values()):
            end.is_linked = False
            end.inwards.drop()
            end.outwards.end(lossy=True)
        self.ends.clear()


# ---------------------------------------------------------------- calls


def call(engine: Engine, peer: int, since: float | None = None) -> None:
    """An engine calls another: a round trip, or longer if the way is blocked."""
    setting = engine.setting
    one, other = engine.owner.index, peer - cores.PEER_0
    since = setting.clock.now if since is None else since
    seconds = setting.net.delay(one, other) + setting.net.delay(other, one)
    setting.clock.after(seconds, engine.owner.gate, _called, engine, peer, since)


def _called(engine: Engine, peer: int, since: float) -> None:
    setting, here, there = engine.setting, engine.owner.index, peer - cores.PEER_0
    if not engine.owner.is_alive or engine.is_failed:
        return
    ways = ((here, there, DATA), (there, here, DATA))
    other = setting.engine_of(peer)
    if frozenset((here, there)) in setting.refused:
        engine.called(peer, "connect: Connection refused")
    elif any(setting.net.is_blocked(way) for way in ways):
        if setting.clock.now - since > HANDSHAKE_S:
            engine.called(peer, "no handshake in time")
        else:
            setting.clock.after(0.2, engine.owner.gate, call, engine, peer, since)
    elif other is None or other.is_failed:
        engine.called(peer, "connect: Connection refused")
    else:
        other.owner.gate(_answered, engine, other, since)


def _answered(engine: Engine, other: Engine, since: float) -> None:
    """The other end's process has taken the call."""
    if not other.owner.is_alive or other.is_failed or not engine.owner.is_alive:
        engine.owner.gate(engine.called, other.peer, "handshake: Connection reset by peer")
    elif engine.owner.is_paused:  # it takes the answer when it goes on
        engine.owner.gate(_called, engine, other.peer, since)
    elif not engine.is_failed:
        engine.called(other.peer, "")
        _connect(engine, other)


def _connect(one: Engine, other: Engine) -> None:
    """Both ends of a new link, each with a channel to the other."""
    here, there = one.attach(other.peer), other.attach(one.peer)
    here.far, there.far = there, here
    for end, far in ((here, there), (there, here)):
        way = (end.engine.owner.index, far.engine.owner.index, DATA)
        channel = Channel(one.setting.net, way, functools.partial(far.engine.arrived, far))
        end.outwards = far.inwards = channel
    one.settle()
    other.settle()
