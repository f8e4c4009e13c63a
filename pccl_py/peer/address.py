"""Which of this machine's addresses a peer uses (layer 4). Called by `communicator.join`.

Looks names up and asks the kernel for routes; sends nothing.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence

from pccl_py.errors import CoordinatorLost, UsageError
from pccl_py.protocol.endpoint import Endpoint, is_loopback, parse

_log = logging.getLogger("pccl.peer")


def resolve(endpoint: Endpoint) -> Endpoint:
    """`endpoint` with a numeric host. Raises OSError if the name is not known."""
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except ValueError as error:  # a label too long, or empty, or with a zero byte
        raise OSError(f"not a host name ({error})") from None
    return Endpoint(str(found[0][4][0]), endpoint.port)


def first_reachable(endpoints: Sequence[Endpoint], until: float) -> Endpoint:
    """The first that accepts a connection before monotonic time `until`, tried again and again.

    Blocks; raises CoordinatorLost with what each of them said."""
    began = time.monotonic()
    while True:
        said = []
        for endpoint in endpoints:
            try:
                numeric = resolve(endpoint)
                left = max(0.1, min(3.0, until - time.monotonic()))
                socket.create_connection((numeric.host, numeric.port), left).close()
                return numeric
            except TimeoutError:
                said.append(f"{endpoint}: no answer")
            except socket.gaierror as error:
                said.append(f"{endpoint}: the name cannot be looked up ({error.strerror})")
            except OSError as error:
                said.append(f"{endpoint}: {error.strerror or error}")
        if time.monotonic() + 0.2 >= until:
            waited = time.monotonic() - began
            raise CoordinatorLost(
                f"no coordinator after {waited:.1f} s ({'; '.join(said)}): start one with "
                "`pccl coordinator --bind HOST:PORT`, or check PCCL_COORDINATOR"
            )
        time.sleep(0.2)


def all_numeric(endpoints: Sequence[Endpoint], first: Endpoint) -> tuple[Endpoint, ...]:
    """Numeric forms, each once, beginning with `first`, which is one of them; a name that cannot be
    looked up is left out with a warning."""
    found = dict.fromkeys([first])
    for endpoint in endpoints:
        try:
            found[resolve(endpoint)] = None
        except OSError as error:
            why = error.strerror or str(error)
            _log.warning("coordinator %s is left out: its name: %s", endpoint, why)
    return tuple(found)


def local_address(coordinator: Endpoint) -> str:
    """The local address that the route to the coordinator uses."""
    family = socket.AF_INET6 if coordinator.is_v6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((coordinator.host, coordinator.port or 9))
        return str(probe.getsockname()[0])


def listen_on(bind: str | None, coordinator: Endpoint) -> Endpoint:
    """Where the engine listens: `bind` ("HOST", "HOST:PORT", "[v6]:PORT") or the local address of
    the route to the coordinator, any free port. Raises UsageError."""
    if bind is None:
        return Endpoint(local_address(coordinator), 0)
    return _numeric("bind", _host_port("bind", bind))


def advertised(advertise: str | None, listening: Endpoint, coordinator: Endpoint) -> Endpoint:
    """The address that other peers call. Raises UsageError if it cannot be called."""
    if advertise is not None:
        given = _numeric("advertise", _host_port("advertise", advertise))
        return Endpoint(given.host, given.port or listening.port)
    if listening.host in ("0.0.0.0", "::"):
        return Endpoint(local_address(coordinator), listening.port)
    return listening


def _host_port(what: str, text: str) -> Endpoint:
    if not isinstance(text, str) or text.strip("[] ") in ("", ":"):
        raise UsageError(f"{what}={text!r} must be HOST, HOST:PORT, or [v6]:PORT")
    host = text.strip("[]")
    if ":" not in text or (host.count(":") > 1 and not text.startswith("[")):
        return Endpoint(host, 0)
    if text.startswith("[") and text.endswith("]"):
        return Endpoint(host, 0)
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


def _numeric(what: str, endpoint: Endpoint) -> Endpoint:
    try:
        return resolve(endpoint)
    except OSError as error:
        text = error.strerror or str(error)
        raise UsageError(f"{what}: {endpoint.host!r} is not an address here: {text}") from None


def needs_secret(*used: Endpoint) -> bool:
    """Whether anything of the run leaves this machine, given all the addresses it uses."""
    return not all(is_loopback(endpoint.host) for endpoint in used)
