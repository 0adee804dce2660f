# SPDX-License-Identifier: Apache-2.0
"""What databases and drivers call the kinds of errors: SQLSTATEs, other codes, messages and classes.

Where a table has prefixes or parts, the first match counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy_pool_exporter.metrics import Disposition

# Every kind, and whether the same work, done again from its transaction's beginning, may succeed although neither the
# application nor its configuration changes.
KINDS: Final[Mapping[str, Disposition]] = {
    "admin_shutdown": "retryable",
    "connect_failed": "retryable",
    "connect_timeout": "retryable",
    "connection_lost": "retryable",
    "deadlock": "retryable",
    "idle_timeout": "retryable",
    "lock_timeout": "retryable",
    "pool_timeout": "retryable",
    "read_only": "retryable",
    "resources": "retryable",
    "rollback": "retryable",
    "serialization": "retryable",
    "stale_plan": "retryable",
    "statement_timeout": "retryable",
    "timeout": "retryable",
    "too_many_connections": "retryable",
    "transaction_timeout": "retryable",
    "unavailable": "retryable",
    "aborted_transaction": "fatal",
    "authentication": "fatal",
    "canceled": "fatal",
    "constraint": "fatal",
    "data": "fatal",
    "interface": "fatal",
    "internal": "fatal",
    "no_database": "fatal",
    "not_supported": "fatal",
    "other": "fatal",
    "permission": "fatal",
    "prepared_statement": "fatal",
    "raised": "fatal",
    "syntax": "fatal",
    "tls": "fatal",
    "transaction": "fatal",
}

# Start of the SQLSTATE → kind. 0A000, 57014 and class 08 are told apart by their message first.
SQLSTATES: Final[Sequence[tuple[str, str]]] = (
    ("08001", "connect_failed"),
    ("08004", "connect_failed"),
    ("08", "connection_lost"),
    ("0A", "not_supported"),
    ("0B", "transaction"),
    ("21", "data"),
    ("22", "data"),
    ("23", "constraint"),
    ("25006", "read_only"),
    ("25P02", "aborted_transaction"),
    ("25P03", "idle_timeout"),
    ("25P04", "transaction_timeout"),
    ("25", "transaction"),
    ("26", "prepared_statement"),
    ("28", "authentication"),
    ("2D", "transaction"),
    ("3B", "transaction"),
    ("3D", "no_database"),
    ("3F", "syntax"),
    ("40001", "serialization"),
    ("40002", "constraint"),
    ("40P01", "deadlock"),
    ("40", "rollback"),
    ("42501", "permission"),
    ("42P05", "prepared_statement"),
    ("42", "syntax"),
    ("44", "constraint"),
    ("53300", "too_many_connections"),
    ("53", "resources"),
    ("55P03", "lock_timeout"),
    ("57014", "statement_timeout"),
    ("57P01", "admin_shutdown"),
    ("57P02", "connection_lost"),
    ("57P03", "unavailable"),
    ("57P04", "no_database"),
    ("57P05", "idle_timeout"),
    ("58030", "resources"),
    ("P0", "raised"),
    ("XX", "internal"),
)

# Part of the message in small letters → kind, where the SQLSTATE does not tell. libpq has none for a connection that
# could not be made or that broke, and pgbouncer sends 08P01 with nearly all its errors.
MESSAGES: Final[Sequence[tuple[str, str]]] = (
    ("due to user request", "canceled"),
    ("cached plan must not change result type", "stale_plan"),
    ("cached statement plan is invalid", "stale_plan"),
    ("no more connections allowed", "too_many_connections"),
    ("client connections exceeded", "too_many_connections"),
    ("too many clients", "too_many_connections"),
    ("too many connections", "too_many_connections"),
    ("connection slots are reserved", "too_many_connections"),
    ("query_wait_timeout", "too_many_connections"),
    ("query_timeout", "statement_timeout"),
    ("no such database", "no_database"),
    ("authentication failed", "authentication"),
    ("no such user", "authentication"),
    ("no pg_hba.conf entry", "authentication"),
    ("no password supplied", "authentication"),
    ("the database system is", "unavailable"),
    ("not yet accepting connections", "unavailable"),
    ("session is read-only", "read_only"),
    ("server is in hot standby mode", "read_only"),
    ("due to administrator command", "admin_shutdown"),
    ("crash of another server process", "connection_lost"),
    ("shutting down", "admin_shutdown"),
    ("idle-in-transaction timeout", "idle_timeout"),
    ("idle-session timeout", "idle_timeout"),
    ("client_idle_timeout", "idle_timeout"),
    ("timeout expired", "connect_timeout"),
    ("certificate", "tls"),
    ("could not translate host name", "connect_failed"),
    ("failed to resolve host", "connect_failed"),
    ("connection refused", "connect_failed"),
    ("closed the connection", "connection_lost"),
    ("connection is closed", "connection_lost"),
    ("connection already closed", "connection_lost"),
    ("connection is lost", "connection_lost"),
    ("connection not open", "connection_lost"),
    ("connection was closed", "connection_lost"),
    ("connection has been closed", "connection_lost"),
    ("connection reset", "connection_lost"),
    ("could not receive data", "connection_lost"),
    ("could not send data", "connection_lost"),
    ("connection failed", "connect_failed"),
    ("connection to server", "connect_failed"),
    ("could not connect", "connect_failed"),
)

# libpq's messages for a role or a database that does not exist have its name in the middle.
MISSING: Final[Mapping[str, str]] = {"role": "authentication", "database": "no_database"}

# The number that MySQL's drivers give as the first argument → kind.
MYSQL_NUMBERS: Final[Mapping[int, str]] = {
    1040: "too_many_connections",
    1044: "authentication",
    1045: "authentication",
    1049: "no_database",
    1053: "admin_shutdown",
    1142: "permission",
    1203: "too_many_connections",
    1205: "lock_timeout",
    1213: "deadlock",
    1226: "too_many_connections",
    1290: "read_only",
    1317: "canceled",
    1792: "read_only",
    1836: "read_only",
    1927: "connection_lost",
    2002: "connect_failed",
    2003: "connect_failed",
    2005: "connect_failed",
    2006: "connection_lost",
    2013: "connection_lost",
    2055: "connection_lost",
    3024: "statement_timeout",
    3572: "lock_timeout",
    4031: "idle_timeout",
}
MYSQL_DRIVERS: Final = frozenset(("MySQLdb", "aiomysql", "asyncmy", "mariadb", "mysql", "pymysql"))

# Start of the name that SQLite gives its errors → kind.
SQLITE_NAMES: Final[Sequence[tuple[str, str]]] = (
    ("SQLITE_BUSY_SNAPSHOT", "serialization"),
    ("SQLITE_BUSY", "lock_timeout"),
    ("SQLITE_LOCKED", "lock_timeout"),
    ("SQLITE_READONLY", "permission"),
    ("SQLITE_AUTH", "permission"),
    ("SQLITE_PERM", "permission"),
    ("SQLITE_CANTOPEN", "connect_failed"),
    ("SQLITE_CONSTRAINT", "constraint"),
    ("SQLITE_CORRUPT", "internal"),
    ("SQLITE_ERROR", "syntax"),
    ("SQLITE_FULL", "resources"),
    ("SQLITE_INTERRUPT", "canceled"),
    ("SQLITE_IOERR", "resources"),
    ("SQLITE_MISMATCH", "data"),
    ("SQLITE_NOMEM", "resources"),
    ("SQLITE_NOTADB", "internal"),
    ("SQLITE_RANGE", "data"),
    ("SQLITE_TOOBIG", "data"),
)

# Name of a class that every driver has (PEP 249) → kind, if nothing else tells.
CLASSES: Final[Mapping[str, str]] = {
    "IntegrityError": "constraint",
    "DataError": "data",
    "ProgrammingError": "syntax",
    "NotSupportedError": "not_supported",
    "InternalError": "internal",
    "InterfaceError": "interface",
}
