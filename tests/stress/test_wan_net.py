"""The emulated network gives what it is told to give, and leaves nothing behind. Needs root."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stress import wan
from stress.wan import build, inside, measure, sysctl

ROOT = Path(__file__).resolve().parents[2]
ANSWER_S = 10.0
SO_RCVBUFFORCE = 33  # as root, beyond the machine's limit; Python does not name it


@contextlib.contextmanager
def network(hosts: int = 2, *, link: Path | None = None, **values: float) -> Iterator[wan.Network]:
    """A network without delay or limits but those given; the test is skipped where none can be."""
    quiet = {"rtt_ms": 0.0, "rate_mbit": 0.0, "seed": 1} | values
    net = wan.Network(hosts, link=link, **quiet)  # type: ignore[arg-type] # floats, and one seed
    try:
        net.__enter__()
    except wan.WanUnavailable as missing:
        pytest.skip(str(missing))
    with contextlib.ExitStack() as stack:
        stack.push(net)
        yield net


def bound(net: wan.Network, host: int, kind: int, *, v6: bool = False) -> socket.socket:
    family = socket.AF_INET6 if v6 else socket.AF_INET
    made = inside.open_socket(net.namespace(host), family, kind)
    made.settimeout(ANSWER_S)
    made.bind((net.address(host, v6=v6), 0))
    return made


def echo_ms(net: wan.Network) -> float:
    """The quickest round trip of a datagram: what the link does when the machine lets it. None is
    quicker than the delay that was asked for, however busy the machine is."""
    with (
        bound(net, 0, socket.SOCK_DGRAM) as here,
        bound(net, 1, socket.SOCK_DGRAM) as there,
    ):
        times = []
        for _ in range(25):
            start_s = time.monotonic()
            here.sendto(b"?", there.getsockname())
            there.sendto(b"!", there.recvfrom(9)[1])
            here.recv(9)
            times.append((time.monotonic() - start_s) * 1e3)
    return min(times)


def datagrams(net: wan.Network, count: int, payload_bytes: int = 4) -> list[int]:
    """Numbers of the datagrams that arrive of `count` sent at once."""
    with (
        bound(net, 0, socket.SOCK_DGRAM) as here,
        bound(net, 1, socket.SOCK_DGRAM) as there,
    ):
        there.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        there.settimeout(0.3)
        for number in range(count):
            here.sendto(number.to_bytes(4).ljust(payload_bytes), there.getsockname())
        arrived = []
        with contextlib.suppress(TimeoutError):
            while True:
                arrived.append(int.from_bytes(there.recv(9000)[:4]))
    return arrived


def connected(net: wan.Network, *, v6: bool = False) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection from host 0 to host 1."""
    with bound(net, 1, socket.SOCK_STREAM, v6=v6) as listener:
        listener.listen()
        here = bound(net, 0, socket.SOCK_STREAM, v6=v6)
        here.connect(listener.getsockname())
        there = listener.accept()[0]
    there.settimeout(ANSWER_S)
    return here, there


def send_through(net: wan.Network, data: bytes, *, v6: bool) -> bytes:
    here, there = connected(net, v6=v6)
    with here, there:
        sender = threading.Thread(target=here.sendall, args=(data,))
        sender.start()
        received = bytearray()
        while len(received) < len(data):
            received += there.recv(1 << 20)
        sender.join()
    return bytes(received)


def checksum_errors(net: wan.Network, host: int) -> int:
    """Of IP and TCP, counted by the host's kernel."""
    with net.run(host, ["cat", "/proc/net/snmp"], stdout=subprocess.PIPE) as process:
        lines = process.communicate()[0].decode().splitlines()
    found = 0
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        row = dict(zip(names.split(), values.split(), strict=True))
        wanted = ("InHdrErrors", "InErrs", "InCsumErrors") if names[:3] in ("Ip:", "Tcp") else ()
        found += sum(int(row.get(name, 0)) for name in wanted)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: list[int]) -> bool:
    give_up_s = time.monotonic() + ANSWER_S
    while any(map(alive, pids)) and time.monotonic() < give_up_s:
        time.sleep(0.01)
    return not any(map(alive, pids))


