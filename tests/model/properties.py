"""The named properties of the whole system, of every world and of those that have come to rest."""

from __future__ import annotations

from pccl_py.errors import Code
from pccl_py.peer import state as ps
from pccl_py.types import OnLoss
from tests.model.engine import OK, Engine, Spec, require
from tests.model.world import Model, World


def checked(model: Model, world: World) -> None:
    """Properties of every world. They speak of the players alone, whom many worlds share."""
    players = tuple((player.alive, player.machine, player.engine) for player in world.players)
    if players not in model.checked:
        check(model, world)
        model.checked.add(players)


def check(model: Model, world: World) -> None:
    """Properties of every world."""
    results: dict[tuple[int, int], object] = {}
    records: dict[int, object] = {}
    for player in world.players:
        engine: Engine = model.es.items[player.engine]
        machine: ps.State = model.ps.items[player.machine]
        if engine.record is not None:
            same = records.setdefault(engine.epoch, engine.record) == engine.record
            require(same, "views of equal epoch are equal")
            assert machine.record is not None
            require(machine.epoch == engine.epoch, "machine and engine are in one epoch")
        if not player.alive or machine.end is ps.End.FAILED:
            continue
        for line, op, outcome in engine.results:
            known = results.setdefault((line, op), outcome)
            require(known == outcome, f"op {op} ends the same at all survivors: {known}, {outcome}")
            _check_reason(model, world, engine, op, outcome)


def _check_reason(model: Model, world: World, engine: Engine, op: int, outcome: object) -> None:
    """Whether an op may end like this."""
    spec = dict(engine.specs).get(op, Spec())
    among = spec.among or tuple(range(1, len(world.players) + 1))
    if outcome == ("error", Code.PEER_LOST):
        gone = [p for p in among if p not in engine.ring or _is_gone(model, world, p)]
        require(bool(gone), f"op {op} misses a peer only if one that takes part is gone")
    elif spec.on_loss is OnLoss.STRICT:
        require(
            all(
                value is not None and value[1] == mine.begun
                for mine in engine.ops
                if mine.number == op and mine.status == OK
                for value in mine.final
            ),
            f"a strict op {op} ends well only with all among whom it began (R2)",
        )
    elif outcome != ("error", Code.DEADLINE_EXCEEDED) and spec.on_loss is OnLoss.TO_ROOT:
        root: Engine = model.es.items[world.players[spec.root - 1].engine]
        whole = any(mine.number == op and None not in mine.final for mine in root.ops)
        require(whole, f"op {op} ends well only if its destination has all")


def _is_gone(model: Model, world: World, peer: int) -> bool:
    player = world.players[peer - 1]
    return not player.alive or model.ps.items[player.machine].end is not ps.End.NO


def check_quiet(model: Model, world: World) -> None:
    """Properties of a world in which nothing can happen by itself: nobody waits for ever."""
    state = model.ks.items[world.coordinator]
    require(state.soft.flush is None, "no flush hangs")
    require(state.soft.admission is None, "no admission hangs")
    require(not state.pending, "no newcomer waits for ever")
    for index, player in enumerate(world.players):
        engine: Engine = model.es.items[player.engine]
        machine: ps.State = model.ps.items[player.machine]
        if not player.alive or machine.end is not ps.End.NO:
            if machine.end is ps.End.FAILED and _all_reach_each_other(world):
                scene = model.scene  # an op that misses two deadlines is a fault as well
                deaths, crashes, flaps, timeouts = world.budget
                faults = scene.deaths - deaths + scene.crashes - crashes + scene.flaps - flaps
                faults += (scene.timeouts - timeouts) // 2
                require(faults > 0, "nobody is expelled without a fault")
            continue
        require(machine.record is not None, f"{index + 1} has entered")
        require(engine.idle, f"all ops of {index + 1} have ended")
        require(machine.standing is None, f"{index + 1} is not held")
        require(player.pc < 0, f"{index + 1}'s program has come to its end")
        require(not machine.stopped, f"{index + 1} is not left in a flush")
        require(not machine.leaving, f"{index + 1} has left")


def _all_reach_each_other(world: World) -> bool:
    """Each cut has a living member that reaches both ends."""
    living = [index + 1 for index, player in enumerate(world.players) if player.alive]
    return all(
        any(not world.cut & {frozenset((end, third)) for end in pair} for third in living if
            third not in pair)
        for pair in world.cut
    )  # fmt: skip
