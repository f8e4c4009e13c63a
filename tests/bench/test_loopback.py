"""Twin of pccl_py.bench.loopback: what claims TCP and uses shared memory is found out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pccl_py.bench import conduct, loopback
from pccl_py.errors import PcclError
from tests.bench.test_conduct import PLAN, crowd

DEV = """Inter-|   Receive      |  Transmit
 face |bytes    packets errs drop|bytes    packets
    lo: 12345      10    0    0    12345  10
  eth0: 999        10    0    0    1      1
"""


def test_the_counter_is_read() -> None:
    assert loopback.parsed(DEV) == 12345
    assert loopback.parsed(DEV.replace("lo:", "l0:")) is None
    assert loopback.parsed("") is None


def counter(step: int) -> Iterator[int]:
    now = 0
    while True:
        yield now
        now += step


@pytest.mark.parametrize(("step", "is_honest"), [(80_000, True), (79_999, False), (0, False)])
def test_a_claim_of_tcp_is_checked(step: int, is_honest: bool) -> None:
    values = counter(step)
    with crowd() as (_, groups):

        def measure() -> object:
            plan = PLAN
            return list(conduct.run(plan, groups, lambda: 0, lambda _: None, lambda: next(values)))

        if is_honest:
            measure()
        else:
            with pytest.raises(PcclError, match="gloo did not go over TCP"):
                measure()


def test_where_there_is_no_counter_nothing_is_claimed() -> None:
    with crowd() as (_, groups):
        assert list(conduct.run(PLAN, groups, lambda: 0, lambda _: None, lambda: None))
