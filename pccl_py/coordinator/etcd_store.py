"""The coordinator's memory in etcd, for hosts that share no disk (layer 4).

`tenure` calls `begin`: who gets the lease on the run's `leader` key acts, and no other. What is
asked of etcd is `lease`'s, how it travels `etcd_client`'s. While we cannot be sure that the lease
is ours (etcd away for its time, this process stopped for it) we do not act: `check` says so before
each step, and each change is fenced in etcd itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pccl_py.coordinator import lease
from pccl_py.coordinator.etcd_client import Away, Etcd, Url
from pccl_py.coordinator.store import Busy, Deposed, NotStored, Remembered
from pccl_py.errors import RemoteProtocolError, UsageError
from pccl_py.protocol import encoding
from pccl_py.types import Record

TRIES_MAX = 3
ASK_SHARE = 3  # an answer may take this part of the lease's time
POLL_SHARE = 20  # of it, between two looks at who acts
POLL_MIN_S, POLL_MAX_S = 0.1, 0.5

_log = logging.getLogger("pccl.coordinator")
Wait = Callable[[float], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where etcd is, and for how long a lease is asked."""

    urls: tuple[Url, ...]
    lease_s: int


def clock() -> float:
    """Seconds that go on while the machine sleeps, as etcd's do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@asynccontextmanager
async def begin(
    place: Place, run: str, standby: bool, patient: bool, wait: Wait
) -> AsyncIterator[EtcdStore | None]:
    """The run's store, ours alone while its `check` says so; None if `wait(seconds)` said that it
    is time to end. standby: wait as long as another acts; else only for as long as the lease of one
    that has died may last. patient: etcd may be away meanwhile.

    Raises Busy, Away, UsageError (what is stored is damaged), RemoteProtocolError (no etcd)."""
    etcd = Etcd(place.urls, place.lease_s / ASK_SHARE)
    store = await _acquire(etcd, place, lease.Keys(run), standby, patient, wait)
    try:
        yield store
    finally:
        if store is not None:
            await store.resign()


async def _acquire(
    etcd: Etcd, place: Place, keys: lease.Keys, standby: bool, patient: bool, wait: Wait
) -> EtcdStore | None:
    refuse_at = clock() + place.lease_s + 1.0  # etcd looks for dead leases twice a second
    poll_s = min(POLL_MAX_S, max(POLL_MIN_S, place.lease_s / POLL_SHARE))
    said = ""
    while True:
        try:
            holder = lease.found(await etcd.ask("/v3/kv/range", lease.get(keys.leader)))
            if holder is None:
                store = await _campaign(etcd, place, keys)
                if store is not None:
                    return store
            news = "" if holder is None else f"standing by: {_who(holder)} acts on {keys.leader}"
            patient = True
        except (Away, RemoteProtocolError) as error:
            if not patient:
                raise
            holder, news = None, f"standing by: {_text(error)}"
        if standby and news and news != said:  # else the error says it, in one line
            _log.info("%s", encoding.printable(news))
        said = news
        if holder is not None and not standby and clock() >= refuse_at:
            raise Busy(
                f"another coordinator acts on {keys.leader} in etcd ({_who(holder)}): stop it, use "
                "another --run, or wait for its end with --standby"
            )
        if await wait(poll_s):
            return None


def _who(holder: lease.Found) -> str:
    return encoding.printable(holder.value.decode(errors="replace"))[:200]


async def _campaign(etcd: Etcd, place: Place, keys: lease.Keys) -> EtcdStore | None:
    """The store, if we are the one that gets the lease."""
    asked_at = clock()
    answer = await etcd.ask("/v3/lease/grant", {"TTL": str(place.lease_s), "ID": "0"})
    ours = lease.Lease.since(asked_at, *lease.granted(answer))
    who = f"{socket.gethostname()}, pid {os.getpid()}"
    answer = await etcd.ask("/v3/kv/txn", lease.campaign(keys, ours.id, who))
    if not lease.succeeded(answer):
        await _revoke(etcd, ours.id)
        return None
    store = EtcdStore(etcd, keys, ours, created=lease.revision(answer))
    try:
        await store.load()
    except BaseException:
        await store.resign()
        raise
    return store


async def _revoke(etcd: Etcd, id: int) -> None:
    with contextlib.suppress(Away, RemoteProtocolError):  # it runs out by itself
        await etcd.ask("/v3/lease/revoke", {"ID": str(id)})


class EtcdStore:
    """A `store.Store`. One owner; `guard` keeps the lease."""

    def __init__(self, etcd: Etcd, keys: lease.Keys, ours: lease.Lease, created: int) -> None:
        """created: the revision that made us leader."""
        self._etcd = etcd
        self._keys = keys
        self._lease = ours
        self._created = created
        self._remembered = Remembered()
        self._view_changed = 0  # the revision of the view's head as we last saw it
        self._tokens = 0

    @property
    def remembered(self) -> Remembered:
        return self._remembered

    async def load(self) -> None:
        """Read what the one before us left, and count this life."""
        head = await self._get(self._keys.view)
        record, run = None, None
        if head is not None:
            self._view_changed = head.changed
            record, run = await self._view(head.value)
        boot = await self._get(self._keys.boot)
        number = 1 + (_boot(boot.value, self._keys.boot) if boot is not None else 0)
        await self._change([lease.put(self._keys.boot, str(number).encode())])
        self._remembered = Remembered(number, record, run)

    async def append(self, record: Record, run: str) -> None:
        """As Store. A step or two of the network, more for a view beyond PART_BYTES."""
        data = encoding.encode_view(record, run)
        parts = lease.split(data)
        self._tokens += 1
        token = f"{self._remembered.boot}-{self._tokens}"
        head = lease.Head(token, len(parts), zlib.crc32(data))
        keys = self._keys
        puts = [lease.put(keys.part(token, at), part) for at, part in enumerate(parts)]
        try:
            for one in puts[:-1]:
                await self._change([one])
            last = [puts[-1], lease.put(keys.view, head.encoded())]
            last += lease.without_other_parts(keys, token)
            self._view_changed = await self._change(last, on_view=True)
        except (Away, RemoteProtocolError) as error:
            raise NotStored(None, _text(error)) from error
        self._remembered = Remembered(self._remembered.boot, record, run)

    async def probe(self) -> None:
        """As Store."""
        try:
            await self._change([lease.put(self._keys.probe, b"")])
        except (Away, RemoteProtocolError) as error:
            raise NotStored(None, _text(error)) from error

    def check(self) -> None:
        """As Store. Cheap."""
        late_s = clock() - self._lease.sure_until
        if late_s >= 0.0:
            raise Deposed(
                None,
                f"the lease of {self._lease.ttl_s:.0f} s on {self._keys.leader} could not be "
                f"renewed in time ({late_s:.1f} s late): another coordinator may act",
            )

    async def guard(self) -> None:
        """As Store: renews the lease."""
        said = False
        while True:
            await asyncio.sleep(self._lease.ttl_s / lease.RENEWALS)
            asked_at = clock()
            try:
                answer = await self._etcd.ask("/v3/lease/keepalive", {"ID": str(self._lease.id)})
                ttl_s = lease.renewed_s(answer)
            except (Away, RemoteProtocolError) as error:
                if not said:
                    _log.warning("the lease was not renewed: %s", _text(error))
                said = True
                self.check()
                continue
            if ttl_s <= 0.0:
                raise self._deposed()
            self._lease = lease.Lease.since(asked_at, self._lease.id, ttl_s)
            said = False

    async def resign(self) -> None:
        """Give the lease back, so that who stands by need not wait for its end."""
        await _revoke(self._etcd, self._lease.id)

    # ------------------------------------------------------------ etcd

    async def _get(self, key: str) -> lease.Found | None:
        return lease.found(await self._etcd.ask("/v3/kv/range", lease.get(key)))

    async def _view(self, value: bytes) -> tuple[Record, str]:
        """The view that a head speaks of. Raises UsageError if it is not whole."""
        try:
            head = lease.head(value)
        except RemoteProtocolError as error:
            raise self._damaged(str(error)) from None
        parts = [
            await self._get(self._keys.part(head.token, number)) for number in range(head.parts)
        ]
        data = b"".join(part.value for part in parts if part is not None)
        if zlib.crc32(data) != head.crc:
            raise self._damaged("its checksum is wrong")
        try:
            return encoding.decode_view(data)
        except RemoteProtocolError as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, why: str) -> UsageError:
        return UsageError(
            f"the view in etcd under {self._keys.prefix} is damaged ({why}): restore it, or delete "
            "the keys there, which starts a new run"
        )

    async def _change(self, changes: Sequence[lease.Body], on_view: bool = False) -> int:
        """Make the changes as the leader; the revision that they made. A head that is not as we
        saw it was changed by ourselves, in a try that we took for lost."""
        for _ in range(TRIES_MAX):
            seen = self._view_changed if on_view else -1
            body = lease.fenced(self._keys, self._created, changes, seen)
            answer = await self._etcd.ask("/v3/kv/txn", body)
            if lease.succeeded(answer):
                return lease.revision(answer)
            leader, view = lease.shown(answer)
            if leader is None or leader.created != self._created:
                raise self._deposed()
            self._view_changed = 0 if view is None else view.changed
        raise Away(None, f"{self._keys.view} in etcd changes all the time")

    def _deposed(self) -> Deposed:
        return Deposed(
            None, f"the lease on {self._keys.leader} is lost: another coordinator acts, or may"
        )


def _text(error: Away | RemoteProtocolError) -> str:
    text = error.strerror if isinstance(error, Away) else None
    return text or str(error)


def _boot(value: bytes, key: str) -> int:
    if not value.isdigit() or len(value) > 18:
        raise UsageError(f"{key} in etcd is no number: restore it, or delete the run's keys")
    return int(value)
