"""The oracle of a storm: a log in which nothing is wrong passes, and each check can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from stress.storm import figures, history, oracle, page, records
from stress.storm.records import (
    Calling,
    Calm,
    Closed,
    Exited,
    Fault,
    Footprint,
    Healed,
    Joined,
    Left,
    Lost,
    Over,
    Record,
    Stepped,
    Synced,
)
from tests.stress.storm_log import MIB, healthy, op

Log = list[Record]
Plant = Callable[[Log], Log]


def failed(log: Log) -> list[str]:
    return [verdict.name for verdict in oracle.judge(history.of(log)) if not verdict.ok]


def test_nothing_wrong_is_found_in_a_healthy_log() -> None:
    assert failed(healthy()) == []


def changed(sort: type, where: Callable[[Record], bool], **fields: object) -> Plant:
    """The first record of that sort of which `where` is true gets other fields."""

    def plant(log: Log) -> Log:
        at = next(i for i, one in enumerate(log) if isinstance(one, sort) and where(one))
        return [*log[:at], replace(log[at], **fields), *log[at + 1 :]]

    return plant


def without(where: Callable[[Record], bool]) -> Plant:
    def plant(log: Log) -> Log:
        left = [one for one in log if not where(one)]
        assert len(left) < len(log)
        return left

    return plant


def of_p1(step: int) -> Callable[[Stepped], bool]:
    return lambda one: one.who == "p1" and one.step == step


WRONG_SUM = replace(op(), wrong="element 3 is nobody's sum")
OTHER_BITS = replace(op(), digest="d2")
OTHER_SUM_OF = replace(op(), low=2)
LATE_OP = replace(op(), seconds=18.0)
PEER_LOST = op("all_reduce", "PeerLost", strict=True)
STRAY = Calling(20.0, "p3", "sync")

PLANTED: list[tuple[str, str, Plant]] = [
    ("a wrong value", "every value is its contributors' sum",
     changed(Stepped, of_p1(3), ops=(WRONG_SUM,))),
    ("other bits", "every op has one outcome, with the same bits at all",
     changed(Stepped, of_p1(3), ops=(OTHER_BITS,))),
    ("other contributors", "every op has one outcome, with the same bits at all",
     changed(Stepped, of_p1(3), ops=(OTHER_SUM_OF,))),
    ("success beside failure", "every op has one outcome, with the same bits at all",
     changed(Stepped, of_p1(5), ops=(op("all_reduce", "PeerLost", strict=True),))),
    ("another state", "the shared state is the same at all",
     changed(Stepped, of_p1(3), state="x")),
    ("another state after sync_state", "the shared state is the same at all",
     changed(Synced, lambda one: one.who == "p1", state="x")),
    ("two views of one epoch", "there is one line of views",
     changed(Stepped, of_p1(6), world=("p1", "p0"))),
    ("an epoch that falls", "there is one line of views",
     changed(Stepped, of_p1(12), epoch=2)),
    ("an end that may not be", "an op fails only when it lost whom it needs",
     changed(Stepped, of_p1(3), ops=(op("all_reduce", "DeadlineExceeded"),))),
    ("PeerLost where nobody was lost", "an op fails only when it lost whom it needs",
     changed(Stepped, of_p1(3), ops=(PEER_LOST,))),
    ("PeerLost of an op that is repaired", "an op fails only when it lost whom it needs",
     changed(Stepped, of_p1(5), ops=(op("all_reduce", "PeerLost"),))),
    ("an expulsion for a wrong byte", "nobody is expelled who did not seem dead",
     changed(Fault, lambda one: one.kind == "stop", kind="corrupt")),
    ("an error that ends no membership", "nobody is expelled who did not seem dead",
     changed(Lost, lambda one: True, error="UsageError")),
    ("a coordinator lost by who was not stopped", "nobody is expelled who did not seem dead",
     lambda log: [*log, Lost(22.9, "p3", "CoordinatorLost", "", 3, 28)]),
    ("an op beyond its deadline", "no call outlives its deadline",
     changed(Stepped, of_p1(24), ops=(LATE_OP,))),
    ("a call that never returns", "no call outlives its deadline", lambda log: [*log, STRAY]),
    ("a leave that takes a minute", "no call outlives its deadline",
     changed(Left, lambda one: one.who == "p3", at=84.0)),
    ("ten seconds without a step", "the run makes progress in every 10 s with a coordinator",
     without(lambda one: isinstance(one, Stepped) and 5.0 < one.at < 16.0)),
    ("nobody ever joins", "the run makes progress in every 10 s with a coordinator",
     without(lambda one: isinstance(one, Joined | Stepped | Synced | Left | Lost))),
    ("no step when all is healed", "all are current when the faults are over",
     without(lambda one: isinstance(one, Stepped) and one.who == "p3" and one.at > 21.2)),
    ("no calm", "all are current when the faults are over",
     without(lambda one: isinstance(one, Calm))),
    ("a newcomer that never joins", "newcomers become members",
     without(lambda one: getattr(one, "who", "") == "p3"
             and isinstance(one, Joined | Stepped | Synced | Left))),
    ("a coordinator that stays away", "the coordinator comes back",
     without(lambda one: isinstance(one, Healed) and one.number == 2)),
    ("an exit status", "every process ends as it should",
     changed(Exited, lambda one: one.who == "p0", status=1)),
    ("a kill that nobody planned", "every process ends as it should",
     changed(Exited, lambda one: one.who == "p0", status=-9)),
    ("a process that stays", "every process ends as it should",
     without(lambda one: isinstance(one, Exited) and one.who == "p3")),
    ("a coordinator that crashes", "every process ends as it should",
     changed(Exited, lambda one: one.who == "coordinator", status=1)),
    ("a descriptor", "nothing is left behind",
     changed(Footprint, lambda one: one.who == "p0" and one.when == "after", fds=10)),
    ("a thread", "nothing is left behind",
     changed(Footprint, lambda one: one.who == "p0" and one.when == "after", threads=2)),
    ("memory", "nothing is left behind",
     changed(Footprint, lambda one: one.who == "p0" and one.when == "after", rss=80 * MIB)),
    ("memory that grows", "nothing is left behind",
     changed(Footprint, lambda one: one.who == "p0" and one.when == "last", rss=300 * MIB)),
    ("the coordinator's descriptor", "nothing is left behind",
     changed(Footprint, lambda one: one.who == "coordinator" and one.when == "after", fds=24)),
    ("a link that goes on with a wrong byte", "a wrong byte costs its link",
     without(lambda one: isinstance(one, Closed))),
]  # fmt: skip


@pytest.mark.parametrize(("check", "plant"), [row[1:] for row in PLANTED],
                         ids=[row[0] for row in PLANTED])  # fmt: skip
def test_a_planted_violation_is_found(check: str, plant: Plant) -> None:
    assert check in failed(plant(healthy()))


def test_every_check_can_fail() -> None:
    assert {row[1] for row in PLANTED} == set(oracle.CHECKS)


def test_what_the_dead_said_last_does_not_bind() -> None:
    """A small op may return at one who dies before the others know of it."""
    log = changed(Stepped, lambda one: one.who == "p2" and one.step == 4, ops=(OTHER_BITS,))
    assert failed(log(healthy())) == []


def test_who_is_stopped_is_given_that_time() -> None:
    """p1 was stopped for 5 s in a step that took 18."""
    late = replace(op(), seconds=21.5)
    log = changed(Stepped, of_p1(24), ops=(late,), began=0.5)(healthy())
    assert failed(log) == []  # 21.5 s less 5 s
    log = changed(Stepped, of_p1(24), ops=(replace(late, seconds=23.0),), began=0.5)(healthy())
    assert failed(log) == ["no call outlives its deadline"]


def test_time_without_a_coordinator_is_no_standstill() -> None:
    """It was away from 7.0 to 7.8 s; a step at 16.5 s follows the one at 6.0 s."""
    silent = without(lambda one: isinstance(one, Stepped) and 6.0 < one.at < 16.5)
    assert "progress" not in " ".join(failed(silent(healthy())))
    longer = without(lambda one: isinstance(one, Stepped) and 5.5 < one.at < 16.5)
    assert "progress" in " ".join(failed(longer(healthy())))


def test_a_coordinator_that_was_away_for_long_may_be_missed() -> None:
    away = [Fault(14.0, 80, "coordinator", (), 0.0), Healed(20.0, 80)]
    lost = Lost(22.9, "p3", "CoordinatorLost", "", 3, 28)
    expelled = "nobody is expelled who did not seem dead"
    assert expelled in failed([*healthy(), lost])
    assert expelled not in failed([*healthy(), *away, lost])
    late = changed(Stepped, of_p1(20), ops=(op("all_reduce", "DeadlineExceeded"),))
    fails = "an op fails only when it lost whom it needs"
    assert fails in failed(late(healthy()))
    assert fails not in failed(late([*healthy(), *away]))


def test_who_has_lost_its_last_way_may_be_expelled() -> None:
    """p1 is expelled at 17.5 s: p0 and p3 stay. Its link to one was lost; or to both."""

    def corrupted(*pairs: tuple[str, str]) -> Log:
        faults = [Fault(9.5, 90 + i, "corrupt", pair, 0.0) for i, pair in enumerate(pairs)]
        log = without(lambda one: isinstance(one, Fault) and one.number in (4, 5))(healthy())
        log = without(lambda one: isinstance(one, Healed) and one.number == 5)(log)
        return [*log, *faults]

    expelled = "nobody is expelled who did not seem dead"
    assert expelled in failed(corrupted(("p0", "p1")))  # p3 passes on
    assert expelled not in failed(corrupted(("p0", "p1"), ("p1", "p3")))
    assert expelled not in failed(corrupted(("p0", "p1"), ("p0", "p3")))  # p3 is no way either
    assert expelled in failed(corrupted(("p0", "p3")))


# ---------------------------------------------------------------- the log itself


def test_a_log_is_read_as_it_was_written() -> None:
    log = healthy()
    lines = [records.line(one) + "\n" for one in log]
    assert records.parse_all(lines) == log
    assert records.parse_all([*lines, lines[0][:20]]) == log  # a crash tore the last


@pytest.mark.parametrize(
    "text", ['{"record": "Nothing"}', '{"record": "Over"}', '{"at": 1.0}', "[]", "x}"]
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no record|Over with|Expecting value"):
        records.parse_all([f"{text}\n", records.line(Over(1.0)) + "\n"])


def test_recoveries_are_from_the_fault_to_the_last_survivor() -> None:
    found = {one.fault.kind: one.seconds for one in figures.recoveries(history.of(healthy()))}
    assert found["kill"] == pytest.approx(0.5)  # steps of epoch 2 end at 4.5 s
    assert found["stop"] == pytest.approx(3.5)  # p0 and p3 go on at 15.5 s, without p1
    assert figures.histogram([found["kill"], found["stop"], 99.0]) == [0, 0, 0, 0, 1, 0, 2]
    assert figures.worlds(history.of(healthy())) == [(1.5, 3), (4.5, 2), (9.0, 3), (15.5, 2),
                                                     (19.5, 3)]  # fmt: skip


def test_the_page_tells_what_was_found() -> None:
    log = changed(Stepped, of_p1(3), ops=(WRONG_SUM,))(healthy())
    found = history.of(log)
    html = page.page(found, oracle.judge(found), "python -m <stress>")
    assert "violations" in html
    assert "nobody&#x27;s sum" in html
    assert "&lt;stress&gt;" in html
    assert html.count("<svg") == html.count("</svg>") == 4
