"""An emulated wide-area network for tests and benchmarks: hosts as network namespaces joined by a
link with delay, rate, loss and cuts (`Network`, needs root), or a shaping TCP proxy
(`ProxyNetwork`, does not). See stress/README.md.
"""

from __future__ import annotations

from stress.wan.measure import Measured, NotFaithful
from stress.wan.net import HostStats, Network, Stats
from stress.wan.proxy import ProxyNetwork
from stress.wan.settings import Settings, WanUnavailable

__all__ = [
    "HostStats",
    "Measured",
    "Network",
    "NotFaithful",
    "ProxyNetwork",
    "Settings",
    "Stats",
    "WanUnavailable",
]
