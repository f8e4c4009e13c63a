"""The proxy: the emulated network for those without root."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from stress import wan

ANSWER_S = 10.0


@contextlib.contextmanager
def connected(net: wan.ProxyNetwork) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection from host 0 to host 1."""
    with socket.create_server((net.address(1), 0)) as listener:
        way = net.expose(0, 1, listener.getsockname()[1])
        with socket.create_connection(way, ANSWER_S) as here:
            there = listener.accept()[0]
            with there:
                there.settimeout(ANSWER_S)
                yield here, there


def seconds_for(here: socket.socket, there: socket.socket, count_bytes: int) -> float:
    """From the first to the last of `count_bytes`, both as they arrive."""
    sender = threading.Thread(target=here.sendall, args=(bytes(count_bytes),))
    sender.start()
    received = len(there.recv(1 << 16))
    start_s = time.monotonic()
    first = received
    while received < count_bytes:
        received += len(there.recv(1 << 16))
    sender.join()
    return (time.monotonic() - start_s) * count_bytes / (count_bytes - first)


def test_delay_is_right_and_can_be_changed() -> None:
    with wan.ProxyNetwork(2, rtt_ms=60) as net, connected(net) as (here, there):
        for rtt_ms in (60, 20):
            net.set(rtt_ms=rtt_ms)
            times = []
            for _ in range(9):
                start_s = time.monotonic()
                here.sendall(b"?")
                assert there.recv(9) == b"?"
                there.sendall(b"!")
                assert here.recv(9) == b"!"
                times.append((time.monotonic() - start_s) * 1e3)
            assert rtt_ms <= min(times) < rtt_ms + 12


@pytest.mark.parametrize(("rate", "flow"), [(80.0, 0.0), (1000.0, 40.0)])
def test_rate_and_cap_are_right(rate: float, flow: float) -> None:
    with wan.ProxyNetwork(2, rtt_ms=10, rate_mbit=rate, flow_mbit=flow) as net:
        with connected(net) as (here, there):
            took_s = seconds_for(here, there, 5_000_000)
        payload_mbit = (flow or rate) * 1448 / 1500
        assert 40 / took_s == pytest.approx(payload_mbit, rel=0.05)
        assert net.delivered_bytes() == [0, 5_000_000]


def test_a_cut_holds_bytes_until_it_is_healed() -> None:
    with wan.ProxyNetwork(2, rtt_ms=2) as net, connected(net) as (here, there):
        net.cut(0, 1)
        here.sendall(b"late")
        there.settimeout(0.2)
        with pytest.raises(TimeoutError):
            there.recv(9)
        net.heal(1, 0)
        there.settimeout(ANSWER_S)
        assert there.recv(9) == b"late"


def test_ends_of_streams_pass() -> None:
    with wan.ProxyNetwork(2, rtt_ms=2) as net, connected(net) as (here, there):
        here.sendall(b"last words")
        here.shutdown(socket.SHUT_WR)
        assert there.recv(99) == b"last words"
        assert there.recv(99) == b""
        there.sendall(b"answer")
        assert here.recv(99) == b"answer"


def test_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="loses no packets"):
        wan.ProxyNetwork(2, loss=0.01)
    with wan.ProxyNetwork(2) as net, pytest.raises(ValueError, match="loses no packets"):
        net.set(loss=0.01)


def test_nothing_is_left_behind() -> None:
    with wan.ProxyNetwork(2) as net:
        started = net.run(0, ["sleep", "600"])
        assert started.poll() is None
    assert started.poll() is not None
    with pytest.raises(RuntimeError, match="not up"):
        net.cut(0, 1)
