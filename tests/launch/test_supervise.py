"""The supervisor with real processes and a stand-in coordinator."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from pccl_py.errors import ResourceError
from pccl_py.launch import events
from pccl_py.launch.policy import Limits, Phase
from pccl_py.launch.supervise import Outcome, Spec, Supervisor
from tests.launch.processes import Starter, wait_gone

FAST = Limits(max_restarts=1, grace_s=0.5)
T = TypeVar("T")
HANG = "import time; print('up', flush=True); time.sleep(100)"


class Run:
    """A supervised run of a Python one-liner, and everything it told."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.told: list[events.Event] = []
        self.starter = Starter()
        self.supervisor: Supervisor

    def go(
        self,
        code: str,
        workers: int = 2,
        limits: Limits = FAST,
        log_dir: Path | None = None,
        coordinator: str | None = None,
        react: Callable[[events.Event], None] = lambda event: None,
    ) -> Outcome:
        def on_event(event: events.Event) -> None:
            self.told.append(event)
            react(event)

        spec = Spec(
            command=(sys.executable, "-I", "-S", "-c", code),
            workers=workers,
            env=dict(os.environ, LAUNCH_TEST=self.mark),
            coordinator=coordinator,
            limits=limits,
            log_dir=log_dir,
        )
        self.supervisor = Supervisor(spec, on_event, self.starter)

        async def bounded() -> Outcome:
            async with asyncio.timeout(30):
                return await self.supervisor.run()

        return asyncio.run(bounded())

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.told if isinstance(event, kind)]

    def lines(self, name: str) -> list[str]:
        return [line.text for line in self.of(events.Line) if line.name == name]


@pytest.fixture
def run() -> Iterator[Run]:
    mark = uuid.uuid4().hex
    yield Run(mark)
    assert wait_gone(mark) == set(), "processes left behind"


def test_lines_of_both_streams_and_exit_0(run: Run) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.stdout.write('no end')"
    assert run.go(code).code == 0
    for name in ("w0", "w1"):
        assert sorted(run.lines(name)) == ["err", "no end", "out"]
    assert {(e.name, e.status) for e in run.of(events.WorkerExited)} == {("w0", 0), ("w1", 0)}
    assert isinstance(run.told[0], events.CoordinatorStarted)


def test_environment_arrives(run: Run) -> None:
    run.go("import json, os; print(json.dumps(dict(os.environ)))")
    first, second = (json.loads(run.lines(name)[0]) for name in ("w0", "w1"))
    assert (first["RANK"], second["RANK"], first["WORLD_SIZE"]) == ("0", "1", "2")
    assert first["PCCL_COORDINATOR"] == run.of(events.CoordinatorStarted)[0].address
    assert first["MASTER_PORT"] == second["MASTER_PORT"]


def test_own_group_and_no_stdin(run: Run) -> None:
    run.go("import os, sys; print(os.getpid() == os.getpgid(0), repr(sys.stdin.read()))", workers=1)
    assert run.lines("w0") == ["True ''"]


def test_a_killed_worker_is_started_again_and_the_other_never_notices(run: Run) -> None:
    code = (
        "import os, time\n"
        "print('up', flush=True)\n"
        "time.sleep(0.5 if os.environ['RANK'] == '0' else 1.0)\n"
    )

    def react(event: events.Event) -> None:
        if event == events.Line("w0", "stdout", "up") and len(run.of(events.WorkerExited)) == 0:
            pid = run.supervisor.pid("w0")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

    outcome = run.go(code, react=react)
    assert outcome.code == 0
    assert [(w.phase, w.restarts) for w in outcome.workers] == [(Phase.DONE, 1), (Phase.DONE, 0)]
    assert run.of(events.WorkerRetried) == [events.WorkerRetried("w0", -9, 0.0, 1, 1)]
    first, second = (e.pid for e in run.of(events.WorkerStarted) if e.name == "w0")
    assert first != second
    assert len([e for e in run.of(events.WorkerStarted) if e.name == "w1"]) == 1


def test_exhausted_restarts_fail_the_run_but_not_the_others(run: Run) -> None:
    code = (
        "import os, sys, time\n"
        "life = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
        "if os.environ['RANK'] == '0': sys.exit(life + 5)\n"
        "time.sleep(0.5)\n"
    )
    outcome = run.go(code)
    assert outcome.code == 1
    assert [(w.phase, w.status) for w in outcome.workers] == [(Phase.FAILED, 6), (Phase.DONE, 0)]
    assert run.of(events.WorkerFailed) == [events.WorkerFailed("w0", 6, "no restarts left of 1")]


