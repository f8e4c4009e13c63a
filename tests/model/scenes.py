"""The scenes of the search. QUICK ones are searched whole in the normal suite; LONG ones take
minutes and run with `make model`, up to a bound each; FIELD ones are wandered through."""

from __future__ import annotations

from pccl_py.types import OnLoss, op_id
from tests.model.engine import Spec
from tests.model.world import SUB, Scene

P = ("plain", 1, False)
LEAVER = ("plain", 1, True)
END, BEGIN = ("end", 1, False), ("begin", 1, False)
END_TWO = ("end", 2, False)
FLIGHT = ("flight", 1, False)
TWICE, ASYNC = ("twice", 1, False), ("async", 2, False)
PAIR = ("pair", 2, False)
BCAST = ((1, Spec(OnLoss.SPREAD, 1)),)
STRICT = ((1, Spec(OnLoss.STRICT)),)
GATHER_ALL = ((1, Spec(OnLoss.FIXED)),)
EXCHANGE = ((1, Spec(OnLoss.EXCHANGE)),)
GATHER = ((1, Spec(OnLoss.TO_ROOT, 1)),)
SCATTER = ((1, Spec(OnLoss.FROM_ROOT, 1)),)
BOTH, IDLE, OF_TWO = ("both", 2, False), ("idle", 0, False), ("sub", 1, False)


def among_two(on_loss: OnLoss, root: int = 0) -> tuple[tuple[int, Spec], ...]:
    """The first op of the sub-group of members 1 and 2."""
    return ((op_id(1, context=SUB), Spec(on_loss, root, (1, 2))),)


QUICK = (
    Scene("first view", (P, P, P), formed=0, min_members=3),
    Scene("first view, control flaps", (P, P), formed=0, min_members=2, flaps=1),
    Scene("peers trickle in", (BEGIN, BEGIN, BEGIN), formed=0),
    Scene("an op", (P, P, P), segments=2),
    Scene("a death", (P, P, P), deaths=1, mortal=(3,)),
    Scene("a death of two, two segments", (P, P), formed=2, deaths=1, segments=2),
    Scene("a strict op", (P, P), formed=2, deaths=1, segments=2, specs=STRICT),
    Scene("a broadcast", (P, P, P), deaths=1, mortal=(1, 2), specs=BCAST),
    Scene("an all_gather", (P, P), formed=2, deaths=1, specs=GATHER_ALL),
    Scene("an all_to_all", (P, P), formed=2, deaths=1, specs=EXCHANGE),
    Scene("a gather", (P, P, P), deaths=1, mortal=(1,), specs=GATHER),
    Scene("a gather of two", (P, P), formed=2, deaths=1, specs=GATHER),
    Scene("a scatter", (P, P), formed=2, deaths=1, specs=SCATTER),
    Scene(
        "an all_gather of two of three",
        (OF_TWO, OF_TWO, IDLE),
        deaths=1,
        mortal=(3,),
        specs=among_two(OnLoss.FIXED),
    ),
    Scene(
        "a send past a third", (OF_TWO, OF_TWO, IDLE), deaths=1, specs=among_two(OnLoss.TO_ROOT, 2)
    ),
    Scene(
        "an all_reduce of two of three",
        (OF_TWO, OF_TWO, IDLE),
        deaths=1,
        mortal=(1, 3),
        specs=among_two(OnLoss.REPAIR),
    ),
    Scene("a gather of three times out", (P, P, P), timeouts=1, specs=GATHER),
    Scene("a time-out", (P, P, P), timeouts=1),
    Scene("two time-outs", (P, P), formed=2, timeouts=2),
    Scene("a time-out and a flap", (P, P), formed=2, flaps=1, timeouts=1),
    Scene("a leave and a death", (LEAVER, P, P), deaths=1, mortal=(2,)),
    Scene("all leave", (LEAVER, LEAVER), formed=2),
    Scene("a cut", (P, P, P), cuts=((1, 2),)),
    Scene("a cut, then another", (P, P, P), cuts=((1, 2), (1, 3))),
    Scene(
        "a send past a relay",
        (OF_TWO, OF_TWO, IDLE),
        cuts=((1, 2),),
        deaths=1,
        mortal=(3,),
        specs=among_two(OnLoss.TO_ROOT, 2),
    ),
    Scene(
        "two relays",
        (OF_TWO, OF_TWO, IDLE, IDLE),
        formed=4,
        broken=((1, 2),),
        deaths=1,
        mortal=(3,),
        specs=among_two(OnLoss.TO_ROOT, 2),
    ),
    Scene("a cut between two", (P, P), formed=2, cuts=((1, 2),), eager=True),
    Scene("K crashes", (P, P), formed=2, crashes=1, deaths=1),
    Scene("K crashes, a time-out", (P, P), formed=2, crashes=1, timeouts=1),
    Scene("K crashes, a leave", (LEAVER, P), formed=2, crashes=1),
    Scene("a join", (END, BEGIN), formed=1, deaths=1),
    Scene("a join, any clock", (END, BEGIN), formed=1, eager=True),
    Scene("a join of two", (END, END, BEGIN), formed=2),
    Scene("the second newcomer", (END, BEGIN, BEGIN), formed=1),
    Scene("loops that update twice", (TWICE, TWICE, BEGIN), formed=2),
    Scene("a join with ops in flight", (ASYNC, ASYNC, ("begin2", 2, False)), formed=2),
    Scene("an update with an op in flight", (FLIGHT, FLIGHT, BEGIN), formed=2),
    Scene("a newcomer vanishes, K crashes", (END, BEGIN), formed=1, crashes=1, deaths=1),
    Scene("a newcomer that vanishes", (END, BEGIN), formed=1, deaths=1, flaps=1, mortal=(2,)),
    Scene("a join, K crashes", (END, BEGIN), formed=1, crashes=1),
)

