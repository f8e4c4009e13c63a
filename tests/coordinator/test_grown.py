"""A mapping that grows cheaply is a dict to whoever looks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pccl_py.coordinator.grown import SMALL, Grown, drop, put

PUTS = st.lists(st.tuples(st.integers(0, 300), st.integers()), max_size=400)


@given(PUTS)
def test_it_is_as_a_dict(puts: list[tuple[int, int]]) -> None:
    plain = {at: -at for at in range(SMALL)}
    grown = dict(plain)
    versions = []
    for key, value in puts:
        plain[key] = value
        grown = put(grown, key, value)
        versions.append((grown, dict(plain)))
    for version, as_it_was in versions[-5:]:
        assert version == as_it_was
        assert list(version) == list(as_it_was)
        assert len(version) == len(as_it_was)
    assert 1000 not in grown
    assert drop(grown, 3) == {key: value for key, value in plain.items() if key != 3}


def test_many_puts_do_not_copy_all_each_time() -> None:
    grown = dict.fromkeys(range(10_000), 0)
    for key in range(10_000, 10_050):
        grown = put(grown, key, 1)
        assert isinstance(grown, Grown)
        assert len(grown._more) <= 51
    base = grown._base
    assert put(grown, 10_050, 1)._base is base
