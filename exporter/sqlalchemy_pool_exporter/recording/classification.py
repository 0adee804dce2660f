# SPDX-License-Identifier: Apache-2.0
"""``classify()``: what kind of error of a database or a pool an exception is, and whether to try again."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import exc

from sqlalchemy_pool_exporter.segment.own_errors import is_own

from .error_codes import (
    CLASSES,
    KINDS,
    MESSAGES,
    MISSING,
    MYSQL_DRIVERS,
    MYSQL_NUMBERS,
    SQLITE_NAMES,
    SQLSTATES,
)
from .sqlalchemy_pool import CONNECT_FUNCTION, PING_METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy_pool_exporter.metrics import Disposition, Layer

_MOST_CAUSES: Final = 8
_SQLSTATE_LENGTH: Final = 5
# SQLSTATEs that are sent for more than one kind, which the message tells apart.
_AMBIGUOUS: Final = ("08", "0A000", "57014")
# Kinds of which a class alone tells. A broken connection explains more.
_UNSPECIFIC: Final = frozenset(("interface", "internal", "other", "syntax"))
# Classes whose message tells, beside that of errors of the server's operation.
_WITH_MESSAGE: Final = frozenset(("InterfaceError", "InternalClientError"))
_SQLALCHEMY: Final = {
    exc.TimeoutError: "pool_timeout",
    exc.PendingRollbackError: "aborted_transaction",
    exc.DisconnectionError: "connection_lost",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What kind of error an exception is.

    Attributes:
        kind: for example ``"deadlock"``; docs/errors.md lists all.
        disposition: ``"retryable"`` if the same work, done again from the beginning of its transaction, may succeed;
            else ``"fatal"``.
        layer: where it struck: ``"pool"``, ``"connect"``, ``"ping"`` or ``"statement"``; None if that is not known.
        sqlstate: the SQLSTATE that the server sent; None if there is none.
    """

    kind: str
    disposition: Disposition
    layer: Layer | None = None
    sqlstate: str | None = None

    @property
    def is_retryable(self) -> bool:
        """Whether the same work, done again from the beginning of its transaction, may succeed."""
        return self.disposition == "retryable"


def classify(error: BaseException) -> Failure:
    """Return what kind of error an exception is, for a loop that tries again.

    It knows the exceptions of SQLAlchemy, those of the drivers that they wrap, and both as the ``__cause__`` of an
    exception of the application. It raises nothing of its own.

    Args:
        error: what was caught. An exception that has nothing to do with a database is ``other``, and fatal. Of an
            exception group, such as an ``asyncio.TaskGroup`` raises, the first fatal one tells, else the first one.
    """
    try:
        failures = [
            classified(one, _layer_of(one), is_disconnect=getattr(one, "connection_invalidated", False))
            for one in _leaves(error)
        ]
        return next((one for one in failures if not one.is_retryable), failures[0])
    except Exception as fault:
        if not is_own(fault):  # a time limit of the application
            raise
        return Failure("other", "fatal")  # an exception of another make can have attributes that raise


def classified(error: BaseException, layer: Layer | None, *, is_disconnect: bool) -> Failure:
    """Return what kind of error an exception is, if its layer is known.

    Args:
        error: the exception.
        layer: where it struck.
        is_disconnect: whether SQLAlchemy takes it for the end of the connection.
    """
    causes = list(_causes(error))
    sqlstate, kind = _of_sqlstate(causes)
    if sqlstate is None:
        kind = next(filter(None, (_kind(one, layer) for one in causes)), "other")
        if is_disconnect and kind in _UNSPECIFIC:
            kind = "connection_lost"
        elif layer == "connect" and kind == "other" and any(map(_is_operational, causes)):
            kind = "connect_failed"
    return Failure(kind, KINDS[kind], layer, sqlstate)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions of an exception group, also if it is the cause of an exception; else the exception."""
    group = next((one for one in _causes(error) if isinstance(one, BaseExceptionGroup)), None)
    if group is None:
        yield error
    else:
        for one in group.exceptions:
            yield from _leaves(one)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it wraps: that of the driver in SQLAlchemy's, asyncpg's own in SQLAlchemy's copy."""
    current: Any = error
    for _ in range(_MOST_CAUSES):  # they can lead back to the first one
        if not isinstance(current, BaseException):
            return
        yield current
        wrapped = getattr(current, "orig", None)
        current = wrapped if isinstance(wrapped, BaseException) else current.__cause__


