"""train_gpt.py with a fault, for the test that the demo notices it: worker w1 changes one of its
outer parameters a little after every round, as a wrong reduction would."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from pccl_py import optim
from pccl_py.optim import RoundInfo

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_gpt.py"


class Divergent(optim.DiLoCo):
    def step(self) -> RoundInfo | None:
        done = super().step()
        if done is not None and os.environ["RANK"] == "1":
            self._pools[0].phi[0] += 1e-3
        return done


def main() -> int:
    optim.DiLoCo = Divergent  # type: ignore[misc]
    spec = importlib.util.spec_from_file_location("train_gpt", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    train_gpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train_gpt)
    code: int = train_gpt.main()
    return code


if __name__ == "__main__":
    sys.exit(main())
