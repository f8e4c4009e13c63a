"""A small faithful model of the data plane: one peer's engine as a pure function over tuples.

Ring all-reduce (SUM to the owner, COPY round, MARK round) and broadcast (COPY, MARK), in place,
segment by segment, with the C engine's rules for flush, install and late submits; the other
collectives are `direct`: a DATA frame per block and receiver, and HAVE from each receiver to all.
Used by the exhaustive search with the real machines on top; everything hashable, nothing clever. A
rule that an engine relies on and that does not hold raises `Broken`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pccl_py.protocol.messages import OpReport, OpStatus
from pccl_py.types import (
    HELD_BY_ALL,
    REDO,
    OnLoss,
    Outcome,
    PeerId,
    Record,
    Verdict,
    context_of,
    op_id,
)
from tests.model import direct

RUNNING, OK, ERROR = 0, 1, 2

Value = tuple[int, tuple[int, ...]]  # epoch in which it was finished, contributors


class Broken(AssertionError):
    """A property does not hold."""


def require(condition: bool, text: str) -> None:
    if not condition:
        raise Broken(text)


@dataclass(frozen=True, slots=True)
class Frame:
    """type: S(um), C(opy), M(ark), D(ata), H(ave); hops: how many receivers are left after this
    one; among: the op's participants as its sender submitted it; link: the two members whose link
    it is on, src and dst unless a third passes it on."""

    type: str
    epoch: int
    op: int
    segment: int
    src: int
    dst: int
    contributors: tuple[int, ...] = ()
    value: Value | None = None
    hops: int = 0
    among: tuple[int, ...] = ()
    link: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Spec:
    """What an op is. among: participants, () for all members."""

    on_loss: OnLoss = OnLoss.REPAIR
    root: int = 0
    among: tuple[int, ...] = ()

    @property
    def is_direct(self) -> bool:
        return self.on_loss is OnLoss.FIXED or self.on_loss.is_exchange


@dataclass(frozen=True, slots=True)
class Op:
    """among: participants when it was submitted, sorted. final: by segment; of a direct op by
    participant: its block (FIXED), or all that it is to send me. heard: who said HAVE."""

    number: int
    spec: Spec
    among: tuple[int, ...]
    final: tuple[Value | None, ...]
    marked: tuple[bool, ...]
    status: int = RUNNING
    code: int = 0
    timed_out: bool = False
    heard: frozenset[int] = frozenset()
    begun: tuple[int, ...] = ()  # the members of the view in which it began
    forgotten: bool = False  # ended well before this view: an engine has no record of it


@dataclass(frozen=True, slots=True)
class Engine:
    """results: how each op of each line ended here. off: switched-off rules, for meta-tests.
    submitted, sub_submitted: ops of context 0, and of the one other context of the model."""

    me: int
    segments: int
    specs: tuple[tuple[int, Spec], ...] = ()  # by op id; others are plain all-reduces
    off: frozenset[str] = frozenset()
    record: Record | None = None
    stopped: bool = False
    submitted: int = 0
    sub_submitted: int = 0
    ops: tuple[Op, ...] = ()
    repaired: bool = False
    results: tuple[tuple[int, int, object], ...] = ()
    first_excluding: Record | None = None  # kept if the rule "relay" is off

    @property
    def epoch(self) -> int:
        return self.record.epoch if self.record is not None else 0

    @property
    def ring(self) -> tuple[int, ...]:
        return self.record.groups[0].ring if self.record is not None else ()

    @property
    def idle(self) -> bool:
        return all(op.status != RUNNING for op in self.ops)

    def verdict(self, number: int) -> Verdict | None:
        assert self.record is not None
        verdicts = self.record.groups[0].verdicts
        return next((v for v in verdicts if v.op == number), None)


class Draft:
    """One engine step under way."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.frames: list[Frame] = []
        self.repaired = False
        self.mismatched: list[int] = []

    def op(self, number: int) -> Op | None:
        return next((op for op in self.engine.ops if op.number == number), None)

    def put(self, op: Op) -> None:
        ops = tuple(op if old.number == op.number else old for old in self.engine.ops)
        self.engine = replace(self.engine, ops=ops)

    def end(self, op: Op, status: int, code: int = 0) -> None:
        record = self.engine.record
        assert record is not None
        outcome: object = ("error", code) if status == ERROR else ("ok", op.final)
        if status == OK:
            require(all(value is not None for value in op.final), "a success has all its values")
        self.put(replace(op, status=status, code=code))
        entry = (record.line, op.number, outcome)
        self.engine = replace(self.engine, results=(*self.engine.results, entry))

    def ring(self, op: Op) -> tuple[int, ...]:
        """The op's participants in the current view."""
        return tuple(peer for peer in self.engine.ring if peer in op.among)

    def after(self, op: Op, peer: int) -> int:
        ring = self.ring(op)
        return ring[(ring.index(peer) + 1) % len(ring)]

    def send(self, frame: Frame) -> None:
        if not self.engine.stopped or "R6" in self.engine.off:
            self.frames.append(frame)

    def say_mismatch(self, op: Op) -> None:
        if "members" not in self.engine.off:
            self.mismatched.append(op.number)

    # -- one segment

    def plan(self, op: Op, segment: int) -> tuple[str, int]:
        """What happens to a segment in this view, and who owns it."""
        verdict = self.engine.verdict(op.number)
        holder = REDO
        if verdict is not None and verdict.outcome is Outcome.RUN and verdict.holders:
            holder = verdict.holders[segment]
        if holder == HELD_BY_ALL:
            return "held", 0
        if holder >= 0:
            return "copy", self.engine.ring[holder]
        if op.spec.is_direct:
            return "copy", op.among[segment]
        if op.spec.root:
            return "copy", op.spec.root
        ring = self.ring(op)
        return "redo", ring[segment % len(ring)]

    def start(self, op: Op) -> None:
        """Begin every segment of an op in the current view."""
        if op.spec.is_direct:
            direct.start(self, op)
            self.check_repaired()
            return
        me = self.engine.me
        for segment in range(self.engine.segments):
            how, owner = self.plan(op, segment)
            current = self.op(op.number)
            assert current is not None
            if current.status != RUNNING:
                return
            if how == "held":
                require(current.final[segment] is not None, "held by all means held here")
                self.mark(current, segment)
            elif how == "copy":
                if owner == me:
                    require(current.final[segment] is not None, "a holder holds")
                    self.copy(current, segment)
            else:
                require(current.final[segment] is None, "a final segment is not reduced again")
                after = self.after(op, me)
                if len(self.ring(op)) == 1:
                    self.finish(current, segment, (me,))
                elif self.after(op, owner) == me:
                    epoch = self.engine.epoch
                    self.send(Frame("S", epoch, op.number, segment, me, after, (me,)))
        self.check_repaired()

    def finish(self, op: Op, segment: int, contributors: tuple[int, ...]) -> None:
        ring = self.ring(op)
        require(sorted(contributors) == sorted(ring), "contributors are the view's members")
        value = (self.engine.epoch, tuple(sorted(contributors)))
        op = replace(op, final=_set(op.final, segment, value))
        self.put(op)
        self.copy(op, segment)

    def copy(self, op: Op, segment: int) -> None:
        me, count = self.engine.me, len(self.ring(op))
        if count == 1:
            self.mark(op, segment)
            return
        self.send(
            Frame(
                "C", self.engine.epoch, op.number, segment, me, self.after(op, me),
                value=op.final[segment], hops=count - 2,
            )
        )  # fmt: skip

    def mark(self, op: Op, segment: int) -> None:
        op = replace(op, marked=_set(op.marked, segment, True))
        self.put(op)
        if all(op.marked) and op.status == RUNNING:
            self.end(op, OK)

    def check_repaired(self) -> None:
        if self.engine.repaired or self.engine.stopped:
            return
        assert self.engine.record is not None
        for verdict in self.engine.record.groups[0].verdicts:
            op = self.op(verdict.op)
            if op is None or op.status != RUNNING:
                continue
            for segment, holder in enumerate(verdict.holders):
                if holder >= 0 and op.final[segment] is None:
                    return
        self.engine = replace(self.engine, repaired=True)
        self.repaired = any(v.holders for v in self.engine.record.groups[0].verdicts)


