"""What a coordinator says about its run: one request, one answer, in bounded time.

Called by `pccl status`, which prints it, and by `supervise`, which must know whether workers that
are left over wait in vain. The answer comes from the network: whoever reads it expects anything.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence

import zmq

from pccl_py.errors import CoordinatorLost, PcclError, RemoteProtocolError, from_code
from pccl_py.launch import reach
from pccl_py.protocol import encoding, endpoint
from pccl_py.protocol.endpoint import Endpoint
from pccl_py.protocol.messages import Refused, Status, StatusRequest

ANSWER_S = 4.5
NONCE_BYTES = 16

Json = Mapping[str, object]


def status(coordinator: str, run: str, secret: bytes | None) -> tuple[Endpoint, Json]:
    """The first of the coordinators (HOST:PORT[,…]) that answers, and what it said.

    run: "" takes any. Blocks for at most ANSWER_S. Raises CoordinatorLost (no answer), UsageError
    (wrong run or secret), RemoteProtocolError."""
    request = encoding.signed_status(secret, StatusRequest(run, os.urandom(NONCE_BYTES), b""))
    address, text = _ask(endpoint.parse_list(coordinator), request, ANSWER_S)
    try:
        found = json.loads(text)
    except ValueError:
        raise RemoteProtocolError(f"{address} answered with what is no JSON") from None
    if not isinstance(found, dict):
        raise RemoteProtocolError(f"{address} answered with what is no status")
    return address, found


def nobody_works(coordinator: str, run: str, secret: bytes | None, waiting: int) -> bool:
    """Whether the run has no member and exactly `waiting` peers wait for its first view: then
    nothing happens before somebody else comes. False if nobody can say. Blocks like `status`."""
    try:
        _, found = status(coordinator, run, secret)
    except PcclError:
        return False
    pending = found.get("pending")
    return found.get("members") == [] and isinstance(pending, list) and len(pending) == waiting


def _ask(
    endpoints: Sequence[Endpoint], request: StatusRequest, timeout_s: float
) -> tuple[Endpoint, str]:
    until = time.monotonic() + timeout_s
    said = []
    for at, address in enumerate(endpoints):
        share_s = max(0.1, (until - time.monotonic()) / (len(endpoints) - at))
        try:
            return address, _ask_one(address, request, share_s)
        except CoordinatorLost as error:
            said.append(str(error))
    raise CoordinatorLost("; ".join(said))


def _ask_one(address: Endpoint, request: StatusRequest, timeout_s: float) -> str:
    until = time.monotonic() + timeout_s
    reach.check((address,), timeout_s)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IPV6, int(address.is_v6)),
            (zmq.MAXMSGSIZE, encoding.MESSAGE_BYTES_MAX),
        ):
            dealer.setsockopt(option, value)
        dealer.connect(address.zmq_address)
        dealer.send(encoding.encode(request))
        while dealer.poll(max(0, int(1000 * (until - time.monotonic())))):
            match encoding.decode(dealer.recv()):
                case Status(text):
                    return text
                case Refused(code, text):
                    raise from_code(code, text)
                case _:  # the probes of a coordinator that wonders whether we are there
                    continue
    raise CoordinatorLost(
        f"{address} accepts connections but did not answer in {timeout_s:.1f} s: "
        "is that a pccl coordinator?"
    )
