"""One peer's side: install, flush, level-triggered requests, safe points, ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.errors import Code
from pccl_py.peer import events as pe
from pccl_py.peer import machine
from pccl_py.peer import state as ps
from pccl_py.protocol import messages as m
from pccl_py.types import (
    GroupRecord,
    Kind,
    Member,
    OpInFlight,
    Outcome,
    PeerId,
    Phase,
    Record,
    Verdict,
)

ME, OTHER, THIRD = PeerId(1), PeerId(2), PeerId(3)


def record(epoch: int, *peers: PeerId, line: int = 1, fresh: bool = False) -> Record:
    members = tuple(Member(p, f"w{p}", "g", "h", 1) for p in peers)
    return Record(line, epoch, fresh, members, (GroupRecord("g", peers),))


class Rig:
    """A peer and what it did last."""

    def __init__(self) -> None:
        self.now = 0.0
        self.state = ps.initial(
            run="r",
            peer=ME,
            name="w1",
            group="g",
            host="h",
            port=1,
            min_members=1,
            detection_s=5.0,
        )

    def feed(self, event: pe.Event) -> list[pe.Action]:
        self.state, actions = machine.step(self.state, event, self.now)
        return [a for a in actions if not isinstance(a, pe.Note)]

    def get(self, message: m.FromCoordinator) -> list[pe.Action]:
        return self.feed(pe.Received(message))

    def said(self, event: pe.Event) -> list[m.FromPeer]:
        return [a.message for a in self.feed(event) if isinstance(a, pe.Send)]


def a_member() -> Rig:
    rig = Rig()
    rig.feed(pe.Connected())
    rig.get(m.Install(record(1, ME, OTHER, fresh=True)))
    return rig


@pytest.fixture
def member() -> Rig:
    return a_member()


def test_hello_tells_where_it_stands(member: Rig) -> None:
    member.get(m.Flush(1))
    member.get(m.Ask(1, (1, 4)))
    (hello,) = member.said(pe.Connected())
    assert isinstance(hello, m.Hello)
    assert (hello.epoch, hello.stopped, hello.holding) == (1, True, (1, 4))


def test_an_install_again_is_nothing(member: Rig) -> None:
    assert member.get(m.Install(record(1, ME, OTHER, fresh=True))) == []


def test_a_skipped_view_means_evicted(member: Rig) -> None:
    (fail,) = member.get(m.Install(record(3, ME, OTHER)))
    assert isinstance(fail, pe.Fail)
    assert fail.code == Code.EVICTED
    assert member.feed(pe.Connected()) == []


def test_a_view_without_me_means_evicted(member: Rig) -> None:
    (fail,) = member.get(m.Install(record(2, OTHER)))
    assert isinstance(fail, pe.Fail)


def test_the_answer_waits_for_the_engine(member: Rig) -> None:
    assert member.get(m.Flush(1)) == [pe.FlushEngine(1)]
    assert member.get(m.Flush(1)) == [pe.FlushEngine(1)]
    member.feed(pe.LinkLost(1, OTHER, "reset"))
    (answer,) = member.said(pe.Flushed(1, 2, 1, ((5, 3),), ()))
    assert answer == m.Answer(1, 2, 1, ((5, 3),), (), (OTHER,), False)
    assert member.said(pe.Flushed(0, 2, 1, (), ())) == []


def test_a_flush_of_another_epoch_is_nothing(member: Rig) -> None:
    assert member.get(m.Flush(0)) == []
    assert member.get(m.Flush(2)) == []


def test_requests_are_said_again(member: Rig) -> None:
    member.feed(pe.LinkLost(1, OTHER, "reset"))
    member.feed(pe.OpTimedOut(3, "slow"))
    member.feed(pe.EngineRepaired(1))
    member.feed(pe.WantState(1, 7, ()))
    member.feed(pe.WantLeave())
    member.feed(pe.Disconnected())
    said = member.said(pe.Connected())
    assert [type(x) for x in said] == [
        m.Hello, m.Lost, m.Repaired, m.Timeout, m.Leave, m.Offer,
    ]  # fmt: skip
    actions = member.get(m.Install(record(2, ME, OTHER)))
    again = [a.message for a in actions if isinstance(a, pe.Send)]
    assert again == [m.Timeout(2, 3, "slow"), m.Leave(2), m.Offer(2, 1, 7, (), 2)]


def test_nothing_is_sent_without_a_connection(member: Rig) -> None:
    member.feed(pe.Disconnected())
    assert member.said(pe.WantLeave()) == []


@pytest.mark.parametrize(
    ("verdict", "asks_again"),
    [
        (Verdict(3, Outcome.ABORT, code=3), False),
        (Verdict(3, Outcome.RUN, holders=(0,)), False),
        (Verdict(3, Outcome.RUN), True),
    ],
)
def test_a_verdict_ends_a_time_out(member: Rig, verdict: Verdict, asks_again: bool) -> None:
    member.feed(pe.OpTimedOut(3, "slow"))
    group = GroupRecord("g", (ME, OTHER), verdicts=(verdict,))
    new = replace(record(2, ME, OTHER), groups=(group,))
    actions = member.get(m.Install(new))
    assert (pe.Send(m.Timeout(2, 3, "slow")) in actions) is asks_again


def test_an_op_that_has_ended_is_no_wish(member: Rig) -> None:
    member.feed(pe.OpTimedOut(3, "slow"))
    member.get(m.Flush(1))
    member.feed(pe.Flushed(1, 3, 3, (), ()))
    assert member.state.timed_out == {}


def test_lost_links_are_news_once(member: Rig) -> None:
    assert member.said(pe.LinkLost(1, OTHER, "reset")) == [m.Lost(1, OTHER, "reset")]
    assert member.said(pe.LinkLost(1, OTHER, "reset")) == []
    assert member.said(pe.LinkLost(0, OTHER, "old")) == []
    assert member.said(pe.LinkLost(1, THIRD, "stranger")) == []
    excluded = replace(record(2, ME, OTHER, THIRD), excluded=((ME, OTHER),))
    member.get(m.Install(excluded))
    assert member.said(pe.LinkLost(2, OTHER, "known")) == []


# ---------------------------------------------------------------- safe points


def test_update_costs_nothing_without_a_round(member: Rig) -> None:
    assert member.feed(pe.SafePoint(1)) == []
    assert member.state.passed == 1


def test_hold_from_ask_and_stand_at_the_target(member: Rig) -> None:
    member.feed(pe.SafePoint(1))
    assert member.get(m.Ask(1, (1, 1))) == [pe.Send(m.Sp(1, (1, 1), 1, 1))]
    assert member.feed(pe.SafePoint(2)) == [pe.Hold()]
    assert member.feed(pe.Drained(2)) == []
    assert member.get(m.Target(1, (1, 1), 2)) == [pe.Send(m.At(1, (1, 1), 2))]
    grown = member.get(m.Install(record(2, ME, OTHER, THIRD, line=2, fresh=True)))
    assert pe.Resume(grown=True) in grown
    assert member.state.passed == 0


def test_positions_below_the_target_are_passed(member: Rig) -> None:
    member.get(m.Ask(1, (1, 1)))
    assert member.feed(pe.SafePoint(1)) == [pe.Hold()]
    assert member.get(m.Target(1, (1, 1), 3)) == [pe.Resume(grown=False)]
    assert member.feed(pe.SafePoint(2)) == []
    assert member.feed(pe.SafePoint(4)) == [pe.Hold()]
    assert member.feed(pe.Drained(4)) == [pe.Send(m.At(1, (1, 1), 4))]


def test_a_repeated_position_is_stood_at(member: Rig) -> None:
    member.get(m.Ask(1, (1, 1)))
    member.get(m.Target(1, (1, 1), 1))
    assert member.feed(pe.SafePoint(0)) == [pe.Hold()]
    assert member.feed(pe.Drained(0)) == [pe.Send(m.At(1, (1, 1), 0))]
    assert member.get(m.Target(1, (1, 1), 1)) == [pe.Send(m.At(1, (1, 1), 0))]
    assert member.get(m.Release(1, (1, 1))) == [pe.Resume(grown=False)]


def test_rounds_of_the_past_are_nothing(member: Rig) -> None:
    member.get(m.Ask(1, (2, 1)))
    member.feed(pe.SafePoint(1))
    assert member.get(m.Ask(1, (1, 9))) == []
    assert member.get(m.Target(1, (1, 9), 0)) == []
    assert member.get(m.Release(1, (1, 9))) == []
    assert member.get(m.Release(0, (2, 1))) == []
    assert member.get(m.Release(1, (2, 1))) == [pe.Resume(grown=False)]


def test_a_view_that_only_shrinks_releases(member: Rig) -> None:
    member.get(m.Ask(1, (1, 1)))
    member.feed(pe.SafePoint(3))
    assert pe.Resume(grown=False) in member.get(m.Install(record(2, ME)))
    assert member.state.passed == 3
    assert member.feed(pe.SafePoint(3)) == []


# ---------------------------------------------------------------- state, ends


W = m.StateKey("w", bytes(16))


def test_an_election_is_heard_once_and_told_after_hello_and_install(member: Rig) -> None:
    member.feed(pe.WantState(1, 7, (W,)))
    plan = m.StatePlan(1, 1, 7, OTHER, ("w",), 1)
    assert member.get(plan) == [pe.StateElected(1, 7, OTHER, ("w",), "")]
    assert member.get(plan) == []
    member.feed(pe.WantState(2, 8, (W,)))
    told = [m.Elected(1, 1, 7, OTHER, ("w",), ""), m.Offer(1, 2, 8, (W,), 2)]
    assert member.said(pe.Connected())[1:] == told
    actions = member.get(m.Install(record(2, ME, OTHER)))
    assert pe.Send(m.Elected(2, 1, 7, OTHER, ("w",), "")) in actions
    member.feed(pe.ForgetState(2))
    assert member.get(m.StatePlan(1, 2, 8, OTHER, (), 2)) == []
    member.feed(pe.WantState(0, 8, (W,)))
    assert member.get(m.StatePlan(1, 0, 8, OTHER, (), 2)) == [pe.StateElected(0, 8, OTHER, (), "")]
    assert m.Elected(2, 1, 7, OTHER, ("w",), "") in member.said(pe.Connected())  # still the last
    member.get(m.Install(record(3, ME, OTHER, line=2, fresh=True)))
    assert len(member.said(pe.Connected())) == 1  # of a new line nothing is known


def test_an_election_that_was_refused_is_told_as_well(member: Rig) -> None:
    member.feed(pe.WantState(1, 7, (W,)))
    member.get(m.StateError(1, 1, "keys differ", 1))
    assert m.Elected(1, 1, 0, PeerId(0), (), "keys differ") in member.said(pe.Connected())


def test_an_outcome_of_a_former_life_comes_too_late(member: Rig) -> None:
    """It was read only after Hello and offer had gone to the next one, which may elect another."""
    member.feed(pe.WantState(1, 7, (W,)))
    assert m.Offer(1, 1, 7, (W,), 2) in member.said(pe.Connected())
    assert member.get(m.StatePlan(1, 1, 7, OTHER, ("w",), 1)) == []
    assert member.get(m.StateError(1, 1, "keys differ", 1)) == []
    now = m.StatePlan(1, 1, 9, THIRD, ("w",), 2)
    assert member.get(now) == [pe.StateElected(1, 9, THIRD, ("w",), "")]


def test_a_key_that_was_not_offered_is_an_error(member: Rig) -> None:
    member.feed(pe.WantState(1, 7, (W,)))
    (told,) = member.get(m.StatePlan(1, 1, 7, OTHER, ("v", "w"), 1))
    assert isinstance(told, pe.StateElected)
    assert "'v', which is no key here" in told.error


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (m.EvictedMsg("why"), Code.EVICTED),
        (m.Refused(1, "wrong run"), Code.USAGE),
        (m.Refused(99, "?"), Code.PROTOCOL),
    ],
)
def test_terminal_messages(member: Rig, message: m.FromCoordinator, code: Code) -> None:
    (fail,) = member.get(message)
    assert isinstance(fail, pe.Fail)
    assert fail.code == code
    assert member.feed(pe.SafePoint(5)) == []


def test_bye(member: Rig) -> None:
    member.feed(pe.WantLeave())
    assert member.get(m.Bye()) == [pe.Left()]


def test_waiting_is_passed_on() -> None:
    rig = Rig()
    assert rig.get(m.Waiting("1 of 2")) == [pe.Progress("1 of 2")]


def test_a_needed_verdict_that_cannot_be_had(member: Rig) -> None:
    member.now = 10.0
    member.feed(pe.Disconnected())
    member.now = 12.0
    assert member.feed(pe.OpTimedOut(3, "slow")) == [pe.SetTimer(15.0)]
    member.now = 14.999
    assert member.feed(pe.Tick()) == [pe.SetTimer(15.0)]
    member.now = 15.0
    (fail,) = member.feed(pe.Tick())
    assert isinstance(fail, pe.Fail)
    assert fail.code == Code.COORDINATOR_LOST
    assert fail.text.startswith("coordinator unreachable for 5.0 s; outcome of op 3 unknown")


def test_an_op_that_settles_while_the_coordinator_is_away_needs_no_verdict(member: Rig) -> None:
    member.feed(pe.Disconnected())
    member.feed(pe.OpTimedOut(3, "slow"))
    assert member.feed(pe.OpSettled(3)) == [pe.SetTimer(None)]
    member.now = 1000.0
    assert member.feed(pe.Tick()) == []


def test_a_coordinator_that_comes_back_in_time(member: Rig) -> None:
    member.feed(pe.Disconnected())
    member.feed(pe.OpTimedOut(3, "slow"))
    member.now = 3.0
    actions = member.feed(pe.Connected())
    assert actions[-1] == pe.SetTimer(None)
    assert pe.Send(m.Timeout(1, 3, "slow")) in actions


def test_without_a_coordinator_and_without_need_nothing_happens(member: Rig) -> None:
    member.feed(pe.Disconnected())
    member.now = 1000.0
    assert member.feed(pe.Tick()) == []


ROUNDS = st.tuples(st.integers(1, 2), st.integers(1, 2))
EPOCHS = st.integers(0, 3)
RECORDS = st.builds(
    lambda epoch, peers, fresh: record(epoch, *peers, fresh=fresh),
    st.integers(1, 3),
    st.sampled_from([(ME,), (ME, OTHER), (ME, OTHER, THIRD), (OTHER,)]),
    st.booleans(),
)
MESSAGES = st.one_of(
    st.builds(m.Install, RECORDS),
    st.builds(m.Flush, EPOCHS),
    st.builds(m.Ask, EPOCHS, ROUNDS),
    st.builds(m.Target, EPOCHS, ROUNDS, st.integers(0, 4)),
    st.builds(m.Release, EPOCHS, ROUNDS),
    st.builds(
        m.StatePlan,
        EPOCHS,
        st.integers(0, 2),
        st.just(1),
        st.just(OTHER),
        st.just(()),
        st.integers(0, 2),
    ),
)
EVENTS = st.one_of(
    st.builds(pe.Received, MESSAGES),
    st.sampled_from([pe.Connected(), pe.Disconnected(), pe.Tick(), pe.EngineFull()]),
    st.builds(pe.LinkLost, EPOCHS, st.sampled_from([OTHER, THIRD]), st.just("")),
    st.builds(pe.OpTimedOut, st.integers(1, 3), st.just("")),
    st.builds(pe.Flushed, EPOCHS, st.just(0), st.just(0), st.just(())),
    st.builds(pe.WantState, st.integers(0, 2), st.just(1), st.just(())),
    st.builds(pe.SafePoint, st.integers(0, 4)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_any_events_in_any_order(events: list[pe.Event]) -> None:
    """The user's thread is held and resumed in turns, epochs only grow, nothing is said unheard."""
    rig, held, epoch = Rig(), False, 0
    for event in events:
        if held and isinstance(event, pe.SafePoint):
            continue  # its thread is held: it cannot call update()
        rig.now += 1.0
        for action in rig.feed(event):
            if isinstance(action, pe.Hold | pe.Resume):
                assert isinstance(action, pe.Resume) == held
                held = not held
            elif isinstance(action, pe.InstallView):
                assert action.record.epoch > epoch
                epoch = action.record.epoch
            elif isinstance(action, pe.Send):
                assert rig.state.connected
        assert (rig.state.standing is not None) == held


def test_ops_in_flight_are_told_to_who_asks_and_to_nobody_else(member: Rig) -> None:
    op = OpInFlight(1, "x", Kind.SEND, Phase.COPY, 8, 8, 70, (OTHER,), 1, False)
    told = pe.Inspected((op,), 3)
    assert member.said(told) == []  # the control thread looks now and then, too
    assert member.get(m.Inspect((1, 5))) == [pe.InspectEngine()]
    assert member.said(told) == [m.InFlight(1, (1, 5), (op,), 3)]
    assert member.said(told) == []
