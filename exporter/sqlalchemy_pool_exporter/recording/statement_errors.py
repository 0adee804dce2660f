# SPDX-License-Identifier: Apache-2.0
"""Statements that fail: the dialect's ``is_disconnect()`` is wrapped, which SQLAlchemy asks about each such error.

SQLAlchemy's event ``handle_error`` would tell, too. But a dialect with any listener takes a slower path through every
statement, also one that succeeds: +0.8 µs of 20 µs. And the event does not reach a second listener if the first one
raises. ``is_disconnect()`` is called only for errors of the driver, once for each, before the application's listeners.

It is also called for a connect and a ping that failed, which other hooks record. Only for a statement (or a begin, a
commit or a rollback) it gets the pool's proxy of the connection.

With one driver SQLAlchemy passes on what it does not take for an error of the driver: asyncpg's ``command_timeout`` is
a plain ``TimeoutError``, and what strikes while rows of a server-side cursor are fetched is asyncpg's own exception. So
its dialect gets a listener of ``handle_error`` all the same. Its statements take 150 µs and more.
"""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import PoolProxiedConnection

from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.own_errors import is_own

from .classification import classified
from .dialect_tap import DialectTap
from .sqlalchemy_pool import (
    HANDLE_ERROR_FUNCTION,
    listen_to_errors,
    passes_on_timeouts,
    proxy_of,
    record_of,
    unlisten_to_errors,
)

if TYPE_CHECKING:
    from types import FrameType

    from .recorder import Recorder


class StatementErrorTap(DialectTap):
    """Wraps the ``is_disconnect()`` of a dialect, and counts each error for the pool that has the connection."""

    METHODS = ("is_disconnect",)

    def __init__(self, dialect: Any, name: str) -> None:
        super().__init__(dialect, name)
        # The driver's connection that an error ended which SQLAlchemy passed on: it still takes it for alive.
        self._ended: Any = None
        self._listener: Any = None
        if passes_on_timeouts(dialect):
            self._listener = self._on_error  # kept: each look-up of a bound method makes a new object
            self._had_listeners = listen_to_errors(dialect, self._listener)

    def restore(self, dialect: Any) -> None:
        """Put the dialect's own method back, and remove the listener."""
        super().restore(dialect)
        if self._listener is not None:
            unlisten_to_errors(dialect, self._listener, had_listeners=self._had_listeners)

    def _on_error(self, context: Any) -> None:
        """Count an error that no other hook sees. SQLAlchemy would raise to the application what this raises."""
        try:
            error, connection = context.original_exception, proxy_of(context.connection)
            if connection is not None and (
                _is_own_error(error, context.dialect)
                or (isinstance(error, TimeoutError) and _is_of_driver(error, context.dialect))
            ):
                self._failed(error, connection, is_disconnect=False)
                self._note_end(connection)
        except Exception as fault:
            if not is_own(fault):
                raise

    def _note_end(self, connection: Any) -> None:
        """Note a connection that is closed: SQLAlchemy goes on to use it, and what fails then is the same error."""
        driver = getattr(connection, "driver_connection", None)
        if driver is not None and driver.is_closed():
            self._ended = weakref.ref(driver)

    def _has_ended(self, connection: Any) -> bool:
        return (
            self._ended is not None
            and connection is not None
            and self._ended() is getattr(connection, "driver_connection", self)
        )

    def make_hook(self, original: Any) -> Any:
        """Return a function that returns what the dialect says."""

        def is_disconnect(e: Any, connection: Any, cursor: Any) -> Any:
            answer = original(e, connection, cursor)
            # None instead of the proxy: the connection was invalidated before the error.
            if isinstance(connection, PoolProxiedConnection) or (connection is None and cursor is not None):
                self._failed(e, connection, is_disconnect=bool(answer))
            return answer

        return is_disconnect

    def _failed(self, error: BaseException, connection: Any, *, is_disconnect: bool) -> None:
        recorder: Recorder | None = None
        try:
            if not fork.mark[0] and not fork.notice():
                return  # a forked child that is leaving the blocks of its parent
            recorder = self._recorder_of(connection)
            # While one error is being handled, its consequences are no errors of their own.
            if (
                recorder is not None
                and not (error.__context__ is not None and _handles_another())
                and not self._has_ended(connection)
            ):
                recorder.failed(classified(error, "statement", is_disconnect=is_disconnect))
        except Exception as fault:
            if not (is_own(fault) if recorder is None else recorder.fault(fault)):
                raise

    def _recorder_of(self, connection: Any) -> Recorder | None:
        """Return the recorder of the pool that has a connection; of the newest pool if the connection has left it."""
        record = connection and record_of(connection)
        recorders = [recorder for each in self.recorders if (recorder := each()) is not None]
        if record is None:
            return recorders[0] if recorders else None
        return next((one for one in recorders if one.connections.has(record)), None)


def _is_own_error(error: BaseException, dialect: Any) -> bool:
    """Return whether an error is of the driver's own class, which SQLAlchemy otherwise hides in one of its dialect."""
    return type(error).__module__.partition(".")[0] == str(dialect.driver)


def _is_of_driver(error: BaseException, dialect: Any) -> bool:
    """Return whether the driver raised an error, and not the application's time limit."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    module = "" if step is None else str(step.tb_frame.f_globals.get("__name__"))
    return bool(module.partition(".")[0] == dialect.driver)


def _handles_another() -> bool:
    """Return whether SQLAlchemy handles an error that struck while it handled another one of the same connection."""
    handling: list[FrameType] = []
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == HANDLE_ERROR_FUNCTION:
            handling.append(frame)
        frame = frame.f_back
    connections = [each.f_locals.get("self") for each in handling] if len(handling) > 1 else [None]
    return any(connection is connections[0] for connection in connections[1:])
