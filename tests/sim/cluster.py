"""n real C cores in one process, joined by byte pipes, driven by one seed.

The cluster plays the network, the clock and, with `coordinator`, the control plane: bytes move in
pieces of any length, members submit in any order, a member may die at any moment, and the survivors
are then flushed and given the next view. Every step is drawn from `random.Random(seed)`. Memory of
an op that has ended is kept apart as it is and then scribbled over: nothing may touch it any more.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from pccl_py.coordinator import claims
from pccl_py.protocol import messages
from pccl_py.types import OnLoss, PeerId
from tests.sim import cores
from tests.sim.coordinator import ABORT, RUNNING, Answer, Flush, Row, Verdict
from tests.sim.programs import Memory, Submission, memory_of

EV_ENDED, EV_BAD = 32, 33
AUTO, RING, STAR, DIRECT = 0, 1, 2, 3


@dataclass
class Pipe:
    """One direction of one link: bytes sent and not yet fed."""

    data: bytearray = field(default_factory=bytearray)


@dataclass
class Link:
    """One member's end of a link."""

    far: int
    incoming: Pipe
    outgoing: Pipe


@dataclass
class Node:
    """inputs: what a test gives instead of what an op's program draws. buffers: an op's tensor,
    from its end on a copy of it as it was then. memories: of running ops; kept: copies of those of
    ended ones; ghosts: their scribbled originals. complaints: op -> field, in this view."""

    index: int
    peer: int
    core: Any
    epoch: int = 0
    alive: bool = True
    leaving: bool = False
    stopped: bool = False
    buffers: dict[int, np.ndarray] = field(default_factory=dict)
    inputs: dict[int, np.ndarray] = field(default_factory=dict)
    memories: dict[int, Memory] = field(default_factory=dict)
    kept: dict[int, Memory] = field(default_factory=dict)
    ghosts: list[Memory] = field(default_factory=list)
    results: dict[int, tuple[int, int, int, int, str]] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)  # routes of ended ops
    links: dict[int, Link] = field(default_factory=dict)  # the core's link id -> this end
    todo: list[Submission] = field(default_factory=list)
    repaired: set[int] = field(default_factory=set)
    mismatches: list[tuple[int, str, str, str]] = field(default_factory=list)
    complaints: dict[int, str] = field(default_factory=dict)


def message(answer: Answer, ring: list[int]) -> messages.Answer:
    """What the product's coordinator would get."""
    ops = tuple(
        messages.OpReport(
            op=op,
            status=messages.OpStatus(row.status),
            segments=len(row.final),
            final=sum(have << i for i, have in enumerate(row.final)).to_bytes(
                (len(row.final) + 7) // 8, "little"
            ),
            on_loss=OnLoss(row.on_loss),
            root=PeerId(row.root),
            among=bytes(m in row.among for m in ring) if op >> 33 else b"",
            timed_out=row.timed_out,
            code=row.code,
            text="",
        )
        for op, row in answer.ops.items()
    )
    return messages.Answer(1, answer.submitted, answer.stable[0], (), ops, (), leaving=False)