LONG = (
    Scene("a join, a time-out", (END, END, BEGIN), formed=2, timeouts=1),
    Scene("a newcomer comes, goes and comes", (END_TWO, END_TWO, ("begin", 2, False)), formed=2,
          flaps=1),
    Scene("all three leave", (LEAVER, LEAVER, LEAVER)),
    Scene("K crashes after a false death", (P, P), formed=2, crashes=1, flaps=1, eager=True),
    Scene("a death, two segments", (P, P, P), deaths=1, mortal=(2,), segments=2),
    Scene("two deaths", (P, P, P), deaths=2),
    Scene("an all_gather of three", (P, P, P), deaths=1, mortal=(3,), specs=GATHER_ALL),
    Scene("an all_gather that times out", (P, P, P), timeouts=1, specs=GATHER_ALL),
    Scene("an all_to_all of three", (P, P, P), deaths=1, mortal=(3,), specs=EXCHANGE),
    Scene("a gather of three", (P, P, P), deaths=1, mortal=(2, 3), specs=GATHER),
    Scene("a gather and K crashes", (P, P, P), deaths=1, crashes=1, specs=GATHER),
    Scene("an all_to_all, K crashes, a time-out", (P, P), formed=2, crashes=1, deaths=1, timeouts=1,
          specs=EXCHANGE),
    Scene("an all_gather, K crashes, a time-out", (P, P), formed=2, crashes=1, deaths=1, timeouts=1,
          specs=GATHER_ALL),
    Scene("a sub-group's op and the group's", (BOTH, BOTH, ("plain", 1, False)), deaths=1,
          mortal=(3,), specs=among_two(OnLoss.REPAIR)),
    Scene("a scatter of three", (P, P, P), deaths=1, mortal=(1, 3), specs=SCATTER),
    Scene("a scatter and two deaths", (P, P, P), deaths=2, specs=SCATTER),
    Scene("a sub-group's op and a leaver", (OF_TWO, ("sub", 1, True), IDLE), deaths=1,
          specs=among_two(OnLoss.REPAIR)),
    Scene("overlapping ops and a death", (PAIR, PAIR, PAIR), deaths=1, mortal=(2,)),
    Scene("a strict op of three", (P, P, P), deaths=1, mortal=(2,), segments=2, specs=STRICT),
    Scene("a time-out and a death", (P, P, P), deaths=1, timeouts=1),
    Scene("time-out, death, two segments", (P, P), formed=2, deaths=1, timeouts=1, segments=2),
    Scene("K crashes of three", (P, P, P), crashes=1, deaths=1, mortal=(3,)),
    Scene("K crashes twice", (P, P), formed=2, crashes=2, deaths=1),
    Scene("K crashes, time-out, death", (P, P), formed=2, crashes=1, deaths=1, timeouts=1),
    Scene("two leave, one dies", (LEAVER, LEAVER, P), deaths=1),
    Scene("a join of two and a death", (END, END, BEGIN), formed=2, deaths=1),
    Scene("a join of two and a crash", (END, END, BEGIN), formed=2, crashes=1),
    Scene("a join of two and a flap", (END, END, BEGIN), formed=2, flaps=1),
    Scene("the second newcomer and a death", (END, BEGIN, BEGIN), formed=1, deaths=1),
    Scene("a broadcast and K crashes", (P, P, P), deaths=1, crashes=1, specs=BCAST),
    Scene("a leave, a join", (LEAVER, END, BEGIN), formed=2),
    Scene("a cut and a death", (P, P, P), cuts=((1, 2),), deaths=1),
    Scene("a cut, any clock", (P, P, P), cuts=((1, 3),), eager=True),
    Scene("an all_to_all and a cut", (P, P, P), cuts=((1, 2),), specs=EXCHANGE),
)  # fmt: skip

# Far too large for a whole search: what `wander` is for.
FIELD = (
    Scene("two, and one joins", (END_TWO, END_TWO, ("begin", 2, False)), formed=2, deaths=2,
          crashes=1),
    Scene("two with ops in flight, and one joins", (ASYNC, ASYNC, ("begin2", 2, False)), formed=2,
          deaths=2, crashes=1),
    Scene("three, and one joins", (END_TWO, END_TWO, END_TWO, ("begin", 2, False)), formed=3,
          deaths=2, mortal=(1, 2, 3, 4), crashes=1),
    Scene("three with overlapping ops", (("pair", 2, False),) * 3, deaths=2, crashes=1),
    Scene("three, a leaver, a time-out", (("plain", 2, True), ("plain", 2, False),
          ("plain", 2, False)), deaths=1, crashes=1, timeouts=1),
)  # fmt: skip
