"""A coordinator whose disk is full, while members reduce: nobody is stopped before a view is due,
what is wrong can be asked for, and all goes on when there is room."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from pccl_py.cli import status as status_command
from pccl_py.protocol.endpoint import Endpoint
from tests.coordinator.raw_peer import running
from tests.e2e.processes import Process, members, status_until
from tests.e2e.test_kill import check

LOOP = ("--count", "1000", "--pause", "0.01", "--update")


def _room(pid: int, bytes_max: int) -> None:
    """How long that process's files may get: the next byte fails as on a full disk."""
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_max, hard))


@pytest.mark.timeout(100)
def test_members_work_on_and_views_wait_for_room(tmp_path: Path) -> None:
    command = ("-m", "pccl_py", "coordinator", "--bind", "127.0.0.1:0", "--state-dir")
    with (
        running(*command, str(tmp_path)) as (address, process),
        members(address, 3, "--ops", "150", *LOOP) as group,
    ):
        group[0].until("reduced", op=5)
        _room(process.pid, 100)
        late = Process(address, "--name", "late", "--ops", "150", *LOOP)
        group.append(late)
        stuck = status_until(address, lambda found: found["journal"] is not None)
        assert "takes no record: File too large" in str(stuck["journal"])
        assert "takes no record" in str(stuck["waiting"]), "and the newcomer hears of it"
        host, _, port = address.rpartition(":")
        table = status_command.table(Endpoint(host, int(port)), stuck)
        assert "no new view for" in table
        now = max(line["op"] for line in group[0].seen if line["event"] == "reduced")
        group[0].until("reduced", op=now + 20)  # nobody is held for the newcomer
        group[2].kill()
        stuck = status_until(address, lambda found: len(found["members"]) == 2)
        assert stuck["epoch"] == 1, "no view that is not on disk"
        assert stuck["flush"] is None, "nobody is stopped for a view that cannot come"
        assert late.lines.empty()
        _room(process.pid, resource.RLIM_INFINITY)
        living = [group[0], group[1], late]
        assert [p.finish() for p in living] == [0, 0, 0], [p.errors() for p in living]
        check(living)
        assert late.events("reduced")[-1]["world"] in (1, 2, 3)
        assert group[0].events("reduced")[-1]["op"] == 149
        status_until(address, lambda found: found["journal"] is None)
