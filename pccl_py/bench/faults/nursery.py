"""A process that forks peers: `python -m pccl_py.bench.faults.nursery FD WHAT`.

A fresh interpreter costs half a second of CPU, hundreds of them would be all that is measured; a
fork costs milliseconds. This process imports what its children need, has one thread, and obeys the
benchmark on a socket of packets: `fork` with one end of a line attached is answered with the
child's pid, `reap PID` waits for its end (until then its number is nobody else's, so it can be
killed safely). Children die with it, it dies with the benchmark.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from pccl_py.bench.lines import Line

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PACKET_BYTES = 256


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def serve(orders: socket.socket, program: Callable[[Line], None]) -> None:
    """Until the benchmark closes its end. `program` is what a child runs, on its line."""
    gc.freeze()  # children do not touch, so do not copy, what is there already
    while True:
        packet, fds, _, _ = socket.recv_fds(orders, _PACKET_BYTES, 1)
        match packet.decode().split():
            case []:
                return
            case ["fork"]:
                pid = os.fork()
                if pid == 0:
                    orders.close()
                    _live(socket.socket(fileno=fds[0]), program)
                os.close(fds[0])
                orders.send(str(pid).encode())
            case ["reap", pid]:
                os.waitpid(int(pid), 0)
                orders.send(b"ok")
            case words:
                raise AssertionError(f"no such order: {words}")


def _live(connected: socket.socket, program: Callable[[Line], None]) -> None:
    """A child's life. Never returns into the parent's code."""
    die_with_parent()
    status = 1
    try:
        program(Line(connected, "the benchmark"))
        status = 0
    except BaseException:  # noqa: BLE001  it is told in the log; the process ends here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(argv: list[str]) -> int:
    """See the module's docstring. WHAT: `peer` or `gloo`."""
    fd, what = argv
    die_with_parent()
    program: Callable[[Line], None] = importlib.import_module(f"pccl_py.bench.faults.{what}").live
    with socket.socket(fileno=int(fd)) as orders:
        orders.send(b"ready")
        serve(orders, program)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
