"""Twin of pccl_py.coordinator.inquiry: who is asked, who is named, and that an idle run is not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pccl_py.coordinator import events as ke
from pccl_py.coordinator import inquiry, invariants, machine
from pccl_py.coordinator.state import State
from pccl_py.errors import Code
from pccl_py.protocol import messages as m
from pccl_py.types import Kind, OpInFlight, PeerId, Phase
from tests.coordinator.test_machine import formed, hello, started

ASKER = 99
REQUEST = m.StatusRequest("r", b"", b"")
STUCK = OpInFlight(
    7, "all_reduce", Kind.ALL_REDUCE, Phase.SUBMIT, 800, 24, 3500, (PeerId(2), PeerId(77)), 5, True
)


def feed(
    state: State, connection: int, message: m.FromPeer, now: float = 1.0
) -> tuple[State, list]:
    after, actions = machine.step(state, ke.Received(connection, message), now)
    invariants.check(state, after, actions)
    return after, [a for a in actions if not isinstance(a, ke.SetTimer)]


def in_flight(state: State, *ops: OpInFlight, running: int | None = None) -> m.InFlight:
    assert state.inquiry is not None
    return m.InFlight(1, state.inquiry.round, ops, len(ops) if running is None else running)


def told(action: object, connection: int = ASKER) -> dict:
    assert isinstance(action, ke.Send)
    assert action.connection == connection
    assert isinstance(action.message, m.Status)
    return json.loads(action.message.json)


def names(entries: list[dict]) -> list[str]:
    return [entry["name"] for entry in entries]


def test_members_are_asked_and_what_they_say_is_told() -> None:
    state, asked = feed(formed(3), ASKER, REQUEST)
    assert [(a.connection, type(a.message)) for a in asked] == [(c, m.Inspect) for c in (1, 2, 3)]
    young = replace(STUCK, op=9 | 1 << 32, called="all_reduce 'w'", age_ms=70, timed_out=False)
    state, nothing = feed(state, 1, in_flight(state, STUCK, young, running=40))
    assert nothing == []
    state, nothing = feed(state, 3, in_flight(state))
    assert nothing == []
    state, (answer,) = feed(state, 2, in_flight(state, replace(STUCK, age_ms=100)))
    body = told(answer)
    assert body["unanswered"] == []
    assert [(row["member"], row["op"], row["age_s"]) for row in body["ops"]] == [
        ("w1", "all_reduce, op 7", 3.5),
        ("w2", "all_reduce, op 7", 0.1),
        ("w1", "all_reduce 'w'", 0.07),
    ]
    assert body["ops_more"] == 38
    first = body["ops"][0]
    assert first["awaited"] == ["w2", "00000000"]  # 77 is no member
    assert (first["awaited_count"], first["phase"], first["timed_out"]) == (5, "submit", True)
    assert (first["bytes"], first["bytes_missing"], first["kind"]) == (800, 24, "all_reduce")
    assert state.inquiry is None
    assert inquiry.deadlines(state) == []


def test_who_does_not_answer_within_a_second_is_named() -> None:
    state, _ = feed(formed(3), ASKER, REQUEST)
    state, _ = feed(state, 3, in_flight(state, STUCK))
    assert state.timer is not None
    assert state.timer <= 1.0 + inquiry.ANSWER_S
    after, early = machine.step(state, ke.Tick(), 1.5)
    assert not any(isinstance(a, ke.Send) for a in early)
    after, actions = machine.step(after, ke.Tick(), 2.0)
    body = told(next(a for a in actions if isinstance(a, ke.Send)))
    assert names(body["unanswered"]) == ["w1", "w2"]
    assert [row["member"] for row in body["ops"]] == ["w3"]
    late = m.InFlight(1, (1, 1), (STUCK,), 1)
    assert feed(after, 1, late, 2.1)[1] == []


def test_one_inquiry_serves_all_who_ask_meanwhile() -> None:
    state, _ = feed(formed(1), ASKER, REQUEST)
    state, nothing = feed(state, ASKER + 1, REQUEST)
    assert nothing == []
    state, answers = feed(state, 1, in_flight(state, STUCK))
    for connection, answer in zip((ASKER, ASKER + 1), answers, strict=True):
        assert len(told(answer, connection)["ops"]) == 1
    again, asked = feed(state, ASKER, REQUEST)
    assert [type(a.message) for a in asked] == [m.Inspect]
    assert again.inquiry is not None
    assert again.inquiry.round == (1, 2)
    stale = replace(in_flight(again), round=(1, 1))
    assert feed(again, 1, stale)[1] == []


def test_askers_are_bounded() -> None:
    state, _ = feed(formed(1), ASKER, REQUEST)
    for i in range(inquiry.ASKERS_MAX - 1):
        state, nothing = feed(state, 100 + i, REQUEST)
        assert nothing == []
    after, (answer,) = feed(state, 500, REQUEST)
    assert names(told(answer, 500)["unanswered"]) == ["w1"]
    assert after.inquiry == state.inquiry


def test_who_is_away_is_not_waited_for() -> None:
    state, _ = machine.step(formed(2), ke.Disconnected(2, "gone"), 0.5)
    state, asked = feed(state, ASKER, REQUEST)
    assert [a.connection for a in asked] == [1]
    state, actions = machine.step(state, ke.Disconnected(1, "gone"), 1.1)
    body = told(next(a for a in actions if isinstance(a, ke.Send)))
    assert names(body["unanswered"]) == ["w1", "w2"]


def test_an_empty_run_answers_at_once() -> None:
    _, (answer,) = feed(started("r"), ASKER, REQUEST)
    body = told(answer)
    assert (body["members"], body["ops"], body["unanswered"]) == ([], [], [])


def test_what_is_shown_is_bounded() -> None:
    state, _ = feed(formed(40), ASKER, REQUEST)
    many = tuple(replace(STUCK, op=i + 1, age_ms=i) for i in range(m.OPS_IN_FLIGHT_MAX))
    for connection in range(1, 41):
        state, actions = feed(state, connection, in_flight(state, *many, running=1000))
    body = told(actions[0])
    assert len(body["ops"]) == 1024
    assert body["ops_more"] == 40_000 - 1024


@pytest.mark.parametrize(
    "message",
    [
        m.InFlight(1, (1, 1), (STUCK,) * (m.OPS_IN_FLIGHT_MAX + 1), 100),
        m.InFlight(1, (1, 1), (STUCK,), 0),
        m.InFlight(1, (1, 1), (replace(STUCK, awaited=(PeerId(1),) * 9),), 1),
    ],
)
def test_too_much_costs_its_sender_the_connection(message: m.InFlight) -> None:
    state, _ = feed(formed(2), ASKER, REQUEST)
    _, actions = feed(state, 1, message)
    assert isinstance(actions[0].message, m.Refused)
    assert isinstance(actions[1], ke.Close)


# ---------------------------------------------------------------- deadlines that do not go together


def test_a_deadline_below_the_detection_time_is_refused_if_the_run_has_one_of_its_own() -> None:
    state = started()
    strict = replace(state, config=replace(state.config, strict=True))
    after, (refused, closed, _) = feed(strict, 1, hello(1, deadline_ms=4000))
    assert isinstance(closed, ke.Close)
    assert not after.pending
    assert isinstance(refused, ke.Send)
    assert isinstance(refused.message, m.Refused)
    assert refused.message.code == Code.USAGE
    assert refused.message.text.startswith("deadline_s=4 is shorter than the 5 s in which this run")
    assert "--deadline 600" in refused.message.text
    for fine in (hello(1, deadline_ms=5000), hello(1)):
        assert feed(strict, 1, fine)[0].living_count == 1
    assert feed(state, 1, hello(1, deadline_ms=4000))[0].living_count == 1


def test_what_members_give_their_ops_is_shown_while_they_are_there() -> None:
    state, _ = feed(started(), 1, hello(1, deadline_ms=4000))
    state, _ = feed(state, ASKER, REQUEST)
    _, (answer,) = feed(state, 1, in_flight(state))
    assert told(answer)["members"][0]["deadline_s"] == 4.0
    gone, _ = machine.step(state, ke.Disconnected(1, "gone"), 2.0)
    assert gone.deadlines == {}
