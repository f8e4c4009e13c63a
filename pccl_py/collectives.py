"""What a group or a sub-group can do together (layer 5): reductions, broadcast, all_gather, and
what `exchanges` adds.

Communicator and Subgroup derive from `Collectives` and say who takes part. It checks what a user
passes and makes an `Op`; how bytes travel and what a death does is decided elsewhere.
"""

from __future__ import annotations

from typing import Unpack, overload

from pccl_py import arguments
from pccl_py.among import Among, check_apart, check_one_dtype
from pccl_py.dataplane import buffers
from pccl_py.dataplane.buffers import Buffer
from pccl_py.dataplane.engine import ROUTES
from pccl_py.dataplane.op import Op
from pccl_py.errors import UsageError
from pccl_py.exchanges import Exchanges
from pccl_py.keywords import (
    Async,
    AsyncAllReduce,
    AsyncInto,
    Sync,
    SyncAllReduce,
    SyncInto,
)
from pccl_py.types import DType, Kind, OpInfo, PeerId, ReduceOp
from pccl_py.work import Work

_OPS = {op.name.lower(): op for op in ReduceOp}
_ROUTES = {name: number for number, name in enumerate(ROUTES)}
_NOTHING = buffers.of(bytearray())
WEIGHT_MAX = 1e300
_INTEGERS = (DType.UINT8, DType.INT8, DType.INT16, DType.INT32, DType.INT64)


