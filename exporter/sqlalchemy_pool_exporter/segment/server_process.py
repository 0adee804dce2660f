# SPDX-License-Identifier: Apache-2.0
"""What a row says of the process or thread that serves a connection in the database server, as one number.

The number has the server's process (or thread) in its lower 32 bits, and above them the connection's own TCP port. The
server tells of each session both, so the port shows that a process of that number on another server is another one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# A reader accepts numbers below 2**49.
_PORT: Final = 2**32
_MOST_PORT: Final = 2**16 - 1


class ServerProcess(NamedTuple):
    """What serves a connection; ``pid`` is 0 if that is not known, and ``client_port`` if there is none."""

    pid: int
    client_port: int


def packed(pid: int, client_port: int = 0) -> float:
    """Return the number of a process or thread; 0 if it cannot be one."""
    if not 0 < pid < _PORT:
        return 0.0
    return float(client_port * _PORT + pid if 0 < client_port <= _MOST_PORT else pid)


def unpacked(number: float) -> ServerProcess:
    """Return what ``packed()`` got."""
    port, pid = divmod(max(0, int(number)), _PORT)
    return ServerProcess(pid, port & _MOST_PORT) if pid else ServerProcess(0, 0)