def test_delay_is_right_and_can_be_changed() -> None:
    with network(rtt_ms=40) as net:
        assert 40 <= echo_ms(net) < 43
        net.set(rtt_ms=10)
        assert 10 <= echo_ms(net) < 13
        net.set_pair(0, 1, rtt_ms=20)
        assert 20 <= echo_ms(net) < 23


def test_jitter_stays_within_its_bounds_and_never_reorders() -> None:
    with network(rtt_ms=20, jitter_ms=5) as net:
        assert datagrams(net, 500) == list(range(500))
        assert 10 <= echo_ms(net) < 33 + 30  # within the bounds, and what the machine adds


def reaches(net: wan.Network, streams: int, wire_mbit: float) -> bool:
    """Whether bare streams get the payload of wire_mbit within 3 %, in one of six tries: this
    machine's own processor may be taken away for longer than a try can bear."""
    expected = pytest.approx(wire_mbit * 1448 / 1500, rel=0.03)
    tries = (
        measure.bare_streams(net, [(0, 1)], streams, seconds=0.7, warm_s=0.4) for _ in range(6)
    )
    return any(expected == got.mbit for got in tries)


def test_rate_is_right_and_a_host_can_have_its_own() -> None:
    with network(rtt_ms=6, rate_mbit=300) as net:
        assert reaches(net, 2, 300)
        net.set_host(1, up_mbit=300, down_mbit=100)
        assert reaches(net, 2, 100)


def test_flow_cap_is_right() -> None:
    with network(rtt_ms=6, rate_mbit=300, flow_mbit=60) as net:
        assert reaches(net, 1, 60)
        assert reaches(net, 3, 180)


def test_loss_is_right_and_follows_the_seed() -> None:
    runs = []
    for seed in (7, 7, 8):
        with network(loss=0.1, seed=seed) as net:
            runs.append(datagrams(net, 4000))
            # The other packets, if any, are the kernels' own (a router solicitation is not ours).
            assert net.stats().hosts[0].lost_packets == 4000 - len(runs[-1])
    assert abs(len(runs[0]) - 3600) < 5 * 19  # five standard deviations
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("v6", [False, True])
def test_pieces_of_super_segments_are_lost_one_by_one(tmp_path: Path, v6: bool) -> None:
    with network():
        pass  # skipped here where there is none, before anything is built
    link = build.link(build.OUTDIR / "sanitized", build.SANITIZERS)
    data = hashlib.shake_128(b"payload").digest(12_000_000)
    with network(rtt_ms=2, loss=0.01, link=link) as net:
        assert send_through(net, data, v6=v6) == data
        sent = net.stats().hosts[0]
        assert checksum_errors(net, 0) == checksum_errors(net, 1) == 0
    assert sent.sent_packets > 8000  # as the wire would count, not 64 KiB each
    deviation = (0.01 * 0.99 / sent.sent_packets) ** 0.5
    assert sent.lost_packets / sent.sent_packets == pytest.approx(0.01, abs=5 * deviation)


def test_what_would_wait_too_long_is_dropped() -> None:
    with network(rate_mbit=10, queue_ms=20) as net:
        lost = 0
        for _ in range(5):  # a sender that is held up lets more through
            passed = datagrams(net, 200, payload_bytes=972)  # 1000 on the wire: 0.8 ms each
            assert passed[:26] == list(range(26))
            lost += 200 - len(passed)
            assert net.stats().hosts[0].queue_dropped_packets == lost
            if len(passed) < 150:
                return
        raise AssertionError("nothing was dropped of what had to wait too long")


def test_cut_and_heal() -> None:
    with network(3, rtt_ms=2) as net:
        here, there = connected(net)
        with here, there:
            net.cut(0, 1)
            here.sendall(b"late")
            there.settimeout(0.3)
            with pytest.raises(TimeoutError):
                there.recv(9)
            net.heal(0, 1)
            there.settimeout(ANSWER_S)
            assert there.recv(9) == b"late"
        assert net.stats().hosts[0].cut_packets > 0
        assert net.stats().hosts[2].cut_packets == 0


def test_two_networks_do_not_meet() -> None:
    with (
        network() as one,
        network() as other,
        bound(one, 1, socket.SOCK_DGRAM) as a,
        bound(other, 1, socket.SOCK_DGRAM) as b,
        bound(other, 0, socket.SOCK_DGRAM) as sender,
    ):
        assert a.getsockname()[0] == b.getsockname()[0]
        sender.sendto(b"to b", b.getsockname())
        sender.sendto(b"to nobody", a.getsockname())
        assert b.recv(9) == b"to b"
        a.settimeout(0.1)
        with pytest.raises(TimeoutError):
            a.recv(9)


