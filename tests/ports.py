"""Ports for servers that tests start."""

import random
import socket
from contextlib import ExitStack

BELOW_EPHEMERAL = range(10_000, 32_768)
"""Of ports from 32768 on the kernel gives one to each outgoing connection, perhaps before the server that a test starts
has it."""


def free_ports(count: int) -> list[int]:
    """That many ports of this machine that nothing listens on at this moment."""
    ports: list[int] = []
    with ExitStack() as probes:
        while len(ports) < count:
            port, probe = random.choice(BELOW_EPHEMERAL), probes.enter_context(socket.socket())
            try:
                probe.bind(("", port))
            except OSError:
                continue
            ports.append(port)
    return ports
