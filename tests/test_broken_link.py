"""A link between two of three living members breaks: all three stay, and everything goes on.

The two reach each other's engines through a relay of bytes that the test owns, and cuts.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import pccl_py as pccl
from pccl_py.communicator import Communicator
from pccl_py.coordinator import embedded
from pccl_py.dataplane.engine import Engine
from pccl_py.types import Member, PeerId, Record
from tests.crew import Crew, join_all, start, until


class Wire:
    """Joins each caller to `port`, until it is cut with all that is on it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.is_cut = False
        self.ends: list[socket.socket] = []
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.entrance = int(self.listener.getsockname()[1])
        start(self._serve)

    def cut(self) -> None:
        with self.lock:
            self.is_cut = True
            for end in (self.listener, *self.ends):
                _shut(end)

    def _serve(self) -> None:
        with self.listener:
            while not self.is_cut:
                try:
                    near, _ = self.listener.accept()
                except OSError:
                    return
                far = socket.create_connection(("127.0.0.1", self.port))
                with self.lock:
                    self.ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    start(lambda one=one, other=other: self._carry(one, other))

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while not self.is_cut and (data := one.recv(1 << 16)):
                other.sendall(data)
        except OSError:
            pass
        _shut(other)


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has been


class Wires:
    """All that goes between the first two members, made as their engines learn of each other."""

    def __init__(self) -> None:
        self.pair: frozenset[PeerId] = frozenset()
        self.wires: dict[int, Wire] = {}
        self.lock = threading.Lock()

    def rewired(self, record: Record, me: PeerId) -> Record:
        """The record in which one of the two finds the other at the end of a wire."""

        def at_wire(member: Member) -> Member:
            if {me, member.peer} != self.pair:
                return member
            if member.port not in self.wires:
                self.wires[member.port] = Wire(member.port)
            return replace(member, port=self.wires[member.port].entrance)

        with self.lock:
            self.pair = self.pair or frozenset(member.peer for member in record.members[:2])
            return replace(record, members=tuple(at_wire(member) for member in record.members))

    def cut(self) -> None:
        for wire in self.wires.values():
            wire.cut()


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wires]:
    made = Wires()
    plain = Engine.set_view

    def set_view(engine: Engine, record: Record) -> None:
        plain(engine, made.rewired(record, engine._peer))

    monkeypatch.setattr(Engine, "set_view", set_view)
    yield made
    made.cut()


COUNT = 4_000_000


def test_all_three_stay(wires: Wires) -> None:
    with embedded.start() as own:
        trio = join_all(own.address, 3)
        try:
            before = [comm.members for comm in trio]
            check_all_reduce(trio)
            break_in_mid_op(trio, wires)
            assert [comm.members for comm in trio] == before
            check_all_reduce(trio)
            check_the_two(trio)
            check_all_to_all(trio)
            names = {member.name for member in before[0][:2]}
            line = next(line for line in told(own.address).splitlines() if "broken" in line)
            assert set(line.removeprefix("broken link: ").split(" - ")) == names
            assert [comm.members for comm in trio] == before
            check_without_relay(trio)
        finally:
            for comm in trio:
                comm.close()


def check_all_reduce(trio: Crew) -> None:
    for count in (1, 1000, COUNT):
        tensors = [np.full(count, float(1 + comm.rank), np.float32) for comm in trio]
        infos = trio.each(lambda c, t=tensors: c.all_reduce(t[c.rank]))
        assert all((tensor == 6).all() for tensor in tensors)
        assert {info.contributors_min for info in infos} == {3}


def break_in_mid_op(trio: Crew, wires: Wires) -> None:
    """Large ops are under way while the link breaks; all go well."""
    tensors = [[np.full(COUNT, 1.0 + comm.rank, np.float32) for _ in range(6)] for comm in trio]
    works = [[comm.all_reduce(t, async_op=True) for t in tensors[comm.rank]] for comm in trio]
    works[0][0].wait()
    epoch = trio[0].epoch
    assert any(wire.ends for wire in wires.wires.values())
    wires.cut()
    for mine in works:
        for work in mine:
            assert work.wait().contributors_min == 3
    assert all((tensor == 6).all() for mine in tensors for tensor in mine)
    until(lambda: all(comm.epoch > epoch for comm in trio))


def check_the_two(trio: Crew) -> None:
    """What passes between the two alone, both ways at once, and in their sub-group."""

    def body(comm: Communicator) -> None:
        if comm.rank == 2:
            return
        other = 1 - comm.rank
        for count in (0, 1, COUNT):
            mine, theirs = np.full(count, float(comm.rank)), np.full(count, -1.0)
            sent = comm.send(mine, other, async_op=True)
            comm.recv(theirs, other)
            sent.wait()
            assert (theirs == other).all()
        two = comm.subgroup([0, 1])
        tensor = np.full(COUNT, 3.0 + comm.rank)
        two.all_reduce(tensor)
        assert (tensor == 7).all()
        two.broadcast(tensor[:1], src=1)

    trio.each(body)


def check_all_to_all(trio: Crew) -> None:
    def body(comm: Communicator) -> None:
        sends = [np.full(COUNT // 8, 10.0 * comm.rank + to) for to in range(3)]
        receives = [np.zeros(COUNT // 8) for _ in range(3)]
        comm.all_to_all(receives, sends)
        for source, block in enumerate(receives):
            assert (block == 10 * source + comm.rank).all()
        comm.barrier()

    trio.each(body)


def told(address: str) -> str:
    """What `pccl status` says."""
    words = [sys.executable, "-m", "pccl_py", "status", "--coordinator", address]
    asked = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    return asked.stdout


def check_without_relay(trio: Crew) -> None:
    """The relay leaves: of the two the later has no way to the other, and goes."""
    trio[2].leave()
    tensor = np.ones(5)
    until(lambda: trio[0].world_size == 1)
    trio[0].all_reduce(tensor)
    assert (tensor == 1).all()
    with pytest.raises(pccl.Evicted, match="no route"):
        trio[1].all_reduce(tensor)
