"""Is somebody there? A quick look at a coordinator's port before workers are started.

Called by `pccl run` only, so that a typing error is told in one line and within seconds by the
launcher, and not by every worker. It knows nothing of the protocol: an open port is enough.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

from pccl_py.errors import CoordinatorLost
from pccl_py.protocol.endpoint import Endpoint

TIMEOUT_S = 4.0


def check(endpoints: Sequence[Endpoint], timeout_s: float = TIMEOUT_S) -> None:
    """Returns as soon as one of them accepts a connection.

    Blocks for at most `timeout_s` in all (name look-ups apart).
    Raises CoordinatorLost with what each of them said."""
    until = time.monotonic() + timeout_s
    said = []
    for at, endpoint in enumerate(endpoints):
        share_s = max(0.1, (until - time.monotonic()) / (len(endpoints) - at))
        try:
            socket.create_connection((endpoint.host, endpoint.port), share_s).close()
            return
        except TimeoutError:
            said.append(f"{endpoint}: no answer in {share_s:.0f} s")
        except OSError as error:
            said.append(f"{endpoint}: {error.strerror or error}")
    raise CoordinatorLost(f"no coordinator can be reached ({'; '.join(said)}); is it started?")
