# SPDX-License-Identifier: Apache-2.0
"""Which process or thread of the database server serves a connection: asked of the driver, once per connection.

A driver knows it since the connection was opened, so this sends nothing. Of a driver that is not known here nothing is
called, because it might.
"""

from __future__ import annotations

import os
from _socket import socket as plain_socket  # not socket.socket, which gevent and eventlet replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.engine import AdaptedConnection

from sqlalchemy_pool_exporter.segment.server_process import packed

if TYPE_CHECKING:
    from collections.abc import Callable


def server_of(connection: Any) -> float:
    """Return what serves a connection, as a row has it; 0 if that is not known.

    Args:
        connection: as SQLAlchemy's pool has it.
    """
    if isinstance(connection, AdaptedConnection):
        connection = connection.driver_connection
    # The class and its bases: an application can subclass the driver's connection, or wrap it in a proxy of that class.
    for each in connection.__class__.__mro__:
        ask = _DRIVERS.get(each.__module__.partition(".")[0])
        if ask is not None:
            try:
                pid, port = ask(connection)
            except Exception as error:
                # Closed meanwhile. All else is a fault, or an error of the application.
                if error.__class__.__module__.partition(".")[0] not in _DRIVERS:
                    raise
                break
            return packed(pid, port) if type(pid) is int and type(port) is int else 0.0
    return 0.0


def _asyncpg(connection: Any) -> tuple[int, int]:
    return connection.get_server_pid(), _port_of_transport(connection)


def _psycopg(connection: Any) -> tuple[int, int]:
    return connection.info.backend_pid, _port_of(connection.fileno())


def _psycopg2(connection: Any) -> tuple[int, int]:
    return connection.get_backend_pid(), _port_of(connection.fileno())


def _pymysql(connection: Any) -> tuple[int, int]:
    return connection.thread_id(), _port_of_socket(getattr(connection, "_sock", None))


def _aiomysql(connection: Any) -> tuple[int, int]:
    return connection.thread_id(), _port_of_transport(getattr(connection, "_writer", None))


def _asyncmy(connection: Any) -> tuple[int, int]:
    return connection.thread_id(), _port_of_transport(connection)


def _mysqlclient(connection: Any) -> tuple[int, int]:
    return connection.thread_id(), 0  # libmysqlclient keeps its socket to itself


def _mysql_connector(connection: Any) -> tuple[int, int]:
    # Its C extension keeps its socket to itself.
    own = getattr(connection, "_socket", None)
    return connection.connection_id, _port_of_socket(getattr(own, "sock", None))


def _port_of_transport(owner: Any) -> int:
    # A driver that has closed the connection has no transport.
    transport = getattr(owner, "_transport", None)
    return 0 if transport is None else _port(transport.get_extra_info("sockname"))


def _port_of_socket(own: Any) -> int:
    return 0 if own is None else _port_of(own.fileno())


def _port_of(descriptor: int) -> int:
    # A socket closes its descriptor at its end, so it gets one of its own.
    copy = os.dup(descriptor)
    try:
        one = plain_socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise
    try:
        return _port(one.getsockname())
    finally:
        one.close()


def _port(name: Any) -> int:
    """Return the port in the name of a socket; a Unix socket has none."""
    return name[1] if isinstance(name, tuple) else 0


# By the package of the connection's class.
_DRIVERS: Final[dict[str, Callable[[Any], tuple[int, int]]]] = {
    "asyncpg": _asyncpg,
    "psycopg": _psycopg,
    "psycopg2": _psycopg2,
    "pymysql": _pymysql,
    "MySQLdb": _mysqlclient,
    "aiomysql": _aiomysql,
    "asyncmy": _asyncmy,
    "mysql": _mysql_connector,
}
