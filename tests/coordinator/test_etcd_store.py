"""Twins of pccl_py.coordinator.etcd_store and etcd_client, against a real etcd where Debian's
`etcd-server` is installed (`.ci/run` does that), and against servers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pccl_py.coordinator import etcd_client, etcd_store, lease
from pccl_py.coordinator.etcd_client import Away, Etcd, Url, parse_urls
from pccl_py.coordinator.etcd_store import EtcdStore, Place
from pccl_py.coordinator.store import Busy, Deposed, NotStored, Remembered
from pccl_py.errors import RemoteProtocolError, UsageError
from pccl_py.types import GroupRecord, Member, PeerId, Record
from tests import etcd
from tests.e2e.processes import free_ports

LEASE_S = 2

pytestmark = pytest.mark.timeout(60)
needs_etcd = pytest.mark.skipif(not etcd.installed, reason="apt-get install etcd-server")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.Server]:
    found = etcd.Server(tmp_path_factory.mktemp("etcd"), free_ports(2))
    found.start()
    try:
        yield found
    finally:
        found.kill()


@pytest.fixture
def run() -> str:
    return f"run/{random.randrange(1 << 40)}"


def _record(epoch: int, members: int = 1) -> Record:
    crew = tuple(Member(PeerId(at), f"m{at}", "g", "127.0.0.1", 1) for at in range(1, members + 1))
    ring = GroupRecord("g", tuple(member.peer for member in crew))
    return Record(1, epoch, epoch == 1, crew, (ring,))


async def _never(seconds: float) -> bool:
    await asyncio.sleep(seconds)
    return False


def _open(server: etcd.Server, run: str, standby: bool = False):  # type: ignore[no-untyped-def]
    place = Place(parse_urls(server.url), LEASE_S)
    return etcd_store.begin(place, run, standby, False, _never)


async def _die(store: EtcdStore) -> None:
    """Its lease ends, as after SIGKILL and some seconds; it does not know."""
    await store._etcd.ask("/v3/lease/revoke", {"ID": str(store._lease.id)})
    store._lease = replace(store._lease, sure_until=float("inf"))


Ask = Callable[[str, lease.Json], Awaitable[lease.Json]]


def _dead_after(questions: int, ask: Ask) -> Ask:
    """Asks so many times, and then nothing any more."""
    left = [questions]

    async def doomed(path: str, body: lease.Json) -> lease.Json:
        left[0] -= 1
        if left[0] < 0:
            raise Away(None, "it is dead")
        return await ask(path, body)

    return doomed


# ---------------------------------------------------------------- a real etcd


@needs_etcd
def test_boots_count_up_and_the_last_view_is_remembered(server: etcd.Server, run: str) -> None:
    async def body() -> None:
        async with _open(server, run) as store:
            assert store.remembered == Remembered(1)
            for epoch in (1, 2, 3):
                await store.append(_record(epoch), "r")
            store.check()
        async with _open(server, run) as store:
            assert store.remembered == Remembered(2, _record(3), "r")
            big = _record(4, members=12000)
            await store.append(big, "r")
            await store.append(replace(big, epoch=5), "r")
        async with _open(server, run) as store:
            assert store.remembered == Remembered(3, replace(big, epoch=5), "r")
            await store.append(_record(6), "r")
            prefix = lease.Keys(run).prefix
            body = lease.get(f"{prefix}part/") | {"range_end": lease.get(f"{prefix}part0")["key"]}
            found = await store._etcd.ask("/v3/kv/range", body)
            assert found["count"] == "1", "older views' parts are gone"

    asyncio.run(body())


@needs_etcd
def test_who_has_lost_its_lease_changes_nothing(server: etcd.Server, run: str) -> None:
    async def body() -> None:
        async with _open(server, run) as old:
            await old.append(_record(1), "r")
            await _die(old)
            async with _open(server, run) as new:
                assert new.remembered == Remembered(2, _record(1), "r")
                old.check()  # as far as it knows
                for call in (old.append(_record(2), "r"), old.probe(), old.guard()):
                    with pytest.raises(Deposed, match="is lost"):
                        await call
                await new.append(_record(2, members=2), "r")
                with pytest.raises(Deposed):
                    await old.append(_record(3), "r")
        async with _open(server, run) as last:
            assert last.remembered == Remembered(3, _record(2, members=2), "r")

    asyncio.run(body())


@needs_etcd
def test_a_second_one_is_refused_and_a_standby_waits(
    server: etcd.Server, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def body() -> None:
        async with _open(server, run) as first, asyncio.TaskGroup() as group:
            guard = group.create_task(first.guard())
            with pytest.raises(Busy, match=r"another coordinator acts on .*, pid \d+\)"):
                async with _open(server, run):
                    pass
            assert "standing by" not in caplog.text, "the error is the one line"
            entered = asyncio.Event()

            async def stand_by() -> None:
                async with _open(server, run, standby=True) as second:
                    entered.set()
                    assert second.remembered.boot == 2

            standby = group.create_task(stand_by())
            await asyncio.sleep(3 * etcd_store.POLL_MIN_S)
            assert not entered.is_set()
            assert "standing by: " in caplog.text
            guard.cancel()
            await first.resign()
            await standby
            assert entered.is_set()

    asyncio.run(body())


@needs_etcd
def test_a_try_taken_for_lost_cannot_undo_a_later_one(server: etcd.Server, run: str) -> None:
    """The first append's transaction is kept back, as by a slow network, and sent later."""

    async def body() -> None:
        async with _open(server, run) as store:
            kept: list[tuple[str, lease.Json]] = []
            ask = store._etcd.ask

            async def keep(path: str, body: lease.Json) -> lease.Json:
                kept.append((path, body))
                raise Away(None, "etcd cannot be asked (in this test)")

            store._etcd.ask = keep  # type: ignore[method-assign]
            with pytest.raises(NotStored, match="in this test"):
                await store.append(_record(1), "r")
            store._etcd.ask = ask  # type: ignore[method-assign]
            await store.append(_record(1, members=3), "r")
            late = await ask(*kept[0])
            assert not lease.succeeded(late)

            async def lose(path: str, body: lease.Json) -> lease.Json:
                await ask(path, body)
                raise Away(None, "its answer was lost")

            store._etcd.ask = lose  # type: ignore[method-assign]
            with pytest.raises(NotStored):
                await store.append(_record(2), "r")
            store._etcd.ask = ask  # type: ignore[method-assign]
            await store.append(_record(2, members=2), "r")
        async with _open(server, run) as store:
            assert store.remembered.record == _record(2, members=2)

    asyncio.run(body())


