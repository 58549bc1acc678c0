"""Servers of the test's own process in the network namespace of a host."""

import ctypes
import os
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

CLONE_NEWNET = 0x40000000
T = TypeVar("T")


@contextmanager
def in_network_of(name: str, open_server: Callable[[], AbstractContextManager[T]]) -> Generator[T]:
    """`open_server()` entered by a thread that is in that namespace: a socket stays in the one that it was made in."""
    opened: list[AbstractContextManager[T]] = []
    entered: list[T] = []

    def enter() -> None:
        namespace = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(namespace)
        opened.append(open_server())
        entered.append(opened[0].__enter__())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if not entered:
        raise RuntimeError(f"no server could be started in the network of {name}")
    try:
        yield entered[0]
    finally:
        opened[0].__exit__(None, None, None)
