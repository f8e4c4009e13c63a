"""The benchmark on the emulated network: what a share is, and when there is none."""

from __future__ import annotations

import pytest

from stress import wan
from stress.wan import bench, measure


def unused(hosts: int) -> wan.Network:
    """Settings of a network that is not up."""
    return wan.Network(hosts, rate_mbit=1000, flow_mbit=200)


def test_a_share_is_of_the_bytes_that_an_all_reduce_must_move() -> None:
    payload_mbit = 1000 * 1448 / 1500
    for hosts, moved in ((2, 1.0), (4, 1.5)):
        expected_s = moved * 256 * 1.048576 * 8 / payload_mbit
        assert bench.ideal_s(unused(hosts), 256) == pytest.approx(expected_s)


def test_the_table_keeps_the_first_op_apart() -> None:
    rows = [bench.Row("pccl", [4.0, 2.0, 2.5, 2.2], 8), bench.Row("gloo", [20.0])]
    _, pccl, gloo = bench.table(rows, 2.0).splitlines()
    assert " ".join(pccl.split()) == "pccl 4.00 s 50.0% 2.20 s 90.9% 80.0% 100.0% 8"
    assert " ".join(gloo.split()) == "gloo 20.00 s 10.0% 20.00 s 10.0% 10.0% 10.0%"


def test_no_share_where_the_emulator_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def calibrate(_: wan.Network, *, ring: bool) -> measure.Measured:
        raise wan.NotFaithful(f"too slow, ring={ring}")

    monkeypatch.setattr(wan.Network, "calibrate", calibrate)
    assert bench.bench(unused(4), ("pccl",), mib=256, repeats=1) == 1
    told = capsys.readouterr()
    assert told.err == "refused: too slow, ring=True\n"
    assert not told.out
