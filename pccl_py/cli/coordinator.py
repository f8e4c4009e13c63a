"""`pccl coordinator`: the one process that decides membership.

Reads the settings, raises the limit on open files, and hands over to `coordinator.server`. Prints
one line on stdout when it listens; its log goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import logging.handlers
import math
import os
import queue
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from pccl_py import arguments, config
from pccl_py.coordinator import etcd_client, etcd_store, machine, server, state, tenure
from pccl_py.errors import UsageError
from pccl_py.protocol import endpoint

OPEN_FILES_MAX = 65536
LEASE_MIN_S = 2
LOG_RECORDS_MAX = 1000
LOG_END_S = 1.0
STDERR_FD = 2

_DESCRIPTION = """\
Decide who takes part in a run. Peers join at its address; it never sees a tensor, and collectives
go on without it while nobody comes or goes. With --state-dir it can be killed and started again.

A second one started with --standby on the same --state-dir takes over at once when the first dies;
hosts that share no disk use --etcd, where that takes as long as a lease, the detection time. Peers
list both: pccl.join("one:48148,two:48148")."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the `coordinator` command and its arguments."""
    parser = subparsers.add_parser(
        "coordinator",
        help="decide who takes part in a run",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--bind",
        metavar="HOST:PORT",
        default=config.DEFAULT_COORDINATOR,
        help="where to listen; port 0 is chosen (default %(default)s); other than this machine "
        "needs a secret in PCCL_SECRET or PCCL_SECRET_FILE",
    )
    add("--run", dest="run_id", metavar="ID", help="run id (PCCL_RUN; default: first joiner's)")
    add(
        "--state-dir",
        metavar="DIR",
        type=_directory,
        help="where views are journaled (default: none); one coordinator at a time acts on it",
    )
    add(
        "--standby",
        action="store_true",
        help="if a coordinator acts on --state-dir or --etcd, wait for its end and take over",
    )
    add(
        "--etcd",
        metavar="URL[,URL]",
        help="keep views in this etcd, under /pccl/RUN/, instead of --state-dir; the coordinator "
        "with the lease acts (needs --run)",
    )
    add(
        "--deadline",
        metavar="SECONDS",
        type=float,
        help="the run's deadline for an op: a quarter of it, 5 s at most, is how long a silent "
        "member goes unnoticed; peers with a deadline below that are refused if this is given "
        f"(default {config.DEFAULT_DEADLINE_S:g})",
    )
    add(
        "--log-level",
        metavar="LEVEL",
        type=str.lower,
        choices=config.LOG_LEVELS,
        help="debug, info, warning, error (PCCL_LOG_LEVEL; info)",
    )
    add("--parent-pid", metavar="PID", type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT, then 0. Raises UsageError, ResourceError: not started."""
    settings = config.resolve(run=args.run_id, log_level=args.log_level)
    run_id = settings.run if "run" in settings.given else None
    if run_id is not None:
        source = "PCCL_RUN" if args.run_id is None else "--run"
        arguments.check_text(source, run_id, arguments.RUN_BYTES_MAX)
    timers = _timers(config.DEFAULT_DEADLINE_S if args.deadline is None else args.deadline)
    shell = server.ServerConfig(
        bind=endpoint.parse(args.bind),
        timers=timers,
        run=run_id,
        secret=settings.secret,
        place=tenure.Place(args.state_dir, args.standby, _etcd(args.etcd, timers)),
        parent_pid=args.parent_pid,
    )
    pure = state.Config(
        run=run_id,
        detection_s=timers.detection_s,
        deadline_s=timers.deadline_s,
        strict=args.deadline is not None,
    )
    level = settings.log_level if "log_level" in settings.given else "info"
    _allow_many_connections()
    with (
        _log_to_stderr(level),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(server.serve(shell, _announce, state.initial(pure), machine.step))
    return 0


def _directory(text: str) -> Path:
    if not text:  # Path("") is the current one: an unset variable in a script
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


def _etcd(urls: str | None, timers: config.Timers) -> etcd_store.Place | None:
    """The lease lasts as long as it takes to notice a dead peer; etcd knows whole seconds."""
    if urls is None:
        return None
    lease_s = max(LEASE_MIN_S, math.ceil(timers.detection_s))
    return etcd_store.Place(etcd_client.parse_urls(urls), lease_s)


def _timers(deadline_s: float) -> config.Timers:
    try:
        return config.Timers(deadline_s)
    except UsageError as error:
        raise UsageError(str(error).replace("deadline_s=", "--deadline ", 1)) from None


class _Lossy(logging.handlers.QueueHandler):
    """Hands records to the log thread; what does not fit is dropped."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


@contextmanager
def _log_to_stderr(level: str) -> Iterator[None]:
    """Log from a thread of its own: a terminal that is held (Ctrl-S), or a pipe that nobody reads,
    must not stop the run."""
    records: queue.Queue[logging.LogRecord | None] = queue.Queue(LOG_RECORDS_MAX)
    text_only = "%(message)s"  # the writer adds the rest
    lossy = _Lossy(records)
    logging.basicConfig(level=level.upper(), handlers=[lossy], format=text_only, force=True)
    writer = threading.Thread(target=_write_log, args=(records,), name="pccl-log", daemon=True)
    writer.start()
    try:
        yield
    finally:
        with contextlib.suppress(queue.Full):
            records.put_nowait(None)
        writer.join(LOG_END_S)


def _write_log(records: queue.Queue[logging.LogRecord | None]) -> None:
    """Past sys.stderr, whose lock a stuck write would keep from the interpreter's shutdown."""
    layout = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    while (record := records.get()) is not None:
        line = memoryview(f"{layout.format(record)}\n".encode(errors="replace"))
        with contextlib.suppress(OSError):  # nobody reads any more
            while line:
                line = line[os.write(STDERR_FD, line) :]


def _announce(host: str, port: int) -> None:
    print(f"listening on {endpoint.Endpoint(host, port)}", flush=True)


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(OPEN_FILES_MAX, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
