"""The wide-area network for those without root: a TCP proxy with delay, rate, a cap per connection
and cuts, with `Network`'s interface where a proxy can have it. It loses no packet, so congestion
control never acts, and it cannot tell who connects: each pair of hosts has its own way (`expose`).
The work is done in relay.py, a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from stress.wan.net import Stream
from stress.wan.settings import Settings, check_hosts

RELAY = str(Path(__file__).with_name("relay.py"))
LOOPBACK = "127.0.0.1"


class ProxyNetwork:
    """`with ProxyNetwork(hosts=2) as net: host, port = net.expose(0, 1, port_of_1)`.

    All hosts share this machine's loopback; only connections made to an exposed port are shaped.
    A connection is accepted at once (its bytes are delayed, its handshake is not), and a cut holds
    bytes back until it is healed, as TCP's retransmission would.

    Args:
        hosts, rtt_ms, rate_mbit, flow_mbit, jitter_ms, queue_ms: as for `Network`; a flow is a
            direction of a connection, and a queue that is full stops its sender.
        seed: of jitter.
    """

    def __init__(
        self, hosts: int = 2, *, rtt_ms: float = 100.0, rate_mbit: float = 1000.0,
        flow_mbit: float = 0.0, loss: float = 0.0, jitter_ms: float = 0.0,
        queue_ms: float = 100.0, seed: int = 1,
    ) -> None:  # fmt: skip
        self.hosts = check_hosts(hosts)
        self.settings = lossless(Settings(rtt_ms, rate_mbit, flow_mbit, loss, jitter_ms, queue_ms))
        self.seed = seed
        self._relay: subprocess.Popen[bytes] | None = None
        self._asking = threading.Lock()  # one command and its answer at a time
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        values = json.dumps(dataclasses.asdict(self.settings))
        self._relay = subprocess.Popen(
            [sys.executable, "-E", RELAY, values, str(self.seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Kills what was started, and ends the proxy. Idempotent."""
        for process in [*self._started, *([self._relay] if self._relay else [])]:
            process.kill()
            process.wait()
        if self._relay is not None and self._relay.stdin and self._relay.stdout:
            self._relay.stdin.close()
            self._relay.stdout.close()
        self._relay = None
        self._started.clear()

    def _ask(self, **command: object) -> dict[str, object]:
        if self._relay is None:
            raise RuntimeError("the network is not up: use it inside its with block")
        stdin, stdout = self._relay.stdin, self._relay.stdout
        assert stdin is not None, "made with pipes"
        assert stdout is not None, "made with pipes"
        with self._asking:
            stdin.write(json.dumps(command).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        answer: dict[str, object] = json.loads(line) if line else {"error": "the relay died"}
        if "error" in answer:
            raise RuntimeError(f"relay: {answer['error']}")
        return answer

    def expose(self, src: int, dst: int, port: int) -> tuple[str, int]:
        """Where src finds `port` of dst, through the network. (Not needed with `Network`.)"""
        target = [LOOPBACK, port]
        answer = self._ask(do="expose", src=self._index(src), dst=self._index(dst), target=target)
        exposed = answer["port"]
        assert isinstance(exposed, int), exposed
        return LOOPBACK, exposed

    def set(self, **changes: float) -> None:
        """Changes values of `Settings` by name, for bytes sent from now on."""
        self.settings = lossless(dataclasses.replace(self.settings, **changes))
        self._ask(do="set", values=dataclasses.asdict(self.settings))

    def cut(self, a: int, b: int) -> None:
        """Nothing passes between a and b, either way."""
        self._ask(do="cut", a=self._index(a), b=self._index(b))

    def heal(self, a: int, b: int) -> None:
        self._ask(do="heal", a=self._index(a), b=self._index(b))

    def delivered_bytes(self) -> list[int]:
        """Payload delivered so far, by receiving host."""
        delivered = self._ask(do="stats")["payload_bytes"]
        assert isinstance(delivered, dict), delivered
        return [int(delivered.get(str(host), 0)) for host in range(self.hosts)]

    def _index(self, host: int) -> int:
        if not 0 <= host < self.hosts:
            raise ValueError(f"host {host!r}: from 0 to {self.hosts - 1}")
        return host

    def address(self, host: int) -> str:
        """What a program of the host binds to; others reach it through `expose`."""
        self._index(host)
        return LOOPBACK

    def run(
        self, host: int, argv: Sequence[str], *, stdin: Stream = None, stdout: Stream = None,
        stderr: Stream = None, env: Mapping[str, str] | None = None, cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Starts a program of the host; it is killed at the end of the network if still there."""
        self._index(host)
        process = subprocess.Popen(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd
        )
        self._started.append(process)
        return process


def lossless(settings: Settings) -> Settings:
    """Raises ValueError when loss is asked of the proxy."""
    if settings.loss > 0:
        raise ValueError("the proxy loses no packets; loss needs Network, and that needs root")
    return settings
