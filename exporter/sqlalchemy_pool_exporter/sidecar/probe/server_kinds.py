# SPDX-License-Identifier: Apache-2.0
"""The kinds of servers that a probe knows, by the scheme of the DSN: PostgreSQL, and MySQL or MariaDB.

A kind has a ``ServerConnection``, which asks a server of that kind; every kind returns a ``ServerState``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from . import postgresql
from .mysql import connection as mysql
from .mysql.dsn import MySQLDSN, is_of_mysql

if TYPE_CHECKING:
    from collections.abc import Callable

    from .server_state import ServerState


class ServerConnection(Protocol):
    """A probe's connection to a server."""

    def is_closed(self) -> bool:
        """Whether it cannot be used any more, as after the server has closed it."""

    def terminate(self) -> None:
        """Close it at once, whatever it is doing."""

    async def close(self) -> None:
        """Say goodbye to the server, and close it; it takes a second at most."""

    async def read(
        self,
        *,
        timeout_seconds: float,
        application_names_limit: int,
        statements: bool,
        clock: Callable[[], float],
    ) -> ServerState:
        """Ask the server, and summarize what it says.

        Args:
            timeout_seconds: for each query, in the server.
            application_names_limit: how many names of applications, and of users, are kept.
            statements: also read the texts of statements.
            clock: seconds, for the time at which the sessions were read.
        """


async def connect(*, dsn: str, ssl: mysql.Context, **others: Any) -> ServerConnection:
    """Connect to a server of the kind that its DSN names.

    Args:
        dsn: its text.
        ssl: a context, False for no TLS, None to follow the DSN.
        others: for the driver of PostgreSQL.
    """
    if is_of_mysql(dsn):
        return await mysql.connect(MySQLDSN(dsn), ssl)
    return await postgresql.connect(dsn=dsn, ssl=ssl, **others)
