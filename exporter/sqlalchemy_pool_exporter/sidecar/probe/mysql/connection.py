# SPDX-License-Identifier: Apache-2.0
"""A probe's connection to a MySQL or MariaDB server, with asyncmy.

A driver that is missing is found when the configuration is checked; it is imported at the first connect, so that a
sidecar without such a database needs none.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.probe.server_state import APPLICATION_NAME

from .dsn import MISSING
from .queries import read_server_state
from .sessions import Arrivals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy_pool_exporter.sidecar.probe.server_state import ServerState

    from .dsn import MySQLDSN

# Of TLS; False for none, None to follow the DSN.
Context = ssl.SSLContext | Literal[False] | None

# The probe's own timeout includes connecting. asyncmy takes none for "no limit".
_CONNECT_SECONDS: Final = 3600
_PRIVILEGES: Final = frozenset((1044, 1142, 1143, 1227, 1370))


class MySQLConnection:
    """A ``ServerConnection``.

    Args:
        of_driver: of asyncmy.
    """

    def __init__(self, of_driver: Any) -> None:
        self._of_driver = of_driver
        self._arrivals = Arrivals()

    @property
    def server_id(self) -> int:
        """The id that the server, or a proxy in front of it, gave this connection."""
        return int(self._of_driver.thread_id())

    @property
    def client_port(self) -> int | None:
        """The port of this connection here; None through a Unix socket."""
        # asyncmy does not tell in public which socket it has.
        name = getattr(self._of_driver, "_transport").get_extra_info("sockname")  # noqa: B009 - as the comment says
        return name[1] if isinstance(name, tuple) else None

    def is_closed(self) -> bool:
        """Whether it cannot be used any more."""
        # In public asyncmy tells only whether this side has closed it.
        return not self._of_driver.connected or bool(getattr(self._of_driver, "_stream_broken", False))

    def terminate(self) -> None:
        """Close it at once."""
        self._of_driver.close()

    async def close(self) -> None:
        """Close it in an orderly way."""
        async with asyncio.timeout(1.0):
            await self._of_driver.ensure_closed()

    async def fetch(self, query: str) -> Sequence[dict[str, Any]]:
        """Return the rows of a query, by their lower-case names."""
        async with self._of_driver.cursor() as cursor:
            await cursor.execute(query)
            names = [column[0].lower() for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    async def fetch_if_allowed(self, query: str) -> Sequence[dict[str, Any]] | None:
        """Return the rows of a query; None if the account lacks the privilege."""
        try:
            return await self.fetch(query)
        except Exception as error:
            if next(iter(error.args), None) in _PRIVILEGES:
                return None
            raise

    async def read(
        self,
        *,
        timeout_seconds: float,
        application_names_limit: int,
        statements: bool,
        clock: Callable[[], float],
    ) -> ServerState:
        """Ask the server."""
        return await read_server_state(
            self,
            self._arrivals,
            timeout_seconds=timeout_seconds,
            names_limit=application_names_limit,
            statements=statements,
            clock=clock,
        )


async def connect(dsn: MySQLDSN, context: Context) -> MySQLConnection:
    """Connect to a server.

    Args:
        dsn: where to.
        context: of TLS; False for none, None to follow the DSN.
    """
    follows_dsn = context is None
    if follows_dsn:
        context = await asyncio.to_thread(dsn.context)
    try:
        return MySQLConnection(await _connect(dsn, context or None))
    except Exception as error:
        # A server without TLS closes the connection, or answers in plain text, where TLS begins.
        if not (follows_dsn and dsn.mode == "prefer" and _refuses_tls(error)):
            raise
    return MySQLConnection(await _connect(dsn, None))


def _refuses_tls(error: Exception) -> bool:
    return isinstance(error.__cause__, ssl.SSLError | ConnectionError) and not isinstance(
        error.__cause__, ConnectionRefusedError
    )


async def _connect(dsn: MySQLDSN, context: Context) -> Any:
    try:
        import asyncmy  # noqa: PLC0415 - as the docstring of the module says
    except ImportError as error:
        raise ConfigError(MISSING) from error
    place = {"host": dsn.host, "port": dsn.port} if dsn.socket is None else {"unix_socket": dsn.socket}
    # With TLS through a Unix socket the certificate's name is compared with that of the DSN's host.
    return await asyncmy.connect(
        **{"host": dsn.host, **place},
        user=dsn.user,
        # The driver would encode a text as Latin-1; accounts are made by clients that send UTF-8.
        password=dsn.reveal_password().encode(),
        database=dsn.database,
        ssl=context,
        charset="utf8mb4",
        autocommit=None,  # or it would send a SET
        connect_timeout=_CONNECT_SECONDS,
        program_name=APPLICATION_NAME,
    )
