# SPDX-License-Identifier: Apache-2.0
"""Pre-pings. No event and no method of the pool shows them, so the ping method of the dialect is wrapped."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.metrics import BUCKETS
from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.block import PING, SUM
from sqlalchemy_pool_exporter.segment.own_errors import is_own

from .classification import classified
from .dialect_tap import DialectTap
from .sqlalchemy_pool import PING_METHODS

if TYPE_CHECKING:
    from .connection_row import ConnectionRow
    from .recorder import Recorder

_FIRST_BUCKET: Final = BUCKETS[0]
_PING_SUM: Final = PING + SUM


class PingTap(DialectTap):
    """Wraps the ping of a dialect, and times each ping for the pool that has the connection."""

    METHODS = PING_METHODS

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
        except BaseException as error:
            _pinged(recorder, found, began, error)
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


def _pinged(
    recorder: Recorder,
    row: ConnectionRow,
    began: float,
    error: BaseException | None = None,
    *,
    alive: bool | None = None,
) -> None:
    try:
        recorder.pinged(row, began, alive=alive)
        # A cancelled ping is no error.
        if isinstance(error, Exception):
            recorder.failed(classified(error, "ping", is_disconnect=False))
    except Exception as fault:
        if not recorder.fault(fault):
            raise