def test_a_host_reaches_nothing_outside() -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside, network() as net:
        stranger = inside.open_socket(net.namespace(0))
        with stranger, pytest.raises(ConnectionRefusedError):
            stranger.connect(outside.getsockname())
        stranger = inside.open_socket(net.namespace(0))
        with stranger, pytest.raises(OSError, match="unreachable"):
            stranger.connect(("192.0.2.1", 80))


def orphans() -> int:
    """TCP sockets without a process, of the whole machine: their buffers live on in the kernel."""
    words = Path("/proc/net/sockstat").read_text().split()
    return int(words[words.index("orphan") + 1])


def test_no_socket_outlives_its_network() -> None:
    before = orphans()
    with network(rtt_ms=60, rate_mbit=200) as net:
        measure.bare_streams(net, [(0, 1)], 16, seconds=0.2, warm_s=0.3)  # ends with full buffers
    give_up_s = time.monotonic() + ANSWER_S
    while orphans() > before + 8 and time.monotonic() < give_up_s:
        time.sleep(0.01)
    assert orphans() <= before + 8  # others' may come meanwhile


def crash_inside(net: wan.Network, pids: list[int]) -> None:
    """Starts a family inside, one of it in a session of its own, and raises."""
    script = "sleep 600 & setsid sleep 600 & echo $!; wait"
    process = net.run(0, ["sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as lines:
        pids += [int(net.namespace(0).split("/")[2]), process.pid, int(lines.readline())]
    assert all(map(alive, pids))
    raise ZeroDivisionError


def test_nothing_is_left_after_an_error() -> None:
    pids: list[int] = []
    with pytest.raises(ZeroDivisionError), network() as net:
        crash_inside(net, pids)
    assert len(pids) == 3
    assert gone(pids)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_its_owner_is_killed(end: signal.Signals) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    program = """
import time
from stress import wan
with wan.Network(2) as net:
    print(net.namespace(0).split("/")[2], net.run(1, ["sleep", "600"]).pid, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        if not pids:
            pytest.skip("no network here; the other tests say why")
        owner.send_signal(end)
        owner.communicate(timeout=ANSWER_S)
    assert len(pids) == 2
    assert gone(pids)


def calibrates(net: wan.Network) -> bool:
    """In one of six tries; see `reaches`."""
    for _ in range(6):
        try:
            return 0.97 <= net.calibrate(seconds=0.5).share < 1.03
        except wan.NotFaithful:
            continue
    return False


def test_a_network_that_cannot_keep_up_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    with network(rtt_ms=2, rate_mbit=200, loss=0.01) as net:
        assert calibrates(net)
        slow = measure.Measured(streams=2, mbit=180, capacity_mbit=193, late_ms_max=7)
        monkeypatch.setattr(measure, "bare_streams", lambda *_, **__: slow)
        with pytest.raises(wan.NotFaithful, match="180 of 193 Mbit/s"):
            net.calibrate()
        assert net.settings.loss == 0.01


def test_congestion_control_is_chosen_inside_only() -> None:
    allowed = sysctl.ALLOWED.read_text()
    machine = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    names = sysctl.AVAILABLE.read_text().split()
    other = next((name for name in names if name != machine), machine)
    net = wan.Network(1, congestion=other)
    try:
        with net:
            argv = ["cat", "/proc/sys/net/ipv4/tcp_congestion_control"]
            with net.run(0, argv, stdout=subprocess.PIPE) as process:
                assert process.communicate()[0].decode().strip() == other
    except wan.WanUnavailable as missing:
        pytest.skip(str(missing))
    assert sysctl.ALLOWED.read_text() == allowed


def test_without_root_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(wan.WanUnavailable, match="needs root") as raised, wan.Network(2):
        pass
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "values", [{"loss": 1.5}, {"rtt_ms": -1}, {"rate_mbit": float("inf")}, {"hosts": 0}, {"mtu": 9}]
)
def test_wrong_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        wan.Network(**values)  # type: ignore[arg-type]
