"""A raw control connection, and a coordinator shell around a machine made for tests."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import zmq

from pccl_py.protocol import encoding
from pccl_py.protocol.messages import Hello, Message, Waiting
from pccl_py.types import PeerId

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def hello(run: str = "run", name: str = "raw", epoch: int = 0, min_members: int = 1) -> Hello:
    """An unsigned Hello of a fresh peer id."""
    peer = PeerId(secrets.randbits(63) + 1)
    return Hello(
        run, peer, name, "default", "127.0.0.1", 1, min_members, epoch, False, None,
        os.urandom(16), b"",
    )  # fmt: skip


class RawPeer:
    """A DEALER that speaks control messages, or bytes that are none. Use as a context manager."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 200)
        self._socket.connect(f"tcp://{address}")

    def send(self, message: Message) -> None:
        self._socket.send(encoding.encode(message))

    def send_bytes(self, *parts: bytes) -> None:
        self._socket.send_multipart(parts)

    def receive(self, timeout_s: float = 5.0) -> Message | None:
        """The next message but empty Waitings; None if none comes in time."""
        until = time.monotonic() + timeout_s
        while (wait_s := until - time.monotonic()) > 0:
            if self._socket.poll(int(wait_s * 1000) + 1):
                message = encoding.decode(self._socket.recv())
                if message != Waiting(""):
                    return message
        return None

    def await_kind(self, kind: type[T], timeout_s: float = 5.0) -> T:
        """The next message of this kind; others are passed over."""
        until = time.monotonic() + timeout_s
        while (wait_s := until - time.monotonic()) > 0:
            message = self.receive(wait_s)
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__} within {timeout_s} s")

    def close(self) -> None:
        self._context.destroy(linger=0)

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def running(
    *command: str,
    env: dict[str, str] | None = None,
    stderr: int = subprocess.PIPE,
    before: tuple[str, ...] = (),
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process of this Python that says `listening on ADDRESS`; killed at the end. before: words
    that go before the command."""
    process = subprocess.Popen(
        [*before, sys.executable, *command],
        stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            process.kill()
            raise AssertionError(f"not started: {line!r} {process.communicate(timeout=5)}")
        yield line.split()[-1], process
    finally:
        process.kill()
        process.communicate(timeout=5)
