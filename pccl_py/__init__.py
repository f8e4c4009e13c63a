"""pccl_py: collectives for a changing set of machines. Public names and nothing else."""

from __future__ import annotations

from pccl_py.communicator import Communicator
from pccl_py.errors import (
    Aborted,
    CoordinatorLost,
    DeadlineExceeded,
    Evicted,
    PcclError,
    PeerLost,
    ProtocolError,
    ResourceError,
    UsageError,
)
from pccl_py.joining import join
from pccl_py.subgroup import Subgroup
from pccl_py.types import DType, Member, OpInfo, ReduceOp, SyncInfo, View
from pccl_py.work import Work

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "Communicator",
    "CoordinatorLost",
    "DType",
    "DeadlineExceeded",
    "Evicted",
    "Member",
    "OpInfo",
    "PcclError",
    "PeerLost",
    "ProtocolError",
    "ReduceOp",
    "ResourceError",
    "Subgroup",
    "SyncInfo",
    "UsageError",
    "View",
    "Work",
    "__version__",
    "join",
]
