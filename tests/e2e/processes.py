"""Starts members and coordinators as real processes, reads their JSON lines, ends them by pid."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pccl_py.coordinator import embedded
from pccl_py.launch import inquiry

ROOT = Path(__file__).resolve().parents[2]
COORDINATOR = (sys.executable, "-m", "pccl_py", "coordinator")
MEMBER = Path(__file__).with_name("member.py")


class Process:
    """One program whose stdout is JSON lines, read by a thread so that waiting has a deadline."""

    def __init__(
        self, *arguments: str, script: Path = MEMBER, before: Sequence[str] = (), secret: str = ""
    ) -> None:
        """before: words that go before the command, `nsenter …` for one."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("PCCL_")}
        env |= {"PYTHONPATH": str(ROOT), "PCCL_SECRET": secret}
        self.child = subprocess.Popen(
            [*before, sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.lines: queue.Queue[dict] = queue.Queue()
        self.seen: list[dict] = []
        assert self.child.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.child.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.put(json.loads(line))

    def tell(self, line: str) -> None:
        """To its stdin."""
        assert self.child.stdin is not None
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()

    def end(self) -> None:
        """Kills it if it lives, and closes its pipes."""
        if self.child.poll() is None:
            self.kill()
        self.child.wait(10)
        for stream in (self.child.stdin, self.child.stdout, self.child.stderr):
            if stream is not None:
                stream.close()

    def until(self, event: str, timeout: float = 30.0, **fields: object) -> dict:
        """The next line of this event with these fields; fails loudly with stderr otherwise."""
        end = time.monotonic() + timeout
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, min(0.2, end - time.monotonic())))
            except queue.Empty:
                gone = self.child.poll() is not None and not self._reader.is_alive()
                if (gone and self.lines.empty()) or time.monotonic() > end:
                    raise AssertionError(
                        f"no {event} {fields} in {timeout} s; saw {self.seen[-3:]}; {self.errors()}"
                    ) from None
                continue
            self.seen.append(line)
            if line["event"] == event and all(line[k] == v for k, v in fields.items()):
                return line

    def errors(self) -> str:
        if self.child.poll() is None:
            return "still running"
        assert self.child.stderr is not None
        return f"exit {self.child.returncode}: {self.child.stderr.read()[-2000:]}"

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.child.pid, number)

    def finish(self, timeout: float = 30.0) -> int:
        """Waits for the end and for the last line; returns the exit status."""
        status = self.child.wait(timeout)
        self._reader.join(timeout)
        while not self.lines.empty():
            self.seen.append(self.lines.get())
        return status

    def events(self, event: str) -> list[dict]:
        return [line for line in self.seen if line["event"] == event]


def status_until(address: str, done: Callable[[inquiry.Json], bool]) -> inquiry.Json:
    """The first status of the run of which `done` holds; fails loudly after 20 s."""
    until = time.monotonic() + 20
    while True:
        _, found = inquiry.status(address, "", None)
        if done(found):
            return found
        assert time.monotonic() < until, found
        time.sleep(0.05)


@contextmanager
def coordinator() -> Iterator[str]:
    with embedded.start() as child:
        yield str(child.address)


@contextmanager
def members(address: str, count: int, *arguments: str) -> Iterator[list[Process]]:
    """`count` members m0, m1, … that wait for each other; killed at the end if still there."""
    group = [
        Process(address, "--name", f"m{i}", "--min-members", str(count), *arguments)
        for i in range(count)
    ]
    try:
        yield group
    finally:
        for process in group:
            if process.child.poll() is None:
                process.kill()
            process.child.wait(10)
            for stream in (process.child.stdout, process.child.stderr):
                if stream is not None:
                    stream.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses just now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A coordinator as a process, killed at the end."""
    process = subprocess.Popen(
        [*COORDINATOR, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PCCL_")},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def until_said(process: subprocess.Popen[str], stream: str, wanted: str) -> str:
    """The first line of its stdout or stderr that holds `wanted`; the test's own timeout bounds it,
    the end of the process too."""
    source = getattr(process, stream)
    lines = []
    while line := source.readline():
        lines.append(line)
        if wanted in line:
            return str(line)
    raise AssertionError(f"it ended without {wanted!r}: {lines}")


def all_connected(found: inquiry.Json) -> bool:
    members = found["members"]
    assert isinstance(members, list)
    return all(member["connected"] for member in members)
