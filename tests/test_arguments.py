"""What a newcomer passes by mistake: a UsageError in one line at once, and nobody hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

import pccl_py as pccl
from pccl_py import arguments
from pccl_py.communicator import Communicator
from pccl_py.coordinator import embedded
from pccl_py.optim import DiLoCo
from pccl_py.protocol import encoding
from tests.crew import crew, start

LONG = 10**400  # more than a float holds
HALF = "\ud800"  # half a surrogate pair: no UTF-8
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with embedded.start() as started:
        yield started.address


@pytest.fixture(scope="module")
def alone() -> Iterator[Communicator]:
    with embedded.start() as own, crew(own.address, 1) as (comm,):
        yield comm


def refused(call: Callable[[], object], says: str) -> None:
    began = time.monotonic()
    with pytest.raises(pccl.UsageError) as caught:
        call()
    text = str(caught.value)
    assert says in text, text
    assert "\n" not in text
    assert len(text) < 300, text
    assert time.monotonic() - began < 3.0


# ---------------------------------------------------------------- join


@pytest.mark.parametrize(
    ("first", "settings", "says"),
    [
        (5, {}, "HOST:PORT"),
        (["127.0.0.1:1"], {}, "HOST:PORT"),
        (b"127.0.0.1:1", {}, "HOST:PORT"),
        (None, {"run": b"x"}, "run=b'x'"),
        (None, {"run": "x" * 10_000}, "1 to 128 bytes"),
        (None, {"group": 5}, "group=5"),
        (None, {"group": "x" * 1000}, "1 to 64 bytes"),
        (None, {"group": HALF}, "group="),
        (None, {"name": b"x"}, "name=b'x'"),
        (None, {"secret": HALF}, "secret"),
        (None, {"deadline_s": None}, "deadline_s=None"),
        (None, {"deadline_s": True}, "deadline_s=True"),
        (None, {"deadline_s": 1e300}, "2592000 (30 days)"),
        (None, {"deadline_s": LONG}, "2592000 (30 days)"),
        (None, {"timeout": LONG}, "timeout=1000"),
        (None, {"timeout": True}, "timeout=True"),
        (None, {"min_members": True}, "min_members=True"),
    ],
)
def test_join_refuses_before_it_connects(first: object, settings: dict, says: str) -> None:
    nobody = "127.0.0.1:9"  # asked only by who looks before checking
    refused(lambda: pccl.join(nobody if first is None else first, **settings), says)


def test_the_environment_is_checked_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCL_GROUP", "x" * 200)
    refused(lambda: pccl.join("127.0.0.1:9"), "group='xxx")


@pytest.mark.parametrize("bind", [5, b"", "a\0b"])
def test_join_refuses_a_place_that_is_none(address: str, bind: object) -> None:
    refused(lambda: pccl.join(address, bind=bind), "bind")
    refused(lambda: pccl.join(address, advertise=bind), "advertise")


# ---------------------------------------------------------------- collectives


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.all_reduce(np.zeros(3), strict="yes"), "strict='yes'"),
        (lambda c: c.all_reduce(np.zeros(3), strict=None), "strict=None"),
        (lambda c: c.all_reduce(np.zeros(3), strict=[]), "strict=[]"),
        (lambda c: c.all_reduce(np.zeros(3), async_op=1), "async_op=1"),
        (lambda c: c.all_reduce(np.zeros(3), name=HALF), "name="),
        (lambda c: c.all_reduce(np.zeros(3), timeout=LONG), "timeout="),
        (lambda c: c.all_reduce(np.zeros(3), op=0), "op=0"),
        (lambda c: c.all_reduce(torch.nested.nested_tensor([torch.ones(2)])), "nested"),
        (lambda c: c.all_reduce(torch.zeros(2, device="meta")), "meta"),
        (lambda c: c.broadcast(np.zeros(3), src=False), "src=False"),
        (lambda c: c.sync_state(None), "not NoneType"),
        (lambda c: c.sync_state([("a", np.zeros(2))]), "not list"),
        (lambda c: c.sync_state({HALF: np.zeros(2)}), "state key"),
        (lambda c: c.sync_state({"x": np.zeros(2), "y": None}), "state key 'y': NoneType"),
        (lambda c: c.sync_state(dict.fromkeys("xy", np.zeros(2))), "sync_state overlap each other"),
        (lambda c: c.sync_state({"x": np.zeros(2)}, revision=True), "revision=True"),
        (lambda c: c.sync_state({"x": np.zeros(2)}, revision="1"), "revision='1'"),
        (lambda c: c.sync_state(dict.fromkeys(map(str, range(70_000)), bytearray())), "too many"),
    ],
)
def test_collectives_refuse(alone: Communicator, call: Callable, says: str) -> None:
    refused(lambda: call(alone), says)
    alone.all_reduce(np.zeros(3))


def test_what_looks_odd_and_is_right(alone: Communicator) -> None:
    for op in pccl.ReduceOp:
        alone.all_reduce(np.ones(3), op=op)
    alone.all_reduce(np.ones(3), timeout=INF)
    alone.sync_state({"x": np.zeros(2)}, revision=0)


def test_reduce_op_members_reduce(address: str) -> None:
    with crew(address, 2, group="enum") as pair:
        ours = [np.full(3, i + 2.0) for i in range(2)]
        pair.each(lambda c: c.all_reduce(ours[c.rank], pccl.ReduceOp.PROD))
        assert (ours[0] == 6.0).all()


@pytest.mark.parametrize("timeout", [NAN, -1, "x", LONG, True])
def test_a_wait_refuses_a_time_that_is_none(alone: Communicator, timeout: object) -> None:
    work = alone.all_reduce(np.zeros(3), async_op=True)
    refused(lambda: work.wait(timeout), "timeout=")
    work.wait(INF)


def test_a_wait_of_nothing_is_the_builtin_timeout(address: str) -> None:
    with crew(address, 2, group="wait") as pair:
        ours = [np.ones(3) for _ in range(2)]
        work = pair[0].all_reduce(ours[0], async_op=True)
        with pytest.raises(TimeoutError) as caught:
            work.wait(0)
        assert not isinstance(caught.value, pccl.PcclError)
        other = start(lambda: pair[1].all_reduce(ours[1]))
        assert work.wait(1e300).contributors_max == 2
        other.result(10.0)


# ---------------------------------------------------------------- life


def test_a_closed_communicator_is_not_entered(address: str) -> None:
    for end in (Communicator.leave, Communicator.close):
        comm = pccl.join(address, group="again", timeout=10.0)
        end(comm)

        def enter(comm: Communicator = comm) -> None:
            with comm:
                raise AssertionError("inside")

        refused(enter, "the communicator is")


def test_a_message_that_cannot_be_said_fails_its_communicator(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever slips past the checks: a hang until the deadline is the worst answer."""
    with pccl.join(address, group="mute", timeout=10.0) as comm:
        encode = encoding.encode

        def choke(message: object) -> bytes:
            if type(message).__name__ == "Offer":
                raise pccl.errors.LocalProtocolError("too big for the wire")
            return encode(message)  # type: ignore[arg-type]

        monkeypatch.setattr(encoding, "encode", choke)
        began = time.monotonic()
        with pytest.raises(pccl.ProtocolError, match="Offer cannot be sent: too big"):
            comm.sync_state({"x": np.zeros(2)})
        with pytest.raises(pccl.ProtocolError, match="cannot be sent"):
            comm.all_reduce(np.zeros(2))
        assert time.monotonic() - began < 5.0


