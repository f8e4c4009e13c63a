"""The coordinator's corners that no scenario tells: malformed input, bounds, texts, any order."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.coordinator import events as ke
from pccl_py.coordinator import faults, invariants, machine, shared_state
from pccl_py.coordinator.state import PENDING_MAX, Config, State, initial
from pccl_py.errors import Code
from pccl_py.protocol import messages as m
from pccl_py.types import Member, OnLoss, Path, PeerId, op_id

RUNNING = m.OpStatus.RUNNING


def hello(peer: int, **fields: object) -> m.Hello:
    plain = m.Hello("r", PeerId(peer), f"w{peer}", "g", "h", 1, 1, 0, False, None, b"", b"")
    return replace(plain, **fields)  # type: ignore[arg-type]


def started(run: str | None = None) -> State:
    state = initial(Config(run, 5.0, 600.0))
    return machine.step(state, ke.Started(1, None, None), 0.0)[0]


def formed(count: int) -> State:
    state = started()
    for peer in range(1, count + 1):
        said = hello(peer, min_members=count)
        state, _ = machine.step(state, ke.Received(peer, said), 0.0)
    assert state.living_count == count
    return state


def report(op: int, segments: int, final: bytes) -> m.OpReport:
    return m.OpReport(op, RUNNING, segments, final, OnLoss.REPAIR, PeerId(0), b"", False, 0, "")


MALFORMED: list[m.Message] = [
    m.Answer(1, 1, 0, (), (report(1, 9, b"\0"),), (), False),
    m.Answer(1, 1, 0, (), (report(1, 1 << 20, b""),), (), False),
    m.Answer(1, 1, 0, (), (report(1, 1, b"\1"), report(1, 1, b"\1")), (), False),
    m.Answer(1, 1, -1, (), (), (), False),
    m.Answer(1, 1, 0, (), (report(0, 1, b"\1"),), (), False),
    m.Answer(1, 1, 0, ((0, 1),), (), (), False),
    m.Answer(1, 1, 0, ((1 << 31, 1),), (), (), False),
    m.Answer(1, 1, 0, ((7, 1), (7, 2)), (), (), False),
    m.Answer(1, 1, 0, (), (replace(report(1, 1, b"\1"), among=bytes(129)),), (), False),
    m.Sp(1, (1, 1), -2, 0),
    m.At(1, (1, 1), -1),
    m.Timeout(1, 1 << 64, ""),
    m.Offer(1, 1, 0, (m.StateKey("w", b"short"),), 1),
    m.Offer(1, 1, 0, (m.StateKey("w", bytes(16)), m.StateKey("w", bytes(16))), 1),
    m.Elected(1, -1, 0, PeerId(1), (), ""),
    m.Elected(1, 1, 0, PeerId(0), (), ""),
    m.Elected(1, 1, 0, PeerId(1), (), "no"),
    m.Elected(1, 1, 0, PeerId(0), ("w",), "no"),
    m.Elected(1, 1, 0, PeerId(1), ("w", "w"), ""),
    m.Elected(1, 1, 0, PeerId(1), tuple(f"{i:0254}" for i in range(40_000)), ""),
    m.Measured(1, (Path(PeerId(2), 1, 1), Path(PeerId(2), 1, 1))),
    m.Measured(1, tuple(Path(PeerId(i), 1, 1) for i in range(1025))),
    hello(0),
    hello(5, port=0),
    m.Bye(),
    m.Flush(1),
]


def test_odd_measurements_cost_nobody_anything() -> None:
    """Of oneself, of strangers, of nothing, without bounds, of another epoch."""
    state = formed(3)
    odd = tuple(Path(PeerId(p), us, rate) for p, us, rate in ((1, 5, 5), (9, 5, 5), (2, 0, 0)))
    for epoch, more in ((1, (Path(PeerId(3), 2**32 - 1, 2**64 - 1),)), (77, ())):
        message = m.Measured(epoch, (*odd, *more))
        state, actions = machine.step(state, ke.Received(1, message), 1.0)
        assert all(isinstance(action, ke.SetTimer) for action in actions)
        assert state.measured[PeerId(1)].keys() <= {2, 3}


@pytest.mark.parametrize("message", MALFORMED, ids=lambda message: type(message).__name__)
def test_malformed_costs_its_sender_the_connection(message: m.Message) -> None:
    before = formed(2)
    after, actions = machine.step(before, ke.Received(1, message), 1.0)  # type: ignore[arg-type]
    kinds = [type(action) for action in actions[:2]]
    assert kinds == [ke.Send, ke.Close]
    refused = actions[0]
    assert isinstance(refused, ke.Send)
    assert isinstance(refused.message, m.Refused)
    assert refused.message.code == Code.PROTOCOL
    assert after.connection_of == {2: 2}
    assert after.record == before.record
    assert after.soft == before.soft


def test_well_formed_has_no_fault() -> None:
    assert faults.find(m.Answer(1, 1, 0, (), (report(1, 9, b"\0\0"),), (), False)) == ""
    assert faults.find(hello(1)) == ""


def test_strangers_and_stale_epochs_are_ignored() -> None:
    state = formed(2)
    for connection, message in ((99, m.Leave(1)), (1, m.Leave(0)), (1, m.Leave(2))):
        after, actions = machine.step(state, ke.Received(connection, message), 0.0)
        assert (after, actions) == (state, ())


def test_two_ids_on_one_connection() -> None:
    state, actions = machine.step(formed(2), ke.Received(1, hello(7)), 0.0)
    assert isinstance(actions[1], ke.Close)
    assert 1 in state.absent_until


def test_pending_is_bounded() -> None:
    state = formed(1)
    template = machine.step(state, ke.Received(2, hello(2)), 0.0)[0]
    newcomer = template.pending[PeerId(2)]
    state = replace(template, pending={PeerId(p + 10): newcomer for p in range(PENDING_MAX)})
    after, actions = machine.step(state, ke.Received(5, hello(5)), 0.0)
    assert PeerId(5) not in after.pending
    refused = actions[0]
    assert isinstance(refused, ke.Send)
    assert isinstance(refused.message, m.Refused)
    assert refused.message.code == Code.RESOURCE


def test_status_speaks_json() -> None:
    request = m.StatusRequest("r", b"", b"")
    state, _ = machine.step(formed(2), ke.Received(9, request), 0.0)
    _, actions = machine.step(state, ke.Tick(), 1.0)
    sent = actions[0]
    assert isinstance(sent, ke.Send)
    assert isinstance(sent.message, m.Status)
    body = json.loads(sent.message.json)
    assert [member["rank"] for member in body["members"]] == [0, 1]
    assert body["heartbeat_s"] == 1.0
    assert body["run"] == "r"


def test_status_of_another_run_is_refused() -> None:
    request = m.StatusRequest("other", b"", b"")
    _, actions = machine.step(formed(1), ke.Received(9, request), 0.0)
    sent = actions[0]
    assert isinstance(sent, ke.Send)
    assert isinstance(sent.message, m.Refused)


def test_groups_have_rings_of_their_own() -> None:
    state = started()
    for peer, group in ((1, "x"), (2, "y"), (3, "x")):
        said = hello(peer, group=group, min_members=3)
        state, _ = machine.step(state, ke.Received(peer, said), 0.0)
    assert state.record is not None
    assert {g.group: g.ring for g in state.record.groups} == {"x": (1, 3), "y": (2,)}


def test_election_prefers_whole_content_over_single_keys() -> None:
    """Two members agree on both keys; each key alone would have another majority."""
    members = [Member(PeerId(p), f"w{p}", "g", "h", 1) for p in (1, 2, 3, 4)]
    digests = {1: (1, 1), 2: (2, 2), 3: (2, 2), 4: (1, 2)}
    offers = {
        PeerId(p): m.Offer(
            1, 1, 7, (m.StateKey("v", bytes([v] * 16)), m.StateKey("w", bytes([w] * 16))), 1
        )
        for p, (v, w) in digests.items()
    }
    plan = shared_state.elect(1, members, offers)
    assert (plan.donor, plan.dirty, plan.error) == (2, ("v", "w"), "")


def test_a_tick_that_comes_early_is_asked_for_again() -> None:
    state, actions = machine.step(formed(2), ke.Disconnected(2, "gone"), 1.0)
    assert actions[-1] == ke.SetTimer(3.0)
    _, actions = machine.step(state, ke.Tick(), 2.999)
    assert actions == (ke.SetTimer(3.0),)


def test_invariants_can_fail() -> None:
    state = formed(2)
    with pytest.raises(AssertionError, match="connections agree"):
        invariants.check(state, replace(state, peer_of={}), ())


def any_report(
    op: int, final: int, status: m.OpStatus, on_loss: OnLoss, root: int, among: bytes
) -> m.OpReport:
    return replace(
        report(op, 2, bytes([final])),
        status=status,
        on_loss=on_loss,
        root=PeerId(root),
        among=among,
    )


REPORTS = st.builds(
    any_report,
    st.sampled_from([1, op_id(1, context=7)]),
    st.integers(0, 3),
    st.sampled_from(list(m.OpStatus)),
    st.sampled_from(list(OnLoss)),
    st.integers(0, 5),
    st.binary(max_size=2),
)
PEERS = st.integers(1, 4)
EPOCHS = st.integers(0, 3)
MESSAGES = st.one_of(
    st.builds(lambda p, e, s: hello(p, epoch=e, stopped=s), PEERS, EPOCHS, st.booleans()),
    st.builds(m.Lost, EPOCHS, PEERS, st.just("")),
    st.builds(m.Timeout, EPOCHS, st.integers(1, 2), st.just("")),
    st.builds(m.Leave, EPOCHS),
    st.builds(m.Refresh, EPOCHS),
    st.builds(m.Repaired, EPOCHS),
    st.builds(
        lambda e, stable, told, leaving: m.Answer(e, 1, 0, ((7, stable),), (told,), (), leaving),
        EPOCHS,
        st.integers(0, 1),
        REPORTS,
        st.booleans(),
    ),
    st.builds(m.Sp, EPOCHS, st.tuples(st.just(1), PEERS), st.integers(-1, 3), st.integers(0, 3)),
    st.builds(m.At, EPOCHS, st.tuples(st.just(1), PEERS), st.integers(0, 3)),
    st.builds(m.Offer, EPOCHS, st.integers(0, 1), st.integers(0, 2), st.just(()), st.just(1)),
    st.builds(m.Elected, EPOCHS, st.integers(0, 1), st.just(1), PEERS, st.just(()), st.just("")),
)
EVENTS = st.one_of(
    st.builds(ke.Received, PEERS, MESSAGES),
    st.builds(ke.Disconnected, PEERS, st.just("")),
    st.just(ke.Tick()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.1, 3.0])), max_size=40))
def test_any_messages_in_any_order_keep_the_properties(
    script: list[tuple[ke.Event, float]],
) -> None:
    state, now = started(), 0.0
    for event, later in script:
        now += later
        before = state
        state, actions = machine.step(before, event, now)
        invariants.check(before, state, actions)
        assert state.timer is None or state.timer > now
