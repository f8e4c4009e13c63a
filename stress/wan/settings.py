"""What a wide-area network can be told: the values, their units and bounds, shared by the network
of namespaces and by the proxy. Knows nothing of how either does it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

TCP_IP_HEADER_BYTES = 20 + 32  # IPv4, TCP with time stamps
HOSTS_MAX = 64


class WanUnavailable(RuntimeError):
    """This machine or user cannot have the network asked for; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One network's values. Rates count IP packets with their headers; 0 means unlimited."""

    rtt_ms: float = 100.0  # twice the one-way delay
    rate_mbit: float = 1000.0  # each host's uplink, and its downlink
    flow_mbit: float = 0.0  # cap of each flow (protocol, addresses, ports), each direction
    loss: float = 0.0  # probability by packet on the wire, 0 to 1
    jitter_ms: float = 0.0  # one-way delay moves by up to this, up and down; never reorders
    queue_ms: float = 100.0  # longest wait in each queue; what would wait longer is dropped

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{field.name}={value!r} is not a number from 0 up")
        if self.loss > 1:
            raise ValueError(f"loss={self.loss!r} is a probability, at most 1")

    def capacity_mbit(self, mtu: int, flows: int) -> float:
        """TCP payload in Mbit/s that `flows` flows between two hosts can have, inf if unlimited."""
        limits = [self.rate_mbit, flows * self.flow_mbit]
        rate = min((limit for limit in limits if limit > 0), default=float("inf"))
        return rate * (mtu - TCP_IP_HEADER_BYTES) / mtu


def check_hosts(hosts: int) -> int:
    if not 1 <= hosts <= HOSTS_MAX:
        raise ValueError(f"hosts={hosts!r}: from 1 to {HOSTS_MAX}")
    return hosts
