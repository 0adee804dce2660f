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
from .connection_row_cy import Phases
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
        call_with,
        doubles,
        monotonic,
        referent,
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
    notice_fork, current = fork.notice, tap.current
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
        has_begun: cython.bint = False
        has_ended: cython.bint = False
        began: cython.double = 0.0
        elapsed: cython.double
        bucket: cython.Py_ssize_t
        # One ``try`` for what comes before the ping, the ping, and what comes after it: each takes 50 instructions.
        try:
            if not mark[0]:  # a forked child
                notice_fork()
            recorders: list[Any] = current[0]
            for reference in recorders:
                if cython.compiled:
                    recorder = referent(reference)
                else:
                    recorder = reference()
                if recorder is None:
                    continue
                row = recorder.rows_by_id.get(address(dbapi_connection))
                if row is None:
                    continue
                # The id of an object can be reused, so check that the record has this connection.
                if cython.compiled:
                    record = referent(row.record_ref)
                    if (
                        record is None
                        or slot(record, record_class, connection_at, "dbapi_connection")
                        is not dbapi_connection
                    ):
                        continue
                    if recorder.clock is system_clock:
                        began = monotonic()
                    else:
                        began = recorder.clock()
                else:
                    record = row.record_ref()
                    if record is None or record.dbapi_connection is not dbapi_connection:
                        continue
                    began = recorder.clock()
                found = row
                break
            has_begun = True
            if cython.compiled:
                answer = call_with(original, dbapi_connection)
            else:
                answer = original(dbapi_connection)
            has_ended = True
            if recorder is None or found is None:
                return answer
            if answer and began:
                if cython.compiled:
                    if recorder.clock is system_clock:
                        elapsed = monotonic() - began
                    else:
                        elapsed = recorder.clock() - began
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
                if elapsed > first_bucket:
                    phases = Phases.of(found)
                    phases.ping_began, phases.pinging = began, elapsed
                return answer
        except BaseException as error:
            if has_begun and not has_ended:
                if recorder is not None and found is not None:
                    _pinged(recorder, found, began, error)
                raise
            if not isinstance(error, Exception):
                raise
            if not (is_own(error) if recorder is None else recorder.fault(error)):
                raise
            if has_ended:
                return answer
        if not has_begun:
            return original(dbapi_connection)
        _pinged(recorder, found, began, alive=bool(answer))
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
