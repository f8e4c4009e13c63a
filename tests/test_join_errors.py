"""Bad input at join: the right class, one line that says what to do, in time, nobody disturbed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

import pccl_py as pccl
from pccl_py.coordinator import embedded
from pccl_py.peer import address as addresses
from pccl_py.protocol import encoding
from pccl_py.protocol.endpoint import Endpoint
from pccl_py.protocol.messages import Hello, Refused
from tests.crew import crew, start

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PCCL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def coordinator() -> Iterator[str]:
    with embedded.start(run="mine") as started:
        yield started.address


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with embedded.start(secret=b"right", run="mine") as started:
        yield started.address


def refuse(kind: type[pccl.PcclError], says: str, *args: object, **settings: object) -> str:
    """Joins, expects an error of this very class with these words, fast and on one line."""
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    future = start(lambda: pccl.join(*args, **settings))
    error = future.exception(15.0)
    assert time.monotonic() - began < 5.0, "it took too long"
    assert type(error) is kind, repr(error)
    text = str(error)
    assert says in text, text
    assert "\n" not in text
    assert len(text) < 400
    del error, future
    end = time.monotonic() + 5.0
    while threading.active_count() > threads or len(os.listdir("/proc/self/fd")) > descriptors:
        assert time.monotonic() < end, "a failed join leaves something behind"
        time.sleep(0.02)
    return text


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"min_members": 0}, "from 1 to 1024"),
        ({"min_members": -1}, "from 1 to 1024"),
        ({"min_members": 10_000}, "from 1 to 1024"),
        ({"min_members": "two"}, "from 1 to 1024"),
        ({"min_members": 2.5}, "from 1 to 1024"),
        ({"min_members": None}, "from 1 to 1024"),
        ({"min_members": True}, "from 1 to 1024"),
        ({"timeout": 0}, "positive number"),
        ({"timeout": -1.0}, "positive number"),
        ({"timeout": float("nan")}, "positive number"),
        ({"timeout": "long"}, "positive number"),
        ({"deadline_s": 0}, "deadline_s=0"),
        ({"deadline_s": float("inf")}, "deadline_s=inf"),
        ({"deadline_s": float("nan")}, "deadline_s=nan"),
        ({"deadline_s": "long"}, "deadline_s='long'"),
        ({"transport": "rdma"}, "'auto' or 'tcp'"),
        ({"links": 17}, "from 1 to 16"),
        ({"links": -1}, "from 1 to 16"),
        ({"links": 2.0}, "from 1 to 16"),
        ({"links": "many"}, "from 1 to 16"),
        ({"links": True}, "from 1 to 16"),
        ({"name": ""}, "1 to 64 bytes"),
        ({"name": "x" * 65}, "1 to 64 bytes"),
        ({"name": "two\nlines"}, "name"),
        ({"name": 7}, "name"),
        ({"run": ""}, "run"),
        ({"run": "x" * 300}, "run"),
        ({"run": 7}, "run"),
        ({"group": ""}, "group"),
        ({"group": "x" * 300}, "group"),
        ({"secret": ""}, "secret is empty"),
        ({"secret": "a\0b"}, "zero byte"),
        ({"secret": 7}, "secret"),
        ({"coordinator": ""}, "HOST:PORT"),
        ({"coordinator": "nowhere"}, "HOST:PORT"),
        ({"coordinator": "127.0.0.1:port"}, "port must be a number"),
        ({"coordinator": "127.0.0.1:99999"}, "port must be a number"),
        ({"coordinator": "127.0.0.1:0"}, "port"),
        ({"coordinator": "::1:48148"}, "[v6]:PORT"),
        ({"coordinator": "127.0.0.1:48148,"}, "HOST:PORT"),
        ({"coordinator": 48148}, "HOST:PORT"),
        ({"bind": ":"}, "bind"),
        ({"bind": "127.0.0.1:x"}, "bind"),
        ({"bind": "127.0.0.1:99999"}, "bind"),
        ({"bind": "[::1"}, "bind"),
        ({"bind": ""}, "bind"),
        ({"bind": "no such host"}, "bind"),
        ({"bind": 7}, "bind"),
        ({"advertise": "::1:2:"}, "advertise"),
        ({"advertise": "127.0.0.1:x"}, "advertise"),
        ({"advertise": ""}, "advertise"),
    ],
)
def test_wrong_arguments(coordinator: str, settings: dict, says: str) -> None:
    refuse(pccl.UsageError, says, **{"coordinator": coordinator, "run": "mine", "timeout": 3.0}
           | settings)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PCCL_CHECKSUM", "sometimes", "PCCL_CHECKSUM='sometimes' must be one of auto, full"),
        ("PCCL_LOG_LEVEL", "loud", "PCCL_LOG_LEVEL='loud' must be one of"),
        ("PCCL_COORDINATOR", "nowhere", "HOST:PORT"),
    ],
)
def test_wrong_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    refuse(pccl.UsageError, says, timeout=2.0)


def test_a_secret_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCL_SECRET_FILE", "/nonexistent/secret")
    refuse(pccl.ResourceError, "/nonexistent/secret cannot be read", timeout=2.0)


def test_a_bind_port_in_use(coordinator: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refuse(
            pccl.ResourceError, f"{port} on 127.0.0.1 is in use", coordinator, run="mine",
            bind=f"127.0.0.1:{port}", timeout=3.0,
        )  # fmt: skip
        assert "bind=" in text


def test_an_address_of_another_machine(coordinator: str) -> None:
    refuse(
        pccl.ResourceError, "198.51.100.7 is not an address of this machine", coordinator,
        run="mine", bind="198.51.100.7", secret="s", timeout=3.0,
    )  # fmt: skip


# ---------------------------------------------------------------- who answers


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        where = f"127.0.0.1:{one.getsockname()[1]}"
    text = refuse(pccl.CoordinatorLost, where, where, timeout=0.5)
    assert "pccl coordinator" in text
    assert "PCCL_COORDINATOR" in text
    assert issubclass(pccl.CoordinatorLost, ConnectionError)


def test_a_name_that_nobody_knows() -> None:
    text = refuse(pccl.CoordinatorLost, "nowhere.invalid:1", "nowhere.invalid:1", timeout=1.0)
    assert "looked up" in text


def test_the_second_of_two_answers(coordinator: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        dead = f"127.0.0.1:{one.getsockname()[1]}"
    for first in (dead, "nowhere.invalid:1"):
        with pccl.join(f"{first},{coordinator}", run="mine", timeout=10.0) as comm:
            assert comm.world_size == 1


@contextmanager
def serve(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server that treats each connection with `answer`, in turn."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()
        server.settimeout(0.05)
        held = []

        def body() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                held.append(connection)
                answer(connection)

        thread = threading.Thread(target=body)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join(5.0)
            for connection in held:
                connection.close()


def http(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    connection.close()


def silent(connection: socket.socket) -> None:
    connection.settimeout(3.0)
    while connection.recv(4096):
        pass
    connection.close()


def closes(connection: socket.socket) -> None:
    connection.close()


def babbles(connection: socket.socket) -> None:
    connection.sendall(bytes(range(1, 200)) * 25)
    connection.close()


@pytest.mark.parametrize("answer", [http, silent, closes])
def test_a_port_that_is_not_a_coordinators(answer: Callable[[socket.socket], None]) -> None:
    with serve(answer) as where:
        text = refuse(pccl.CoordinatorLost, where, where, timeout=1.0)
        assert "does not speak pccl's control protocol" in text


def test_a_port_that_babbles() -> None:
    """libzmq takes some garbage for its oldest protocol."""
    with serve(babbles) as where:
        refuse(pccl.ProtocolError, f"is {where} the coordinator's port?", where, timeout=1.0)


def test_a_data_port_is_not_a_coordinator(coordinator: str) -> None:
    with crew(coordinator, 1, run="mine") as (comm,):
        where = f"127.0.0.1:{comm.members[0].port}"
        text = refuse(pccl.CoordinatorLost, where, where, timeout=1.0)
        assert "control protocol" in text
        comm.barrier()


@contextmanager
def router(answer: Callable[[bytes], bytes | None]) -> Iterator[str]:
    """Something that speaks ZMTP, and answers each message with `answer`."""
    context = zmq.Context()
    socket_ = context.socket(zmq.ROUTER)
    port = socket_.bind_to_random_port("tcp://127.0.0.1")
    stop = threading.Event()

    def body() -> None:
        while not stop.is_set():
            if socket_.poll(50):
                routing_id, message = socket_.recv_multipart()
                reply = answer(message)
                if reply is not None:
                    socket_.send_multipart([routing_id, reply])

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        stop.set()
        thread.join(5.0)
        socket_.close(linger=0)
        context.term()


def test_another_wire_version() -> None:
    told = Refused(int(pccl.errors.Code.PROTOCOL), "wire version 1 is not mine, which is 2")
    with router(lambda message: encoding.encode(told)) as where:
        refuse(pccl.ProtocolError, "wire version 1 is not mine", where, timeout=3.0)


def test_a_coordinator_that_answers_nonsense() -> None:
    with router(lambda message: b"\xffnonsense") as where:
        text = refuse(pccl.ProtocolError, "coordinator sent what it must not", where, timeout=3.0)
        assert "nonsense" not in text


def test_a_coordinator_that_answers_nothing() -> None:
    with router(lambda message: None) as where:
        text = refuse(pccl.DeadlineExceeded, "not admitted in time", where, timeout=0.5)
        assert "coordinator" in text


def test_a_peer_of_another_version_is_refused(coordinator: str) -> None:
    hello = Hello("mine", 5, "old", "default", "127.0.0.1", 5, 1, 0, False, None, bytes(16), b"")
    data = bytearray(encoding.encode(hello))
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.connect(f"tcp://{coordinator}")
        said = set()
        for at in range(min(8, len(data))):  # wherever the version is
            changed = bytes(data[:at]) + bytes([(data[at] + 1) % 256]) + bytes(data[at + 1 :])
            dealer.disconnect(f"tcp://{coordinator}")
            dealer.connect(f"tcp://{coordinator}")
            dealer.send(changed)
            if dealer.poll(300):
                reply = encoding.decode(dealer.recv())
                if isinstance(reply, Refused):
                    said.add(reply.text)
        assert any("version" in text for text in said), said
    finally:
        dealer.close(linger=0)
        context.term()


# ---------------------------------------------------------------- run and secret


def test_another_run(coordinator: str) -> None:
    refuse(pccl.UsageError, "serves another run; check", coordinator, run="yours", timeout=3.0)


def test_a_wrong_or_missing_secret(guarded: str) -> None:
    for secret in (None, "wrong", b"righ", "right "):
        text = refuse(pccl.UsageError, "secret", guarded, run="mine", secret=secret, timeout=3.0)
        assert "right" not in text.replace("right one", ""), "a secret is never printed"
    with crew(guarded, 2, run="mine", secret="right") as pair:
        ones = [np.ones(3) for _ in range(2)]
        pair.each(lambda c: c.all_reduce(ones[c.rank]))


def test_a_secret_that_the_coordinator_does_not_have(coordinator: str) -> None:
    """It has none, so it checks none; the members' links would still have to agree."""
    error = start(
        lambda: pccl.join(coordinator, run="mine", secret="mine", timeout=3.0).leave()
    ).exception(10.0)
    assert error is None or (type(error) is pccl.UsageError and "secret" in str(error)), error


