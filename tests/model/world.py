"""The world that the exhaustive search walks: the real coordinator, real peer machines, an engine
model each, programs, channels, and what may go wrong. A world is a small tuple of interned ids, so
that a step of a machine, or of an engine, is computed once however many worlds share it.

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
    """up: events for the coordinator, down: messages to each peer, net: frames, all as ids."""

    now: float
    coordinator: int  # -1: crashed
    durable: tuple[int, int, str]  # boot, record id, run
    players: tuple[Player, ...]
    up: tuple[tuple[int, ...], ...]
    down: tuple[tuple[int, ...], ...]
    net: frozenset[int]
    cut: frozenset[frozenset[int]]
    budget: tuple[int, int, int, int]  # deaths, crashes, flaps, timeouts


Move = tuple[str, World]


def _itself(value: object) -> Hashable:
    assert isinstance(value, Hashable)
    return value


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


class EngineStep(NamedTuple):
    """An engine step: the new engine, the frames that leave (ids and links), and what it says."""

    engine: int
    frames: tuple[tuple[int, frozenset[int]], ...]
    mismatched: tuple[int, ...]
    repaired: bool


class Model:
    """All moves of a scene. off: names of switched-off rules (meta-tests)."""

    def __init__(self, scene: Scene, off: frozenset[str] = frozenset()) -> None:
        self.scene, self.off = scene, off
        self.ks, self.ps, self.es = Table(freeze), Table(freeze), Table(_itself)
        self.records, self.frames, self.words = Table(_itself), Table(_itself), Table(_itself)
        self._k_memo: dict[Hashable, tuple[int, tuple[ke.Action, ...]]] = {}
        self._p_memo: dict[Hashable, tuple[int, tuple[pe.Action, ...]]] = {}
        self._e_memo: dict[Hashable, EngineStep] = {}
        self._deaf_memo: dict[tuple[int, int], bool] = {}
        self.checked: set[Hashable] = set()  # players of whom the properties hold

    # -- machines, memoised

    def _k_step(self, kid: int, word: int, now: float) -> tuple[int, tuple[ke.Action, ...]]:
        key = (kid, word, now)
        if key not in self._k_memo:
            before, event = self.ks.items[kid], self.words.items[word]
            after, actions = coordinator.step(before, event, now)
            after = replace(after, told="", told_at=0.0, looked_at=0.0, untold=frozenset())
            if not isinstance(event, ke.Started):
                invariants.check(before, after, actions)
            self._k_memo[key] = (self.ks.add(after), actions)
        return self._k_memo[key]

    def _p_step(self, pid: int, word: int, now: float) -> tuple[int, tuple[pe.Action, ...]]:
        key = (pid, word, now)
        if key not in self._p_memo:
            after, actions = peer_machine.step(self.ps.items[pid], self.words.items[word], now)
            self._p_memo[key] = (self.ps.add(after), actions)
        return self._p_memo[key]

    def _e_step(
        self, key: Hashable, before: Engine, step: Callable[[Engine], eng.Draft]
    ) -> EngineStep:
        """key: what the step is, with the engine's id and all arguments."""
        if key not in self._e_memo:
            draft = step(before)
            sent = [eng.on_its_way(draft.engine, frame) for frame in draft.frames]
            self._e_memo[key] = EngineStep(
                self.es.add(draft.engine),
                tuple((self.frames.add(frame), frozenset(frame.link)) for frame in sent),
                tuple(draft.mismatched),
                draft.repaired,
            )
        return self._e_memo[key]

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
        empty: tuple[tuple[int, ...], ...] = ((),) * len(players)
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

    def _k(self, world: World, event: ke.Event | int) -> World:
        """event: itself, or its id."""
        word = event if isinstance(event, int) else self.words.add(event)
        kid, actions = self._k_step(world.coordinator, word, world.now)
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
                    down[index] = (*down[index], self.words.add(action.message))
        return world._replace(coordinator=kid, durable=(boot, durable, run), down=tuple(down))

    def _p(self, world: World, index: int, event: pe.Event) -> World:
        player = world.players[index]
        pid, actions = self._p_step(player.machine, self.words.add(event), world.now)
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
            record = action.record
            if record.fresh and player.pc < 0:  # a new line: the program goes round again
                world = self._player(world, index, pc=len(PROGRAMS[self._style(index)]) - 1)
            key = ("install", player.engine, self.records.add(record))
            return self._clean(self._e(world, index, key, lambda e: eng.install(e, record)), index)
        elif isinstance(action, pe.FlushEngine):
            engine, report = eng.flush(self.es.items[player.engine])
            world = self._player(world, index, engine=self.es.add(engine))
            world = self._clean(world, index)
            return self._p(world, index, pe.Flushed(action.epoch, *report))
        elif isinstance(action, pe.Resume):
            return self._player(world, index, pc=self._next_pc(world, index))
        return world

    def _e(
        self, world: World, index: int, key: Hashable, step: Callable[[Engine], eng.Draft]
    ) -> World:
        """Take over an engine step: new engine, frames to the net, Repaired to the machine."""
        before: Engine = self.es.items[world.players[index].engine]
        done = self._e_step(key, before, step)
        world = self._player(world, index, engine=done.engine)
        sent = [frame for frame, link in done.frames if link not in world.cut]
        sent = [frame for frame in sent if not self._is_lost(world, frame)]
        if sent:
            world = world._replace(net=world.net.union(sent))
        for op in done.mismatched:
            event = pe.OpMismatched(op, PeerId(index + 1), "members", "", "")
            world = self._p(world, index, event)
        if done.repaired:
            engine: Engine = self.es.items[done.engine]
            world = self._p(world, index, pe.EngineRepaired(engine.epoch))
        return world

    # -- frames that nobody will take: dropping them at once leaves out moves that change nothing

    def _is_lost(self, world: World, frame: int) -> bool:
        receiver = world.players[self.frames.items[frame].link[1] - 1]
        return not receiver.alive or self._is_deaf(receiver.engine, frame)

    def _is_deaf(self, engine: int, frame: int) -> bool:
        key = (engine, frame)
        if key not in self._deaf_memo:
            deaf = eng.is_deaf(self.es.items[engine], self.frames.items[frame])
            self._deaf_memo[key] = deaf
        return self._deaf_memo[key]

    def _clean(self, world: World, index: int) -> World:
        """Of the frames to a member that has stopped, or entered a view, or died."""
        mine = [f for f in world.net if self.frames.items[f].link[1] == index + 1]
        lost = [frame for frame in mine if self._is_lost(world, frame)]
        return world._replace(net=world.net.difference(lost)) if lost else world

    def _player(self, world: World, index: int, **changes: object) -> World:
        players = list(world.players)
        players[index] = players[index]._replace(**changes)  # type: ignore[arg-type]
        return world._replace(players=tuple(players))

    def _up(self, world: World, index: int, event: ke.Event) -> World:
        up = list(world.up)
        up[index] = (*up[index], self.words.add(event))
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

    def sure(self, world: World) -> Move | None:
        """A move that may as well come first: nobody else's move makes a difference to it, nor it
        to theirs, so that the worlds in which it comes later need not be looked at."""
        for index, player in enumerate(world.players):
            if not player.alive or player.pc < 0:
                continue
            if PROGRAMS[self._style(index)][player.pc] != "wait":
                continue
            machine: ps.State = self.ps.items[player.machine]
            if machine.end is not ps.End.NO or not self.es.items[player.engine].idle:
                continue
            return f"{index + 1} waited", self._player(world, index, pc=self._next_pc(world, index))
        return None

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
                yield self._heard(world, index)
            if world.players[index].alive:
                yield from self._peer_moves(world, index)
        for number in world.net:
            frame: Frame = self.frames.items[number]
            receiver = world.players[frame.link[1] - 1]
            if receiver.alive and eng.can_receive(self.es.items[receiver.engine], frame):
                yield self._arrive(world, number, frame)

    def _heard(self, world: World, index: int) -> Move:
        """The coordinator takes the next event of a peer's connection."""
        word = world.up[index][0]
        up = list(world.up)
        up[index] = up[index][1:]
        event = self.words.items[word]
        name = type(getattr(event, "message", event)).__name__
        return f"K gets {name} of {index + 1}", self._k(world._replace(up=tuple(up)), word)

    def _told(self, world: World, index: int) -> Move:
        """A peer takes the next message to it."""
        message = self.words.items[world.down[index][0]]
        down = list(world.down)
        down[index] = down[index][1:]
        rest = world._replace(down=tuple(down))
        name = f"{index + 1} gets {type(message).__name__}"
        return name, self._p(rest, index, pe.Received(message))

    def _arrive(self, world: World, number: int, frame: Frame) -> Move:
        """At its receiver, or at the member that passes it on."""
        at = frame.link[1]
        eid = world.players[at - 1].engine
        rest = world._replace(net=world.net - {number})
        name = f"{frame.type}{frame.op}.{frame.segment} {frame.src}->{frame.dst}"
        if frame.dst == at:
            key = ("receive", eid, number)
            return name, self._e(rest, at - 1, key, lambda engine: eng.receive(engine, frame))
        passed = eng.pass_on(self.es.items[eid], frame)
        if passed is not None and frozenset(passed.link) not in world.cut:
            onward = self.frames.add(passed)
            if not self._is_lost(rest, onward):
                rest = rest._replace(net=rest.net | {onward})
        return f"{name} at {at}", rest

    def _peer_moves(self, world: World, index: int) -> Iterator[Move]:
        me = index + 1
        player = world.players[index]
        machine: ps.State = self.ps.items[player.machine]
        if machine.end is not ps.End.NO:
            return
        if world.down[index]:
            yield self._told(world, index)
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
            context = SUB if step == "sub" else 0
            key = ("submit", player.engine, context)
            moved = self._e(world, index, key, lambda engine: eng.submit(engine, context))
            yield f"{me} submits", self._player(moved, index, pc=self._next_pc(moved, index))
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
        events = [self.words.items[word] for word in world.up[index]]
        old = [e.connection for e in events if isinstance(e, ke.Disconnected)]
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
                frames = self.frames.items
                net = frozenset(f for f in world.net if frozenset(frames[f].link) != pair)
                yield f"cut {one}-{other}", world._replace(cut=world.cut | {pair}, net=net)

    def _kill(self, world: World, index: int) -> World:
        return self._clean(self._player(world, index, alive=False), index)

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
                changed = eng.Draft(engine)
                changed.put(replace(op, timed_out=True))
                late = self._player(world, index, engine=self.es.add(changed.engine))
                event = pe.OpTimedOut(op.number, "late")
                yield f"op {op.number} times out at {index + 1}", self._p(late, index, event)

    def _crash(self, world: World) -> World:
        deaths, crashes, flaps, timeouts = world.budget
        empty: tuple[tuple[int, ...], ...] = ((),) * len(world.players)
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
