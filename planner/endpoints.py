"""The ports of a model's leader, and which of them ask callers who they are."""

import ipaddress
from typing import Final

OPENAI_PORT: Final = "openai"
"""Of the frontend, which alone asks for API keys."""

TRITON_PORTS: Final = {"http": 8000, "grpc": 8001, "metrics": 8002}
PORTS: Final = {OPENAI_PORT: 9000, **TRITON_PORTS}


def is_everyone(cidr: str) -> bool:
    """Whether a range is all addresses. Raises ValueError where it is no range."""
    return ipaddress.ip_network(cidr).prefixlen == 0
