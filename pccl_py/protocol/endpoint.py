"""Addresses as people write them: HOST:PORT and [v6]:PORT (layer 1).

Parses and prints; looks nothing up, opens nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pccl_py.errors import UsageError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host (name or numeric address, IPv6 without brackets) and a TCP port; 0: any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_v6 else f"{self.host}:{self.port}"

    @property
    def is_v6(self) -> bool:
        return ":" in self.host

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def zmq_address(self) -> str:
        return f"tcp://{self}"


def parse(text: str) -> Endpoint:
    """The endpoint that `text` names. Raises UsageError, one line that says what is wrong."""
    wrong = f"{text!r} is not an address: write HOST:PORT, or [v6]:PORT for IPv6"
    if not isinstance(text, str):
        raise UsageError(wrong)
    host, colon, port_text = text.strip().rpartition(":")
    if not colon or not host:
        raise UsageError(wrong)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise UsageError(f"{text!r}: {host!r} is not an IPv6 address") from None
    elif not all(char.isascii() and (char.isalnum() or char in "-._*") for char in host):
        raise UsageError(wrong)
    if not (port_text.isascii() and port_text.isdigit() and int(port_text[:6]) <= 65535):
        raise UsageError(f"{text!r}: the port must be a number from 0 to 65535")
    return Endpoint("0.0.0.0" if host == "*" else host, int(port_text))


def parse_list(text: str) -> tuple[Endpoint, ...]:
    """Several endpoints separated by commas, at least one. Raises UsageError."""
    return tuple(parse(part) for part in str(text).split(","))


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine only. A name other than localhost is not looked up: no."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
