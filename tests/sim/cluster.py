"""n real C cores in one process, joined by byte pipes, driven by one seed.

The cluster plays the network, the clock and a very small coordinator: bytes move in pieces of any
length, members submit in any order, a member may die at any moment, and the survivors are then
flushed and given the next view with a plan made by `decide`, which is written from VIEWS §1 alone
and shares no code with the product. Every step is drawn from `random.Random(seed)`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

AUTO, RING, STAR, DIRECT = 0, 1, 2, 3
RUNNING, STABLE, RAISED = 0, 1, 2
REDO, ALL = -1, -2
RUN, DONE, ABORT = 0, 1, 2
EV_ENDED, EV_BAD = 32, 33


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
class Submission:
    """One op as the program submits it on every member."""

    op_id: int
    dtype: int
    reduce: int
    kind: int = 0
    root: int = 0
    name: int = 0
    strict: bool = False
    route: int = AUTO


@dataclass
class Node:
    index: int
    peer: int
    core: Any
    epoch: int = 0
    alive: bool = True
    stopped: bool = False
    buffers: dict[int, np.ndarray] = field(default_factory=dict)
    inputs: dict[int, np.ndarray] = field(default_factory=dict)
    results: dict[int, tuple[int, int, int, int, str]] = field(default_factory=dict)
    links: dict[int, Link] = field(default_factory=dict)  # the core's link id -> this end
    todo: list[Submission] = field(default_factory=list)
    repaired: set[int] = field(default_factory=set)
    mismatches: list[tuple[int, str, str, str]] = field(default_factory=list)


class Cluster:
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
    ) -> None:
        self.ffi, self.lib = core.ffi, core.lib
        self.random = random.Random(seed)
        self.now = 1_000_000_000
        self.nodes: list[Node] = []
        self.epoch = 0
        self.ring: list[int] = []
        self.bad: list[str] = []
        self.broken: list[tuple[Node, int]] = []  # links that a core wants closed
        self.history: dict[int, tuple[int, ...]] = {}
        self.plan: tuple[int, dict[int, Any], int] | None = None
        for i in range(world):
            config = self.ffi.new(
                "struct pc_core_config *",
                {
                    "peer": 1000 + i,
                    "scratch_bytes": scratch,
                    "segment_bytes_min": segment,
                    "segment_bytes_max": segment,
                    "checksum_payload": int(checksum),
                },
            )
            handle = self.ffi.gc(self.lib.pc_core_new(config), self.lib.pc_core_free)
            self.nodes.append(Node(i, 1000 + i, handle))
        for one in self.nodes:
            for other in self.nodes[one.index + 1 :]:
                for _ in range(links):
                    self.connect(one, other)

    def connect(self, one: Node, other: Node) -> None:
        """One more link between two members; it outlives views, and a dead one leads nowhere."""
        there, back = Pipe(), Pipe()
        one.links[self.lib.pc_core_link_new(one.core, other.peer)] = Link(other.index, back, there)
        other.links[self.lib.pc_core_link_new(other.core, one.peer)] = Link(one.index, there, back)

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
        self.history[1] = tuple(self.ring)
        for node in self.nodes:
            self.install(node, {}, 0, fresh=True)

    def install(
        self, node: Node, verdicts: dict[int, Any], stable: int, *, fresh: bool = False
    ) -> None:
        ffi, world = self.ffi, len(self.ring)
        place = self.ring.index(node.index)
        members = ffi.new("struct pccl_member[]", [{"peer": self.nodes[i].peer} for i in self.ring])
        keep: list[Any] = [members]
        rows = ffi.new("struct pccl_verdict[]", max(1, len(verdicts)))
        for row, (op, (outcome, holders, status, text)) in zip(
            rows, verdicts.items(), strict=False
        ):
            row.op, row.outcome, row.status = op, outcome, status
            array = ffi.new("int32_t[]", holders)
            blob = ffi.new("char[]", text.encode())
            keep += [array, blob]
            row.holder_count, row.holders, row.text = len(holders), array, blob
        view = ffi.new(
            "struct pccl_view *",
            {
                "epoch": self.epoch,
                "fresh": int(fresh),
                "self": place,
                "member_count": world,
                "members": members,
                "stable": stable,
                "verdict_count": len(verdicts),
                "verdicts": rows,
            },
        )
        assert self.lib.pc_core_set_view(node.core, view, self.now) == 0
        node.epoch, node.stopped = self.epoch, False
        for link in node.links:
            self.offer(node, link, 0)

    # ------------------------------------------------------------------ steps

    def submit(self, node: Node, sub: Submission, values: np.ndarray) -> None:
        buffer = values.copy()
        node.buffers[sub.op_id], node.inputs[sub.op_id] = buffer, values.copy()
        op = self.ffi.new(
            "struct pccl_op *",
            {
                "kind": sub.kind,
                "dtype": sub.dtype,
                "reduce": sub.reduce,
                "root_peer": 1000 + sub.root if sub.kind else 0,
                "data": self.ffi.from_buffer(buffer) if buffer.size else self.ffi.NULL,
                "count": buffer.size,
                "name": sub.name,
                "route": sub.route,
                "strict": int(sub.strict),
                "weight": 1.0,
                "timeout_ns": 10_000_000_000,
            },
        )
        assert self.lib.pc_core_submit(node.core, op, sub.op_id, self.now) == 0
        self.drain(node)

    def drain(self, node: Node) -> None:
        event = self.ffi.new("struct pc_core_event *")
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
            elif kind == EV_BAD:
                self.bad.append(f"{node.index}: {self.ffi.string(event.event.reason).decode()}")
                self.broken.append((node, event.which))
            elif kind == self.lib.PCCL_EVENT_REPAIRED:
                node.repaired.add(event.event.epoch)
            elif kind == self.lib.PCCL_EVENT_MISMATCH:
                e = event.event
                string = self.ffi.string
                node.mismatches.append(
                    (
                        e.peer,
                        string(e.field).decode(),
                        string(e.mine).decode(),
                        string(e.theirs).decode(),
                    )
                )

    def transmit(self, node: Node, link: int, limit: int) -> bool:
        """Moves up to `limit` bytes from a core into its link's pipe."""
        slices = self.ffi.new("struct pc_slice[32]")
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
        pipe = node.links[link].incoming
        if not limit:
            self.lib.pc_core_feed(node.core, link, self.ffi.NULL, 0)
            self.drain(node)
            return False
        if not pipe.data:
            return False
        where = self.ffi.new("uint8_t **")
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

    def alive(self) -> list[Node]:
        return [n for n in self.nodes if n.alive]

    def step(self) -> bool:
        """One random step; False if that step could do nothing."""
        node = self.random.choice(self.alive())
        size = self.random.choice((1, 7, 31, 32, 33, 100, 1000))
        self.now += self.random.randrange(1000)
        if node.todo and self.random.random() < 0.1:
            sub = node.todo.pop(0)
            self.submit(node, sub, node.inputs[sub.op_id])
            return True
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
            while node.todo:
                sub = node.todo.pop(0)
                self.submit(node, sub, node.inputs[sub.op_id])
                moved = True
            for link in node.links:
                moved |= self.transmit(node, link, 1 << 20)
                moved |= self.offer(node, link, 1 << 20)
        return moved

    # ------------------------------------------------------------------ deaths

    def kill(self, index: int) -> None:
        self.nodes[index].alive = False

    def flush(self, node: Node) -> tuple[int, dict[int, dict[str, Any]]]:
        if node.epoch == self.epoch:
            assert self.lib.pc_core_flush(node.core, node.epoch) == 1
        report = self.lib.pc_core_report(node.core)
        ops = {}
        for i in range(report.op_count):
            row = report.ops[i]
            bits = bytes(self.ffi.buffer(row.final, (row.segments + 7) // 8))
            final = [bool(bits[s // 8] >> (s % 8) & 1) for s in range(row.segments)]
            ops[row.op] = {
                "status": row.status,
                "final": final,
                "strict": row.on_loss == self.lib.PCCL_STRICT,
                "root": row.root_peer,
                "code": row.code,
            }
        stable = report.stable
        self.lib.pc_core_report_free(report)
        return stable, ops

    def decide(
        self, answers: dict[int, tuple[int, dict[int, Any]]], old: list[int], aborts: dict[int, Any]
    ) -> tuple[dict[int, Any], int]:
        """The verdicts of VIEWS §1, coordinator rule 3, from the answers of the stayers."""
        stable = max(a[0] for a in answers.values())
        verdicts: dict[int, Any] = dict(aborts)
        lost = [i for i in old if i not in answers]
        for op in sorted({op for _, ops in answers.values() for op in ops}):
            if not op >> 32 & 1 and op & 0xFFFFFFFF <= stable:
                continue
            rows = {i: ops[op] for i, (_, ops) in answers.items() if op in ops}
            raised = [r for r in rows.values() if r["status"] == RAISED]
            segments = len(next(iter(rows.values()))["final"])
            root = max(r["root"] for r in rows.values())
            final = [
                [i for i in self.ring_of(answers) if i in rows and rows[i]["final"][s]]
                for s in range(segments)
            ]
            if raised:
                verdicts.setdefault(op, (ABORT, [], raised[0]["code"], "raised before"))
                continue
            if any(r["status"] == STABLE for r in rows.values()) or (
                len(rows) == len(answers) and all(len(f) == len(answers) for f in final)
            ):
                verdicts[op] = (DONE, [], 0, "")
                continue
            nowhere = any(not f for f in final)
            strict = any(r["strict"] for r in rows.values())
            if nowhere and ((lost and strict) or (root and root - 1000 not in answers)):
                verdicts[op] = (ABORT, [], 2, "a peer was lost")
                continue
            ring = self.ring_of(answers)
            holders = [
                ALL if len(f) == len(answers) else ring.index(self.random.choice(f)) if f else REDO
                for f in final
            ]
            verdicts[op] = (RUN, holders, 0, "")
        return verdicts, stable

    def ring_of(self, answers: dict[int, Any]) -> list[int]:
        return [i for i in self.ring if i in answers]

    def repair(self, *, also_dies: int | None = None) -> None:
        """Flushes the living, decides, and installs one by one, with traffic in between."""
        old, aborts = list(self.ring), getattr(self, "aborts", {})
        answers: dict[int, Any] = {}
        for node in self.random.sample(self.alive(), len(self.alive())):
            answers[node.index] = self.flush(node)
            for _ in range(self.random.randrange(40)):
                self.step()
        if also_dies is not None and self.nodes[also_dies].alive:
            self.kill(also_dies)
        answers = {i: a for i, a in answers.items() if self.nodes[i].alive}
        verdicts, stable = self.decide(answers, old, aborts)
        self.aborts = {op: v for op, v in verdicts.items() if v[0] == ABORT}
        self.ring = self.ring_of(answers)
        self.epoch += 1
        self.history[self.epoch] = tuple(self.ring)
        for node in self.random.sample(self.alive(), len(self.alive())):
            self.install(node, verdicts, stable)
            self.drain(node)
            for _ in range(self.random.randrange(60)):
                self.step()
