"""What the user's thread of a simulated worker does: join, then rounds of ops and safe points.

All members of a line run the same rounds: the n-th round of a line takes the n-th window of the
scenario's steps. Sub-groups and pairs are named by place in the line's first view, as programs
make them after an `update`. Some ops are submitted late, some not waited for; named ones in an
order of each member's own.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator

from pccl_py.peer import events as pe
from pccl_py.protocol import messages as m
from pccl_py.types import op_id
from tests.sim.cores import PEER_0
from tests.sim.programs import ALL_REDUCE, SEND, Submission, memory_of
from tests.simulator.process import Body, Process
from tests.simulator.scenario import DEADLINE_S, PAIR, SUB, Step

LEAVE_S = 2 * DEADLINE_S
MEMBERS_MAX = 64


class Grid(tuple[tuple[int, ...], ...]):
    """Every block has one size, whoever it is from and for."""

    def __new__(cls, size: int) -> Grid:
        return super().__new__(cls, ((size,) * MEMBERS_MAX,) * MEMBERS_MAX)

    def __repr__(self) -> str:
        return f"Grid({self[0][0]})"


Part = Generator[tuple[object, float | None], bool, bool]


class Program:
    """The program of one process. is_leaving, lies: set by faults, and heeded at the next round or
    op. fine: rounds in which every op ended well, one after another, in a line that began after
    all was calm."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.setting = process.setting
        self.is_leaving = self.lies = False
        self.fine = self.rounds = 0
        self.line: tuple[int, ...] = ()  # members of its first view: indices
        self.line_began = 0.0

    def body(self) -> Body:
        me, setting = self.process, self.setting
        me.connect()
        yield (lambda: me.record is not None), None
        line = number = -1
        while True:
            assert me.record is not None
            if me.record.line != line:
                line, number = me.record.line, 0
                self.line_began = setting.watch.lines[line, me.group].began
                self.fine = 0
                self.line = tuple(x.peer - PEER_0 for x in me.group_members())
                setting.watch.enters_line(me, self.line)
                if setting.scenario.syncs:
                    yield from self._sync()
                if me.begins and not (yield from self._update()):
                    return
                continue_line = me.record.line == line
                if not continue_line:
                    continue
            yield from self._sleep(setting.scenario.think * (0.5 + setting.random.random()))
            if self.is_leaving:
                yield from self._leave()
                return
            yield from self._round(number)
            number += 1
            if not (yield from self._update()):
                return

    def _sleep(self, seconds: float) -> Body:
        if seconds > 0.0:
            yield (lambda: False), self.setting.clock.now + seconds

    # ------------------------------------------------------------ safe points

    def _update(self) -> Part:
        """False: held too long without an answer, and the program gives up."""
        me, clock = self.process, self.setting.clock
        position = me.submitted
        if not me.safe_point(position):
            return True
        self.setting.watch.held(me)
        yield (lambda: not me.running), None
        me.post(pe.Drained(position))
        until = clock.now + DEADLINE_S
        came = yield (lambda: me.resumed is not None), until
        if not came:
            me.trace("was held for too long")
        return came

    def _sync(self) -> Body:
        """As sync_state, as far as the coordinator sees it; who waits in vain takes it back."""
        me, rng = self.process, self.setting.random
        digests = [bytes([rng.randrange(2)] * 16) for _ in range(2)]
        keys = tuple(m.StateKey(key, digest) for key, digest in zip("ab", digests, strict=True))
        me.post(pe.WantState(1, rng.randrange(3), keys))
        came = yield (lambda: 1 in me.elections), self.setting.clock.now + DEADLINE_S
        if not came:
            me.post(pe.ForgetState(1))

    def _leave(self) -> Body:
        me, clock = self.process, self.setting.clock
        yield (lambda: not me.running), None
        me.trace("wants to leave")
        me.post(pe.WantLeave())
        self.setting.watch.leaves(me)
        yield (lambda: me.has_left), clock.now + LEAVE_S

    # ------------------------------------------------------------ rounds

    def _round(self, number: int) -> Body:
        me, scenario, rng = self.process, self.setting.scenario, self.setting.random
        calm = self.setting.calm_at is not None
        order = []
        for at, step in enumerate(scenario.steps, number * len(scenario.steps)):
            peers = self._among(step)
            if me.index in peers:
                order.append((at, step, peers))
        moved = False
        for at in range(1, len(order)):  # what is named goes in any order
            if order[at][1].named and rng.random() < 0.3:
                order[at - 1], order[at] = order[at], order[at - 1]
                moved = True
        mine: list[int] = []
        for at, step, peers in order:
            if not calm and step.late >= 0 and peers[step.late % len(peers)] == me.index:
                yield from self._sleep(step.late_s)
            op = self._submit(at, step, peers, calm=calm)
            mine.append(op)
            if not step.flight and not moved and rng.random() < 0.6:
                yield (lambda op=op: op not in me.running), None
            elif step.flight:
                mine.pop()
        yield (lambda: not me.running.intersection(mine)), None
        self.rounds += 1
        well = all(me.ended[op][0] == 0 for op in mine)
        if self.line_began > (self.setting.calm_at or float("inf")):
            self.fine = self.fine + 1 if well else 0
            self.setting.watch.round_over(me, well=well)

    def _among(self, step: Step) -> tuple[int, ...]:
        """Who takes part, as all of the line see it; () where there is nothing to do. Once all is
        calm nobody asks for who is gone."""
        line = self.line
        if self.setting.calm_at is not None:
            if step.who and self.line_began < self.setting.calm_at:
                return ()  # who lags behind has only to catch up
            here = {x.peer - PEER_0 for x in self.process.group_members()}
            line = tuple(x for x in line if x in here)
        if step.who == PAIR:
            one, other = step.pick % len(line), step.root % len(line)
            return () if one == other else (line[one], line[other])
        if step.who == SUB:
            return tuple(x for at, x in enumerate(line) if step.pick >> at % 16 & 1)
        return line

    def _submit(self, at: int, step: Step, peers: tuple[int, ...], *, calm: bool) -> int:
        me = self.process
        assert me.record is not None
        here = tuple(x.peer - PEER_0 for x in me.group_members())
        context = (
            zlib.crc32(repr((step.who, peers, calm and at)).encode()) & 0x7FFFFFFF
            if step.who
            else 0
        )
        root = peers[step.root % len(peers)]
        if step.kind == SEND:
            root = peers[1]
        elif not step.who and root not in here:
            root = here[0]  # ranks are of the present view
        number = self._number(context, at) if step.named else self._count(context)
        name = number if step.named else 0
        reduce = step.reduce
        if self.lies and step.kind == ALL_REDUCE and not calm:
            self.lies = False
            reduce = 4 - reduce if reduce != 2 else 3
            self.setting.watch.lies(me)
        sub = Submission(
            op_id(number, named=step.named, context=context), step.dtype, reduce, kind=step.kind,
            root=root, name=name, strict=step.strict, route=step.route,
            peers=peers if step.who else (), size=step.size,
            pair=Grid(step.size), separate=step.separate,
            salt=me.record.line,
        )  # fmt: skip
        memory = memory_of(sub, me.index, peers if step.who else here)
        timeout = DEADLINE_S if calm or not step.patience else step.patience
        me.running.add(sub.op_id)
        me.ended.pop(sub.op_id, None)
        self.setting.watch.submits(me, sub, memory, peers, timeout)
        me.engine.submit(sub, memory, timeout)
        return sub.op_id

    def _count(self, context: int) -> int:
        me = self.process
        if not context:
            me.submitted += 1
        number = me.counts[context] = me.counts.get(context, 0) + 1
        return number

    def _number(self, context: int, at: int) -> int:
        if not context:
            self.process.submitted += 1
        return zlib.crc32(f"name {at}".encode()) | 1