class Collectives(Exchanges):
    """What all collectives have in common.

    Every participant calls the same ones in the same order (`send` and `recv`: the two), or names
    them. They block until this member's part is done, or return a Work at once with async_op=True.
    Any thread; concurrent submitters name their ops. Memory of an op in flight is not to be
    touched; what is only read may be read-only, and be read by several ops at once.

    Args that many take:
        tensor: torch tensor (CPU), numpy array or buffer (untyped: uint8); contiguous; any shape,
            empty and 0-d too; uint8, int8 to int64, float16, bfloat16, float32, float64. Writable
            where results go.
        outs, ins: a list of one tensor per rank, of any sizes (empty too), of one dtype; or one
            tensor whose elements divide evenly by the number of participants: equal parts in rank
            order.
        src, dst: a rank among the participants; it is the peer that has that rank at the call.
        op: "sum", "avg", "prod", "min", "max", or a ReduceOp. Integers wrap, in an avg before it
            divides (truncating toward zero); min and max propagate NaN; 16-bit floats are added in
            float32, rounded each time. avg divides by those who contributed.
        name: ops of one name match among themselves; needed when several threads submit.
        timeout: seconds, narrows `deadline_s` for this op. What happens then is agreed: the op ends
            with DeadlineExceeded everywhere, or well everywhere, if late.
        async_op: return a Work at once.
    Returns OpInfo: what it cost, and how many contributed (min and max over segments).
    Raises UsageError (arguments, or peers disagree: names both and the field), PeerLost (see each;
        also when what is passed fitted the participants until one was lost), DeadlineExceeded: the
        op happened on no peer, inputs intact: retry. Evicted, CoordinatorLost (outcome unknown:
        sync_state when it is back), ResourceError.
    """

    # ------------------------------------------------------------ reductions

    @overload
    def all_reduce(
        self, tensor: object, /, op: str | ReduceOp = ..., **how: Unpack[SyncAllReduce]
    ) -> OpInfo: ...

    @overload
    def all_reduce(
        self, tensor: object, /, op: str | ReduceOp = ..., **how: Unpack[AsyncAllReduce]
    ) -> Work: ...

    def all_reduce(
        self,
        tensor: object,
        /,
        op: str | ReduceOp = "sum",
        *,
        out: object = None,
        weight: float | None = None,
        name: str | None = None,
        strict: bool = False,
        route: str = "auto",
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Reduces `tensor` over the participants; all of them end with the same bits.

        Args (the others: see the class):
            tensor: reduced in place; with `out` only read. Equal count and dtype on all.
            out: where the result goes instead, of the same count and dtype.
            weight: of this member in an avg of floats, 0 to 1e300: each segment is the mean of its
                contributors' values by their weights. None is 1.0; members may differ. With 0 a
                member only receives; where all have 0 the result is NaN, of no contributors.
            strict: a death that costs a segment raises PeerLost, the input restored, instead of
                finishing with the survivors' values (holds a copy of the tensor meanwhile).
            route: "direct" (owners rotate over the members), "star" (one fixed hub, the view's or
                else the first member), "ring"; the same on all members. "auto": up to 64 KiB over
                the view's hub where it names one, beyond that as the view says, else direct up to
                32 members, ring beyond. In a view with a broken link everything takes the ring,
                which avoids it.
        Deaths: the survivors finish it; PeerLost only when strict.
        """
        reduction = _reduction(op)
        arguments.check_flag("strict", strict)
        way = _ROUTES.get(route)
        if way is None:
            raise UsageError(f"route={arguments.shown(route)} must be one of {', '.join(ROUTES)}")
        target, source = buffers.of(tensor, writable=out is None), None
        if out is not None:
            source, target = target, buffers.named("out", out, writable=True)
            _check_out(target, source)
            if target.is_at(source):
                source = None
        started = Op(
            Kind.ALL_REDUCE,
            target.dtype,
            "all_reduce",
            reduce=reduction,
            out=target,
            input=source,
            peers=self._listed(),
            strict=strict,
            route=way,
            weight=1.0 if weight is None else _weight(weight, reduction, target.dtype),
        )
        return self._run(started, name, timeout, async_op)

    @overload
    def reduce(
        self, tensor: object, /, dst: int = ..., op: str | ReduceOp = ..., **how: Unpack[SyncInto]
    ) -> OpInfo: ...

    @overload
    def reduce(
        self, tensor: object, /, dst: int = ..., op: str | ReduceOp = ..., **how: Unpack[AsyncInto]
    ) -> Work: ...

    def reduce(
        self,
        tensor: object,
        /,
        dst: int = 0,
        op: str | ReduceOp = "sum",
        *,
        out: object = None,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Reduces `tensor` over the participants; rank `dst` gets the result.

        Args (the others: see the class):
            tensor: only read, but at dst reduced in place unless there is `out`. Equal count and
                dtype on all.
            dst: the rank that gets the result.
            out: at dst: where the result goes instead. Not looked at elsewhere.
        Deaths: dst's ends it with PeerLost; for anybody else's the survivors finish it.
        """
        reduction = _reduction(op)
        among = self._among()
        root = among.peer("dst", dst)
        is_root = dst == among.rank
        source = buffers.of(tensor, writable=is_root and out is None)
        target = source if is_root else None
        if is_root and out is not None:
            target = buffers.named("out", out, writable=True)
            _check_out(target, source)
        started = Op(
            Kind.REDUCE,
            source.dtype,
            "reduce",
            reduce=reduction,
            root=root,
            out=target,
            input=source,
            peers=self._listed(among),
        )
        return self._run(started, name, timeout, async_op)

    @overload
    def reduce_scatter(
        self, out: object, ins: object, /, op: str | ReduceOp = ..., **how: Unpack[Sync]
    ) -> OpInfo: ...

    @overload
    def reduce_scatter(
        self, out: object, ins: object, /, op: str | ReduceOp = ..., **how: Unpack[Async]
    ) -> Work: ...

    def reduce_scatter(
        self,
        out: object,
        ins: object,
        /,
        op: str | ReduceOp = "sum",
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Reduces block r of everybody's `ins`, and gives the result to rank r.

        Args (the others: see the class):
            out: where this rank's result goes; it may not overlap `ins`.
            ins: a block for each rank, only read; block r has equal count and dtype on all, and
                that of rank r's `out`.
        Deaths: PeerLost, unless every block was finished. `out` is undefined then, `ins` intact.
        """
        reduction = _reduction(op)
        among = self._among()
        target = buffers.named("out", out, writable=True)
        sends = among.blocks("ins", ins, writable=False)
        check_one_dtype("ins", sends, "out", target)
        among.check_same("out", target, f"ins[{among.rank}]", sends[among.rank])
        check_apart("out", (target,), "ins", sends)
        started = Op(
            Kind.REDUCE_SCATTER,
            target.dtype,
            "reduce_scatter",
            reduce=reduction,
            out=target,
            sends=sends,
            peers=among.peers,
        )
        return self._run(started, name, timeout, async_op)

    # ------------------------------------------------------------ copies

    @overload
    def broadcast(self, tensor: object, /, src: int = ..., **how: Unpack[Sync]) -> OpInfo: ...

    @overload
    def broadcast(self, tensor: object, /, src: int = ..., **how: Unpack[Async]) -> Work: ...

    def broadcast(
        self,
        tensor: object,
        /,
        src: int = 0,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Gives every participant the bits that rank `src` has in `tensor`, in place.

        Args (the others: see the class):
            tensor: only read at src. Equal count and dtype on all.
            src: the rank that has it.
        Deaths: src's ends it with PeerLost, unless the survivors have it all between them; what is
            in `tensor` elsewhere then is undefined. Anybody else's costs nothing.
        """
        among = self._among()
        root = among.peer("src", src)
        buffer = buffers.of(tensor, writable=src != among.rank)
        peers = self._listed(among)
        started = Op(Kind.BROADCAST, buffer.dtype, "broadcast", root=root, out=buffer, peers=peers)
        return self._run(started, name, timeout, async_op)

    @overload
    def all_gather(self, outs: object, tensor: object, /, **how: Unpack[Sync]) -> OpInfo: ...

    @overload
    def all_gather(self, outs: object, tensor: object, /, **how: Unpack[Async]) -> Work: ...

    def all_gather(
        self,
        outs: object,
        tensor: object,
        /,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Collects every participant's `tensor` at all of them.

        Args (the others: see the class):
            outs: where to, per rank; block r has equal count and dtype on all, and that of rank
                r's tensor. This rank's own block may be `tensor` itself.
            tensor: what this member gives, only read; sizes may differ by member.
        Deaths: PeerLost, unless the survivors have it all between them. `outs` is undefined then,
            `tensor` intact: retry.
        """
        among = self._among()
        mine = buffers.of(tensor, writable=False)
        blocks = among.blocks("outs", outs, writable=True)
        own = blocks[among.rank]
        check_one_dtype("outs", blocks, "tensor", mine)
        among.check_same(f"outs[{among.rank}]", own, "tensor", mine)
        check_apart("outs", blocks, "tensor", () if mine.is_at(own) else (mine,))
        started = Op(
            Kind.ALL_GATHER,
            mine.dtype,
            "all_gather",
            input=mine,
            receives=blocks,
            peers=among.peers,
        )
        return self._run(started, name, timeout, async_op)

    @overload
    def barrier(self, **how: Unpack[Sync]) -> OpInfo: ...

    @overload
    def barrier(self, **how: Unpack[Async]) -> Work: ...

    def barrier(
        self, *, name: str | None = None, timeout: float | None = None, async_op: bool = False
    ) -> OpInfo | Work:
        """Ends when every participant has called it: an all_reduce of nothing."""
        started = Op(Kind.ALL_REDUCE, _NOTHING.dtype, "barrier", out=_NOTHING, peers=self._listed())
        return self._run(started, name, timeout, async_op)

    def _listed(self, among: Among | None = None) -> tuple[PeerId, ...]:
        """The participants, for ops in which the whole group needs no list."""
        if not self._context:
            return ()
        return (among or self._among()).peers


def _reduction(op: object) -> ReduceOp:
    found = op if isinstance(op, ReduceOp) else _OPS.get(op) if isinstance(op, str) else None
    if found is None:
        raise UsageError(f"op={arguments.shown(op)} must be one of {', '.join(_OPS)}")
    return found


def _weight(weight: object, reduction: ReduceOp, dtype: DType) -> float:
    """This member's in an avg. Raises UsageError."""
    found = arguments.number(weight)
    if not 0.0 <= found <= WEIGHT_MAX:
        raise UsageError(f"weight={arguments.shown(weight)} must be a number from 0 to 1e300")
    if reduction != ReduceOp.AVG:
        raise UsageError(f"weight is of op='avg', not of {reduction.name.lower()!r}")
    if dtype in _INTEGERS:
        raise UsageError(f"weight is of floats, not of {dtype.name.lower()}")
    return found


def _check_out(out: Buffer, tensor: Buffer) -> None:
    """Raises UsageError unless a result of `tensor` can go to `out`: the same memory, or other."""
    if (out.count, out.dtype) != (tensor.count, tensor.dtype):
        raise UsageError(f"out is {out.in_words()} and tensor {tensor.in_words()}: make them alike")
    if not out.is_at(tensor):
        check_apart("out", (out,), "tensor", (tensor,))
