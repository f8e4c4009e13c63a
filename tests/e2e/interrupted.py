"""Programs for test_processes: each does one thing to itself that threads cannot stand in for."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import sys
import time

import numpy as np

import pccl_py as pccl


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")  # one write: parent and child share the pipe
    sys.stdout.flush()


def tcp_ports() -> list[int]:
    """The local TCP ports of this process's descriptors."""
    ports = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # not a socket, or the listing's own
            duplicate = socket.socket(fileno=os.dup(int(name)))
            with duplicate:
                if duplicate.family in (socket.AF_INET, socket.AF_INET6):
                    ports.append(duplicate.getsockname()[1])
    return ports


def interrupt(comm: pccl.Communicator) -> None:
    """Waits for an op until Ctrl-C comes, then takes its result all the same."""
    x = np.ones(10)
    work = comm.all_reduce(x, async_op=True)
    say(event="waiting", pid=os.getpid())
    try:
        work.wait()
        say(event="not interrupted")
    except KeyboardInterrupt:
        say(event="interrupted", at=time.time(), running=not work.is_completed())
    info = work.wait(20.0)
    say(event="reduced", value=float(x[0]), contributors=info.contributors_max)


def fork(comm: pccl.Communicator) -> None:
    """Forks a child that tries to use the communicator, then lives on."""
    work = comm.all_reduce(np.ones(10), name="unfinished", async_op=True)
    child = os.fork()
    if not child:
        said = []
        for call in (comm.barrier, comm.update, work.wait):
            try:
                call()
                said.append("nothing")
            except pccl.UsageError as error:
                said.append(str(error))
        comm.leave()
        comm.close()
        say(event="child", pid=os.getpid(), said=said, sockets=tcp_ports())
        time.sleep(60)
        os._exit(0)
    x = np.ones(10)
    comm.all_reduce(x, timeout=20.0)
    say(event="reduced", value=float(x[0]))
    time.sleep(60)


def child_ends(comm: pccl.Communicator) -> None:
    """Children that end as programs do (atexit, garbage) leave their parent's membership alone."""
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        child = context.Process(target=sys.exit, args=(0,))
        child.start()
        child.join(20.0)
        say(event="child ended", status=child.exitcode)
    if not (child := os.fork()):
        sys.exit(0)  # unlike multiprocessing's: with atexit handlers and finalizers
    say(event="child ended", status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    x = np.ones(10)
    comm.all_reduce(x, timeout=20.0)
    say(event="reduced", value=float(x[0]))


def donate(comm: pccl.Communicator) -> None:
    """Offers more state than is moved at once; the parent kills the elected donor meanwhile."""
    rank = comm.rank
    state = {f"k{i}": np.full(1 << 20, float(rank), np.float32) for i in range(24)}
    say(event="syncing", rank=rank)
    info = comm.sync_state(state, revision=1)
    values = sorted({float(v) for tensor in state.values() for v in np.unique(tensor)})
    say(event="synced", values=values, donor=info.donor, world=comm.world_size)


def main() -> None:
    what, address, name, count = sys.argv[1:]
    with pccl.join(
        address, name=name, min_members=int(count), deadline_s=20.0, timeout=20.0
    ) as comm:
        say(event="joined", rank=comm.rank)
        globals()[what](comm)
    say(event="left")


if __name__ == "__main__":
    main()
