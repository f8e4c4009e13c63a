"""`python -m pccl_py`: the same as the `pccl` command."""

from __future__ import annotations

import sys

from pccl_py.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
