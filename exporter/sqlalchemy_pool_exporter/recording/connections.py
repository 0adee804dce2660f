# SPDX-License-Identifier: Apache-2.0
"""Physical connections: the hooks that see them open and close, and the events that tell why they close."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.pool import QueuePool, SingletonThreadPool

from sqlalchemy_pool_exporter.metrics import CLOSE_REASONS

from . import event_loops
from .classification import classified
from .connection_events import DISPOSE, ERROR, GC
from .connection_row_cy import row_of, was_collected
from .faults import never_raises
from .server_side import server_of
from .sqlalchemy_pool import CLOSE_CONNECTION, holds, is_set_up, why_terminated

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from sqlalchemy.pool import Pool

    from .connection_row_cy import ConnectionRow
    from .recorder import Recorder
    from .slow_path import SlowPath

try:
    # An asyncio engine runs each call in its own greenlet, and all of those in one thread.
    from greenlet import getcurrent as _current
except ImportError:  # pragma: no cover - SQLAlchemy 2.1 without the asyncio extra
    from threading import current_thread as _current

_OVERFLOW, _UNPOOLED = map(CLOSE_REASONS.index, ("overflow", "unpooled"))


def current_caller() -> object:
    """Return the identity of the current caller: its greenlet, or its thread."""
    return _current()


class _Closing(NamedTuple):
    """A connection that is about to be closed."""

    row: ConnectionRow
    reason: int
    for_good: bool


class ConnectionHooks:
    """Records how the physical connections of one pool object open and close."""

    __slots__ = ("_slow_path", "disposing", "pool", "recorder")

    def __init__(self, pool: Pool, recorder: Recorder, slow_path: SlowPath) -> None:
        self.pool = pool
        self._slow_path = slow_path
        self.recorder = recorder
        self.disposing: list[object] = []  # the mutable state: the callers that are inside dispose()

    def creator_hook(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return the wrapper around a pool's ``_invoke_creator()``."""

        @functools.wraps(original)
        def invoke_creator(record: Any) -> Any:
            began = self._now() or 0.0
            try:
                connection = original(record)
            except BaseException as error:
                self._connect_failed(began, error)
                raise
            try:
                self._connected(record, connection, began)
            except BaseException:
                # A time limit of the application: the record does not get the connection, so nobody else closes it.
                self._abandon(record, connection)
                raise
            return connection

        return invoke_creator

    @never_raises
    def _now(self) -> float:
        return self.recorder.clock()

    @never_raises
    def _connect_failed(self, began: float, error: BaseException) -> None:
        self.recorder.connect_failed(began)
        # A cancelled connect is no error.
        if isinstance(error, Exception):
            self.recorder.failed(classified(error, "connect", is_disconnect=False))

    @never_raises
    def _connected(self, record: Any, connection: object, began: float) -> None:
        self.recorder.connected(record, connection, began, server=self._server_of(connection) or 0.0)
        if self.recorder.watches_loops and isinstance(connection, AdaptedConnection):
            event_loops.watch(self.recorder)

    @never_raises
    def _server_of(self, connection: object) -> float:
        return server_of(connection)

    def _abandon(self, record: Any, connection: object) -> None:
        try:
            getattr(self.pool, CLOSE_CONNECTION)(connection, terminate=True)
        finally:
            self._abandoned(record, for_good=not is_set_up(record))

    @never_raises
    def _abandoned(self, record: Any, *, for_good: bool) -> None:
        row = row_of(record)
        if row is not None and row.has_connection:
            self.recorder.closed(row, ERROR, for_good=for_good)
        elif row is not None and for_good:
            self.recorder.release_row(row)

    def close_hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return the wrapper around a pool's ``_close_connection()``."""

        @functools.wraps(original)
        def close_connection(connection: Any, *args: Any, **kwargs: Any) -> Any:
            closing: _Closing | None = None
            try:
                try:
                    closing = self._closing(connection, terminate=kwargs.get("terminate", False))
                finally:
                    # Even if a time limit struck above: SQLAlchemy assumes that the connection is closed.
                    result = original(connection, *args, **kwargs)
                return result
            finally:
                # An interrupted close counts as a close: SQLAlchemy drops the connection all the same.
                if closing is not None:
                    self._closed(closing)

        return close_connection

    @never_raises
    def _closing(self, connection: object, *, terminate: bool) -> _Closing | None:
        row = self._row_that_closes(connection)
        record = row and row.record_ref()
        if row is None or not holds(record, connection):
            return None
        # SQLAlchemy discards a record if a listener raised while its first connection was set up.
        for_good = not terminate or not is_set_up(record)
        return _Closing(row, self._why(row, record, terminate=terminate), for_good)

    def _row_that_closes(self, connection: object) -> ConnectionRow | None:
        connections = self.recorder.connections
        sharing = connections.sharing(connection)
        if not sharing:
            return connections.find(connection)
        # A creator handed this connection to several records, and the hook is not told which one closes it. The caller
        # of the hook is a method of that record.
        frame: FrameType | None = inspect.currentframe()
        while frame is not None:
            caller = frame.f_locals.get("self")
            for row in sharing:
                if row.record_ref() is caller:
                    return row
            frame = frame.f_back
        return sharing[0]

    @never_raises
    def _closed(self, closing: _Closing) -> None:
        self.recorder.closed(closing.row, closing.reason, for_good=closing.for_good)

    def _why(self, row: ConnectionRow, record: Any, *, terminate: bool) -> int:
        """Return why a connection is being closed, an index into ``CLOSE_REASONS``.

        1. The pool closes it: the pool is being disposed of, or does not keep the connection.
        2. The record closes it, for a reason that an earlier hook noted: a failed ping or an invalidation.
        3. The record closes it, for a reason that its timestamps tell.
        """
        if not terminate:
            if current_caller() in self.disposing:
                return DISPOSE
            return _OVERFLOW if isinstance(self.pool, QueuePool | SingletonThreadPool) else _UNPOOLED
        return why_terminated(self.pool, record) if row.close_reason is None else row.close_reason

    # -- events

    @never_raises
    def on_invalidate(self, _connection: object, record: Any, _error: object) -> None:
        """Event: SQLAlchemy is about to close the connection of a record."""
        row = row_of(record)
        if row is not None:
            self.recorder.invalidated(row, GC if was_collected(record) else ERROR)

    @never_raises
    def on_soft_invalidate(self, _connection: object, record: Any, _error: object) -> None:
        """Event: SQLAlchemy will close the connection of a record at its next checkout."""
        self.recorder.soft_invalidated(row_of(record))

    @never_raises
    def on_close_detached(self, connection: object) -> None:
        """Event: SQLAlchemy closes a detached connection."""
        self.recorder.closed_detached(connection)
