"""The C engine's structs as typed values, and ops as its structs (layer 3).

Part of `engine`: the other file in which cffi's untyped objects (`Any`) live. It calls nothing of
the engine and keeps nothing.
"""

from __future__ import annotations

from typing import Any

from pccl_py.dataplane._pccl import ffi as _ffi
from pccl_py.dataplane.op import Blocks, Op
from pccl_py.peer.events import Inspected
from pccl_py.protocol.messages import OpReport, OpStatus
from pccl_py.types import Kind, OnLoss, OpInFlight, PeerId, Phase

ffi: Any = _ffi

_OP, _POINTER = map(ffi.typeof, ("struct pccl_op *", "void *"))
TIMEOUT_NS_MAX = 1 << 62


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


# ---------------------------------------------------------------- ops, for the engine


def _blocks(buffers: Blocks, count: int) -> Any:
    """An array of pccl_block, or NULL."""
    if not buffers:
        return ffi.NULL
    blocks = ffi.new("struct pccl_block[]", count)
    for row, buffer in zip(blocks, buffers, strict=True):
        if buffer is not None and buffer.count:
            row.data, row.count = ffi.cast(_POINTER, buffer.address), buffer.count
    return blocks


def op_row(op: Op, timeout_s: float) -> tuple[Any, Any]:
    """The C form of an op, and what must live as long as that is read. It begins as zeroes; only
    what differs is set, for most ops have little of it and each field costs as much as a call."""
    row, keep = ffi.new(_OP), None
    kind, out, source = op.kind, op.out, op.input
    row.kind, row.dtype, row.weight = kind, op.dtype, op.weight
    row.timeout_ns = max(1, min(int(timeout_s * 1e9), TIMEOUT_NS_MAX))
    if out is not None:
        row.data = ffi.cast(_POINTER, out.address)
    if source is not None:
        row.input = ffi.cast(_POINTER, source.address)
    size = out or source
    if size is not None and kind <= Kind.REDUCE:
        row.count = size.count
    if op.reduce:
        row.reduce = op.reduce
    if op.root:
        row.root_peer = op.root
    if op.peers:
        count = len(op.peers)
        peers = ffi.new("uint64_t[]", op.peers)
        keep = peers, _blocks(op.sends, count), _blocks(op.receives, count)
        row.peer_count = count
        row.peers, row.sends, row.receives = keep
    if op.context or op.name:
        row.context, row.name = op.context, op.name
    if op.strict or op.route:
        row.strict, row.route = op.strict, op.route
    return row, keep
