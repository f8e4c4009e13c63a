"""A member of a storm: joins, computes step after step, checks every value, says what happened.

It leaves when it is told to and joins again whenever its membership ends by an error. All it says
are `records`, lines of JSON on one socket, on which it also hears.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop
import xxhash

import pccl_py as pccl
from stress.storm import program
from stress.storm.program import Array, Op
from stress.storm.records import (
    Calling,
    Footprint,
    Joined,
    Left,
    Lost,
    OpEnd,
    Record,
    Stepped,
    Synced,
    line,
)

TRIES = 20  # submissions of one op: members can be lost between two looks
PORT_TRIES = 5
JOIN_S = 60.0
FOOTPRINT_STEPS = 25  # a member's footprint is taken after so many steps
RUN = "storm"
LEAVE = b"L"


@dataclass(frozen=True, slots=True)
class Spec:
    """What a member is told at its start. origin: monotonic time of the storm's beginning;
    entrance: the relay's port that others call, 0: none; pace_s: between two steps."""

    who: str
    slot: int
    coordinator: str
    min_members: int
    deadline_s: float
    seed: int
    count_max: int
    pace_s: float
    origin: float
    entrance: int


class Member:
    """One process's life in the storm."""

    def __init__(self, spec: Spec, wire: socket.socket) -> None:
        self._spec, self._wire = spec, wire
        self._is_told_to_leave = False
        self._state: dict[str, Array] = {}

    def now(self) -> float:
        return time.monotonic() - self._spec.origin

    def say(self, record: Record) -> None:
        self._wire.sendall(line(record).encode() + b"\n")

    def run(self) -> None:
        """Memberships, until one of them ends by leaving."""
        uvloop.new_event_loop().close()  # libuv keeps a pipe for as long as the process lives
        self._measure("before")
        while not self._membership():
            pass
        self._measure("after")

    def _measure(self, when: str) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        fds, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        self.say(Footprint(self.now(), self._spec.who, when, rss, fds, threads))

    def _membership(self) -> bool:
        """Whether it ended by leaving."""
        self._state = program.fresh_state()  # who was expelled may hold what nobody else does
        at = -1
        comm = self._join()
        try:
            at = comm.line
            self._live(comm)
        except pccl.PcclError as error:
            step = int(self._state["step"][0])
            text = str(error)
            self.say(Lost(self.now(), self._spec.who, type(error).__name__, text, at, step))
            comm.close()
            return False
        return True

    def _join(self) -> pccl.Communicator:
        spec = self._spec
        self.say(Calling(self.now(), spec.who, "join"))
        began = self.now()
        for attempt in range(PORT_TRIES):
            bind = None
            if spec.entrance:
                port = _free_port()
                self._wire.sendall(b'{"port": %d}\n' % port)
                bind = f"127.0.0.1:{port}"
            try:
                comm = pccl.join(
                    spec.coordinator,
                    run=RUN,
                    name=f"{spec.who}.{spec.slot}",
                    min_members=spec.min_members,
                    timeout=JOIN_S,
                    deadline_s=spec.deadline_s,
                    bind=bind,
                    advertise=f"127.0.0.1:{spec.entrance}" if spec.entrance else None,
                )
                break
            except pccl.ResourceError as error:  # somebody took the port meanwhile
                if error.errno != errno.EADDRINUSE or attempt == PORT_TRIES - 1:
                    raise
        view = comm.view
        peer = view.members[view.rank].peer
        self.say(Joined(self.now(), spec.who, peer, view.epoch, view.line, self.now() - began))
        return comm

    # ------------------------------------------------------------ as a member

    def _live(self, comm: pccl.Communicator) -> None:
        self._sync(comm)
        steps = 0
        while not self._hears_leave():
            self._step(comm)
            steps += 1
            if steps == FOOTPRINT_STEPS:
                self._measure("member")
            time.sleep(self._spec.pace_s)
        self._measure("last")
        began = self.now()
        self.say(Calling(began, self._spec.who, "leave"))
        comm.leave()
        self.say(Left(self.now(), self._spec.who, self.now() - began))

    def _hears_leave(self) -> bool:
        if select.select([self._wire], [], [], 0)[0]:
            order = self._wire.recv(16)
            if not order:
                os._exit(0)  # nobody is there to tell anything
            self._is_told_to_leave |= LEAVE in order
        return self._is_told_to_leave

    def _sync(self, comm: pccl.Communicator) -> None:
        began = self.now()
        self.say(Calling(began, self._spec.who, "sync"))
        info = comm.sync_state(self._state, revision=int(self._state["step"][0]))
        step = int(self._state["step"][0])
        seconds = self.now() - began
        self.say(
            Synced(self.now(), self._spec.who, comm.line, step, seconds, info.donor, self._hash())
        )

    def _hash(self) -> str:
        whole = xxhash.xxh3_64()
        for name in sorted(self._state):
            whole.update(self._state[name])
        return whole.hexdigest()

    def _step(self, comm: pccl.Communicator) -> None:
        """Ops, the state after them, a safe point; and the shared state if somebody came."""
        step, at = int(self._state["step"][0]), comm.line
        began = self.now()
        self.say(Calling(began, self._spec.who, f"step {step}"))
        running = [
            Running(comm, op, self._spec.slot)
            for op in program.ops_of(self._spec.seed, step, self._spec.count_max)
        ]
        ends = tuple(one.end() for one in running)
        gone = next((one.error for one in running if one.is_fatal), None)
        if gone is not None:
            raise gone
        program.advance(self._state, [one.outcome for one in running])
        state = self._hash()
        done = self.now()
        view = comm.view
        comm.update()
        world = tuple(member.name.partition(".")[0] for member in view.members)
        self.say(
            Stepped(self.now(), self._spec.who, at, step, view.epoch, world, began,
                    self.now() - done, state, ends)
        )  # fmt: skip
        if comm.line != at:
            self._sync(comm)


