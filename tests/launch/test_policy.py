"""The restart policy, step by step and under random histories."""

from __future__ import annotations

import signal
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.launch import policy
from pccl_py.launch.policy import (
    Abandon,
    Begin,
    Exited,
    Finish,
    GiveUp,
    Limits,
    Look,
    Phase,
    Retry,
    Signal,
    Start,
    State,
    StopRequested,
    Stranded,
    Tick,
)

AT = 100.0  # the clock at Begin


def begun(count: int = 2, max_restarts: int = 3, grace_s: float = 10.0) -> State:
    names = tuple(f"w{n}" for n in range(count))
    state, actions = policy.step(policy.new(names, Limits(max_restarts, grace_s)), Begin(), AT)
    assert actions == tuple(Start(name, 0) for name in names)
    return state


def phases(state: State) -> list[Phase]:
    return [w.phase for w in state.workers]


def test_all_exit_zero() -> None:
    state, actions = policy.step(begun(), Exited("w1", 0), AT + 1)
    assert actions == ()
    state, actions = policy.step(state, Exited("w0", 0), AT + 2)
    assert actions == (Finish(0),)
    assert phases(state) == [Phase.DONE, Phase.DONE]


def test_first_restart_is_immediate_later_ones_wait() -> None:
    state, actions = policy.step(begun(), Exited("w0", -9), AT + 1)
    assert actions == (Retry("w0", -9, 0.0, 1), Start("w0", 1))
    state, actions = policy.step(state, Exited("w0", 1), AT + 2)
    assert actions == (Retry("w0", 1, 1.0, 2),)
    assert policy.next_wake(state) == AT + 3
    assert policy.step(state, Tick(), AT + 2.5) == (state, ())
    state, actions = policy.step(state, Tick(), AT + 3)
    assert actions == (Start("w0", 2),)
    assert policy.next_wake(state) is None


def test_a_long_life_resets_the_backoff_but_not_the_count() -> None:
    state, _ = policy.step(begun(max_restarts=2), Exited("w0", 1), AT + 1)
    late = AT + 1 + policy.STABLE_S
    state, actions = policy.step(state, Exited("w0", 1), late)
    assert actions == (Retry("w0", 1, 0.0, 2), Start("w0", 2))
    _, actions = policy.step(state, Exited("w0", 1), late + policy.STABLE_S)
    assert actions == (GiveUp("w0", 1, "no restarts left of 2"),)


def test_exhausted_worker_leaves_the_others_running() -> None:
    state, actions = policy.step(begun(max_restarts=0), Exited("w0", 3), AT + 1)
    assert actions == (GiveUp("w0", 3, "no restarts left of 0"),)
    assert phases(state) == [Phase.FAILED, Phase.RUNNING]
    state, actions = policy.step(state, Exited("w1", 0), AT + 2)
    assert actions == (Finish(1),)


@pytest.mark.parametrize("status", sorted(policy.HOPELESS))
def test_hopeless_status_at_start_is_not_retried(status: int) -> None:
    _, actions = policy.step(begun(1), Exited("w0", status), AT + 1)
    assert actions == (GiveUp("w0", status, "starting it again would not help"), Finish(1))


def test_status_2_after_a_while_is_a_death_like_others() -> None:
    _, actions = policy.step(begun(1), Exited("w0", 2), AT + policy.AT_START_S)
    assert Start("w0", 1) in actions


def test_stop_terminates_then_kills_after_the_grace() -> None:
    state, actions = policy.step(begun(), StopRequested(signal.SIGTERM), AT + 5)
    assert actions == (Signal("w0", signal.SIGTERM), Signal("w1", signal.SIGTERM))
    assert policy.next_wake(state) == AT + 15
    state, actions = policy.step(state, Exited("w0", -15), AT + 6)
    assert actions == ()
    state, actions = policy.step(state, Tick(), AT + 15)
    assert actions == (Signal("w1", signal.SIGKILL),)
    state, actions = policy.step(state, Exited("w1", -9), AT + 16)
    assert actions == (Finish(143),)
    assert phases(state) == [Phase.STOPPED, Phase.STOPPED]


