"""`pccl run`: workers on this machine, supervised, with an own coordinator if none is given.

Checks everything that can be checked before anything is started, makes a `Spec` of it, and prints
what the supervisor tells: workers' lines behind `[name]`, its own to stderr. Called by `cli.main`,
which prints errors and turns them into exit statuses.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.machinery
import importlib.util
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from pccl_py import arguments, config
from pccl_py.errors import UsageError
from pccl_py.launch import environment, events, policy, reach, supervise
from pccl_py.launch.logs import Terminal
from pccl_py.launch.process import PYTHON_WORKER
from pccl_py.protocol import endpoint

WORKERS_MAX = 1024
EXIT_OUTPUT_CLOSED = 141  # 128 + SIGPIPE, as the shell has it

_DESCRIPTION = """\
Start workers on this machine and look after them: a worker that dies is started again and
rejoins, the others go on. Without --coordinator or PCCL_COORDINATOR the run gets a coordinator of
its own; its address is printed, so that others can join."""
_EPILOG = """\
A worker that dies when all others have finished is not started again. One that was started again
and waits to join a run without members is ended after --alone-timeout; both count as failures.

SIGTERM, sent to one worker or (Ctrl-C, SIGTERM to `pccl run`) to all, raises SystemExit(0) in a
Python worker: it finishes the op it is in, leaves its run, and exits with 0, so that the others
lose nothing; after --grace it is killed. A handler that the script installs replaces this.

