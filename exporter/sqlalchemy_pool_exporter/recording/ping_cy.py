# SPDX-License-Identifier: Apache-2.0
"""Pre-pings. No event and no method of the pool shows them, so the ping method of the dialect is wrapped."""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.pool import base

from sqlalchemy_pool_exporter.metrics import BUCKETS
from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.block import PING, SUM
from sqlalchemy_pool_exporter.segment.own_errors import is_own

from .classification import classified
from .dialect_tap import DialectTap
from .sqlalchemy_pool import PING_METHODS

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.c_api import (
        address,
        bytes_of,
        doubles,
        monotonic,
        slot,
        slot_at,
    )
    from cython.cimports.sqlalchemy_pool_exporter.recording.connection_row_cy import ConnectionRow
    from cython.cimports.sqlalchemy_pool_exporter.recording.recorder_state_cy import RecorderState
else:
    address = id

if not cython.compiled and TYPE_CHECKING:
    from .connection_row_cy import ConnectionRow
    from .recorder import Recorder as RecorderState

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_BUCKET: Final = BUCKETS[0]


class PingTap(DialectTap):
    """Wraps the ping of a dialect, and times each ping for the pool that has the connection."""

    METHODS = PING_METHODS

    def make_hook(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a function that pings and records it."""
        return ping_hook(self, original)


def ping_hook(tap: PingTap, original: Callable[[Any], Any]) -> Callable[[Any], Any]:  # noqa: C901, PLR0915
    """Return the wrapper around a ping. There are few calls in it, because each checkout with pre-ping runs through it.

    Args:
        tap: has the recorders of the pools that use the dialect.
        original: the method that is wrapped.
    """
    notice_fork = fork.notice
    system_clock = time.monotonic
    first: cython.Py_ssize_t = PING
    total: cython.Py_ssize_t = PING + SUM
    first_bucket: cython.double = _FIRST_BUCKET
    if cython.compiled:
        mark: cython.p_uchar = bytes_of(fork.mark)
        record_class = base._ConnectionRecord
        connection_at: cython.Py_ssize_t = slot_at(record_class, "dbapi_connection")
    else:
        mark = fork.mark

    def ping(dbapi_connection: Any) -> Any:  # noqa: C901, PLR0912, PLR0915 - a call would cost
        recorder: RecorderState | None = None
        row: ConnectionRow | None
        found: ConnectionRow | None = None
        began: cython.double = 0.0
        elapsed: cython.double
        bucket: cython.Py_ssize_t
        try:
            if not mark[0]:  # a forked child
                notice_fork()
            recorders: list[Any] = tap.recorders
            for reference in recorders:
                recorder = reference()
                if recorder is None:
                    continue
                row = recorder.rows_by_id.get(address(dbapi_connection))
                if row is None:
                    continue
                record = row.record_ref()
                if record is None:
                    continue
                if cython.compiled:
                    connection = slot(record, record_class, connection_at, "dbapi_connection")
                else:
                    connection = record.dbapi_connection
                # The id of an object can be reused, so check that the record has this connection.
                if connection is dbapi_connection:
                    found = row
                    if cython.compiled:
                        began = monotonic() if recorder.clock is system_clock else recorder.clock()
                    else:
                        began = recorder.clock()
                    break
        except Exception as error:
            if not (is_own(error) if recorder is None else recorder.fault(error)):
                raise
        if recorder is None or found is None:
            return original(dbapi_connection)
        try:
            answer = original(dbapi_connection)
        except BaseException as error:
            _pinged(recorder, found, began, error)
            raise
        if not answer or not began:
            _pinged(recorder, found, began, alive=bool(answer))
            return answer
        try:
            if cython.compiled:
                elapsed = (monotonic() if recorder.clock is system_clock else recorder.clock()) - began
            else:
                elapsed = recorder.clock() - began
            bucket = first if elapsed <= first_bucket else first + bisect_left(BUCKETS, elapsed)
            if cython.compiled:
                block: cython.p_double = doubles(recorder.block)
            else:
                block = recorder.block
            # straight line
            block[bucket] += 1.0
            block[total] += elapsed
            # end of straight line
        except Exception as error:
            if not recorder.fault(error):
                raise
        return answer

    return ping


def _pinged(
    recorder: RecorderState,
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
