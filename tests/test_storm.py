"""Fifty newcomers at once, while members are late, leave and others die on the threshold."""

from __future__ import annotations

import re
import time
from concurrent.futures import Future

import numpy as np
import pytest

import pccl_py as pccl
from pccl_py.communicator import Communicator
from pccl_py.coordinator import embedded
from pccl_py.launch import inquiry
from pccl_py.protocol.messages import Install
from tests.coordinator.raw_peer import RawPeer, hello
from tests.crew import Crew, join_all, start, until

NEWCOMERS = 50
VIEWS_MAX = 10
DEADLINE_S = 60.0


def run_until(comm: Communicator, contributors: int) -> int:
    """A program's loop, until an op has had so many. All who took part see it at once."""
    x = np.ones(100)
    while x[0] != contributors:
        x.fill(1.0)
        comm.all_reduce(x)
        comm.update()
    return comm.epoch


def pending(address: str) -> set[str]:
    _, found = inquiry.status(address, "", None)
    return {one["name"] for one in found["pending"]}  # type: ignore[attr-defined]


def messages(address: str) -> int:
    return int(inquiry.status(address, "", None)[1]["control_messages"])  # type: ignore[call-overload]


def test_a_storm_of_newcomers_ends_well() -> None:
    with embedded.start() as own:
        trio = join_all(own.address, 3, deadline_s=DEADLINE_S)
        everybody = Crew(trio)
        try:
            first = trio[0].epoch
            storm, ghosts = begin_storm(own.address)
            until(lambda: len(pending(own.address)) >= NEWCOMERS + 2)
            m0 = start(lambda: run_until(trio[0], NEWCOMERS + 2))
            one_is_late_and_is_named(own.address, trio)
            one_leaves_meanwhile(trio)
            m1 = start(lambda: run_until(trio[1], NEWCOMERS + 2))
            everybody = Crew([trio[0], trio[1], *(one.result(40.0) for one in storm)])
            last = {m0.result(40.0), m1.result(40.0), *(comm.epoch for comm in everybody)}
            assert max(last) - first <= VIEWS_MAX
            assert {comm.world_size for comm in everybody} == {NEWCOMERS + 2}
            assert [ghost.result(40.0) for ghost in ghosts] == [False, True] * 2
            nobody_pending_costs_no_message(own.address, everybody)
        finally:
            for comm in (*everybody, *trio):
                comm.close()


def begin_storm(address: str) -> tuple[list[Future[Communicator]], list[Future[bool]]]:
    """Newcomers; and some who end before they are members, or (True) as soon as they are."""

    def honest(number: int) -> Communicator:
        comm = pccl.join(address, name=f"n{number}", timeout=60, deadline_s=DEADLINE_S)
        run_until(comm, NEWCOMERS + 2)
        return comm

    def ghost(number: int) -> bool:
        with RawPeer(address) as raw:
            raw.send(hello("default", f"ghost{number}"))
            if number % 2:
                raw.await_kind(Install, 40.0)
            else:
                time.sleep(0.05 * number)
            return bool(number % 2)

    honest_ones = [start(lambda n=n: honest(n)) for n in range(NEWCOMERS)]
    return honest_ones, [start(lambda n=n: ghost(n)) for n in range(4)]


def one_is_late_and_is_named(address: str, trio: Crew) -> None:
    """Two do not come to the safe point: a newcomer is told; nobody is expelled."""
    members = [member.name for member in trio[1].members]
    with pytest.raises(pccl.DeadlineExceeded) as caught:
        pccl.join(address, name="impatient", timeout=0.5, deadline_s=DEADLINE_S)
    for name in members[1:]:
        assert re.search(rf"waiting for .*{name} \(.* to reach a safe point", str(caught.value))
    _, found = inquiry.status(address, "", None)
    assert set(members[1:]) <= {one["name"] for one in found["awaited"]}  # type: ignore[attr-defined]
    assert [member.name for member in trio[1].members] == members


def one_leaves_meanwhile(trio: Crew) -> None:
    epoch = trio[0].epoch
    trio[2].leave()
    until(lambda: trio[0].epoch > epoch)


def nobody_pending_costs_no_message(address: str, everybody: Crew) -> None:
    """update() by all, a hundred times: what the coordinator has heard and said stays the same."""
    time.sleep(0.6)  # its probes of those who greeted it last are over
    before = messages(address)
    everybody.each(lambda comm: [comm.update() for _ in range(100)])
    assert messages(address) == before
