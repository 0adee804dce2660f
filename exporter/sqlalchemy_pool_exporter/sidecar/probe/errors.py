# SPDX-License-Identifier: Apache-2.0
"""Classifies the exception of a failed probe: a reason (a label value) and a text for the log.

Messages of the driver, the server and the parsers may quote parts of the DSN (``invalid literal for int(): 'pass'``).
So the log shows a text of this module, and of the exception only its class and its SQLSTATE or number.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING, Final

import asyncpg

from sqlalchemy_pool_exporter.errors import ConfigError

from .failure import Failure
from .mysql.errors import classify_mysql_error, is_of_mysql_driver

if TYPE_CHECKING:
    from collections.abc import Sequence


class AdminConsoleError(Exception):
    """The DSN leads to pgbouncer's admin console."""


# Part of the message → failure; the first match counts. pgbouncer sends one SQLSTATE, 08P01, for almost every error,
# so only the message tells them apart.
_POOLER_MESSAGES: Final[Sequence[tuple[str, Failure]]] = (
    ("unsupported startup parameter", Failure("configuration", "the pooler refuses a parameter of the DSN")),
    ("no such database", Failure("configuration", "the pooler knows no such database")),
    ("transaction blocks not allowed", Failure("configuration", "a pooler in statement mode cannot be used")),
    ("pqexec disallowed", Failure("configuration", "a pooler with disable_pqexec cannot be used")),
    ("authentication failed", Failure("authentication", "the pooler refuses user or password")),
    ("no such user", Failure("authentication", "the pooler refuses user or password")),
    ("ssl required", Failure("tls", "the pooler requires TLS")),
    (
        "no more connections allowed",
        Failure("too_many_connections", "the pooler is at its max_client_conn"),
    ),
    (
        "client connections exceeded",
        Failure("too_many_connections", "the pooler is at a limit of client connections"),
    ),
    ("query_wait_timeout", Failure("timeout", "the pooler had no server connection free in time")),
    ("query_timeout", Failure("timeout", "the pooler ended the query")),
    ("client_idle_timeout", Failure("disconnected", "the pooler closed an idle connection")),
    ("server", Failure("unavailable", "the pooler cannot reach the server")),
    ("shutting down", Failure("unavailable", "the pooler is shutting down")),
)

# Start of the SQLSTATE → failure; the first match counts.
_SQLSTATES: Final[Sequence[tuple[str, Failure]]] = (
    (
        "28",
        Failure(
            "authentication", "the server refuses user or password, or has no pg_hba.conf entry for them"
        ),
    ),
    ("53300", Failure("too_many_connections", "no connection is left for the probe's role")),
    ("57P03", Failure("unavailable", "the server is starting up or shutting down")),
    ("57014", Failure("timeout", "the statement timeout passed, or an administrator cancelled the query")),
    ("57P", Failure("disconnected", "the server ended the connection")),
    ("08", Failure("disconnected", "the connection broke")),
    ("3D000", Failure("configuration", "there is no such database")),
    ("42704", Failure("configuration", "the server does not know a parameter of the DSN")),
    ("42501", Failure("configuration", "the role lacks the privilege")),
    ("0A000", Failure("configuration", "the server does not support what the probe needs")),
)

# Class → failure; the first match counts, so a subclass stands before its base class.
_CLASSES: Final[Sequence[tuple[type[Exception], Failure]]] = (
    (
        AdminConsoleError,
        Failure("configuration", "this is pgbouncer's admin console; name a database behind it"),
    ),
    (TimeoutError, Failure("timeout", "no answer in time")),
    (ssl.SSLError, Failure("tls", "the TLS handshake failed")),
    (socket.gaierror, Failure("connect", "the host name cannot be resolved")),
    (UnicodeDecodeError, Failure("other", "the server sends text that cannot be decoded")),
    (ValueError, Failure("configuration", "the DSN or a PG* environment variable cannot be used")),
    (asyncpg.InterfaceError, Failure("disconnected", "the connection broke")),
    # Also if a session is used just when its server ends it.
    (asyncpg.InternalClientError, Failure("disconnected", "the connection broke")),
)


def classify_error(error: Exception) -> Failure:
    """Return why a probe failed: a reason, and a text that quotes no message of another program."""
    cause = error.__cause__
    if is_of_mysql_driver(error):
        if not isinstance(cause, OSError):
            failure, number = classify_mysql_error(error)
            origin = f"{type(error).__name__} {number}" if number else type(error).__name__
            return Failure(failure.reason, f"{failure.text} ({origin})")
        error = cause  # what the system said, which the driver wraps
    if isinstance(error, asyncpg.ConnectionDoesNotExistError) and isinstance(cause, asyncpg.PostgresError):
        error = cause  # the server sent the reason before it closed the connection
    is_from_server = isinstance(error, asyncpg.PostgresError)
    reason, text = _classify_server_error(error) if is_from_server else _classify_client_error(error)
    sqlstate = getattr(error, "sqlstate", None)
    origin = f"{type(error).__name__}, SQLSTATE {sqlstate}" if sqlstate else type(error).__name__
    return Failure(reason, f"{text} ({origin})")


def _classify_server_error(error: asyncpg.PostgresError) -> Failure:
    if isinstance(error, asyncpg.ProtocolViolationError):
        message = str(error).lower()
        for words, failure in _POOLER_MESSAGES:
            if words in message:
                return failure
        return Failure(
            "other", "the server, or a pooler in front of it, does not follow PostgreSQL's protocol"
        )
    for prefix, failure in _SQLSTATES:
        if (error.sqlstate or "").startswith(prefix):
            return failure
    return Failure("other", "the server reports an error")


def _classify_client_error(error: Exception) -> Failure:
    if isinstance(error, ConfigError):
        return Failure("configuration", str(error))  # a message of this package, so it quotes no credentials
    if isinstance(error, ssl.SSLCertVerificationError):
        # OpenSSL's message may end in a comma and the host name, which the DSN contains.
        return Failure("tls", f"the server's certificate: {error.verify_message.partition(',')[0]}")
    for kind, failure in _CLASSES:
        if isinstance(error, kind):
            return failure
    if isinstance(error, OSError):
        return _classify_os_error(error)
    return Failure("other", "unexpected")


def _classify_os_error(error: OSError) -> Failure:
    if error.errno:
        return Failure("connect", os.strerror(error.errno))
    if isinstance(error, ConnectionError):
        # asyncpg raises a ConnectionError without a number only while it negotiates TLS.
        return Failure("tls", "the server refuses TLS, or closed the connection during the negotiation")
    # asyncio raises an OSError without a number if it has tried several addresses in vain.
    return Failure("connect", "no address of the host can be reached")