def submit(engine: Engine, context: int = 0) -> Draft:
    """The user submits the line's next op of a context."""
    count = (engine.sub_submitted if context else engine.submitted) + 1
    number = op_id(count, context=context)
    spec = dict(engine.specs).get(number, Spec())
    root = spec.root
    among = tuple(sorted(set(engine.ring).intersection(spec.among or engine.ring)))
    empty: tuple[Value | None, ...] = (None,) * engine.segments
    begun = () if engine.stopped else tuple(sorted(engine.ring))
    op = Op(number, spec, among, empty, (False,) * engine.segments, begun=begun)
    if spec.is_direct:
        op = replace(op, final=direct.at_first(op, engine.me), marked=())
    elif root == engine.me:
        op = replace(op, final=((0, (root,)),) * engine.segments)
    counted = {"sub_submitted" if context else "submitted": count}
    draft = Draft(replace(engine, ops=(*engine.ops, op), **counted))  # type: ignore[arg-type]
    verdict = engine.verdict(number)
    if verdict is not None and verdict.outcome is Outcome.ABORT and "R10" not in engine.off:
        draft.end(op, ERROR, verdict.code)
    elif verdict is None and root and root not in engine.ring:
        draft.end(op, ERROR, 2)
    elif not engine.stopped:
        draft.start(op)
    return draft