exit status: 0 all workers ended with 0; 1 a worker failed for good; 2 usage; 130, 143 stopped by
Ctrl-C, SIGTERM"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the `run` command and its arguments."""
    parser = subparsers.add_parser(
        "run",
        help="start and supervise workers on this machine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        usage="pccl run [-n N] [options] script.py [args…]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "-n",
        "--nproc-per-node",
        "--nproc_per_node",
        dest="workers",
        metavar="N",
        default="1",
        help="workers to start, or `auto`: one per usable CPU (default 1)",
    )
    add("--standalone", action="store_true", help="an own coordinator, whatever the environment")
    add("--coordinator", metavar="HOST:PORT", help="join this one (several: separated by commas)")
    add("--run", dest="run_id", metavar="ID", help="run id (PCCL_RUN; default `default`)")
    add("--group", metavar="G", help="group to join (PCCL_GROUP; default `default`)")
    add(
        "--max-restarts",
        "--max_restarts",
        metavar="K",
        default="3",
        help="restarts per worker (default 3)",
    )
    add("--log-dir", "--log_dir", metavar="DIR", help="also keep output in DIR/w0.<restart>.log")
    add(
        "--grace",
        metavar="SECONDS",
        default="10",
        help="from SIGTERM to SIGKILL when the run is stopped (default 10)",
    )
    add(
        "--alone-timeout",
        metavar="SECONDS",
        default="60",
        help="when the others have finished, end restarted workers that wait to join for so long "
        "(default 60)",
    )
    add("-m", dest="module", action="store_true", help="script is a module, as in python -m")
    add(
        "--no-python",
        "--no_python",
        action="store_true",
        help="script is a program, run it without Python",
    )
    add("script", help="what every worker runs")
    add("args", nargs=argparse.REMAINDER, help="its arguments").required = False


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. Raises UsageError before anything is started, other PcclErrors when
    the coordinator cannot be reached or the system refuses something."""
    environ = config.environment()
    spec = make_spec(args, environ)
    if spec.coordinator is not None:
        reach.check(endpoint.parse_list(spec.coordinator))
    console = Console(Terminal(), spec)
    try:
        console.begin()
        outcome = asyncio.run(supervise.Supervisor(spec, console.show).run())
        console.summary(outcome)
    except BrokenPipeError:  # `pccl run … | head`: nobody is there to be told
        return EXIT_OUTPUT_CLOSED
    return outcome.code


def make_spec(args: argparse.Namespace, environ: Mapping[str, str]) -> supervise.Spec:
    """What the arguments and the environment ask for. Raises UsageError, one line."""
    if args.standalone and args.coordinator is not None:
        raise UsageError("--standalone and --coordinator exclude each other")
    workers = _workers(args.workers)
    limits = policy.Limits(
        _restarts(args.max_restarts),
        _seconds("--grace", args.grace),
        _seconds("--alone-timeout", args.alone_timeout),
    )
    command = _command(args)
    settings = config.resolve(
        coordinator=args.coordinator, run=args.run_id, group=args.group, environ=environ
    )
    for flag, variable, given, text, bytes_max in (
        ("--run", "PCCL_RUN", args.run_id, settings.run, arguments.RUN_BYTES_MAX),
        ("--group", "PCCL_GROUP", args.group, settings.group, arguments.GROUP_BYTES_MAX),
    ):
        arguments.check_text(variable if given is None else flag, text, bytes_max)
    joins = "coordinator" in settings.given and not args.standalone
    if joins:
        _check_coordinator(settings)
    return supervise.Spec(
        command=command,
        workers=workers,
        env=environ,
        coordinator=settings.coordinator if joins else None,
        run=settings.run,
        group=settings.group,
        secret=settings.secret,
        limits=limits,
        log_dir=None if args.log_dir is None else _log_dir(args.log_dir),
    )


def _workers(text: str) -> int:
    if text == "auto":
        return len(os.sched_getaffinity(0))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= WORKERS_MAX):
        raise UsageError(f"-n {text}: write `auto` or a number from 1 to {WORKERS_MAX}")
    return int(text)


def _restarts(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise UsageError(f"--max-restarts {text}: write a number, 0 or more")
    return int(text)


def _seconds(flag: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UsageError(f"{flag} {text}: write a number of seconds, 0 or more")
    return seconds


def _log_dir(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--log-dir {text}: that is not a directory")
    return path


def _command(args: argparse.Namespace) -> tuple[str, ...]:
    script: str = args.script
    if args.module and args.no_python:
        raise UsageError("-m and --no-python exclude each other")
    if args.no_python:
        if shutil.which(script) is None:
            raise UsageError(f"{script}: no such program")
        return (script, *args.args)
    if args.module:
        top = script.partition(".")[0]
        if not _is_module(top):
            raise UsageError(f"-m {script}: no module named {top!r}")
        return (*PYTHON_WORKER, "-m", script, *args.args)
    path = Path(script)
    if path.is_dir() and not (path / "__main__.py").is_file():
        raise UsageError(f"{script}: that is a directory, not a script")
    if not path.exists():
        raise UsageError(f"{script}: no such script")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{script}: may not be read")
    return (*PYTHON_WORKER, script, *args.args)


def _is_module(name: str) -> bool:
    """Whether `python -m name` would find it, here or in the current directory; imports nothing."""
    if not name.isidentifier():
        return False
    here = importlib.machinery.PathFinder.find_spec(name, [os.getcwd()])
    return here is not None or importlib.util.find_spec(name) is not None


def _check_coordinator(settings: config.Settings) -> None:
    endpoints = endpoint.parse_list(settings.coordinator)
    for one in endpoints:
        if one.port == 0:
            raise UsageError(f"{one}: a coordinator to join has a port from 1 to 65535")
        if not one.is_loopback and settings.secret is None:
            raise UsageError(
                f"{one} is not on this machine: set PCCL_SECRET or PCCL_SECRET_FILE to the run "
                "secret that its coordinator was started with"
            )


class Console:
    """Puts a supervisor's events into words. Raises BrokenPipeError when nobody reads them."""

    def __init__(self, terminal: Terminal, spec: supervise.Spec) -> None:
        self._terminal = terminal
        self._spec = spec

    def begin(self) -> None:
        """What is worth saying before anything is started."""
        workers = self._spec.workers
        if environment.lowers_threads(self._spec.env, workers):
            self._terminal.say(
                f"OMP_NUM_THREADS=1 for each of {workers} workers, unless you set it"
            )

    def show(self, event: events.Event) -> None:
        """One event, at most one line."""
        terminal = self._terminal
        match event:
            case events.Line(name, stream, text):
                terminal.worker_line(name, stream, text)
            case events.CoordinatorStarted(address, _, restart):
                terminal.say(self._coordinator_line(address, restart))
            case events.CoordinatorEnded(_, delay_s):
                terminal.say(f"the coordinator died; starting it again{_in(delay_s)}")
            case events.WorkerRetried(name, status, delay_s, restart, most):
                how = policy.describe(status)
                number = f"restart {restart} of {most}"
                terminal.say(f"{name}: {how}; starting it again{_in(delay_s)} ({number})")
            case events.WorkerFailed(name, status, reason):
                terminal.say(f"{name} failed: {policy.describe(status)}; {reason}")
            case events.Notice(text):
                terminal.say(text)
            case events.WorkerStarted() | events.WorkerExited():
                pass  # a start is no news, an end is told with what follows from it
            case _:
                assert_never(event)

    def summary(self, outcome: supervise.Outcome) -> None:
        """A line per worker, if anything happened that is worth it."""
        calm = all(w.phase is policy.Phase.DONE and w.restarts == 0 for w in outcome.workers)
        for worker in () if calm else outcome.workers:
            if worker.status is None:
                how = "never ran"
            elif worker.phase is policy.Phase.DONE:
                how = "finished"
            else:
                how = f"{worker.phase.value}, {policy.describe(worker.status)}"
            times = f"{worker.restarts} restart{'' if worker.restarts == 1 else 's'}"
            self._terminal.say(f"{worker.name}: {how}, {times}")

    def _coordinator_line(self, address: str, restart: int) -> str:
        if restart:
            return f"the coordinator is back at {address}"
        run = self._spec.run
        flag = "" if run == config.DEFAULT_RUN else f" --run {run}"
        return f"coordinator at {address}; join with: pccl run -n 1 --coordinator {address}{flag} …"


def _in(delay_s: float) -> str:
    return f" in {delay_s:g} s" if delay_s > 0 else ""
