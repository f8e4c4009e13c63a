"""Members that meet over IPv6: a machine without it cannot pass this, and says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from pccl_py.coordinator import embedded
from tests.crew import crew


@pytest.fixture
def address() -> Iterator[str]:
    """A coordinator on ::1. Without IPv6 there is nothing to test, and that is a failure."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.fail(f"this machine has no IPv6 loopback to test with: {error}")
    with embedded.start(bind="[::1]:0") as started:
        yield started.address


def test_two_members_over_ipv6(address: str) -> None:
    assert address.startswith("[::1]:")
    with crew(address, 2) as members:
        tensors = [np.full(500_000, comm.rank + 1, np.float32) for comm in members]
        infos = members.each(lambda comm: comm.all_reduce(tensors[comm.rank]))
        assert all((tensor == 3).all() for tensor in tensors)
        assert {info.transport for info in infos} == {"tcp"}
        assert all(member.host == "::1" for comm in members for member in comm.members)
