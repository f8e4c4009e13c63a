"""The world that the exhaustive search walks: the real coordinator, real peer machines, an engine
model each, programs, channels, and what may go wrong. A world is a small tuple of interned ids, so
that a step of a machine is computed once however many worlds share it.

Messages of one direction of one connection keep their order; everything else may happen in any
order. Time stands still and moves only when nothing else can happen (`Rules.eager`: any time).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import NamedTuple

from pccl_py.coordinator import events as ke
from pccl_py.coordinator import invariants
from pccl_py.coordinator import machine as coordinator
from pccl_py.coordinator import state as ks
from pccl_py.peer import events as pe
from pccl_py.peer import machine as peer_machine
from pccl_py.peer import state as ps
from pccl_py.protocol import messages as m
from pccl_py.types import PeerId, Record
from tests.model import engine as eng
from tests.model.engine import Broken, Engine, Frame, Spec, require

FAR = 1e5  # timers beyond this never ring
DETECTION_S, LONG_S = 5.0, 1e7
GONE = "gone"
SUB = 7  # the context of a sub-group's ops

PROGRAMS: dict[str, tuple[str, ...]] = {
    "end": ("submit", "wait", "update"),
    "begin": ("update", "submit", "wait"),
    "async": ("submit", "submit", "wait", "update"),
    "plain": ("submit", "wait"),
    "pair": ("submit", "submit", "wait"),
    "begin2": ("update", "submit", "submit", "wait"),
    "flight": ("submit", "update", "wait"),
    "sub": ("sub", "wait"),
    "both": ("sub", "submit", "wait"),
    "idle": ("wait",),
    "twice": ("update", "update", "submit", "wait"),
}


@dataclass(frozen=True)
class Scene:
    """programs: of each peer, (style, ops per line, leaves at the end). formed: how many are in the
    first view when the search begins; the others join. broken: cuts that a view excludes already
    when it begins. Faults: how many of each there may be."""

    name: str
    programs: tuple[tuple[str, int, bool], ...]
    formed: int = 3
    segments: int = 1
    specs: tuple[tuple[int, Spec], ...] = ()
    min_members: int = 1
    deaths: int = 0
    mortal: tuple[int, ...] = (1, 2, 3)
    crashes: int = 0
    flaps: int = 0
    timeouts: int = 0
    cuts: tuple[tuple[int, int], ...] = ()
    broken: tuple[tuple[int, int], ...] = ()
    eager: bool = False
    epochs_max: int = 9


class Player(NamedTuple):
    """One peer. pc: place in its program; -1: done. noticed: (epoch, other) losses told."""

    alive: bool
    machine: int
    engine: int
    pc: int
    connection: int  # 0: none
    noticed: frozenset[tuple[int, int]]


class World(NamedTuple):
    now: float
    coordinator: int  # -1: crashed
    durable: tuple[int, int, str]  # boot, record id, run
    players: tuple[Player, ...]
    up: tuple[tuple[Hashable, ...], ...]
    down: tuple[tuple[Hashable, ...], ...]
    net: frozenset[Frame]
    cut: frozenset[frozenset[int]]
    budget: tuple[int, int, int, int]  # deaths, crashes, flaps, timeouts


Move = tuple[str, World]


def freeze(value: object) -> Hashable:
    """A hashable picture of a state; order matters only where it means something."""
    if isinstance(value, dict):
        return frozenset((k, freeze(v)) for k, v in value.items())
    if is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, (Record, m.Answer, m.Sp)):
            return value
        return tuple(freeze(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, tuple):
        return tuple(freeze(item) for item in value)
    assert isinstance(value, Hashable)
    return value


class Table:
    """Interns values by a key."""

    def __init__(self, key: Callable[[object], Hashable]) -> None:
        self._key, self._ids = key, {}  # type: ignore[var-annotated]
        self.items: list = []  # type: ignore[type-arg]

    def add(self, value: object) -> int:
        key = self._key(value)
        number = self._ids.setdefault(key, len(self.items))
        if number == len(self.items):
            self.items.append(value)
        return int(number)


class Model:
    """All moves of a scene. off: names of switched-off rules (meta-tests)."""

    def __init__(self, scene: Scene, off: frozenset[str] = frozenset()) -> None:
        self.scene, self.off = scene, off
        self.ks, self.ps, self.es = Table(freeze), Table(freeze), Table(lambda e: e)  # type: ignore[arg-type, return-value]
        self.records = Table(lambda r: r)  # type: ignore[arg-type, return-value]
        self._k_memo: dict[Hashable, tuple[int, tuple[ke.Action, ...]]] = {}
        self._p_memo: dict[Hashable, tuple[int, tuple[pe.Action, ...]]] = {}
        self.dead_results = frozenset()

    # -- machines, memoised

    def _k_step(self, kid: int, event: ke.Event, now: float) -> tuple[int, tuple[ke.Action, ...]]:
        key = (kid, event, now)
        if key not in self._k_memo:
            before = self.ks.items[kid]
            after, actions = coordinator.step(before, event, now)
            after = replace(after, told="", told_at=0.0, looked_at=0.0, untold=frozenset())
            if not isinstance(event, ke.Started):
                invariants.check(before, after, actions)
            self._k_memo[key] = (self.ks.add(after), actions)
        return self._k_memo[key]

    def _p_step(self, pid: int, event: pe.Event, now: float) -> tuple[int, tuple[pe.Action, ...]]:
        key = (pid, event, now)
        if key not in self._p_memo:
            after, actions = peer_machine.step(self.ps.items[pid], event, now)
            self._p_memo[key] = (self.ps.add(after), actions)
        return self._p_memo[key]

    def start(self) -> World:
        """Everybody before its first word; the coordinator has started."""
        scene = self.scene
        config = ks.Config("run", DETECTION_S, LONG_S, LONG_S)
        players = []
        for index in range(len(scene.programs)):
            identity = ps.initial(
                run="run",
                peer=PeerId(index + 1),
                name=f"w{index + 1}",
                group="g",
                host="h",
                port=1,
                min_members=scene.formed if index < scene.formed else scene.min_members,
                detection_s=LONG_S,
            )
            engine = Engine(index + 1, scene.segments, scene.specs, self.off)
            players.append(
                Player(True, self.ps.add(identity), self.es.add(engine), 0, 0, frozenset())
            )
        empty: tuple[tuple[Hashable, ...], ...] = ((),) * len(players)
        kid = self.ks.add(ks.initial(config))
        none = self.records.add(None)
        budget = (scene.deaths, scene.crashes, scene.flaps, scene.timeouts)
        world = World(
            0.0,
            kid,
            (1, none, "run"),
            tuple(players),
            empty,
            empty,
            frozenset(),
            frozenset(),
            budget,
        )
        return self._k(world, ke.Started(1, None, None))

    # -- applying actions

    def _k(self, world: World, event: ke.Event) -> World:
        kid, actions = self._k_step(world.coordinator, event, world.now)
        boot, durable, run = world.durable
        down = list(world.down)
        for action in actions:
            if isinstance(action, ke.Journal):
                record = action.record
                if "R9" in self.off:
                    groups = tuple(replace(g, verdicts=()) for g in record.groups)
                    record = replace(record, groups=groups)
                durable = self.records.add(record)
                require(record.epoch <= self.scene.epochs_max, "no endless views")
            elif isinstance(action, ke.Send) and not isinstance(action.message, m.Waiting):
                index = action.connection // 100 - 1
                if world.players[index].connection == action.connection:
                    down[index] = (*down[index], action.message)
        return world._replace(coordinator=kid, durable=(boot, durable, run), down=tuple(down))

    def _p(self, world: World, index: int, event: pe.Event) -> World:
        player = world.players[index]
        pid, actions = self._p_step(player.machine, event, world.now)
        world = self._player(world, index, machine=pid)
        for action in actions:
            world = self._p_action(world, index, action)
        return world

    def _p_action(self, world: World, index: int, action: pe.Action) -> World:
        player = world.players[index]
        if isinstance(action, pe.Send):
            if player.connection:
                event = ke.Received(player.connection, action.message)
                return self._up(world, index, event)
        elif isinstance(action, pe.InstallView):
            engine = self.es.items[player.engine]
            if action.record.fresh and player.pc < 0:  # a new line: the program goes round again
                world = self._player(world, index, pc=len(PROGRAMS[self._style(index)]) - 1)
            return self._e(world, index, eng.install(engine, action.record))
        elif isinstance(action, pe.FlushEngine):
            engine, report = eng.flush(self.es.items[player.engine])
            world = self._player(world, index, engine=self.es.add(engine))
            return self._p(world, index, pe.Flushed(action.epoch, *report))
        elif isinstance(action, pe.Resume):
            return self._player(world, index, pc=self._next_pc(world, index))
        return world

    def _e(self, world: World, index: int, draft: eng.Draft) -> World:
        """Take over an engine step: new engine, frames to the net, Repaired to the machine."""
        me = index + 1
        world = self._player(world, index, engine=self.es.add(draft.engine))
        sent = [eng.on_its_way(draft.engine, frame) for frame in draft.frames]
        sent = [frame for frame in sent if frozenset(frame.link) not in world.cut]
        if sent:
            world = world._replace(net=world.net.union(sent))
        for op in draft.mismatched:
            event = pe.OpMismatched(op, PeerId(me), "members", "", "")
            world = self._p(world, index, event)
        if draft.repaired:
            world = self._p(world, index, pe.EngineRepaired(draft.engine.epoch))
        return world

    def _player(self, world: World, index: int, **changes: object) -> World:
        players = list(world.players)
        players[index] = players[index]._replace(**changes)  # type: ignore[arg-type]
        return world._replace(players=tuple(players))

    def _up(self, world: World, index: int, event: ke.Event) -> World:
        up = list(world.up)
        up[index] = (*up[index], event)
        return world._replace(up=tuple(up))

    def _style(self, index: int) -> str:
        return self.scene.programs[index][0]

    def _next_pc(self, world: World, index: int) -> int:
        """Past the current step; at the end of a round: the next round, or done."""
        player = world.players[index]
        style, rounds, _ = self.scene.programs[index]
        program = PROGRAMS[style]
        if player.pc < 0:
            return -1
        pc = player.pc + 1
        if pc < len(program):
            return pc
        engine: Engine = self.es.items[player.engine]
        return 0 if engine.submitted + engine.sub_submitted < rounds else -1

    # -- moves

    def moves(self, world: World) -> list[Move]:
        """What can happen by itself. Time passes only if nothing else can (unless eager)."""
        moves = list(self._ordinary(world))
        if moves and not self.scene.eager:
            return moves
        return [*moves, *self._time(world)]

    def _ordinary(self, world: World) -> Iterator[Move]:
        if world.coordinator < 0:
            yield "K restarts", self._restart(world)
        for index in range(len(world.players)):
            if world.coordinator >= 0 and world.up[index]:
                event = world.up[index][0]
                up = list(world.up)
                up[index] = up[index][1:]
                rest = world._replace(up=tuple(up))
                assert isinstance(event, ke.Received | ke.Disconnected)
                name = type(getattr(event, "message", event)).__name__
                yield f"K gets {name} of {index + 1}", self._k(rest, event)
            if world.players[index].alive:
                yield from self._peer_moves(world, index)
        for frame in world.net:
            receiver = world.players[frame.link[1] - 1]
            if receiver.alive and eng.can_receive(self.es.items[receiver.engine], frame):
                yield self._arrive(world, frame)

    def _arrive(self, world: World, frame: Frame) -> Move:
        """At its receiver, or at the member that passes it on."""
        at = frame.link[1]
        engine: Engine = self.es.items[world.players[at - 1].engine]
        rest = world._replace(net=world.net - {frame})
        name = f"{frame.type}{frame.op}.{frame.segment} {frame.src}->{frame.dst}"
        if frame.dst == at:
            return name, self._e(rest, at - 1, eng.receive(engine, frame))
        passed = eng.pass_on(engine, frame)
        if passed is not None and frozenset(passed.link) not in world.cut:
            rest = rest._replace(net=rest.net | {passed})
        return f"{name} at {at}", rest

    def _peer_moves(self, world: World, index: int) -> Iterator[Move]:
        me = index + 1
        player = world.players[index]
        machine: ps.State = self.ps.items[player.machine]
        if machine.end is not ps.End.NO:
            return
        if world.down[index]:
            message = world.down[index][0]
            down = list(world.down)
            down[index] = down[index][1:]
            rest = world._replace(down=tuple(down))
            name = f"{me} gets {type(message).__name__}"
            yield name, self._p(rest, index, pe.Received(message))  # type: ignore[arg-type]
        if not player.connection and world.coordinator >= 0:
            yield f"{me} connects", self._connect(world, index)
        yield from self._losses(world, index)
        yield from self._program(world, index)

    def _losses(self, world: World, index: int) -> Iterator[Move]:
        """Links to dead members, and cut ones, are noticed."""
        me, player = index + 1, world.players[index]
        engine: Engine = self.es.items[player.engine]
        if engine.record is None:
            return
        for other in engine.ring:
            broken = not world.players[other - 1].alive or frozenset((me, other)) in world.cut
            broken = broken or self.ps.items[world.players[other - 1].machine].end is not ps.End.NO
            news = (engine.epoch, other)
            linked = other != me and _are_linked(engine.record, me, other)
            if linked and broken and news not in player.noticed:
                noted = self._player(world, index, noticed=frozenset([news]) | {
                    n for n in player.noticed if n[0] == engine.epoch
                })  # fmt: skip
                event = pe.LinkLost(engine.epoch, PeerId(other), "reset")
                told = self._p(noted, index, event)
                if told != noted:  # an excluded edge is no news (R22)
                    yield f"{me} loses link to {other}", told

    def _program(self, world: World, index: int) -> Iterator[Move]:
        me, player = index + 1, world.players[index]
        machine: ps.State = self.ps.items[player.machine]
        engine: Engine = self.es.items[player.engine]
        if machine.record is None or machine.leaving:
            return
        if machine.standing is not None:
            may = engine.idle or "R19" in self.off
            if not machine.standing.drained and may:
                event = pe.Drained(machine.standing.position)
                yield f"{me} drained", self._p(world, index, event)
            return
        style, _, leaves = self.scene.programs[index]
        step = PROGRAMS[style][player.pc] if player.pc >= 0 else "done"
        if step in ("submit", "sub"):
            draft = eng.submit(engine, SUB if step == "sub" else 0)
            moved = self._e(world, index, draft)
            yield f"{me} submits", self._player(moved, index, pc=self._next_pc(moved, index))
        elif step == "wait" and engine.idle:
            yield f"{me} waited", self._player(world, index, pc=self._next_pc(world, index))
        elif step == "update" or (step == "done" and not leaves and machine.round is not None):
            moved = self._p(world, index, pe.SafePoint(engine.submitted))
            if self.ps.items[moved.players[index].machine].standing is None:
                moved = self._player(moved, index, pc=self._next_pc(moved, index))
            if moved != world:
                yield f"{me} updates", moved
        elif step == "done" and leaves and engine.idle:
            yield f"{me} wants to leave", self._p(world, index, pe.WantLeave())

    def _connect(self, world: World, index: int) -> World:
        number = (index + 1) * 100 + 1
        old = [e.connection for e in world.up[index] if isinstance(e, ke.Disconnected)]
        while number in old or self._known(world, number):
            number += 1
        world = self._player(world, index, connection=number)
        return self._p(world, index, pe.Connected())

    def _known(self, world: World, connection: int) -> bool:
        state: ks.State = self.ks.items[world.coordinator]
        return connection in state.peer_of

    def _restart(self, world: World) -> World:
        boot, durable, run = world.durable
        fresh = self.ks.items[0]
        world = world._replace(coordinator=self.ks.add(fresh), durable=(boot + 1, durable, run))
        return self._k(world, ke.Started(boot + 1, self.records.items[durable], run))

    def _time(self, world: World) -> Iterator[Move]:
        if world.coordinator >= 0:
            state: ks.State = self.ks.items[world.coordinator]
            if state.timer is not None and state.timer < FAR:
                later = world._replace(now=max(world.now, state.timer))
                ticked = self._k(later, ke.Tick())
                if ticked.coordinator != world.coordinator or ticked.down != world.down:
                    yield f"tick {state.timer}", ticked

    # -- faults

    def faults(self, world: World) -> Iterator[Move]:
        deaths, crashes, flaps, timeouts = world.budget
        for index, player in enumerate(world.players):
            if not player.alive or self.ps.items[player.machine].end is not ps.End.NO:
                continue
            if deaths and index + 1 in self.scene.mortal:
                rest = world._replace(budget=(deaths - 1, crashes, flaps, timeouts))
                yield f"{index + 1} dies", self._hang_up(self._kill(rest, index), index)
            if flaps and player.connection and world.coordinator >= 0:
                rest = world._replace(budget=(deaths, crashes, flaps - 1, timeouts))
                rest = self._hang_up(rest, index)
                yield f"{index + 1} loses control", self._p(rest, index, pe.Disconnected())
            if timeouts:
                rest = world._replace(budget=(deaths, crashes, flaps, timeouts - 1))
                yield from self._timeout(rest, index)
        if crashes and world.coordinator >= 0:
            yield "K crashes", self._crash(world)
        for one, other in self.scene.cuts:
            pair = frozenset((one, other))
            if pair not in world.cut:
                net = frozenset(f for f in world.net if frozenset(f.link) != pair)
                yield f"cut {one}-{other}", world._replace(cut=world.cut | {pair}, net=net)

    def _kill(self, world: World, index: int) -> World:
        return self._player(world, index, alive=False)

    def _hang_up(self, world: World, index: int) -> World:
        """The control connection breaks; what the peer said before may still arrive."""
        connection = world.players[index].connection
        down = list(world.down)
        down[index] = ()
        world = self._player(world._replace(down=tuple(down)), index, connection=0)
        if not connection:
            return world
        return self._up(world, index, ke.Disconnected(connection, GONE))

    def _timeout(self, world: World, index: int) -> Iterator[Move]:
        engine: Engine = self.es.items[world.players[index].engine]
        for op in engine.ops:
            if op.status == eng.RUNNING and not op.timed_out:
                draft = eng.Draft(engine)
                draft.put(replace(op, timed_out=True))
                late = self._e(world, index, draft)
                event = pe.OpTimedOut(op.number, "late")
                yield f"op {op.number} times out at {index + 1}", self._p(late, index, event)

    def _crash(self, world: World) -> World:
        deaths, crashes, flaps, timeouts = world.budget
        empty: tuple[tuple[Hashable, ...], ...] = ((),) * len(world.players)
        world = world._replace(
            coordinator=-1, up=empty, down=empty, budget=(deaths, crashes - 1, flaps, timeouts)
        )
        for index, player in enumerate(world.players):
            world = self._player(world, index, connection=0)
            if player.alive and player.connection:
                world = self._p(world, index, pe.Disconnected())
        return world


def _are_linked(record: Record, me: int, other: int) -> bool:
    """Neighbours in the ring, and who passes frames on for whom."""
    ring = record.groups[0].ring
    place = ring.index(me)
    if other in (ring[place - 1], ring[(place + 1) % len(ring)]):
        return True
    return any(
        eng.relay(record, me, third) == other or eng.relay(record, other, third) == me
        for third in ring
        if third not in (me, other)
    )


__all__ = ["Broken", "Model", "Scene", "World"]
