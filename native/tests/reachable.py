"""Prints the given URL if its host takes a connection within five seconds, else nothing: so that
`make setup` uses PyTorch's own index where there is one, and does without it elsewhere."""

from __future__ import annotations

import socket
import sys
from urllib.parse import urlsplit


def main(url: str) -> None:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=5):
            print(url)
    except OSError:
        pass


if __name__ == "__main__":
    main(sys.argv[1])
