"""What an engine tells its callers, typed (layer 3): how an op ended, and its counters.

Pure data, made by `engine` from its C form, which must not be known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pccl_py.errors import PcclError
from pccl_py.types import OpInfo

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
