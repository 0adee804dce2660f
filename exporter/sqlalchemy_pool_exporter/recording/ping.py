# SPDX-License-Identifier: Apache-2.0
"""Pre-pings. No event and no method of the pool shows them, so the ping method of the dialect is wrapped."""

from __future__ import annotations

import functools
import weakref
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.metrics import BUCKETS
from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.block import PING, SUM
from sqlalchemy_pool_exporter.segment.own_errors import is_own

from .sqlalchemy_pool import PING_METHODS

if TYPE_CHECKING:
    from .connection_row import ConnectionRow
    from .recorder import Recorder

_FIRST_BUCKET: Final = BUCKETS[0]
_PING_SUM: Final = PING + SUM


class PingTap:
    """Wraps the ping of a dialect, and times each ping for the pool that has the connection.

    There is one tap for each dialect, because pools can share a dialect: those before and after ``dispose()`` do.
    """

    def __init__(self, dialect: Any, name: str) -> None:
        self._name = name
        self._original = getattr(dialect, name)
        self._was_set = name in dialect.__dict__
        self._recorders: list[weakref.ref[Recorder]] = []
        functools.update_wrapper(self, self._original)

    def __call__(self, dbapi_connection: Any) -> Any:  # noqa: C901 - a call would cost
        """Ping and record it. There are few calls here, because each checkout with pre-ping runs through it."""
        recorder: Recorder | None = None
        found, began = None, 0.0
        try:
            if not fork.mark[0]:  # a forked child
                fork.notice()
            for reference in self._recorders:
                recorder = reference()
                row = None if recorder is None else recorder.connections.by_id.get(id(dbapi_connection))
                record = row and row()
                # The id of an object can be reused, so check that the record has this connection.
                if recorder and record and record.dbapi_connection is dbapi_connection:
                    found = row
                    began = recorder.clock()
                    break
        except Exception as error:
            if not (is_own(error) if recorder is None else recorder.fault(error)):
                raise
        if recorder is None or found is None:
            return self._original(dbapi_connection)
        try:
            answer = self._original(dbapi_connection)
        except BaseException:
            _pinged(recorder, found, began, alive=None)
            raise
        if not answer or not began:
            _pinged(recorder, found, began, alive=bool(answer))
            return answer
        try:
            elapsed = recorder.clock() - began
            bucket = PING if elapsed <= _FIRST_BUCKET else PING + bisect_left(BUCKETS, elapsed)
            block = recorder.block
            # straight line
            block[bucket] += 1.0
            block[_PING_SUM] += elapsed
            # end of straight line
        except Exception as error:
            if not recorder.fault(error):
                raise
        return answer

    @classmethod
    def attach(cls, dialect: Any, recorder: Recorder) -> None:
        """Time the pings of the pool that ``recorder`` records; wrap the dialect's ping if no other pool has."""
        name = next(name for name in PING_METHODS if hasattr(dialect, name))
        tap = dialect.__dict__.get(name)
        if not isinstance(tap, cls):
            tap = cls(dialect, name)
            setattr(dialect, name, tap)
        tap.add(recorder)

    @classmethod
    def detach(cls, dialect: Any, recorder: Recorder) -> None:
        """Stop timing the pings of this pool; after the last pool, restore the dialect."""
        for name in PING_METHODS:
            tap = getattr(dialect, "__dict__", {}).get(name)
            if isinstance(tap, cls) and not tap.remove(recorder):
                tap.restore(dialect)

    def add(self, recorder: Recorder) -> None:
        """Time the pings of a pool."""
        self.remove(recorder)
        # First: those of pools that were replaced are hardly used.
        self._recorders = [weakref.ref(recorder), *self._recorders]

    def remove(self, recorder: Recorder) -> bool:
        """Forget a pool, and pools that were garbage-collected; return whether any pool is left."""
        self._recorders = [other for other in self._recorders if other() not in {None, recorder}]
        return bool(self._recorders)

    def restore(self, dialect: Any) -> None:
        """Put the dialect's own method back."""
        if self._was_set:
            setattr(dialect, self._name, self._original)
        else:
            delattr(dialect, self._name)


def _pinged(recorder: Recorder, row: ConnectionRow, began: float, *, alive: bool | None) -> None:
    try:
        recorder.pinged(row, began, alive=alive)
    except Exception as error:
        if not recorder.fault(error):
            raise
