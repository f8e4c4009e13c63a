"""The keywords that many collectives share, for type checkers (layer 5); nothing happens here.

Each set comes twice: with async_op=True a call returns a Work, without it an OpInfo.
"""

from __future__ import annotations

from typing import Literal, Required, TypedDict


class SyncPair(TypedDict, total=False):
    """send, recv."""

    timeout: float | None
    async_op: Literal[False]


class Sync(SyncPair, total=False):
    """Every other collective."""

    name: str | None


class SyncInto(Sync, total=False):
    """Those that reduce in place, or into another tensor."""

    out: object


class SyncAllReduce(SyncInto, total=False):
    weight: float | None
    strict: bool
    route: str


class AsyncPair(TypedDict, total=False):
    timeout: float | None
    async_op: Required[Literal[True]]


class Async(AsyncPair, total=False):
    name: str | None


class AsyncInto(Async, total=False):
    out: object


class AsyncAllReduce(AsyncInto, total=False):
    weight: float | None
    strict: bool
    route: str
