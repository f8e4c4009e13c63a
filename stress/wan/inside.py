"""Sockets of a host for a program outside: what a test says and hears without starting a process in
the host. Called by tests; knows only the path of a namespace.
"""

from __future__ import annotations

import ctypes
import os
import socket
from concurrent.futures import ThreadPoolExecutor

CLONE_NEWNET = 0x40000000


def _enter_and_open(namespace: str, family: int, kind: int) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(namespace, os.O_RDONLY)
    try:
        if libc.setns(fd, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace)
    finally:
        os.close(fd)
    return socket.socket(family, kind)


def open_socket(
    namespace: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    """A socket in the namespace at that path: it stays there, whoever uses it.

    Raises:
        OSError: no such namespace, or no right to enter it.
    """
    # A thread of its own enters, and ends there.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(_enter_and_open, namespace, family, kind).result()
