"""The environment contract of DESIGN §2."""

from __future__ import annotations

from dataclasses import replace

from pccl_py.launch import environment

PLACE = environment.Place(
    coordinator="127.0.0.1:5",
    run="r",
    group="g",
    secret=None,
    world_size=4,
    max_restarts=3,
    master_port=7,
)


def test_contract() -> None:
    env = environment.for_worker({"HOME": "/h"}, PLACE, rank=2, restart=1)
    assert env == {
        "HOME": "/h",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PCCL_COORDINATOR": "127.0.0.1:5",
        "PCCL_RUN": "r",
        "PCCL_GROUP": "g",
        "RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "0",
        "ROLE_RANK": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "7",
        "TORCHELASTIC_RUN_ID": "r",
        "TORCHELASTIC_RESTART_COUNT": "1",
        "TORCHELASTIC_MAX_RESTARTS": "3",
    }


def test_the_users_values_stay_where_they_are_the_users() -> None:
    base = {"OMP_NUM_THREADS": "8", "PYTHONUNBUFFERED": "", "RANK": "77", "PCCL_SECRET": "s"}
    env = environment.for_worker(base, PLACE, rank=0, restart=0)
    assert env["OMP_NUM_THREADS"] == "8"
    assert env["PYTHONUNBUFFERED"] == ""
    assert env["PCCL_SECRET"] == "s"
    assert env["RANK"] == "0"


def test_secret_and_single_worker() -> None:
    place = replace(PLACE, secret="hush", world_size=1)
    env = environment.for_worker({}, place, rank=0, restart=0)
    assert env["PCCL_SECRET"] == "hush"
    assert "OMP_NUM_THREADS" not in env


def test_an_outer_torchruns_store_is_not_inherited() -> None:
    env = environment.for_worker({"TORCHELASTIC_USE_AGENT_STORE": "True"}, PLACE, 0, 0)
    assert "TORCHELASTIC_USE_AGENT_STORE" not in env
