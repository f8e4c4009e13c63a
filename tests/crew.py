"""Several communicators in one process, each with a thread of its own: most tests need no more.

A crew's members are joined side by side and every call on the crew runs on all of them at once, as
their programs would; what each returns or raises comes back in rank order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

import pccl_py as pccl
from pccl_py.communicator import Communicator

T = TypeVar("T")
DEADLINE_S = 20.0
CALL_S = 60.0


def start(call: Callable[[], T]) -> Future[T]:
    """Runs `call` in a thread of its own; the future has its end."""
    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  handed to whoever asks
            future.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return future


class Crew(list[Communicator]):
    """Members in rank order."""

    def each(self, call: Callable[[Communicator], T]) -> list[T]:
        """`call` on all members at once; their results. Raises the first error."""
        futures = [start(lambda comm=comm: call(comm)) for comm in self]
        return [future.result(CALL_S) for future in futures]

    def errors(self, call: Callable[[Communicator], object]) -> list[BaseException | None]:
        """As `each`, but what each member raised, None if nothing."""
        futures = [start(lambda comm=comm: call(comm)) for comm in self]
        return [future.exception(CALL_S) for future in futures]

    def on(self, rank: int, call: Callable[[Communicator], T]) -> Future[T]:
        return start(lambda: call(self[rank]))


def join_all(address: str, count: int, **settings: object) -> Crew:
    def join_one(i: int) -> Communicator:
        given = {"name": f"m{i}", "min_members": count, "timeout": 20.0, "deadline_s": DEADLINE_S}
        return pccl.join(address, **{**given, **settings})

    futures = [start(lambda i=i: join_one(i)) for i in range(count)]
    return Crew(sorted((f.result(30.0) for f in futures), key=lambda comm: comm.rank))


@contextmanager
def crew(address: str, count: int, **settings: object) -> Iterator[Crew]:
    """`count` joined members m0, m1, …; they leave at the end, or are closed after a failure."""
    members = join_all(address, count, **settings)
    everybody = list(members)
    try:
        yield members
        members.each(lambda comm: comm.leave())
    finally:
        for comm in everybody:
            comm.close()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for a condition; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.005)