@needs_etcd
def test_killed_at_any_instant_it_holds_what_was_stored_or_is_being_stored(
    server: etcd.Server, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view of several parts, and a life that ends after any number of questions."""
    monkeypatch.setattr(lease, "PART_BYTES", 64)

    async def body() -> None:
        epoch = 0
        for questions in range(8):
            stored = epoch
            async with _open(server, run) as store:
                ask = store._etcd.ask
                store._etcd.ask = _dead_after(questions, ask)  # type: ignore[method-assign]
                with contextlib.suppress(NotStored):
                    await store.append(_record(epoch + 1, members=5), "r")
                    stored = epoch + 1
                store._etcd.ask = ask  # type: ignore[method-assign]
            async with _open(server, run) as store:
                past = store.remembered
                assert past.boot == 2 * questions + 2
                found = 0 if past.record is None else past.record.epoch
                assert stored <= found <= stored + 1
                epoch = found
        assert epoch > 0

    asyncio.run(body())


@needs_etcd
def test_a_stopped_etcd_stores_nothing_and_the_lease_is_not_trusted_beyond_its_time(
    server: etcd.Server, run: str
) -> None:
    async def body() -> None:
        async with _open(server, run) as store:
            server.kill(signal.SIGSTOP)
            try:
                with pytest.raises(NotStored, match="no answer in"):
                    await store.append(_record(1), "r")
                with pytest.raises(NotStored):
                    await store.probe()
                with pytest.raises(Deposed, match="could not be renewed in time"):
                    await store.guard()
                with pytest.raises(Deposed):
                    store.check()
            finally:
                server.kill(signal.SIGCONT)

    asyncio.run(body())


@needs_etcd
def test_a_damaged_view_is_refused(server: etcd.Server, run: str) -> None:
    async def body() -> None:
        async with _open(server, run) as store:
            await store.append(_record(1), "r")
            await store._change([lease.put(lease.Keys(run).part("1-1", 0), b"other bytes")])
        for standby in (False, True):
            with pytest.raises(UsageError, match=r"damaged \(its checksum is wrong\)"):
                async with _open(server, run, standby):
                    pass

    asyncio.run(body())


# ---------------------------------------------------------------- what is no etcd


@contextmanager
def _answering(answer: bytes) -> Iterator[Url]:
    """A server that reads a little and says just that."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield Url("127.0.0.1", listening.getsockname()[1], False)
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def _asked(*urls: Url, timeout_s: float = 5.0) -> lease.Json:
    return asyncio.run(Etcd(urls, timeout_s).ask("/v3/kv/range", {}))


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (b"", Away, "closed the connection without an answer"),
        (b"HTTP/1.1 404 Not Found\r\n\r\nNot Found", RemoteProtocolError, "is that its client URL"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", RemoteProtocolError, "is that its client URL"),
        (b"HTTP/1.0 200 OK\r\n\r\n[1]", RemoteProtocolError, "does not answer as etcd"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100000, RemoteProtocolError, "does not answer"),
        (b'HTTP/1.0 429 X\r\n\r\n{"error":"no space","code":8}', Away, "etcd says: no space"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"error":{"message":"gone\\u001b"}}', Away, "says: gone"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + bytes(5 << 20), RemoteProtocolError, "does not answer"),
    ],
)
def test_what_others_say_is_an_error_that_helps(
    answer: bytes, kind: type[Exception], says: str
) -> None:
    with _answering(answer) as url, pytest.raises(kind, match=says) as caught:
        _asked(url)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_the_next_url_is_asked_when_one_is_away() -> None:
    with _answering(b'HTTP/1.0 200 OK\r\n\r\n{"result":1}\n{"result":2}\n') as url:
        away = Url("127.0.0.1", free_ports(1)[0], False)
        assert _asked(away, url) == {"result": 1}
        with _answering(b"HTTP/1.0 502 Bad Gateway\r\n\r\n<html>") as proxy:
            assert _asked(proxy, url) == {"result": 1}
        with pytest.raises(Away, match=r"etcd cannot be asked \(http://127.0.0.1:\d+: "):
            _asked(away)


def test_nobody_waits_longer_for_an_answer_than_was_said() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(Away, match=r"no answer in 0\.2 s"):
            _asked(Url("127.0.0.1", mute.getsockname()[1], False), timeout_s=0.2)


def test_urls() -> None:
    assert parse_urls("http://a, https://[::1]:5/") == (Url("a", 2379, False), Url("::1", 5, True))
    assert str(Url("::1", 5, True)) == "https://[::1]:5"
    for wrong in ("", "a:2379", "ftp://a", "http://", "http://u:p@a", "http://a/x", "http://a:x"):
        with pytest.raises(UsageError, match="--etcd"):
            parse_urls(wrong)
    with pytest.raises(UsageError, match="at most"):
        parse_urls(",".join(["http://a"] * 17))


assert etcd_client.ANSWER_BYTES_MAX > 2 * lease.PART_BYTES
