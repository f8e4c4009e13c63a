"""What an engine tells its callers, typed (layer 3): how an op ended, its counters, why it cannot
listen.

Pure data, made by `engine` from its C form, which must not be known here.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from pccl_py.errors import Code, PcclError, ResourceError
from pccl_py.types import OpInfo, Phase

NO_INFO = OpInfo(0, 0, 0, 0, 0, 0.0, "none", "none")


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the engine began: bytes include headers; refused: strangers and rule breakers
    on the data port; scratch_bytes: segment buffers allocated now."""

    bytes_sent: int
    bytes_received: int
    frames_sent: int
    frames_received: int
    links_refused: int
    scratch_bytes: int
    ops_running: int
    links_up: int


class Result(NamedTuple):
    """How one op ended: `error` is None on success, then `info` says what it cost."""

    info: OpInfo
    error: PcclError | None


_BLAMED = (Code.PEER_LOST, Code.DEADLINE_EXCEEDED, Code.EVICTED, Code.COORDINATOR_LOST)


def with_blame(code: int, text: str, op: str, phase: Phase, seconds: float, missing: int) -> str:
    """The error text of an op (in words), and how the op stood here when it was given up."""
    if phase is Phase.NONE or code not in _BLAMED:  # it never ran here; or a mistake, at once
        return text
    it = "it" if re.search(rf"{re.escape(op)}(?!\d)", text) else op
    return (
        f"{text} ({it} ended here {seconds:.1f} s after its submission, waiting for {phase.text}, "
        f"{missing} bytes missing)"
    )


def no_port(host: str, port: int, code: int) -> ResourceError:
    """Why an engine cannot listen there; code: errno."""
    if code == errno.EADDRINUSE:
        text = f"data port {port} on {host} is in use: choose another with bind="
    elif code == errno.EADDRNOTAVAIL:
        text = f"{host} is not an address of this machine: choose another with bind="
    else:
        text = f"the data plane cannot start: {os.strerror(code)}"
    return ResourceError(code, text)
