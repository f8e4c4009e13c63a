"""What the C engine tells, row by row, as typed values (layer 3).

Part of `engine`: the other file in which cffi's untyped objects (`Any`) live. It calls nothing of
the engine and keeps nothing.
"""

from __future__ import annotations

from typing import Any

from pccl_py.dataplane._pccl import ffi as _ffi
from pccl_py.peer.events import Inspected
from pccl_py.protocol.messages import OpReport, OpStatus
from pccl_py.types import Kind, OnLoss, OpInFlight, PeerId, Phase

ffi: Any = _ffi


def text(field: Any) -> str:
    """A text field of a struct."""
    return str(ffi.string(field).decode("utf-8", "replace"))


def op_report(row: Any) -> OpReport:
    """A pccl_op_report."""
    return OpReport(
        op=row.op,
        status=OpStatus(row.status),
        segments=row.segments,
        final=bytes(ffi.buffer(row.final, (row.segments + 7) // 8)),
        on_loss=OnLoss(row.on_loss),
        root=PeerId(row.root_peer),
        among=bytes(ffi.buffer(row.among, row.among_bytes)) if row.among_bytes else b"",
        timed_out=bool(row.timed_out),
        code=row.code,
        text=text(row.text),
    )


def inspected(found: Any) -> Inspected:
    """A pccl_inspection; what a user calls the ops is not known here."""
    return Inspected(tuple(_flight(row) for row in found.rows[0 : found.count]), found.running)


def _flight(row: Any) -> OpInFlight:
    named = min(row.awaited_count, len(row.awaited))
    return OpInFlight(
        op=row.op,
        called="",
        kind=Kind(row.kind),
        phase=Phase(row.phase),
        nbytes=row.bytes,
        missing=row.missing,
        age_ms=row.age_ns // 1_000_000,
        awaited=tuple(PeerId(peer) for peer in row.awaited[0:named]),
        awaited_count=row.awaited_count,
        timed_out=bool(row.timed_out),
    )
