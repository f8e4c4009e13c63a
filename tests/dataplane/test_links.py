"""Who links to whom, and how often: what the shell opens, and what it lets others open."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

import pytest

from pccl_py.dataplane.engine import Engine
from pccl_py.types import PeerId
from tests.crew import until
from tests.dataplane.test_engine import (
    PROOF,
    RUN,
    call,
    closed_by_engine,
    engines,
    handshake,
    reduce_once,
    until_refused,
)
from tests.dataplane.test_hostile_link import LIAR, view_of

PEER_LINKS = 32


def links(made: list[Engine]) -> list[int]:
    return [engine.stats().links_up for engine in made]


@pytest.mark.parametrize("count", [1, 3, 16])
def test_as_many_links_a_pair_as_asked_for(count: int) -> None:
    for world in (2, 3):
        with engines(world, links=count) as made:
            until(lambda made=made, world=world: links(made) == [count * (world - 1)] * world)
            reduce_once(made, 300_000)
            assert links(made) == [count * (world - 1)] * world


def test_all_are_linked_to_all_before_the_first_op() -> None:
    with engines(4) as made:
        until(lambda: links(made) == [3] * 4)
        reduce_once(made)
        assert links(made) == [3] * 4


def test_one_member_cannot_take_all_links() -> None:
    given = {"bind_host": "127.0.0.1", "bind_port": 0, "run": RUN, "proof": PROOF}
    engine = Engine(**given, checksum_payload=True, peer=PeerId(1))
    with ExitStack() as stack:
        stack.callback(engine.close)
        engine.set_view(view_of(engine, 1, (1, LIAR)))
        for _ in range(PEER_LINKS):
            taken = stack.enter_context(call(engine))
            taken.sendall(handshake(peer=LIAR, to=1))
        until(lambda: engine.stats().links_up == PEER_LINKS)
        with call(engine) as one_more:
            one_more.sendall(handshake(peer=LIAR, to=1))
            assert closed_by_engine(one_more)
        until_refused(engine, 1)
        assert engine.stats().links_up == PEER_LINKS


PROGRAM = """
import resource
from pccl_py.dataplane.engine import Engine
from pccl_py.types import PeerId
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
Engine(bind_host="127.0.0.1", bind_port=0, run=1, peer=PeerId(1), proof=bytes(32),
       checksum_payload=False).close()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("hard", [64, 3000])
def test_the_limit_of_descriptors_is_raised_to_what_is_allowed(hard: int) -> None:
    program = [sys.executable, "-c", PROGRAM.format(hard=hard)]
    told = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.split() == [str(hard), str(hard)]


def test_tensors_are_summed_over_many_links() -> None:
    with engines(3, links=5) as made:
        for count in (1, 70_000, 1_000_000):
            reduce_once(made, count)