def test_second_stop_kills_at_once() -> None:
    state, _ = policy.step(begun(1), StopRequested(signal.SIGINT), AT + 5)
    state, actions = policy.step(state, StopRequested(signal.SIGINT), AT + 6)
    assert actions == (Signal("w0", signal.SIGKILL),)
    assert policy.next_wake(state) is None
    assert policy.step(state, Exited("w0", -9), AT + 7)[1] == (Finish(130),)


def test_stop_drops_waiting_workers() -> None:
    state, _ = policy.step(begun(1), Exited("w0", 1), AT + 1)
    state, _ = policy.step(state, Exited("w0", 1), AT + 2)
    state, actions = policy.step(state, StopRequested(signal.SIGTERM), AT + 2.5)
    assert actions == (Finish(143),)
    assert phases(state) == [Phase.STOPPED]
    assert policy.next_wake(state) is None


def test_backoff_is_bounded() -> None:
    assert [policy.backoff_s(n) for n in (1, 2, 3, 4, 7, 1000)] == [0, 1, 2, 4, 30, 30]


def test_describe() -> None:
    assert policy.describe(3) == "exit status 3"
    assert policy.describe(-9) == "killed by SIGKILL"
    assert policy.describe(-35) == "killed by signal 35"


# ---------------------------------------------------------------- the others have finished


def left_over(count: int = 2, alone_s: float = 60.0) -> State:
    """w1, … run for the second time when w0 finishes at AT + 5."""
    names = tuple(f"w{n}" for n in range(count))
    state, _ = policy.step(policy.new(names, Limits(3, 10.0, alone_s)), Begin(), AT)
    for name in names[1:]:
        state, _ = policy.step(state, Exited(name, -9), AT + 1)
    return policy.step(state, Exited("w0", 0), AT + 5)[0]


def test_a_death_when_all_others_are_done_is_final() -> None:
    state, _ = policy.step(begun(3), Exited("w0", 0), AT + 1)
    state, actions = policy.step(state, Exited("w1", -9), AT + 2)
    assert Start("w1", 1) in actions, "w2 still works"
    state, _ = policy.step(state, Exited("w2", 0), AT + 3)
    state, actions = policy.step(state, Exited("w1", -9), AT + 4)
    assert actions == (GiveUp("w1", -9, "the others have finished"), Finish(1))
    assert phases(state) == [Phase.DONE, Phase.FAILED, Phase.DONE]


def test_a_worker_without_others_is_started_again() -> None:
    assert Start("w0", 1) in policy.step(begun(1), Exited("w0", -9), AT + 1)[1]


def test_a_failed_other_has_not_finished() -> None:
    state, _ = policy.step(begun(max_restarts=1), Exited("w0", 2), AT + 1)
    assert phases(state)[0] is Phase.FAILED
    assert Start("w1", 1) in policy.step(state, Exited("w1", -9), AT + 2)[1]


def test_who_waits_for_its_next_start_is_not_started_for_nobody() -> None:
    state, _ = policy.step(begun(), Exited("w1", 1), AT + 1)
    state, actions = policy.step(state, Exited("w1", 1), AT + 2)
    assert actions == (Retry("w1", 1, 1.0, 2),)
    _, actions = policy.step(state, Exited("w0", 0), AT + 2.5)
    assert actions == (GiveUp("w1", 1, "the others have finished"), Finish(1))