class Cluster:
    honest = True  # all say what is so

    def __init__(
        self,
        core: ModuleType,
        world: int,
        seed: int,
        *,
        segment: int = 64,
        checksum: bool = True,
        scratch: int = 1 << 14,
        links: int = 1,
        small: int = 0,
        hub: int | None = None,
        large: int = AUTO,
    ) -> None:
        """small: bytes of the largest op that is small; 0: as many as the product takes.
        hub: the node that each view names while it is in it; None: drawn per view."""
        self.ffi, self.lib = core.ffi, core.lib
        self.random = random.Random(seed)
        self.seed, self.hub, self.large = seed, hub, large
        self.now = 1_000_000_000
        self.nodes: list[Node] = []
        self.epoch = 0
        self.ring: list[int] = []
        self.bad: list[str] = []
        self.broken: list[tuple[Node, int]] = []  # links that a core wants closed
        self.history: dict[int, tuple[int, ...]] = {}
        self.cuts: set[frozenset[int]] = set()  # two members whose links are broken
        self.most_cuts = 0
        self.aborts: dict[int, Verdict] = {}
        self.strides = (1, 7, 31, 32, 33, 100, 1000)  # bytes moved in one step, at most
        self.segment, self.scratch = segment, scratch
        self.event = self.ffi.new("struct pc_core_event *")
        self.slices = self.ffi.new("struct pc_slice[32]")
        self.rows = self.ffi.new("struct pccl_inspection *")
        self.where = self.ffi.new("uint8_t **")
        for i in range(world):
            handle = cores.new_core(
                core, 1000 + i, segment=segment, scratch=scratch, small=small, checksum=checksum
            )
            self.nodes.append(Node(i, 1000 + i, handle))
        for one in self.nodes:
            for other in self.nodes[one.index + 1 :]:
                for _ in range(links):
                    self.connect(one, other)

    def connect(self, one: Node, other: Node) -> None:
        """One more link between two members; it outlives views, and a dead one leads nowhere."""
        there, back = Pipe(), Pipe()
        far = (one.index + other.index) % 2  # a long path: parts overtake copies
        near_end = self.lib.pc_core_link_new(one.core, other.peer, far)
        far_end = self.lib.pc_core_link_new(other.core, one.peer, far)
        one.links[near_end] = Link(other.index, back, there)
        other.links[far_end] = Link(one.index, there, back)

    def close(self, node: Node, link: int) -> Node:
        """Frees both ends of a link; returns the far member."""
        end = node.links.pop(link)
        far = self.nodes[end.far]
        other = next(k for k, v in far.links.items() if v.incoming is end.outgoing)
        del far.links[other]
        self.lib.pc_core_link_free(node.core, link)
        self.lib.pc_core_link_free(far.core, other)
        return far

    # ------------------------------------------------------------------ views

    def install_first(self) -> None:
        self.epoch = 1
        self.ring = [n.index for n in self.nodes]
        self.mend()
        self.history[1] = tuple(self.ring)
        for node in self.nodes:
            self.install(node, {}, 0, fresh=True)

    def install(
        self, node: Node, verdicts: dict[int, Verdict], stable: int, *, fresh: bool = False
    ) -> None:
        view, _keep = cores.view_row(
            self.ffi,
            epoch=self.epoch,
            fresh=fresh,
            place=self.ring.index(node.index),
            peers=[self.nodes[i].peer for i in self.ring],
            cuts=[tuple(self.ring.index(i) for i in edge) for edge in self.cuts],
            stable=stable,
            verdicts=[(op, *verdict) for op, verdict in verdicts.items()],
            **self.routes(),
        )
        assert self.lib.pc_core_set_view(node.core, view, self.now) == 0
        node.epoch, node.stopped = self.epoch, False
        node.complaints.clear()
        for link in node.links:
            self.offer(node, link, 0)

    def routes(self) -> dict[str, int]:
        """The view's hub, or none, and the route of large ops: drawn once per epoch."""
        if self.hub is not None and self.hub in self.ring:
            return {"hub": self.ring.index(self.hub), "large": self.large}
        drawn = random.Random(f"{self.seed} {self.epoch}")
        hub = drawn.randrange(-1, len(self.ring))
        return {"hub": hub, "large": drawn.choice((AUTO, AUTO, RING, STAR, DIRECT))}

    # ------------------------------------------------------------------ steps

    def submit(self, node: Node, sub: Submission, values: np.ndarray) -> None:
        """Submits an op on one tensor, in place."""
        memory = Memory(sub.peers, data=values.copy(), before=[values.copy()])
        node.inputs[sub.op_id] = values.copy()
        self.hand_over(node, sub, memory)

    def begin(self, node: Node, sub: Submission) -> None:
        """Submits an op as its program has it; the whole group are the members that are left."""
        if sub.op_id in node.inputs:
            self.submit(node, sub, node.inputs[sub.op_id])
            return
        peers = sub.peers or tuple(sorted(self.history[max(node.epoch, 1)]))
        self.hand_over(node, sub, memory_of(sub, node.index, peers))

    def hand_over(self, node: Node, sub: Submission, memory: Memory) -> None:
        node.memories[sub.op_id] = memory
        if memory.data is not None:
            node.buffers[sub.op_id] = memory.data
        op, _keep = cores.op_row(self.ffi, sub, memory, node.index, 10_000_000_000)
        assert self.lib.pc_core_submit(node.core, op, sub.op_id, self.now) == 0
        self.drain(node)

    def ended(self, node: Node, op: int) -> None:
        """The memory is the caller's again: what the engine reads or writes there now is wrong."""
        memory = node.memories.pop(op)
        node.kept[op] = memory.copy()
        if memory.data is not None:
            data = node.kept[op].data
            assert data is not None
            node.buffers[op] = data
        memory.scribble()
        node.ghosts.append(memory)

    def drain(self, node: Node) -> None:
        event = self.event
        while self.lib.pc_core_next_event(node.core, event, self.now):
            kind = event.event.type
            if kind == EV_ENDED:
                r = event.result
                assert r.op not in node.results, "an op ended twice"
                text = self.ffi.string(r.text).decode()
                node.results[r.op] = (
                    r.status,
                    r.contributors_min,
                    r.contributors_max,
                    r.repaired,
                    text,
                )
                node.taken[r.op] = r.route
                self.ended(node, r.op)
            elif kind == EV_BAD:
                self.bad.append(f"{node.index}: {self.ffi.string(event.event.reason).decode()}")
                self.broken.append((node, event.which))
            elif kind == self.lib.PCCL_EVENT_REPAIRED:
                node.repaired.add(event.event.epoch)
            elif kind == self.lib.PCCL_EVENT_MISMATCH:
                e = event.event
                field, mine, theirs = (
                    self.ffi.string(text).decode() for text in (e.field, e.mine, e.theirs)
                )
                node.mismatches.append((e.peer, field, mine, theirs))
                if e.epoch == node.epoch:
                    node.complaints[e.op] = field

    def transmit(self, node: Node, link: int, limit: int) -> bool:
        """Moves up to `limit` bytes from a core into its link's pipe."""
        if self.is_cut(node, link):
            return False
        slices = self.slices
        count = self.lib.pc_core_tx(node.core, link, slices)
        if not count:
            return False
        blob = b"".join(bytes(self.ffi.buffer(s.ptr, s.len)) for s in slices[0:count])[:limit]
        node.links[link].outgoing.data += blob
        self.lib.pc_core_sent(node.core, link, len(blob))
        self.drain(node)
        return True

    def offer(self, node: Node, link: int, limit: int) -> bool:
        """Feeds up to `limit` bytes of the pipe; sometimes straight into the payload's place."""
        if self.is_cut(node, link):
            return False
        pipe = node.links[link].incoming
        if not limit:
            self.lib.pc_core_feed(node.core, link, self.ffi.NULL, 0)
            self.drain(node)
            return False
        if not pipe.data:
            return False
        where = self.where
        space = self.lib.pc_core_rx_space(node.core, link, where)
        if space and self.random.random() < 0.5:
            n = min(space, limit, len(pipe.data))
            self.ffi.memmove(where[0], bytes(pipe.data[:n]), n)
            self.lib.pc_core_rx_done(node.core, link, n)
        else:
            some = bytes(pipe.data[:limit])
            n = self.lib.pc_core_feed(node.core, link, some, len(some))
        del pipe.data[:n]
        self.drain(node)
        return n > 0

    def is_cut(self, node: Node, link: int) -> bool:
        return bool(self.cuts) and frozenset((node.index, node.links[link].far)) in self.cuts

    def cut(self, one: int, other: int) -> None:
        """Breaks the links of two members, to be known in the next view."""
        self.cuts.add(frozenset((one, other)))

    def mend(self) -> None:
        """Of the broken links only those stay broken whose ends both reach some third member."""
        self.cuts = {edge for edge in self.cuts if edge <= set(self.ring)}
        for edge in sorted(self.cuts, key=sorted):
            reaches = [
                all(frozenset((end, third)) not in self.cuts for end in edge)
                for third in self.ring
                if third not in edge
            ]
            if not any(reaches):
                self.cuts.remove(edge)
        self.most_cuts = max(self.most_cuts, len(self.cuts))

    def alive(self) -> list[Node]:
        return [n for n in self.nodes if n.alive]

    def step(self) -> bool:
        """One random step; False if that step could do nothing."""
        node = self.random.choice(self.alive())
        size = self.random.choice(self.strides)
        self.now += self.random.randrange(1000)
        if node.todo and self.random.random() < 0.1:
            sub = node.todo.pop(0)
            self.begin(node, sub)
            return True
        if self.random.random() < 0.01:
            self.now += 2_000_000
            self.lib.pc_core_tick(node.core, self.now)
            self.lib.pc_core_inspect(node.core, self.now, self.rows)
        if not node.links:
            return False
        link = self.random.choice(list(node.links))
        if self.random.random() < 0.5:
            return self.transmit(node, link, size)
        return self.offer(node, link, size)

    def run(self, steps: int = 200_000) -> None:
        """Until nothing moves any more."""
        quiet = 0
        for _ in range(steps):
            quiet = 0 if self.step() else quiet + 1
            if quiet > 60 and not self.sweep():
                return
        raise AssertionError("the cluster never came to rest")

    def sweep(self) -> bool:
        moved = False
        for node in self.alive():
            for _ in range(2):  # what nobody waits for goes after a while
                self.now += 4_000_000
                self.lib.pc_core_tick(node.core, self.now)
            while node.todo:
                sub = node.todo.pop(0)
                self.begin(node, sub)
                moved = True
            for link in node.links:
                moved |= self.transmit(node, link, 1 << 20)
                moved |= self.offer(node, link, 1 << 20)
        return moved

    def settle(self) -> None:
        """Until all is at rest and nobody complains; complaints are answered with a view."""
        for _ in range(30):
            self.run()
            if not any(node.complaints.keys() - node.results.keys() for node in self.alive()):
                return
            self.repair()
        raise AssertionError("one view after another")

    # ------------------------------------------------------------------ deaths

    def kill(self, index: int) -> None:
        self.nodes[index].alive = False

    def flush(self, node: Node) -> Answer:
        if node.epoch == self.epoch:
            assert self.lib.pc_core_flush(node.core, node.epoch) == 1
        return self.answer(node)

    def answer(self, node: Node) -> Answer:
        """What a member would say of its ops."""
        report = self.lib.pc_core_report(node.core)
        assert report.epoch == self.epoch
        stable = {0: report.stable}
        for i in range(report.context_count):
            assert report.contexts[i].context not in stable
            stable[report.contexts[i].context] = report.contexts[i].stable
        ops = {report.ops[i].op: self.row(report.ops[i]) for i in range(report.op_count)}
        assert len(ops) == report.op_count
        submitted = report.submitted
        self.lib.pc_core_report_free(report)
        return Answer(stable, ops, submitted)

    def row(self, row: Any) -> Row:
        def bits(pointer: Any, count: int) -> list[bool]:
            blob = bytes(self.ffi.buffer(pointer, (count + 7) // 8)) if count else b""
            return [bool(blob[i // 8] >> (i % 8) & 1) for i in range(count)]

        among = list(self.ring)
        if row.among_bytes:
            assert row.among_bytes == (len(self.ring) + 7) // 8
            inside = bits(row.among, len(self.ring))
            among = [m for m, part in zip(self.ring, inside, strict=True) if part]
        return Row(
            row.status, bits(row.final, row.segments), row.on_loss, row.root_peer, among,
            row.code, bool(row.timed_out),
        )  # fmt: skip

    def expire(self, node: Node) -> None:
        """The deadlines of all that runs at one member pass."""
        self.lib.pc_core_tick(node.core, self.now + 20_000_000_000)
        self.drain(node)

    def is_needed(self, leaver: int, answers: dict[int, Answer]) -> bool:
        """R23: whether a stayer lacks what the leaver has of an op that has not ended."""
        for op, mine in answers[leaver].ops.items():
            rows = {m: a.ops[op] for m, a in answers.items() if op in a.ops}
            if any(row.status != RUNNING for row in rows.values()):
                continue
            others = [m for m in mine.among if m in answers and m != leaver]
            if any(not rows[m].final[i] if m in rows else True
                   for m in others for i in range(len(mine.final)) if mine.final[i]):  # fmt: skip
                return True
        return False

    def repair(self, *, also_dies: int | None = None, shuffle: bool = False) -> None:
        """Flushes the living, decides, and installs one by one, with traffic in between."""
        answers: dict[int, Answer] = {}
        for node in self.random.sample(self.alive(), len(self.alive())):
            answers[node.index] = self.flush(node)
            for _ in range(self.random.randrange(40)):
                self.step()
        if also_dies is not None and self.nodes[also_dies].alive:
            self.kill(also_dies)
        self.repair_with(answers, shuffle=shuffle)

    def repair_with(self, answers: dict[int, Answer], *, shuffle: bool = False) -> None:
        """The next view, from these answers."""
        answers = {i: a for i, a in answers.items() if self.nodes[i].alive}
        if self.honest:
            told = {PeerId(i): message(a, self.ring) for i, a in answers.items()}
            assert not claims.unbelieved(told), f"honest answers are believed: {told}"
        ring = [i for i in self.ring if i in answers]
        for i in list(ring):
            node = self.nodes[i]
            idle = node.leaving and not node.todo and not node.memories
            if idle and len(ring) > 1 and not self.is_needed(i, answers):
                ring.remove(i)
        if shuffle:
            self.random.shuffle(ring)
        wrong = {op: f for n in self.alive() for op, f in n.complaints.items()}
        flush = Flush(list(self.ring), ring, answers, self.aborts, wrong, self.random)
        verdicts, stable = flush.decide()
        self.aborts = {op: v for op, v in verdicts.items() if v[0] == ABORT}
        for i in answers.keys() - set(ring):
            self.kill(i)  # it has left
        self.ring = ring
        self.mend()
        self.epoch += 1
        self.history[self.epoch] = tuple(self.ring)
        for node in self.random.sample(self.alive(), len(self.alive())):
            self.install(node, verdicts, stable)
            self.drain(node)
            for _ in range(self.random.randrange(60)):
                self.step()
