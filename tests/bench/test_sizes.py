"""Twin of pccl_py.bench.sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl_py.bench import sizes
from pccl_py.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1000", 1000), ("1K", 1024), ("64k", 65536), ("3M", 3 << 20), ("1G", 1 << 30),
     ("2KiB", 2048), ("8B", 8), (" 4K ", 4096)],
)  # fmt: skip
def test_parse(text: str, size: int) -> None:
    assert sizes.parse(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "K", "-1K", "1.5M", "1T", "1 K", "1KK", "9999G", "²", "1e3", "9" * 20]
)
def test_nonsense_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="must be a number of bytes") as caught:
        sizes.parse(text)
    assert "\n" not in str(caught.value)


@given(st.integers(1, sizes.SIZE_BYTES_MAX))
def test_text_is_exact(size: int) -> None:
    assert sizes.parse(sizes.text(size)) == size


def test_sweep() -> None:
    assert sizes.sweep(1024, 65536, 4) == (1024, 4096, 16384, 65536)
    assert sizes.sweep(1024, 65535, 4) == (1024, 4096, 16384)
    assert sizes.sweep(7, 7, 2) == (7,)


@pytest.mark.parametrize(("begin", "end", "factor"), [(2, 1, 2), (1, 2, 1), (1, 2, 0)])
def test_no_sweep(begin: int, end: int, factor: int) -> None:
    with pytest.raises(UsageError):
        sizes.sweep(begin, end, factor)