def _of_sqlstate(causes: Sequence[BaseException]) -> tuple[str | None, str]:
    """Return the SQLSTATE of an exception and the kind that it means."""
    sqlstate, kind = None, "other"
    for one in causes:
        found = _sqlstate(one)
        # What the server said before it ended the connection tells more than that the connection ended.
        if found is not None and (sqlstate is None or sqlstate.startswith("08")):
            # Further lines may quote the statement.
            line = str(one).partition("\n")[0]
            by_message = _kind_of_message(line) if found.startswith(_AMBIGUOUS) else None
            sqlstate, kind = found, by_message or _by_prefix(SQLSTATES, found) or "other"
    return sqlstate, kind


def _sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an exception of asyncpg or psycopg (``sqlstate``), or of psycopg2 (``pgcode``)."""
    if _is_of_mysql(error):
        return None  # mostly HY000, and the number tells more
    for name in ("sqlstate", "pgcode"):
        value = getattr(error, name, None)
        if isinstance(value, str) and len(value) == _SQLSTATE_LENGTH:
            return value
    return None


def _kind(error: BaseException, layer: Layer | None) -> str | None:
    """Return the kind of an exception without an SQLSTATE, or None."""
    for known, kind in _SQLALCHEMY.items():
        if isinstance(error, known):
            return kind
    # By its name, because an application that uses no ORM should not import it.
    if type(error).__name__ == "StaleDataError" and type(error).__module__ == "sqlalchemy.orm.exc":
        return "serialization"
    if isinstance(error, OSError):
        return _kind_of_os_error(error, layer)
    return _kind_of_driver_error(error)


def _kind_of_driver_error(error: BaseException) -> str | None:
    if isinstance(error, exc.StatementError):
        return None  # its message quotes the statement, and what it wraps tells more
    if _is_of_mysql(error):
        number: Any = getattr(error, "errno", None) or next(iter(error.args), None)
        if number in MYSQL_NUMBERS:
            return MYSQL_NUMBERS[number]
    name = getattr(error, "sqlite_errorname", None)
    if isinstance(name, str):
        return _by_prefix(SQLITE_NAMES, name)
    names = _class_names(error)
    says = _is_operational(error) or not _WITH_MESSAGE.isdisjoint(names)
    by_message = _kind_of_message(str(error)) if says else None
    return by_message or next((CLASSES[one] for one in names if one in CLASSES), None)


def _class_names(error: BaseException) -> list[str]:
    return [base.__name__ for base in type(error).__mro__]


def _is_operational(error: BaseException) -> bool:
    return isinstance(error, OSError) or "OperationalError" in _class_names(error)


def _kind_of_os_error(error: OSError, layer: Layer | None) -> str | None:
    if isinstance(error, TimeoutError):
        return {"connect": "connect_timeout", "statement": "statement_timeout"}.get(str(layer), "timeout")
    if isinstance(error, ssl.SSLCertVerificationError) or "rejected SSL upgrade" in str(error):
        return "tls"  # the latter as asyncpg has it
    if layer == "connect" or isinstance(error, ConnectionRefusedError):
        return "connect_failed"
    return "connection_lost" if isinstance(error, ConnectionError | ssl.SSLError) else None


def _kind_of_message(message: str) -> str | None:
    message = message.lower()
    if "does not exist" in message:
        for thing, kind in MISSING.items():
            if f'{thing} "' in message:
                return kind
    return next((kind for part, kind in MESSAGES if part in message), None)


def _by_prefix(table: Sequence[tuple[str, str]], code: str) -> str | None:
    return next((kind for prefix, kind in table if code.startswith(prefix)), None)


def _is_of_mysql(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in MYSQL_DRIVERS


# -- the layer


def _layer_of(error: BaseException) -> Layer | None:
    """Return where an exception struck, as far as its class and its traceback tell."""
    causes = list(_causes(error))
    if any(isinstance(one, exc.TimeoutError) for one in causes):
        return "pool"
    functions = {name for one in causes for name in _functions(one)}
    if CONNECT_FUNCTION in functions:
        return "connect"
    if not functions.isdisjoint(PING_METHODS):
        return "ping"
    return "statement" if any(isinstance(one, exc.DBAPIError) for one in causes) else None


def _functions(error: BaseException) -> Iterator[str]:
    """Yield the names of SQLAlchemy's functions in the traceback of an exception."""
    step = error.__traceback__
    while step is not None:
        frame = step.tb_frame
        if str(frame.f_globals.get("__name__")).startswith("sqlalchemy."):
            yield frame.f_code.co_name
        step = step.tb_next