def test_the_secret_of_a_file(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text("right\n")
    monkeypatch.setenv("PCCL_SECRET_FILE", str(file))
    with pccl.join(guarded, run="mine", timeout=10.0) as comm:
        assert comm.world_size == 1


@pytest.mark.parametrize(
    ("coordinator_", "listening", "needed"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("::1", "::1", False),
        ("127.0.0.1", "192.0.2.2", True),
        ("192.0.2.1", "192.0.2.2", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::1", "::", True),
    ],
)
def test_off_loopback_a_secret_is_needed(coordinator_: str, listening: str, needed: bool) -> None:
    assert addresses.needs_secret(Endpoint(coordinator_, 1), Endpoint(listening, 2)) is needed


@pytest.mark.parametrize("bind", ["0.0.0.0", "198.51.100.7", "0.0.0.0:0", "[::]:0", "::"])
def test_binding_off_loopback_without_a_secret(coordinator: str, bind: str) -> None:
    text = refuse(
        pccl.UsageError, "a run secret is required off loopback", coordinator, run="mine",
        bind=bind, timeout=3.0,
    )  # fmt: skip
    assert "PCCL_SECRET" in text


def test_advertising_off_loopback_without_a_secret(coordinator: str) -> None:
    refuse(
        pccl.UsageError, "a run secret is required off loopback", coordinator, run="mine",
        advertise="192.0.2.9", timeout=3.0,
    )  # fmt: skip


def test_nobody_was_disturbed(coordinator: str, guarded: str) -> None:
    for where, secret in ((coordinator, None), (guarded, "right")):
        with crew(where, 2, run="mine", secret=secret) as pair:
            ones = [np.ones(3) for _ in range(2)]
            pair.each(lambda c, ones=ones: c.all_reduce(ones[c.rank]))
            assert (ones[0] == 2).all()


def test_members_that_work_are_not_disturbed_by_who_may_not_join(coordinator: str) -> None:
    with crew(coordinator, 2, run="mine") as pair:
        ones = [np.ones(3) for _ in range(2)]
        pair.each(lambda c: c.all_reduce(ones[c.rank]))
        epoch = pair[0].epoch
        refuse(pccl.UsageError, "another run", coordinator, run="yours", timeout=3.0)
        text = refuse(pccl.DeadlineExceeded, "not admitted", coordinator, run="mine", timeout=0.5)
        assert "waiting for m" in text, "it says who is awaited"
        pair.each(lambda c: c.all_reduce(ones[c.rank]))
        time.sleep(0.1)
        pair.each(lambda c: c.update())
        assert pair[0].epoch == epoch


# ---------------------------------------------------------------- at the command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["coordinator", "--bind", "nowhere"],
        ["coordinator", "--bind", "198.51.100.7:0"],
        ["coordinator", "--bind", "0.0.0.0:0"],
        ["run", "-n", "1", "/nonexistent/script.py"],
        ["status", "--coordinator", "127.0.0.1:1"],
        ["status", "--coordinator", "nowhere"],
        [],
    ],
)
def test_commands_print_one_line_and_no_traceback(arguments: list[str]) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PCCL_")}
    ended = subprocess.run(
        [sys.executable, "-m", "pccl_py", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=env, timeout=30, check=False,
    )  # fmt: skip
    assert ended.returncode not in (0, -6, -11)
    assert "Traceback" not in ended.stdout + ended.stderr
    lines = [line for line in ended.stderr.splitlines() if not line.startswith(("usage:", " "))]
    assert len(lines) == 1 or "usage:" in ended.stderr, ended.stderr


def test_a_join_that_fails_in_a_script_is_its_own_exception() -> None:
    script = (
        "import pccl_py\n"
        "try: pccl_py.join('127.0.0.1:1', timeout=0.5)\n"
        "except ConnectionError as error: print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, cwd=ROOT, timeout=30, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert len(ended.stdout.splitlines()) == 1
    assert "127.0.0.1:1" in ended.stdout
