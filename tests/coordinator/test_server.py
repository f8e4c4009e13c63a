"""Twin of pccl_py.coordinator.server: the real shell in a process, raw connections against it."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from pccl_py.config import Timers
from pccl_py.coordinator import server
from pccl_py.coordinator.sockets import open_router, resolved
from pccl_py.errors import Code, ResourceError, UsageError
from pccl_py.protocol import encoding
from pccl_py.protocol.endpoint import Endpoint
from pccl_py.protocol.messages import (
    Flush,
    Leave,
    Refresh,
    Refused,
    Repaired,
    Status,
    StatusRequest,
    Timeout,
    Waiting,
)
from tests.coordinator.raw_peer import ROOT, RawPeer, hello, running

FAKE = ("-m", "tests.coordinator.fake_coordinator")

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def address() -> Iterator[str]:
    with running(*FAKE) as (address, _):
        yield address


def _texts(peer: RawPeer, wanted: str, timeout_s: float = 5.0) -> list[str]:
    """Waiting texts up to and including `wanted`."""
    texts: list[str] = []
    until = time.monotonic() + timeout_s
    while wanted not in texts:
        message = peer.receive(max(0.01, until - time.monotonic()))
        assert message is not None, (wanted, texts)
        assert isinstance(message, Waiting), message
        texts.append(message.text)
    return texts


def _join(peer: RawPeer, name: str) -> None:
    peer.send(hello(name=name))
    _texts(peer, "boot 1 None None")


def test_messages_reach_the_machine_and_come_back(address: str) -> None:
    with RawPeer(address) as one, RawPeer(address) as two:
        _join(one, "one")
        _join(two, "two")
        assert _texts(one, "hello two") == ["hello two"]
        two.send(Refresh(1))
        assert _texts(one, "Refresh two") == ["Refresh two"]


def test_status_request_needs_no_hello(address: str) -> None:
    with RawPeer(address) as one:
        one.send(StatusRequest("run", os.urandom(16), b""))
        assert one.receive() == Status('{"members": [], "control_messages": 0}')


def test_a_status_counts_control_messages_but_no_statuses(address: str) -> None:
    with RawPeer(address) as one, RawPeer(address) as two:
        _join(one, "one")
        two.send(StatusRequest("run", os.urandom(16), b""))
        first = two.await_kind(Status)
        one.send(Refresh(1))
        assert _texts(one, "Refresh one") == ["Refresh one"]
        two.send(StatusRequest("run", os.urandom(16), b""))
        last = two.await_kind(Status)
        counts = [json.loads(status.json)["control_messages"] for status in (first, last)]
        assert counts[1] - counts[0] == 2, "the request and its echo"


def test_journal_is_written_before_the_next_action_and_timers_tick(tmp_path: Path) -> None:
    command = (*FAKE, "--state-dir", str(tmp_path))
    with running(*command) as (address, process), RawPeer(address) as one:
        _join(one, "one")
        one.send(Repaired(7))
        assert _texts(one, "tick") == ["journaled 7", "tick"]
        process.send_signal(signal.SIGKILL)
    with running(*command) as (address, process), RawPeer(address) as one:
        one.send(hello(name="one"))
        assert _texts(one, "boot 2 7 run")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(number: signal.Signals) -> None:
    with running(*FAKE) as (address, process), RawPeer(address) as one:
        _join(one, "one")
        process.send_signal(number)
        assert process.wait(timeout=5) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_last_words_get_out(address: str) -> None:
    with RawPeer(address) as one:
        _join(one, "one")
        one.send(Leave(1))
        _texts(one, "closing")
        one.send(Refresh(1))  # and nothing that it says matters any more
        assert one.receive(0.3) is None


def test_the_machine_hears_of_the_end_of_what_it_closed(address: str) -> None:
    with RawPeer(address) as one, RawPeer(address) as two:
        _join(one, "one")
        _join(two, "two")
        two.send(Leave(1))
        assert _texts(one, "lost two") == ["hello two", "lost two"]


# ---------------------------------------------------------------- losses


def test_kill_9_of_a_peer_is_noticed_at_once(address: str) -> None:
    script = (
        "import sys, time\nfrom tests.coordinator.raw_peer import RawPeer, hello\n"
        "p = RawPeer(sys.argv[1]); p.send(hello(name='victim')); p.receive()\n"
        "print('listening on it', flush=True); time.sleep(60)"
    )
    with RawPeer(address) as one:
        _join(one, "one")
        with running("-c", script, address) as (_, victim):
            _texts(one, "hello victim")
            victim.kill()
            killed = time.monotonic()
            assert _texts(one, "lost victim") == ["lost victim"]
            assert time.monotonic() - killed < 0.5


def test_a_stopped_peer_is_noticed_within_the_detection_time(address: str) -> None:
    script = (
        "import sys, time\nfrom tests.coordinator.raw_peer import RawPeer, hello\n"
        "p = RawPeer(sys.argv[1]); p.send(hello(name='victim')); p.receive()\n"
        "print('listening on it', flush=True); time.sleep(60)"
    )
    detection_s = Timers(4.0).detection_s
    with RawPeer(address) as one:
        _join(one, "one")
        with running("-c", script, address) as (_, victim):
            _texts(one, "hello victim")
            victim.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            _texts(one, "lost victim")
            assert time.monotonic() - stopped < detection_s + 0.5


def test_many_short_lives_are_all_noticed(address: str) -> None:
    """File descriptors are reused at once; no connection may be mistaken for another."""
    with RawPeer(address) as one:
        _join(one, "one")
        names = [f"p{number}" for number in range(30)]
        for name in names:
            with RawPeer(address) as brief:
                brief.send(hello(name=name))
                if len(name) == 2:  # some wait for an answer, others vanish right after the Hello
                    assert brief.receive() is not None
                else:
                    time.sleep(0.02)
        time.sleep(1.0)
        one.send(Refresh(1))
        texts = _texts(one, "Refresh one")
        arrived = [text.removeprefix("hello ") for text in texts if text.startswith("hello ")]
        lost = [text.removeprefix("lost ") for text in texts if text.startswith("lost ")]
        assert sorted(arrived) == sorted(lost)
        assert set(arrived) >= set(names[:10])
        assert one.receive(0.2) is None


def test_who_came_and_went_while_the_loop_was_busy_is_noticed(address: str) -> None:
    """The break of such a connection may be read before its Hello."""
    with RawPeer(address) as one:
        _join(one, "one")
        one.send(Timeout(1, 400, "be busy"))
        for number in range(10):
            with RawPeer(address) as brief:
                brief.send(hello(name=f"p{number}"))
                time.sleep(0.02)
        time.sleep(1.2)
        one.send(Refresh(1))
        texts = _texts(one, "Refresh one")
        assert sorted(text for text in texts if text.startswith("lost")) == [
            f"lost p{number}" for number in range(10)
        ]


def test_a_restarted_coordinator_is_greeted_again_by_the_same_socket() -> None:
    """What the DEALER had queued for the former life comes first and is ignored (V11)."""
    with running(*FAKE) as (address, process), RawPeer(address) as one:
        _join(one, "one")
        process.kill()
        process.wait(timeout=5)
        time.sleep(0.2)
        one.send(Refresh(1))
        with running(*FAKE, "--bind", address), RawPeer(address) as two:
            _join(two, "two")
            time.sleep(0.5)
            one.send(hello(name="one"))
            assert _texts(two, "hello one") == ["hello one"]


# ---------------------------------------------------------------- bad input


def test_undecodable_bytes_cost_their_sender_the_connection_and_nobody_else(address: str) -> None:
    with RawPeer(address) as one, RawPeer(address) as bad:
        _join(one, "one")
        _join(bad, "bad")
        _texts(one, "hello bad")
        bad.send_bytes(b"garbage")
        refused = bad.receive()
        assert isinstance(refused, Refused)
        assert refused.code == Code.PROTOCOL
        assert _texts(one, "lost bad") == ["lost bad"]
        bad.send(hello(name="bad"))  # a banned connection is not heard again
        assert bad.receive(0.3) is None
        one.send(Refresh(1))
        assert _texts(one, "Refresh one") == ["Refresh one"]


@pytest.mark.parametrize(
    "parts", [(b"",), (b"a", b"b"), (encoding.encode(Flush(1)),), (secrets.token_bytes(1000),)]
)
def test_strangers_who_break_the_rules_are_told(address: str, parts: tuple[bytes, ...]) -> None:
    with RawPeer(address) as bad:
        bad.send_bytes(*parts)
        assert isinstance(bad.receive(), Refused)


def test_other_wire_version_is_told_both(address: str) -> None:
    with RawPeer(address) as other:
        other.send_bytes(msgpack.packb([9, 1, "a Hello of another age"]))
        refused = other.receive()
        assert isinstance(refused, Refused)
        assert refused.code == Code.USAGE
        assert "version 9" in refused.text
        assert f"version {encoding.PROTOCOL_VERSION}" in refused.text


def test_port_scanners_and_noise_disturb_nobody(address: str) -> None:
    host, port = address.rsplit(":", 1)
    noise = random.Random(7)
    with RawPeer(address) as one:
        _join(one, "one")
        for number in range(60):
            with socket.create_connection((host, int(port)), timeout=2) as scanner:
                match number % 4:
                    case 0:
                        pass
                    case 1:
                        scanner.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    case 2:
                        scanner.sendall(noise.randbytes(noise.randrange(1, 5000)))
                    case 3:  # a ZMTP greeting that goes astray
                        scanner.sendall(b"\xff" + bytes(8) + b"\x7f\x03" + noise.randbytes(100))
        one.send(Refresh(1))
        assert _texts(one, "Refresh one") == ["Refresh one"]
        assert one.receive(0.3) is None


# ---------------------------------------------------------------- secrets


def test_secret_is_required_where_the_coordinator_has_one() -> None:
    request = StatusRequest("run", os.urandom(16), b"")
    with running(*FAKE, env={"PCCL_SECRET": "right"}) as (address, _):
        for secret, word in ((None, "this run has a secret"), (b"wrong", "wrong run secret")):
            for message in (
                encoding.signed_hello(secret, hello()),
                encoding.signed_status(secret, request),
            ):
                with RawPeer(address) as peer:
                    peer.send(message)
                    refused = peer.receive()
                    assert isinstance(refused, Refused)
                    assert refused.code == Code.USAGE
                    assert word in refused.text
                    assert "PCCL_SECRET" in refused.text
        with RawPeer(address) as peer:
            peer.send(encoding.signed_hello(b"right", hello(name="one")))
            _texts(peer, "hello one")


def test_a_tampered_hello_is_refused() -> None:
    with running(*FAKE, env={"PCCL_SECRET": "right"}) as (address, _), RawPeer(address) as peer:
        peer.send(replace(encoding.signed_hello(b"right", hello()), host="10.6.6.6"))
        assert isinstance(peer.receive(), Refused)


def test_a_secret_where_the_coordinator_has_none_is_told(address: str) -> None:
    with RawPeer(address) as peer:
        peer.send(encoding.signed_hello(b"needless", hello()))
        refused = peer.receive()
        assert isinstance(refused, Refused)
        assert "without a secret" in refused.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_off_loopback_without_a_secret_it_does_not_start(host: str) -> None:
    config = server.ServerConfig(Endpoint(host, 0), Timers())
    serving = server.serve(config, lambda _host, _port: None, {}, lambda state, _e, _n: (state, []))
    with pytest.raises(UsageError, match="PCCL_SECRET"):
        serving.send(None)


# ---------------------------------------------------------------- sockets


def test_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ResourceError, match=f"port {port} on 127.0.0.1 is in use"),
            open_router(Endpoint("127.0.0.1", port), Timers()),
        ):
            pass


def test_names_are_resolved_before_binding() -> None:
    assert resolved(Endpoint("localhost", 5)).is_loopback
    with pytest.raises(UsageError, match="cannot listen"):
        resolved(Endpoint("no-such-host.invalid", 5))


def test_v6_loopback() -> None:
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine has no IPv6")
    with running(*FAKE, "--bind", "[::1]:0") as (_, process):
        process.terminate()
        assert process.wait(timeout=5) == 0


def test_fake_fails_on_a_taken_state_dir(tmp_path: Path) -> None:
    command = (*FAKE, "--state-dir", str(tmp_path))
    with running(*command):
        second = subprocess.run(
            [sys.executable, *command],
            check=False,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert second.returncode != 0
        assert "another coordinator runs on" in second.stderr
