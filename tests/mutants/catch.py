"""What catches a mutant: each has `catch`, which raises AssertionError if it does.

A mutated core may do anything, so its programs run in a child process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tests.coordinator.scenario import play, scripts
from tests.model.scenes import LONG, QUICK
from tests.model.search import explore

CHILD_S = 60
OTHERWISE = 3  # the child's exit status: an exception that is no assertion
CAUGHT = (
    1,
    -signal.SIGABRT,
    -signal.SIGSEGV,
)  # by an assertion here, in the core, or by the kernel
SCENES = {scene.name: scene for scene in (*QUICK, *LONG)}
SCRIPTS = {path.stem: path for path in scripts()}


@dataclass(frozen=True)
class Search:
    """The exhaustive search of a scene."""

    scene: str
    limit: int = 100_000

    def catch(self) -> None:
        explore(SCENES[self.scene], limit=self.limit)


@dataclass(frozen=True)
class Script:
    """A text scenario of the coordinator."""

    name: str

    def catch(self) -> None:
        script = SCRIPTS[self.name].read_text(encoding="utf-8")
        assert play(script) == script


@dataclass(frozen=True)
class Unit:
    """A test that is no more than a function."""

    test: Callable[[], None]

    def catch(self) -> None:
        self.test()


@dataclass(frozen=True)
class Sim:
    """A program of simulated C cores, under each seed until one catches; 0 seeds: it takes none."""

    program: Callable[..., None]
    seeds: int = 0

    def catch(self, core: SimpleNamespace) -> None:
        child = os.fork()
        if not child:
            code = OTHERWISE
            try:
                code = self._play(core)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (0, *CAUGHT):
            raise RuntimeError(f"the child ended with {code}, which says nothing of the rule")
        assert not code, f"the child ended with {code}"

    def _play(self, core: Any) -> int:
        """In the child: 0 if nothing was wrong."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHILD_S)
        os.close(2)  # what an assertion of the core would print
        try:
            for seed in range(self.seeds):
                self.program(core, seed)
            if not self.seeds:
                self.program(core)
        except AssertionError:
            return 1
        return 0


Catcher = Search | Script | Unit | Sim
