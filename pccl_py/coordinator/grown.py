"""A mapping that costs little to grow (layer 2): for what each of thousands of members adds to.

State is frozen, so every entry makes a new mapping; copying all of it each time makes a step cost
as much as there are members, and a view change the square of that. Versions share one dict that is
never changed, and have the newest entries, about as many as its root, in a small one of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")
SMALL = 64  # entries up to which a plain dict is copied


class Grown(Mapping[_K, _V]):
    """Frozen. Iterates in the order in which keys were first put, as a dict does."""

    __slots__ = ("_base", "_more")

    def __init__(self, base: Mapping[_K, _V], more: Mapping[_K, _V]) -> None:
        """more: none of its keys is in `base`."""
        self._base, self._more = base, more

    def __getitem__(self, key: _K) -> _V:
        return self._more[key] if key in self._more else self._base[key]

    def __contains__(self, key: object) -> bool:
        return key in self._more or key in self._base

    def __iter__(self) -> Iterator[_K]:
        yield from self._base
        yield from self._more

    def __len__(self) -> int:
        return len(self._base) + len(self._more)

    def put(self, key: _K, value: _V) -> Mapping[_K, _V]:
        """A version with one entry set."""
        if key in self._base:
            return Grown({**self._base, key: value}, self._more)
        more = {**self._more, key: value}
        if len(more) ** 2 > len(self._base):
            return Grown({**self._base, **more}, {})
        return Grown(self._base, more)


def put(mapping: Mapping[_K, _V], key: _K, value: _V) -> Mapping[_K, _V]:
    """A copy with one entry set."""
    if isinstance(mapping, Grown):
        return mapping.put(key, value)
    if len(mapping) < SMALL:
        return {**mapping, key: value}
    return Grown(mapping, {}).put(key, value)


def drop(mapping: Mapping[_K, _V], *keys: _K) -> Mapping[_K, _V]:
    """A copy without some keys; the same mapping if none was there."""
    if not any(key in mapping for key in keys):
        return mapping
    return {key: value for key, value in mapping.items() if key not in keys}
