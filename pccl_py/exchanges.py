"""Collectives in which each pair of members has bytes of its own: gather, scatter, all_to_all,
send, recv (layer 5).

Checks what a user passes, resolves ranks to peers and makes an `Op`. How the bytes travel, and what
becomes of an op when a member dies, is decided below and by the coordinator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Unpack, overload

import xxhash

from pccl_py import arguments
from pccl_py.among import Among, check_apart, check_one_dtype, context_of
from pccl_py.dataplane import buffers
from pccl_py.dataplane.buffers import Buffer
from pccl_py.dataplane.op import Blocks, Op
from pccl_py.errors import UsageError
from pccl_py.flight import Flight
from pccl_py.keywords import Async, AsyncPair, Sync, SyncPair
from pccl_py.types import Kind, OpInfo, PeerId
from pccl_py.work import SLICE_MS, Work

TAG_MAX = (1 << 31) - 1


class Exchanges(ABC):
    """See `Collectives`, which says what all have in common."""

    _flight: Flight
    _context = 0
    _whom = ""  # how error texts call a sub-group; "" for the whole group

    @abstractmethod
    def _among(self) -> Among:
        """The participants now. Raises what ended this membership, if it has ended."""

    # ------------------------------------------------------------ one root

    @overload
    def gather(
        self, tensor: object, /, outs: object = ..., dst: int = ..., **how: Unpack[Sync]
    ) -> OpInfo: ...

    @overload
    def gather(
        self, tensor: object, /, outs: object = ..., dst: int = ..., **how: Unpack[Async]
    ) -> Work: ...

    def gather(
        self,
        tensor: object,
        /,
        outs: object = None,
        dst: int = 0,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Collects every member's `tensor` at rank `dst`.

        Args:
            tensor: what this member sends, only read; sizes may differ by member.
            outs: at dst: where to, per rank (see the class); block r has the count of rank r's
                tensor. outs[dst] may be `tensor` itself. Not looked at elsewhere.
            dst: the rank that collects.
        Deaths: dst's ends it with PeerLost; another's does too, unless dst has all it sent. What
            is in `outs` then is undefined, the tensors are intact: retry.
        """
        among = self._among()
        root = among.peer("dst", dst)
        mine = buffers.of(tensor, writable=False)
        receives: Blocks = ()
        if dst == among.rank:
            if outs is None:
                raise among.misfit(f"outs must be given at rank {dst}, which gathers")
            blocks = among.blocks("outs", outs, writable=True)
            _check_own("outs", blocks, among, "tensor", mine)
            check_apart("outs", blocks, "tensor", () if mine.is_at(blocks[dst]) else (mine,))
            receives = blocks
        sends = among.only(dst, mine)
        op = Op(
            Kind.GATHER,
            mine.dtype,
            "gather",
            root=root,
            sends=sends,
            receives=receives,
            peers=among.peers,
        )
        return self._run(op, name, timeout, async_op)

    @overload
    def scatter(
        self, tensor: object, /, ins: object = ..., src: int = ..., **how: Unpack[Sync]
    ) -> OpInfo: ...

    @overload
    def scatter(
        self, tensor: object, /, ins: object = ..., src: int = ..., **how: Unpack[Async]
    ) -> Work: ...

    def scatter(
        self,
        tensor: object,
        /,
        ins: object = None,
        src: int = 0,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Gives every member its own block of what rank `src` has.

        Args:
            tensor: where this member's block goes; sizes may differ by member.
            ins: at src: what each rank gets (see the class), only read; block r has the count of
                rank r's tensor. ins[src] may be `tensor` itself. Not looked at elsewhere.
            src: the rank that has it all.
        Deaths: src's ends it with PeerLost, unless all others have their blocks; anybody else's
            costs nothing. `tensor` is undefined after an error, `ins` intact: retry.
        """
        among = self._among()
        root = among.peer("src", src)
        mine = buffers.of(tensor)
        sends: Blocks = ()
        if src == among.rank:
            if ins is None:
                raise among.misfit(f"ins must be given at rank {src}, which scatters")
            blocks = among.blocks("ins", ins, writable=False)
            _check_own("ins", blocks, among, "tensor", mine)
            others = [b for i, b in enumerate(blocks) if i != src or not b.is_at(mine)]
            check_apart("tensor", (mine,), "ins", others)
            sends = blocks
        receives = among.only(src, mine)
        op = Op(
            Kind.SCATTER,
            mine.dtype,
            "scatter",
            root=root,
            sends=sends,
            receives=receives,
            peers=among.peers,
        )
        return self._run(op, name, timeout, async_op)

    # ------------------------------------------------------------ every pair

    @overload
    def all_to_all(self, outs: object, ins: object, /, **how: Unpack[Sync]) -> OpInfo: ...

    @overload
    def all_to_all(self, outs: object, ins: object, /, **how: Unpack[Async]) -> Work: ...

    def all_to_all(
        self,
        outs: object,
        ins: object,
        /,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Sends block r of `ins` to rank r, and receives block r of `outs` from it.

        Args:
            outs: where to, per rank (see the class); it may not overlap `ins`.
            ins: what each rank gets, only read; its count is that of the other's outs for us.
        Deaths: PeerLost, unless everybody has all that the dead sent. `outs` is undefined then,
            `ins` intact: retry.
        """
        among = self._among()
        receives = among.blocks("outs", outs, writable=True)
        sends = among.blocks("ins", ins, writable=False)
        me = among.rank
        check_one_dtype("outs", receives, "ins", sends[0])
        among.check_same(f"outs[{me}]", receives[me], f"ins[{me}]", sends[me])
        check_apart("outs", receives, "ins", sends)
        mine = receives[0]
        op = Op(
            Kind.ALL_TO_ALL,
            mine.dtype,
            "all_to_all",
            sends=sends,
            receives=receives,
            peers=among.peers,
        )
        return self._run(op, name, timeout, async_op)

    # ------------------------------------------------------------ one pair

    @overload
    def send(
        self, tensor: object, /, dst: int, tag: int = ..., **how: Unpack[SyncPair]
    ) -> OpInfo: ...

    @overload
    def send(
        self, tensor: object, /, dst: int, tag: int = ..., **how: Unpack[AsyncPair]
    ) -> Work: ...

    def send(
        self,
        tensor: object,
        /,
        dst: int,
        tag: int = 0,
        *,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Sends `tensor` to rank `dst`, which calls `recv` with the same count and dtype.

        Args:
            tensor: only read.
            dst: another rank.
            tag: 0 to 2**31 - 1. Sends from one member to another of one tag are received in order;
                those of other tags are apart from them, and may come from other threads. A member
                may use 8192 sub-groups and (source, destination, tag)s between two admissions.
        Blocks until the other has it. Deaths: the other's ends it with PeerLost; those of third
            members cost nothing.
        """
        among = self._among()
        other = among.other("dst", dst)
        pair = (among.peers[among.rank], other)
        return self._transfer(
            Kind.SEND, buffers.of(tensor, writable=False), pair, tag, timeout, async_op
        )

    @overload
    def recv(
        self, tensor: object, /, src: int, tag: int = ..., **how: Unpack[SyncPair]
    ) -> OpInfo: ...

    @overload
    def recv(
        self, tensor: object, /, src: int, tag: int = ..., **how: Unpack[AsyncPair]
    ) -> Work: ...

    def recv(
        self,
        tensor: object,
        /,
        src: int,
        tag: int = 0,
        *,
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Receives into `tensor` what rank `src` sends with the same tag. See `send`.

        Deaths: PeerLost if src died before it was all here; `tensor` is then undefined.
        """
        among = self._among()
        other = among.other("src", src)
        pair = (other, among.peers[among.rank])
        return self._transfer(Kind.RECV, buffers.of(tensor), pair, tag, timeout, async_op)

    def _transfer(
        self,
        kind: Kind,
        buffer: Buffer,
        pair: tuple[PeerId, PeerId],
        tag: int,
        timeout: float | None,
        async_op: bool,
    ) -> OpInfo | Work:
        """One side of a transfer between two, which is a context of its own: source, then
        destination, and the tag."""
        number = arguments.whole(tag, 0, TAG_MAX)
        if number is None:
            raise UsageError(f"tag={arguments.shown(tag)} must be a number from 0 to 2**31 - 1")
        tag = number
        arguments.check_flag("async_op", async_op)
        is_send = kind == Kind.SEND
        op = Op(
            kind,
            buffer.dtype,
            f"{kind.name.lower()} with tag {tag}",
            root=pair[1],
            sends=(None, buffer) if is_send else (),
            receives=() if is_send else (buffer, None),
            peers=pair,
            context=context_of("pair", self._context, *pair, tag),
            words=f"send/recv with tag {tag}",
        )
        return self._finish(op, timeout, async_op)

    # ------------------------------------------------------------ for all

    def _run(
        self, op: Op, name: str | None, timeout: float | None, async_op: bool
    ) -> OpInfo | Work:
        """Starts an op, here and under a name."""
        arguments.check_flag("async_op", async_op)
        if name is not None or self._whom:
            self._place(op, name)
        return self._finish(op, timeout, async_op)

    def _place(self, op: Op, name: str | None) -> None:
        """Says of an op what it is called, and among whom it is."""
        where = f" of {self._whom}" if self._whom else ""
        if name is not None:
            arguments.check_op_name(name)
            op.name = xxhash.xxh3_64_intdigest(f"op\0{name}".encode()) or 1
            where = f" {name!r}{where}"
        op.what += where
        op.words = f"op{where}"
        op.context = self._context

    def _finish(self, op: Op, timeout: float | None, async_op: bool) -> OpInfo | Work:
        work = self._flight.start(op, timeout, 0 if async_op else SLICE_MS)
        return work if async_op else work.wait()


def _check_own(
    what: str, blocks: tuple[Buffer, ...], among: Among, as_what: str, mine: Buffer
) -> None:
    """A root's own block, and with it the dtype of all."""
    check_one_dtype(what, blocks, as_what, mine)
    among.check_same(f"{what}[{among.rank}]", blocks[among.rank], as_what, mine)