Report = tuple[int, int, tuple[tuple[int, int], ...], tuple[OpReport, ...]]


def flush(engine: Engine) -> tuple[Engine, Report]:
    """Stop, and report: submitted, stable, the same of the other context, the ops above stable."""
    assert engine.record is not None
    stable = {0: engine.record.groups[0].stable}
    by_number = {op.number: op for op in engine.ops}
    for context in sorted({context_of(number) for number in by_number} | {0}):
        count = stable.get(context, 0)
        while (op := by_number.get(op_id(count + 1, context=context))) and op.status == OK:
            count += 1
        stable[context] = count
    reports = tuple(
        _report(engine, op)
        for op in engine.ops
        if op.number > op_id(stable[context_of(op.number)], context=context_of(op.number))
    )
    contexts = tuple((c, count) for c, count in stable.items() if c and count)
    return replace(engine, stopped=True), (engine.submitted, stable[0], contexts, reports)


def _report(engine: Engine, op: Op) -> OpReport:
    held = [value is not None for value in op.final]
    if op.spec.on_loss.is_exchange:
        held = [p not in op.among or held[op.among.index(p)] for p in engine.ring]
    bits = sum(1 << i for i, have in enumerate(held) if have)
    among = sum(1 << i for i, peer in enumerate(engine.ring) if peer in op.among)
    status = (OpStatus.RUNNING, OpStatus.STABLE, OpStatus.RAISED)[op.status]
    return OpReport(
        op=op.number,
        status=status,
        segments=len(held),
        final=bits.to_bytes((len(held) + 7) // 8, "little"),
        on_loss=op.spec.on_loss,
        root=PeerId(op.spec.root),
        among=bytes([among]) if context_of(op.number) else b"",
        timed_out=op.timed_out,
        code=op.code,
        text="",
    )


def install(engine: Engine, record: Record) -> Draft:
    """VIEWS peer rule 6."""
    old = engine.record
    require(old is None or record.epoch > old.epoch, "epochs only grow")
    if record.fresh:
        require(engine.idle, "a view grows only when all ops have ended (R19)")
        engine = replace(engine, submitted=0, sub_submitted=0, ops=())
    if "relay" in engine.off and record.excluded and engine.first_excluding is None:
        engine = replace(engine, first_excluding=record)
    draft = Draft(replace(engine, record=record, stopped=False, repaired=False))
    group = record.groups[0]
    for op in draft.engine.ops:
        if op.status != RUNNING:
            draft.put(replace(op, forgotten=op.status == OK))
            continue
        verdict = draft.engine.verdict(op.number)
        if verdict is not None and verdict.outcome is Outcome.ABORT:
            require(
                op.spec.on_loss not in (OnLoss.REPAIR, OnLoss.STRICT)
                or verdict.code == 2
                or not any(op.final),
                "an aborted op is final nowhere (R1)",
            )
            draft.end(op, ERROR, verdict.code)
        elif op.number <= group.stable or (verdict is not None and verdict.outcome is Outcome.DONE):
            draft.end(op, OK)
        elif verdict is None and op.spec.root and op.spec.root not in draft.engine.ring:
            draft.end(op, ERROR, 2)  # submitted after the answer, for a root that is gone
        else:
            if verdict is None and op.spec.is_direct and len(draft.ring(op)) < len(op.among):
                # Submitted after the answer, among members that are gone: others may submit it
                # among those that are left, so it is not for this engine alone to end it.
                draft.say_mismatch(op)
            marked = (False,) * len(op.marked)
            fresh = replace(op, marked=marked, timed_out=False, heard=frozenset())  # re-armed
            fresh = replace(fresh, begun=op.begun or tuple(sorted(draft.engine.ring)))
            draft.put(fresh)
            current = draft.op(op.number)
            assert current is not None
            draft.start(current)
    draft.check_repaired()
    return draft


def relay(record: Record, one: int, other: int) -> int:
    """Who passes on what is between two members whose link is excluded; 0: nobody need, or can."""
    broken = {frozenset(pair) for pair in record.excluded}
    if frozenset((one, other)) not in broken:
        return 0
    for third in record.groups[0].ring:
        legs = {frozenset((one, third)), frozenset((third, other))}
        if third not in (one, other) and not broken & legs:
            return third
    return 0


def on_its_way(engine: Engine, frame: Frame) -> Frame:
    """A frame as it leaves its sender: over which link."""
    assert engine.record is not None
    record = engine.record
    if engine.first_excluding is not None and "relay" in engine.off:
        record = engine.first_excluding
    return replace(frame, link=(frame.src, relay(record, frame.src, frame.dst) or frame.dst))


def pass_on(engine: Engine, frame: Frame) -> Frame | None:
    """A relay's part; None: it stands in another epoch, or in a flush, and drops it."""
    if engine.stopped or frame.epoch != engine.epoch:
        return None
    return replace(frame, link=(engine.me, frame.dst))


def can_receive(engine: Engine, frame: Frame) -> bool:
    """Higher epochs wait (R8), frames of ops not submitted are parked (R21)."""
    if frame.epoch > engine.epoch:
        return "R8" in engine.off
    if frame.epoch < engine.epoch or engine.stopped:
        return True  # to be dropped
    if frame.dst != engine.me:
        return True  # to be passed on
    if any(op.number == frame.op for op in engine.ops):
        return True
    verdict = engine.verdict(frame.op)
    return verdict is not None and verdict.outcome is Outcome.ABORT


def is_deaf(engine: Engine, frame: Frame) -> bool:
    """Whether it would drop the frame, now and ever (R6, R7)."""
    if "R6" in engine.off or "R7" in engine.off:
        return False
    if frame.epoch < engine.epoch or (frame.epoch == engine.epoch and engine.stopped):
        return True
    if frame.epoch > engine.epoch or frame.dst != engine.me:
        return False
    op = next((op for op in engine.ops if op.number == frame.op), None)
    return op is not None and (op.status == ERROR or op.forgotten)


def receive(engine: Engine, frame: Frame) -> Draft:
    draft = Draft(engine)
    if frame.epoch > engine.epoch or (frame.epoch < engine.epoch and "R7" not in engine.off):
        return draft
    if engine.stopped and "R6" not in engine.off:
        return draft
    op = draft.op(frame.op)
    if op is None or op.status == ERROR or op.forgotten:
        return draft
    me, segment = engine.me, frame.segment
    if op.spec.is_direct:
        direct.receive(draft, op, frame)
        draft.check_repaired()
    elif frame.type == "S":
        require(op.final[segment] is None, "nobody adds to a final segment")
        contributors = (*frame.contributors, me)
        _, owner = draft.plan(op, segment)
        if owner == me:
            draft.finish(op, segment, contributors)
        else:
            draft.send(replace(frame, src=me, dst=draft.after(op, me), contributors=contributors))
    elif frame.type == "C":
        old = op.final[segment]
        require(old is None or old == frame.value, "a copy of a final segment has the same value")
        op = replace(op, final=_set(op.final, segment, frame.value))
        draft.put(op)
        if frame.hops:
            draft.send(replace(frame, src=me, dst=draft.after(op, me), hops=frame.hops - 1))
        else:
            hops, after = len(draft.ring(op)) - 2, draft.after(op, me)
            draft.send(Frame("M", engine.epoch, frame.op, segment, me, after, hops=hops))
            draft.mark(op, segment)
        draft.check_repaired()
    else:
        if frame.hops:
            draft.send(replace(frame, src=me, dst=draft.after(op, me), hops=frame.hops - 1))
        draft.mark(op, segment)
    return draft


def _set(values: tuple, index: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:index], value, *values[index + 1 :])
