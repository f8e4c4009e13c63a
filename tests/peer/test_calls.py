"""Twin of pccl_py.peer.calls: who is called, who is spoken to, and what a forked child closes."""

from __future__ import annotations

import logging
import socket
from typing import cast

import numpy as np
import pytest
import zmq
import zmq.asyncio

import pccl_py as pccl
from pccl_py.coordinator import embedded
from pccl_py.peer import address
from pccl_py.peer.calls import Calls
from pccl_py.protocol.endpoint import Endpoint, parse_list

A, B, C = "tcp://10.0.0.1:1", "tcp://10.0.0.2:2", "tcp://[::1]:3"


class Socket:
    """A DEALER that only remembers whom it calls, and whether IPv6 was allowed then."""

    def __init__(self) -> None:
        self.called: dict[str, int] = {}
        self.v6 = 0

    def setsockopt(self, option: int, value: int) -> None:
        assert option == zmq.IPV6
        self.v6 = value

    def connect(self, address: str) -> None:
        assert address not in self.called
        self.called[address] = self.v6

    def disconnect(self, address: str) -> None:
        del self.called[address]


def _calls() -> tuple[Socket, Calls]:
    fake = Socket()
    calls = Calls(cast(zmq.asyncio.Socket, fake), parse_list("10.0.0.1:1,10.0.0.2:2,[::1]:3"))
    calls.begin()
    return fake, calls


def test_the_first_that_answers_is_spoken_to_and_no_other() -> None:
    fake, calls = _calls()
    assert fake.called == {A: 0, B: 0, C: 1}
    calls.connected(A, 5)
    calls.connected(B, 6)
    assert calls.answered(B)
    assert set(fake.called) == {B}
    calls.connected(C, 7)  # said before the call was taken back
    assert not calls.answered(A)
    assert not calls.answered(C)
    assert calls.take_fds() == (6,)
    assert calls.take_fds() == ()


def test_when_it_is_lost_all_are_called_again() -> None:
    fake, calls = _calls()
    calls.answered(B)
    assert not calls.broke(A), "of one that nobody spoke to"
    assert set(fake.called) == {B}
    assert calls.broke(B)
    assert set(fake.called) == {A, B, C}
    assert calls.answered(C)
    assert set(fake.called) == {C}


def test_one_that_accepts_and_says_nothing_keeps_nobody() -> None:
    with socket.socket() as mute, embedded.start() as coordinator:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        listed = f"127.0.0.1:{mute.getsockname()[1]},{coordinator.address}"
        with pccl.join(listed, timeout=20.0) as comm:
            assert comm.all_reduce(np.ones(3)).contributors_min == 1


def test_names_are_looked_up_and_those_that_cannot_be_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = Endpoint("127.0.0.1", 1)
    listed = (Endpoint("localhost", 2), Endpoint("127.0.0.1", 1), Endpoint("no.invalid", 3))
    with caplog.at_level(logging.WARNING):
        found = address.all_numeric(listed, first)
    assert found[0] == first
    assert [one.port for one in found] == [1, 2]
    assert all(one.host in ("127.0.0.1", "::1") for one in found)
    assert "no.invalid:3 is left out" in caplog.text
