"""Twin of pccl_py.coordinator.lease: what is asked of etcd, and hostile answers."""

from __future__ import annotations

import base64

import pytest

from pccl_py.coordinator import lease
from pccl_py.coordinator.lease import Found, Head, Keys, Lease
from pccl_py.errors import RemoteProtocolError


def test_keys_of_different_runs_never_begin_alike() -> None:
    assert Keys("a").view == "/pccl/a/view"
    prefixes = [Keys(run).prefix for run in ("a", "a/b", "a%2Fb", "a\0", "ab", "ä")]
    assert len(set(prefixes)) == len(prefixes)
    assert not [p for p in prefixes for q in prefixes if p != q and p.startswith(q)]


def test_a_lease_is_trusted_from_before_it_was_asked_for_and_not_to_its_end() -> None:
    ours = Lease.since(100.0, 7, 5.0)
    assert ours.id == 7
    assert 100.0 < ours.sure_until < 105.0


def test_a_view_is_cut_into_parts_that_etcd_takes() -> None:
    assert lease.split(b"") == [b""]
    data = bytes(range(256)) * 5000
    parts = lease.split(data)
    assert b"".join(parts) == data
    assert [len(part) for part in parts] == [lease.PART_BYTES, lease.PART_BYTES, 231424]


def test_other_parts_are_those_of_all_tokens_but_one() -> None:
    keys = Keys("r")
    ranges = [
        [
            base64.b64decode(body["request_delete_range"][end]).decode()
            for end in ("key", "range_end")
        ]
        for body in lease.without_other_parts(keys, "2-1")
    ]

    def is_deleted(key: str) -> bool:
        return any(first <= key < end for first, end in ranges)

    others = [
        keys.part(token, n) for token in ("1-1", "2-0", "2-10", "2-2", "3-1") for n in (0, 12)
    ]
    assert all(is_deleted(key) for key in others)
    kept = [
        keys.part("2-1", 0),
        keys.part("2-1", 9999),
        keys.view,
        keys.leader,
        keys.boot,
        keys.probe,
    ]
    assert not any(is_deleted(key) for key in kept)


def test_answers_as_etcd_writes_them() -> None:
    header = {"header": {"revision": "12"}}
    entry = {"key": "YQ==", "create_revision": "2", "mod_revision": "9", "value": "Yg=="}
    assert lease.revision(header) == 12
    assert lease.granted({"ID": "5", "TTL": "3"}) == (5, 3.0)
    assert lease.renewed_s({"result": {"ID": "5", "TTL": "3"}}) == 3.0
    assert lease.renewed_s({"result": {"ID": "5"}}) == 0.0, "a lease that is lost has no time"
    assert lease.found({"kvs": [entry], "count": "1"}) == Found(b"b", 2, 9)
    assert lease.found(header) is None
    assert lease.succeeded({"succeeded": True})
    assert not lease.succeeded(header)
    both = [{"response_range": {"kvs": [entry]}}, {"response_range": header}]
    assert lease.shown({"responses": both}) == (Found(b"b", 2, 9), None)
    head = Head("1-2", 3, 4)
    assert lease.head(head.encoded()) == head


@pytest.mark.parametrize(
    "read",
    [
        lambda: lease.revision({}),
        lambda: lease.revision({"header": {"revision": "x"}}),
        lambda: lease.revision({"header": {"revision": "9" * 5000}}),
        lambda: lease.revision({"header": {"revision": -1}}),
        lambda: lease.renewed_s({"result": []}),
        lambda: lease.found({"kvs": {}}),
        lambda: lease.found({"kvs": [1]}),
        lambda: lease.found({"kvs": [{}, {}]}),
        lambda: lease.found({"kvs": [{"value": "?"}]}),
        lambda: lease.found({"kvs": [{"value": 5}]}),
        lambda: lease.shown({"responses": [1, 2]}),
        lambda: lease.shown({"responses": [{}]}),
        lambda: lease.shown({"responses": [{}, {"response_range": {}}]}),
        lambda: lease.shown({}),
        lambda: lease.head(b"{}"),
        lambda: lease.head(b"\xff"),
        lambda: lease.head(b'{"token": "1", "parts": 0, "crc": 1}'),
        lambda: lease.head(b'{"token": "1", "parts": true, "crc": 1}'),
    ],
)
def test_other_answers_are_refused(read: object) -> None:
    assert callable(read)
    with pytest.raises(RemoteProtocolError):
        read()
