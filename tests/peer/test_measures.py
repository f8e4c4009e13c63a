"""When a peer tells what it has measured: when it matters to somebody, seldom, and again after a
reconnect."""

from __future__ import annotations

import pytest

from pccl_py.peer import events as pe
from pccl_py.protocol import messages as m
from pccl_py.types import Path
from tests.peer.test_machine import ME, OTHER, THIRD, Rig, record

MS = 1_000
FAST, SLOW = 10**9, 10**7


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.feed(pe.Connected())
    rig.get(m.Install(record(1, ME, OTHER, THIRD, fresh=True)))
    return rig


def sample(*rows: tuple[int, int, int]) -> pe.PathsMeasured:
    return pe.PathsMeasured(tuple(Path(*row) for row in rows))  # type: ignore[arg-type]


def told(rig: Rig, *rows: tuple[int, int, int]) -> list[m.FromPeer]:
    return rig.said(sample(*rows))


def test_told_at_once_when_all_members_are_known(rig: Rig) -> None:
    said = told(rig, (OTHER, 40 * MS, 0), (THIRD, 300, 0))
    assert said == [m.Measured(1, (Path(OTHER, 40 * MS, 0), Path(THIRD, 300, 0)))]
    assert told(rig, (OTHER, 41 * MS, 0), (THIRD, 900, FAST)) == []
    assert rig.state.tell_at is None
    assert rig.state.timer is None


def test_near_members_on_fast_paths_are_nobodys_business(rig: Rig) -> None:
    assert told(rig, (OTHER, 300, FAST), (THIRD, 200, 2 * FAST)) == []
    assert rig.state.timer is None


def test_a_slow_path_is_told_though_it_is_short(rig: Rig) -> None:
    assert len(told(rig, (OTHER, 300, SLOW), (THIRD, 200, FAST))) == 1


def test_who_is_never_reached_is_not_waited_for(rig: Rig) -> None:
    assert told(rig, (OTHER, 40 * MS, 0)) == []
    assert rig.state.timer == 10.0
    rig.now = 10.0
    assert rig.said(pe.Tick()) == [m.Measured(1, (Path(OTHER, 40 * MS, 0),))]


def test_changes_are_told_every_ten_seconds_at_most(rig: Rig) -> None:
    told(rig, (OTHER, 40 * MS, 0), (THIRD, 40 * MS, 0))
    rig.now = 1.0
    assert told(rig, (OTHER, 60 * MS, 0), (THIRD, 40 * MS, 0)) == []
    rig.now = 2.0
    assert told(rig, (OTHER, 70 * MS, 0), (THIRD, 40 * MS, 0)) == []
    assert rig.state.timer == 10.0
    rig.now = 10.0
    (said,) = rig.said(pe.Tick())
    assert said == m.Measured(1, (Path(OTHER, 70 * MS, 0), Path(THIRD, 40 * MS, 0)))
    rig.now = 11.0
    told(rig, (OTHER, 20 * MS, 0), (THIRD, 40 * MS, 0))
    assert rig.state.timer == 20.0
    assert told(rig, (OTHER, 70 * MS, 0), (THIRD, 40 * MS, 0)) == [], "it was nothing"
    assert rig.state.timer is None


def test_told_again_to_a_coordinator_that_may_have_forgotten(rig: Rig) -> None:
    (first,) = told(rig, (OTHER, 40 * MS, 0), (THIRD, 40 * MS, 0))
    rig.feed(pe.Disconnected())
    assert told(rig, (OTHER, 80 * MS, 0), (THIRD, 40 * MS, 0)) == []
    rig.now = 12.0
    hello, second = rig.said(pe.Connected())
    assert isinstance(hello, m.Hello)
    assert isinstance(second, m.Measured)
    assert second != first


def test_strangers_are_left_out(rig: Rig) -> None:
    (said,) = told(rig, (OTHER, 40 * MS, 0), (THIRD, 40 * MS, 0), (9, MS, 0))
    assert isinstance(said, m.Measured)
    assert {path.peer for path in said.paths} == {OTHER, THIRD}


def test_nothing_before_there_is_a_view() -> None:
    rig = Rig()
    rig.feed(pe.Connected())
    assert told(rig, (OTHER, 40 * MS, 0)) == []
