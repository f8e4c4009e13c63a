"""A small log of a storm in which nothing is wrong, for tests that plant something."""

from __future__ import annotations

from stress.storm.records import (
    Began,
    Calling,
    Calm,
    Closed,
    Exited,
    Fault,
    Flipped,
    Footprint,
    Healed,
    Joined,
    Left,
    Lost,
    OpEnd,
    Over,
    Record,
    Spawned,
    Stepped,
    Synced,
)

MIB = 1 << 20


def op(kind: str = "all_reduce", end: str = "ok", *, strict: bool = False) -> OpEnd:
    return OpEnd(kind, strict, end, "d1" if end == "ok" else end, 3, 3, 0, 0.1, "", "")


def stepped(who: str, at: float, step: int, epoch: int, world: str, line: int = 1) -> Stepped:
    names = tuple(world.split())
    state = f"s{line}.{step}"
    return Stepped(at, who, line, step, epoch, names, at - 0.3, 0.1, state, (op(),))


def steps(world: str, first: float, numbers: range, epoch: int, line: int = 1) -> list[Record]:
    """Of all of them, one every half second, and what they call."""
    made: list[Record] = []
    for i, number in enumerate(numbers):
        at = first + 0.5 * i
        for who in world.split():
            made += [Calling(at - 0.4, who, f"step {number}"),
                     stepped(who, at, number, epoch, world, line)]  # fmt: skip
    return made


def entering(who: str, slot: int, at: float, epoch: int, line: int) -> list[Record]:
    return [
        Spawned(at, who, slot),
        Footprint(at, who, "before", 30 * MIB, 9, 1),
        Calling(at, who, "join"),
        Joined(at + 0.2, who, 100 + slot, epoch, line, 0.2),
        Calling(at + 0.2, who, "sync"),
        Synced(at + 0.3, who, line, 0, 0.1, "", f"y{line}"),
    ]


def leaving(who: str, at: float) -> list[Record]:
    return [
        Footprint(at, who, "last", 60 * MIB, 30, 5),
        Calling(at, who, "leave"),
        Left(at + 0.1, who, 0.1),
        Footprint(at + 0.1, who, "after", 40 * MIB, 9, 1),
        Exited(at + 0.2, who, 0),
    ]


def healthy() -> list[Record]:
    """p0 to p2; p2 is killed at 4 s, p3 comes at 8 s; p1 is stopped at 12 s, expelled, back."""
    made: list[Record] = [
        Began(0.0, "suite", 7, 30.0, 12.0, 3.0, True),
        Footprint(0.0, "coordinator", "before", 35 * MIB, 23, 4),
    ]
    for slot in range(3):
        made += entering(f"p{slot}", slot, 0.5, 1, 1)
    made += steps("p0 p1 p2", 1.5, range(5), 1)
    made += [Footprint(3.6, who, "member", 50 * MIB, 30, 5) for who in ("p0", "p1")]
    made += [Fault(4.0, 1, "kill", ("p2",), 0.0), Exited(4.0, "p2", -9)]
    made += steps("p0 p1", 4.5, range(5, 10), 2)
    made += [Fault(7.0, 2, "coordinator", (), 0.0), Healed(7.8, 2)]
    made += [Fault(8.0, 3, "join", ("p3",), 0.0), *entering("p3", 2, 8.0, 3, 2)]
    made += [Synced(8.3, who, 2, 0, 0.1, "", "y2") for who in ("p0", "p1")]
    made += steps("p0 p1 p3", 9.0, range(10, 14), 3, 2)
    made += [Fault(11.0, 4, "corrupt", ("p0", "p3"), 0.0), Flipped(11.1, 9, ("p0", "p3"))]
    made += [Closed(11.2, 9)]
    made += [Calling(11.8, "p1", "step 14"), Fault(12.0, 5, "stop", ("p1",), 5.0)]
    made += steps("p0 p3", 15.5, range(14, 20), 4, 2)
    made += [Healed(17.0, 5), Lost(17.5, "p1", "Evicted", "silent", 2, 14)]
    made += [Calling(17.5, "p1", "join"), Joined(18.5, "p1", 201, 5, 3, 1.0)]
    made += [Synced(19.0, who, 3, 0, 0.1, "p0", "y3") for who in ("p0", "p1", "p3")]
    made += steps("p0 p3 p1", 19.5, range(20, 24), 5, 3)
    made += [Calm(21.2, ("p0", "p1", "p3"))]
    made += steps("p0 p3 p1", 21.5, range(24, 28), 5, 3)
    for who in ("p0", "p1", "p3"):
        made += leaving(who, 24.0)
    made += [
        Over(25.0),
        Footprint(25.0, "coordinator", "after", 36 * MIB, 23, 4),
        Exited(25.2, "coordinator", 0),
    ]
    return made