def test_who_is_left_over_is_looked_at_and_ended_only_if_it_waits_in_vain() -> None:
    state = left_over()
    assert policy.next_wake(state) == AT + 65
    state, actions = policy.step(state, Tick(), AT + 65)
    assert actions == (Look(),), "it may well work: nothing is done to it"
    assert policy.next_wake(state) == AT + 125, "and looked at again"
    state, actions = policy.step(state, Stranded(), AT + 66)
    assert actions == (Abandon(("w1",)), Signal("w1", signal.SIGTERM))
    assert policy.next_wake(state) == AT + 76
    stubborn, actions = policy.step(state, Tick(), AT + 76)
    assert actions == (Signal("w1", signal.SIGKILL),)
    for after, status in ((state, 0), (state, -15), (stubborn, -9)):  # 0: a SIGTERM ends it well
        _, actions = policy.step(after, Exited("w1", status), AT + 80)
        reason = "it waited alone to join a run that has finished"
        assert actions == (GiveUp("w1", status, reason), Finish(1))


def test_two_that_are_left_over_are_ended_together() -> None:
    state, actions = policy.step(left_over(3), Tick(), AT + 65)
    assert actions == (Look(),)
    _, actions = policy.step(state, Stranded(), AT + 66)
    assert actions[0] == Abandon(("w1", "w2"))


def test_nobody_looks_at_first_lives_or_while_an_own_worker_may_come() -> None:
    state, _ = policy.step(begun(3), Exited("w1", -9), AT + 1)
    assert policy.next_wake(policy.step(state, Exited("w0", 0), AT + 2)[0]) is None
    assert policy.next_wake(policy.step(begun(), Exited("w0", 0), AT + 2)[0]) is None


def test_an_answer_that_comes_too_late_changes_nothing() -> None:
    state, _ = policy.step(left_over(), Tick(), AT + 65)
    stopped, _ = policy.step(state, StopRequested(signal.SIGTERM), AT + 66)
    assert policy.step(stopped, Stranded(), AT + 67) == (stopped, ())
    assert policy.step(begun(), Stranded(), AT + 1)[1] == ()


def test_no_patience_at_all_does_not_spin() -> None:
    state, actions = policy.step(left_over(alone_s=0.0), Tick(), AT + 5)
    assert actions == (Look(),)
    assert policy.next_wake(state) == AT + 5 + policy.LOOK_MIN_S


STATUSES = st.sampled_from((0, 1, 2, 127, -9, -11))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("exit"), st.integers(0, 2), STATUSES),
        st.tuples(st.just("wait"), st.floats(0, 100), st.just(0)),
        st.tuples(st.just("stranded"), st.just(0), st.just(0)),
        st.tuples(st.just("stop"), st.sampled_from((2, 15)), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 4), STEPS)
def test_any_history(max_restarts: int, steps: Iterable[tuple[str, float, int]]) -> None:
    """Nobody runs twice or too often, nothing starts after a stop, the end comes exactly once."""
    state, now = begun(3, max_restarts), AT
    running = {w.name for w in state.workers}
    starts = dict.fromkeys(running, 1)
    finished: list[int] = []

    def feed(event: policy.Event) -> None:
        nonlocal state
        state, actions = policy.step(state, event, now)
        for action in actions:
            match action:
                case Start(name, restart):
                    assert name not in running
                    assert state.stop is None
                    assert not state.stranded
                    assert restart == starts[name] <= max_restarts
                    running.add(name)
                    starts[name] += 1
                case Signal(name, _):
                    assert name in running
                    assert state.stop is not None or state.stranded
                case Finish(code):
                    finished.append(code)
                case Retry() | GiveUp() | Look() | Abandon():
                    pass

    def end(name: str, status: int) -> None:
        running.remove(name)
        feed(Exited(name, status))

    for kind, value, status in steps:
        if finished:
            break
        if kind == "exit" and f"w{value}" in running:
            end(f"w{value}", status)
        elif kind == "stop":
            feed(StopRequested(int(value)))
        elif kind == "stranded":
            feed(Stranded())
        elif kind == "wait":
            now += value
            feed(Tick())
        due = policy.next_wake(state)
        assert finished or running or due is not None, "nothing would ever happen again"
    while not finished:
        for name in sorted(running):
            end(name, 0)
        now = policy.next_wake(state) or now
        if not finished:
            feed(Tick())
    assert not running
    assert len(finished) == 1
    assert finished[0] == policy.exit_code(state)
