# SPDX-License-Identifier: Apache-2.0
"""Ports for servers that end and are started again on the same one."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")  # of outgoing connections
COUNT = 10_000


def free_port() -> int:
    """Return a free port below those of outgoing connections, one of which could take it while nobody listens."""
    first = int(RANGE.read_text().split()[0]) if RANGE.exists() else 32_768
    first = max(first, 2 * COUNT)  # where outgoing connections have all ports, there are none below
    while True:
        port = first - 1 - secrets.randbelow(COUNT)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
