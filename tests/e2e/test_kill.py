"""Real processes, real sockets, a real SIGKILL in mid all-reduce: values, bits, exit statuses."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.e2e.processes import Process, coordinator, members

BIG = 8 << 20  # elements of float32: 32 MiB, so that a kill lands in mid op


def check(survivors: list[Process]) -> None:
    """Each op that ended: right at all, and the same bits at all."""
    by_op: dict[int, set[str]] = {}
    for process in survivors:
        for line in process.events("reduced"):
            assert line["right"], line
            by_op.setdefault(line["op"], set()).add(line["bits"])
    assert by_op
    assert all(len(bits) == 1 for bits in by_op.values()), "members hold different bits"


@pytest.mark.parametrize("seed", range(4))
def test_survivors_of_a_sigkill_finish_the_op(seed: int) -> None:
    rng = random.Random(seed)
    with coordinator() as address, members(address, 4, "--ops", "3", "--count", str(BIG)) as group:
        victim = group[rng.randrange(4)]
        for process in group:
            process.until("begin", op=1)
        time.sleep(rng.uniform(0.0, 0.08))
        victim.kill()
        survivors = [p for p in group if p is not victim]
        assert [p.finish() for p in survivors] == [0, 0, 0], [p.errors() for p in survivors]
        check(survivors)
        for process in survivors:
            lines = {line["op"]: line for line in process.events("reduced")}
            assert set(lines) == {0, 1, 2}
            assert lines[2]["world"] == 3
            assert lines[2]["high"] in (3, 4)
            assert lines[1]["low"] in (3, 4)
            assert process.events("left")
        assert victim.finish() == -signal.SIGKILL


def test_two_kills_and_a_restart_that_catches_up() -> None:
    with (
        coordinator() as address,
        members(
            address, 4, "--ops", "60", "--count", "100000", "--update", "--pause", "0.03"
        ) as group,
    ):
        group[1].until("reduced", op=5)
        group[1].kill()
        group[3].until("reduced", op=15)
        group[3].kill()
        again = Process(
            address, "--name", "again", "--ops", "60", "--count", "100000", "--update",
            "--pause", "0.03",
        )  # fmt: skip
        group.append(again)
        assert again.until("joined")["world"] == 3
        first = again.until("reduced")
        assert first["op"] > 15, "it goes on where the others are"
        living = [group[0], group[2], again]
        assert [p.finish() for p in living] == [0, 0, 0], [p.errors() for p in living]
        check(living)
        assert all(p.events("reduced")[-1]["op"] == 59 for p in living)
        assert all(p.events("reduced")[-1]["world"] == 3 for p in living)
