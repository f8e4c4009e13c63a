"""CRC32C against the vectors of RFC 3720, a bit-by-bit reference, and path against path."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

VECTORS = [  # RFC 3720 B.4, and the check value of the CRC catalogue
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


def reference(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def paths(core: ModuleType) -> list[int]:
    return [p for p in (core.lib.PC_CRC_TABLE, core.lib.PC_CRC_SSE42) if core.lib.pc_crc_has(p)]


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_known_vectors(core: ModuleType, data: bytes, expected: int) -> None:
    assert reference(data) == expected
    assert core.lib.pc_crc32c(0, data, len(data)) == expected
    for path in paths(core):
        assert core.lib.pc_crc32c_path(path, 0, data, len(data)) == expected


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 7))
def test_in_two_pieces_at_any_alignment(
    core: ModuleType, data: bytes, cut: int, offset: int
) -> None:
    buffer = core.ffi.new("char[]", bytes(offset) + data)
    cut = min(cut, len(data))
    for path in paths(core):
        first = core.lib.pc_crc32c_path(path, 0, buffer + offset, cut)
        rest = len(data) - cut
        whole = core.lib.pc_crc32c_path(path, first, buffer + offset + cut, rest)
        assert whole == reference(data)


def test_every_byte_at_every_place(core: ModuleType) -> None:
    """All 8 x 256 entries of the tables, which the preprocessor made."""
    for place in range(8):
        for value in range(256):
            data = bytes(place) + bytes([value]) + bytes(7 - place)
            assert core.lib.pc_crc32c_path(core.lib.PC_CRC_TABLE, 0, data, 8) == reference(data)
