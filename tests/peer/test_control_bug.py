"""A bug in the control thread ends what would otherwise wait for it without end."""

from __future__ import annotations

import numpy as np
import pytest

import pccl_py as pccl
from pccl_py.coordinator import embedded
from pccl_py.errors import CoordinatorLost
from tests.crew import until


def fail() -> None:
    raise AssertionError("a bug, planted")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_a_callback_ends_the_membership() -> None:
    with embedded.start() as coordinator:
        comm = pccl.join(coordinator.address, timeout=20.0)
        loop = comm._control._loop
        assert loop is not None
        loop.call_soon_threadsafe(fail)
        mailbox = comm._control.mailbox
        until(lambda: mailbox.failure is not None)
        with pytest.raises(CoordinatorLost, match="control thread"):
            comm.all_reduce(np.ones(4, np.float32))
        comm.close()