def test_usage_error_is_not_retried(run: Run) -> None:
    outcome = run.go("raise SystemExit(2)", workers=1)
    assert outcome.code == 1
    assert len(run.of(events.WorkerStarted)) == 1


def test_stop_kills_who_ignores_it_and_what_they_started(run: Run) -> None:
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(100)'])\n"
        "print('up', flush=True)\n"
        "time.sleep(100)\n"
    )

    def react(event: events.Event) -> None:
        if len(run.of(events.Line)) == 2 and isinstance(event, events.Line):
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = run.go(code, react=react)
    assert outcome.code == 143
    assert [w.status for w in outcome.workers] == [-9, -9]


def test_second_stop_does_not_wait_for_the_grace(run: Run) -> None:
    def react(event: events.Event) -> None:
        if isinstance(event, events.Line):
            run.supervisor.request_stop(signal.SIGINT)
            run.supervisor.request_stop(signal.SIGINT)

    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {HANG}"
    outcome = run.go(code, workers=1, limits=Limits(0, grace_s=60), react=react)
    assert (outcome.code, outcome.workers[0].status) == (130, -9)


def test_a_dead_coordinator_comes_back_at_the_same_place(run: Run) -> None:
    def react(event: events.Event) -> None:
        match event:
            case events.Line():
                pid = run.supervisor.coordinator_pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            case events.CoordinatorStarted(_, _, 1):
                run.supervisor.request_stop()

    run.go(HANG, workers=1, react=react)
    first, second = run.of(events.CoordinatorStarted)
    assert first.address == second.address
    assert first.pid != second.pid
    assert len(run.of(events.CoordinatorEnded)) == 1
    (bind, state_dir), again = run.starter.asked
    assert bind == "127.0.0.1:0"
    assert again == (first.address, state_dir)
    assert state_dir is not None
    assert not state_dir.exists(), "the journal goes when the run has ended"


def test_no_coordinator_no_worker(run: Run) -> None:
    run.starter.fail = True
    with pytest.raises(ResourceError, match="in use"):
        run.go(HANG)
    assert run.of(events.WorkerStarted) == []


def test_a_given_coordinator_is_left_alone(run: Run) -> None:
    run.go("import os; print(os.environ['PCCL_COORDINATOR'])", coordinator="127.0.0.1:9")
    assert run.lines("w0") == ["127.0.0.1:9"]
    assert run.starter.asked == []


def test_an_error_in_the_callback_ends_everything(run: Run) -> None:
    def react(event: events.Event) -> None:
        if isinstance(event, events.Line):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run.go(HANG, react=react)


def test_logs_are_kept_per_life(run: Run, tmp_path: Path) -> None:
    code = "import os; n = int(os.environ['TORCHELASTIC_RESTART_COUNT']); print(n); exit(1 - n)"
    code = code.replace("exit", "raise SystemExit")
    assert run.go(code, workers=1, log_dir=tmp_path / "logs").code == 0
    assert (tmp_path / "logs" / "w0.0.log").read_text() == "0\n"
    assert (tmp_path / "logs" / "w0.1.log").read_text() == "1\n"


def test_a_full_disk_costs_only_the_log(run: Run, tmp_path: Path) -> None:
    (tmp_path / "w0.0.log").symlink_to("/dev/full")
    assert run.go("print('hello')", workers=1, log_dir=tmp_path).code == 0
    assert run.lines("w0") == ["hello"]
    assert "No space left" in run.of(events.Notice)[0].text


def test_a_daemon_that_holds_the_pipe_does_not_hold_the_run(run: Run) -> None:
    code = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(4)'],"
        " start_new_session=True)\n"
    )
    assert run.go(code, workers=1).code == 0


def test_garbage_and_very_long_lines(run: Run) -> None:
    code = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 1000 + b'\\nend\\n')"
    assert run.go(code, workers=1).code == 0
    assert run.lines("w0")[-1] == "end"
    assert max(len(text) for text in run.lines("w0")) < 20_000


def test_lines_of_many_workers_stay_whole(run: Run) -> None:
    code = "import os\nfor n in range(2000): print(os.environ['RANK'] * 50, n)"
    assert run.go(code, workers=3).code == 0
    for rank in "012":
        assert run.lines(f"w{rank}") == [f"{rank * 50} {n}" for n in range(2000)]


def test_from_another_thread(run: Run) -> None:
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(run.go("print('hi')")))
    thread.start()
    thread.join(30)
    assert [o.code for o in outcomes] == [0]
