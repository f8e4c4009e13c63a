"""The pieces of a storm: what members compute and find out, what the nemesis draws, the relay."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import numpy as np
import pytest

from stress.storm import nemesis, program
from stress.storm.nemesis import Standing
from stress.storm.profiles import PROFILES
from stress.storm.program import SLOTS, Op
from stress.storm.relay import Pair, Relay

# ---------------------------------------------------------------- values


def an_op(dtype: str = "float32", count: int = 500) -> Op:
    return Op(2, "all_reduce", dtype, count, 0, False, True)


def total(op: Op, slots: list[int]) -> np.ndarray:
    return sum(program.given(op, slot) for slot in slots)


@pytest.mark.parametrize("dtype", program.DTYPES)
def test_a_sum_tells_its_contributors(dtype: str) -> None:
    op = an_op(dtype)
    everybody = list(range(SLOTS))
    assert program.contributors(op, total(op, everybody)) == [frozenset(everybody)]
    mixed = total(op, [0, 3, 11])
    mixed[200:] = total(op, [3, 11])[200:]
    assert set(program.contributors(op, mixed)) == {frozenset({0, 3, 11}), frozenset({3, 11})}
    assert program.wrong_sum(op, mixed, 3, [0, 3, 11], (2, 3)) == ""


def twice(op: Op) -> np.ndarray:
    return total(op, [0, 3, 3])


def one_off(op: Op) -> np.ndarray:
    got = total(op, [0, 3])
    got[77] += 1
    return got


def of_another_op(op: Op) -> np.ndarray:
    return total(Op(3, "all_reduce", op.dtype, op.count, 0, False, True), [0, 3])


@pytest.mark.parametrize("make", [twice, one_off, of_another_op])
def test_what_is_nobodys_sum_is_found(make: object) -> None:
    assert callable(make)
    op = an_op()
    assert "nobody's sum" in program.wrong_sum(op, make(op), 3, [0, 3], (2, 2))


@pytest.mark.parametrize(
    ("slots", "me", "told", "text"),
    [
        ([0, 3, 4], 3, (3, 3), "not all are members"),
        ([0, 4], 3, (2, 2), "is not of slot 3"),
        ([0, 3], 3, (2, 3), "the op tells 2 to 3"),
        ([0, 3], 3, (2, 2), ""),
    ],
)
def test_a_sum_of_the_wrong_ones_is_found(
    slots: list[int], me: int, told: tuple[int, int], text: str
) -> None:
    op = an_op()
    found = program.wrong_sum(op, total(op, slots), me, [0, 3], told)
    assert text in found
    assert bool(found) == bool(text)


def test_a_copy_and_a_whole_sum_are_compared() -> None:
    op = an_op("int64")
    assert program.wrong_copy(op, program.given(op, 4), 4) == ""
    assert "not what slot 4 gave" in program.wrong_copy(op, program.given(op, 5), 4)
    assert program.wrong_total(op, total(op, [1, 2]), [1, 2]) == ""
    assert "not the sum" in program.wrong_total(op, total(op, [1, 2]), [1, 2, 3])


def test_steps_are_the_same_for_all_and_differ() -> None:
    assert program.ops_of(5, 17, 1000) == program.ops_of(5, 17, 1000)
    steps = [program.ops_of(5, step, 1000) for step in range(200)]
    assert {op.kind for ops in steps for op in ops} == set(program.KINDS)
    assert all(ops[0].kind == "all_reduce" for ops in steps)


def test_the_state_tells_one_outcome_from_another() -> None:
    one, same, other = (program.fresh_state() for _ in range(3))
    for state, outcomes in ((one, [1, 2]), (same, [1, 2]), (other, [2, 1])):
        program.advance(state, outcomes)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["few"], other["few"])


# ---------------------------------------------------------------- the nemesis


def standing(members: int, **fields: object) -> Standing:
    names = tuple(f"p{i}" for i in range(members))
    plain = Standing(names, members, (), 0, frozenset(), True)
    return Standing(**{name: getattr(plain, name) for name in Standing.__slots__} | fields)


def drawn(profile: str, now: Standing, count: int = 3000) -> Counter[str]:
    rng = random.Random(1)
    draws = [nemesis.draw(rng, PROFILES[profile], now, 3.0) for _ in range(count)]
    return Counter("nothing" if one is None else one.kind for one in draws)


def test_every_kind_of_fault_is_drawn() -> None:
    assert set(drawn("storm", standing(8, waiting=("p8",)))) == set(nemesis.KINDS)
    assert set(drawn("pccl", standing(8))) == {"join", "kill"}


@pytest.mark.parametrize(
    ("now", "never"),
    [
        (standing(3), {"kill", "leave", "stop", "nap"}),  # the suite's floor
        (standing(5), {"join"}),  # and its ceiling
        (standing(4, waiting=("p7", "p8", "p9")), {"join"}),
        (standing(4), {"stillborn"}),
        (standing(4, is_coordinator_up=False), {"coordinator"}),
        (standing(4, stopped=1), {"stop", "nap"}),
        (standing(4, pairs=frozenset({frozenset({"p0", "p1"})})), {"cut", "hold", "slow"}),
    ],
)
def test_what_cannot_be_is_not_drawn(now: Standing, never: set[str]) -> None:
    found = drawn("suite", now)
    assert found.total() == 3000
    assert not never & set(found)


def test_the_seed_decides() -> None:
    def some(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [nemesis.draw(rng, PROFILES["storm"], standing(8), 3.0) for _ in range(20)]

    assert some(3) == some(3)
    assert some(3) != some(4)


# ---------------------------------------------------------------- the relay

ME, OTHER = 71, 72
HELLO = b"PCCL" + bytes(12) + ME.to_bytes(8, "little") + OTHER.to_bytes(8, "little") + bytes(64)
PAIR: Pair = frozenset({ME, OTHER})


class Echo:
    """An engine that sends back what it hears after the handshake, behind a relay."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, Pair]] = []
        self.closed = asyncio.Event()

    async def __aenter__(self) -> Echo:
        self.relay = Relay(random.Random(1), self._hear)
        self.engine = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = await self.relay.open("p0")
        self.relay.lead("p0", self.engine.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.engine.close()
        await self.relay.__aexit__()

    def _hear(self, what: str, link: int, pair: Pair) -> None:
        self.told.append((what, link, pair))
        if what == "closed":
            self.closed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(HELLO)) == HELLO
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def call(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(HELLO)
        return reader, writer


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    writer.write(data)
    return await asyncio.wait_for(reader.readexactly(len(data)), 20.0)


async def is_over(reader: asyncio.StreamReader) -> bool:
    try:
        return not await asyncio.wait_for(reader.read(1), 20.0)
    except ConnectionError:
        return True


async def passing_on() -> None:
    async with Echo() as echo:
        reader, writer = await echo.call()
        data = random.Random(2).randbytes(1 << 20)
        assert await said(reader, writer, data) == data
        echo.relay.slow(PAIR, 0.05, 1000.0)
        began = asyncio.get_running_loop().time()
        assert await said(reader, writer, b"slowly") == b"slowly"
        assert asyncio.get_running_loop().time() - began >= 0.1  # there and back
        echo.relay.heal(PAIR)
        echo.relay.cut(frozenset({ME, 99}))  # not theirs
        assert await said(reader, writer, b"on") == b"on"
        assert echo.told == []


async def holding() -> None:
    async with Echo() as echo:
        reader, writer = await echo.call()
        assert await said(reader, writer, b"first") == b"first"
        echo.relay.hold(PAIR)
        writer.write(b"later")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        echo.relay.heal(PAIR)
        assert await asyncio.wait_for(reader.readexactly(5), 20.0) == b"later"


async def cutting() -> None:
    async with Echo() as echo:
        reader, writer = await echo.call()
        assert await said(reader, writer, b"first") == b"first"
        echo.relay.cut(PAIR)
        assert await is_over(reader)
        again, _ = await echo.call()
        assert await is_over(again)
        echo.relay.heal(PAIR)
        assert await said(*await echo.call(), b"second") == b"second"


async def corrupting() -> None:
    async with Echo() as echo:
        reader, writer = await echo.call()
        echo.relay.corrupt(PAIR)
        got = await said(reader, writer, bytes(1000))
        assert sum(byte.bit_count() for byte in got) == 1
        assert await said(reader, writer, bytes(1000)) == bytes(1000)
        writer.close()
        await asyncio.wait_for(echo.closed.wait(), 20.0)
        assert echo.told == [("flipped", 1, PAIR), ("closed", 1, PAIR)]


@pytest.mark.parametrize("act", [passing_on, holding, cutting, corrupting])
def test_the_relay(act: object) -> None:
    assert callable(act)
    asyncio.run(act())