# ---------------------------------------------------------------- DiLoCo


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": None}, "lr must"),
        ({"lr": "x"}, "lr must"),
        ({"lr": LONG}, "lr must"),
        ({"momentum": None}, "momentum must"),
        ({"momentum": "x"}, "momentum must"),
        ({"debug": "yes"}, "debug='yes'"),
        ({"inner_steps": 1.5}, "inner_steps"),
        ({"model": None}, "not NoneType"),
        ({"model": [None]}, "not of NoneType"),
        ({"comm": None}, "comm must be a communicator, not NoneType"),
    ],
)
def test_diloco_refuses(alone: Communicator, change: dict, says: str) -> None:
    refused(lambda: DiLoCo(**{"model": nn.Linear(2, 2), "comm": alone} | change), says)


def test_diloco_refuses_a_parameter_that_comes_twice(alone: Communicator) -> None:
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    refused(lambda: DiLoCo([weight, other, weight], alone), "tensors 0 and 2 are the same")


def test_seconds() -> None:
    assert arguments.seconds(None) is None
    assert arguments.seconds(INF) is None
    assert arguments.seconds(1e300) is None
    assert arguments.seconds(2) == 2.0
    assert arguments.seconds(0, may_be_zero=True) == 0.0
    refused(lambda: arguments.seconds(-1, may_be_zero=True), "0 or more seconds, or None")
    refused(lambda: arguments.seconds(10**5000), "timeout=int")
