"""Twin of pccl_py.protocol.endpoint."""

from __future__ import annotations

import pytest

from pccl_py.errors import UsageError
from pccl_py.protocol.endpoint import Endpoint, is_loopback, parse, parse_list


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:48148", Endpoint("127.0.0.1", 48148)),
        ("coordinator.example.org:1", Endpoint("coordinator.example.org", 1)),
        ("[::1]:0", Endpoint("::1", 0)),
        ("[2001:db8::7]:65535", Endpoint("2001:db8::7", 65535)),
        ("*:5", Endpoint("0.0.0.0", 5)),
    ],
)
def test_parse(text: str, endpoint: Endpoint) -> None:
    assert parse(text) == endpoint
    assert parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    ["", "host", ":1", "host:", "host:x", "host:65536", "host:-1", "::1:5", "[::1]", "[host]:1",
     "ho st:1", "host:1\n2", "tcp://host:1", "host:٣", "host:" + "9" * 5000],
)  # fmt: skip
def test_what_is_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_zmq_address_keeps_the_brackets() -> None:
    assert parse("[::1]:7").zmq_address == "tcp://[::1]:7"


def test_parse_list() -> None:
    assert parse_list("a:1,[::1]:2") == (Endpoint("a", 1), Endpoint("::1", 2))


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))