class Running:
    """One op of a step, from its submission to what is to be said of it."""

    def __init__(self, comm: pccl.Communicator, op: Op, slot: int) -> None:
        self.op, self.slot = op, slot
        self.error: pccl.PcclError | None = None
        self.outcome = 0
        self._work: pccl.Work | None = None
        self._began = time.monotonic()
        for _ in range(TRIES):  # as a program does: look again, and retry
            self.error = None
            try:
                self._start(comm)
                return
            except pccl.PeerLost as error:
                self.error = error
            except pccl.PcclError as error:
                self.error = error
                return

    def _start(self, comm: pccl.Communicator) -> None:
        op = self.op
        self.members = [program.slot_of(member.name) for member in comm.members]
        self.root = self.members[op.turn % len(self.members)]
        self.mine = program.given(op, self.slot)
        self.outs: list[Array] = []
        how: Mapping[str, object] = {"async_op": True}
        match op.kind:
            case "all_reduce":
                self.out = self.mine if op.in_place else np.full_like(self.mine, -7)
                self._work = comm.all_reduce(self.mine, out=self.out, strict=op.strict, **how)
            case "broadcast":
                self.out = self.mine if self.root == self.slot else np.full_like(self.mine, -7)
                self._work = comm.broadcast(self.out, self.members.index(self.root), **how)
            case "all_gather":
                self.outs = [np.full_like(self.mine, -7) for _ in self.members]
                self._work = comm.all_gather(self.outs, self.mine, **how)
            case "reduce_scatter":
                self.out = np.full_like(self.mine, -7)
                ins = [self.mine] * len(self.members)
                self._work = comm.reduce_scatter(self.out, ins, **how)
            case "barrier":
                self._work = comm.barrier(**how)
            case _:
                raise AssertionError(op.kind)

    @property
    def is_fatal(self) -> bool:
        """The membership is over."""
        return isinstance(self.error, pccl.Evicted | pccl.CoordinatorLost | pccl.UsageError)

    def end(self) -> OpEnd:
        """Waits for the end; checks what it left in memory."""
        low = high = repaired = 0
        if self.error is None:
            assert self._work is not None
            try:
                info = self._work.wait()
                low, high = info.contributors_min, info.contributors_max
                repaired = info.repaired
            except pccl.PcclError as error:
                self.error = error
        end = "ok" if self.error is None else type(self.error).__name__
        digest = self._digest() if self.error is None else end
        self.outcome = xxhash.xxh3_64_intdigest(digest.encode()) % (1 << 31)
        seconds = time.monotonic() - self._began
        wrong = self._wrong((low, high)) if self._work is not None and not self.is_fatal else ""
        op, text = self.op, str(self.error or "")
        return OpEnd(op.kind, op.strict, end, digest, low, high, repaired, seconds, text, wrong)

    def _digest(self) -> str:
        """Of what all members hold the same of."""
        match self.op.kind:
            case "all_gather":
                whole = xxhash.xxh3_64()
                for out in self.outs:
                    whole.update(out)
                return whole.hexdigest()
            case "barrier":
                return "barrier"
            case _:  # each member's block of the reduce_scatter is the same sum here
                return xxhash.xxh3_64_hexdigest(self.out)

    def _wrong(self, told: tuple[int, int]) -> str:
        """What is wrong with memory after the op, or nothing."""
        op = self.op
        if self.error is not None:
            # Inputs are as they were; results of what failed are undefined.
            is_input = op.kind != "broadcast" or self.root == self.slot
            whole = np.array_equal(self.mine, program.given(op, self.slot))
            return "" if whole or not is_input else f"the input after {type(self.error).__name__}"
        match op.kind:
            case "all_reduce":
                return program.wrong_sum(op, self.out, self.slot, self.members, told)
            case "broadcast":
                return program.wrong_copy(op, self.out, self.root)
            case "all_gather":
                found = [
                    program.wrong_copy(op, out, slot)
                    for out, slot in zip(self.outs, self.members, strict=True)
                ]
                return next(filter(None, found), "")
            case "reduce_scatter":
                return program.wrong_total(op, self.out, self.members)
            case _:
                return ""


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def live(spec: Spec, path: str) -> None:
    """The whole life of a member's process. path: of the conductor's socket."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # whoever hangs is asked where
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(path)
        hello = '{"hello": "%s", "pid": %d}\n' % (spec.who, os.getpid())  # noqa: UP031
        wire.sendall(hello.encode())
        Member(spec, wire).run()
