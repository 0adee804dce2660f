# SPDX-License-Identifier: Apache-2.0
"""A probe's connection to a PostgreSQL server, or to a pooler in front of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from .errors import AdminConsoleError
from .queries import read_server_state
from .server_state import APPLICATION_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from .server_state import ServerState


class PostgreSQLConnection:
    """A ``ServerConnection``; ``of_driver`` is asyncpg's."""

    def __init__(self, of_driver: Any) -> None:
        self.of_driver = of_driver

    def is_closed(self) -> bool:
        """Whether it cannot be used any more."""
        return bool(self.of_driver.is_closed())

    def terminate(self) -> None:
        """Close it at once."""
        self.of_driver.terminate()

    async def close(self) -> None:
        """Close it in an orderly way."""
        await self.of_driver.close(timeout=1.0)

    async def read(
        self,
        *,
        timeout_seconds: float,
        application_names_limit: int,
        statements: bool,
        clock: Callable[[], float],
    ) -> ServerState:
        """Ask the server, in one read-only transaction."""
        if "bouncer" in getattr(self.of_driver.get_settings(), "server_version", ""):
            raise AdminConsoleError
        return await read_server_state(
            self.of_driver,
            timeout_seconds=timeout_seconds,
            application_names_limit=application_names_limit,
            statements=statements,
            clock=clock,
        )


async def connect(**arguments: Any) -> PostgreSQLConnection:
    """Connect with asyncpg; its own arguments say where and how."""
    return PostgreSQLConnection(
        await asyncpg.connect(
            **arguments,
            timeout=None,  # the probe's timeout includes connecting
            # No named prepared statements: behind a pooler the next transaction may run on another server connection.
            statement_cache_size=0,
            # Every pooler accepts this startup parameter and tracks it for each client.
            server_settings={"application_name": APPLICATION_NAME},
        )
    )
