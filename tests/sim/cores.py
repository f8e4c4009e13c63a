"""Real C cores as tests hold them: made with small segments, given views and ops in C's form.

Shared by the seeded cores (`cluster`) and the whole simulator (`tests/simulator`). A peer's id is
1000 + its index. What a call returns beside the C object must live until the call that takes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tests.sim.programs import Memory, Submission

PEER_0 = 1000

VerdictRow = tuple[int, int, Sequence[int], int, str]  # op, outcome, holders, status, text


def new_core(
    core: ModuleType, peer: int, *, segment: int, scratch: int, small: int, checksum: bool
) -> Any:
    """segment, scratch, small: bytes; small 0: what the product takes."""
    config = core.ffi.new(
        "struct pc_core_config *",
        {
            "peer": peer,
            "scratch_bytes": scratch,
            "segment_bytes_min": segment,
            "segment_bytes_max": segment,
            "small_bytes": small,
            "checksum_payload": int(checksum),
        },
    )
    return core.ffi.gc(core.lib.pc_core_new(config), core.lib.pc_core_free)


def view_row(
    ffi: Any,
    *,
    epoch: int,
    fresh: bool,
    place: int,
    peers: Sequence[int],
    cuts: Sequence[tuple[int, ...]],
    stable: int,
    verdicts: Sequence[VerdictRow],
    hub: int,
    large: int,
) -> tuple[Any, list[Any]]:
    """A view as `pc_core_set_view` takes it; cuts and hub are places in `peers`."""
    members = ffi.new("struct pccl_member[]", [{"peer": peer} for peer in peers])
    edges = ffi.new("struct pccl_edge[]", [tuple(cut) for cut in cuts])
    rows = ffi.new("struct pccl_verdict[]", max(1, len(verdicts)))
    keep: list[Any] = [members, edges, rows]
    for row, (op, outcome, holders, status, text) in zip(rows, verdicts, strict=False):
        row.op, row.outcome, row.status = op, outcome, status
        array = ffi.new("int32_t[]", list(holders))
        blob = ffi.new("char[]", text.encode()[:1023])
        keep += [array, blob]
        row.holder_count, row.holders, row.text = len(holders), array, blob
    view = ffi.new(
        "struct pccl_view *",
        {
            "epoch": epoch,
            "fresh": int(fresh),
            "self": place,
            "member_count": len(peers),
            "members": members,
            "cut_count": len(cuts),
            "cuts": edges,
            "stable": stable,
            "verdict_count": len(verdicts),
            "verdicts": rows,
            "hub": hub,
            "large": large,
        },
    )
    return view, keep


def op_row(
    ffi: Any, sub: Submission, memory: Memory, me: int, timeout_ns: int
) -> tuple[Any, list[Any]]:
    """What member `me` submits of an op, as `pc_core_submit` takes it."""
    keep: list[Any] = []
    op = ffi.new(
        "struct pccl_op *",
        {
            "kind": memory.kind or sub.kind,
            "dtype": sub.dtype,
            "reduce": sub.reduce,
            "root_peer": PEER_0 + sub.root if sub.has_root else 0,
            "data": _address(ffi, memory.data),
            "input": _address(ffi, memory.input),
            "count": next((a.size for a in (memory.data, memory.input) if a is not None), 0),
            "name": sub.name,
            "context": sub.context,
            "route": sub.route,
            "strict": int(sub.strict),
            "weight": sub.weight(me),
            "timeout_ns": timeout_ns,
            "sends": _blocks(ffi, memory.sends, keep),
            "receives": _blocks(ffi, memory.receives, keep),
        },
    )
    if sub.needs_peers:
        keep.append(ffi.new("uint64_t[]", [PEER_0 + i for i in memory.peers]))
        op.peers, op.peer_count = keep[-1], len(memory.peers)
    return op, keep


def _address(ffi: Any, array: np.ndarray | None) -> Any:
    if array is None or not array.size:
        return ffi.NULL
    return ffi.from_buffer(array)


def _blocks(ffi: Any, arrays: Iterable[np.ndarray | None] | None, keep: list[Any]) -> Any:
    if arrays is None:
        return ffi.NULL
    rows = [(_address(ffi, a), 0 if a is None else a.size) for a in arrays]
    keep += [ffi.new("struct pccl_block[]", rows), rows]
    return keep[-2]
