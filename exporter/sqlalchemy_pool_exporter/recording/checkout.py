# SPDX-License-Identifier: Apache-2.0
"""The hot path: the two hooks that every checkout and every return runs through.

They use names of SQLAlchemy that it does not publish; all others are in ``sqlalchemy_pool``.

Each records in its own ``try``: a fault in recording is counted and never reaches the application, and what the
application's call raises is raised on, untouched.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import exc

from sqlalchemy_pool_exporter.metrics import BUCKETS, ERROR_REASONS
from sqlalchemy_pool_exporter.segment.block import (
    CHECKOUT_ERRORS,
    CHECKOUT_TIMEOUTS,
    HOLD,
    LAST_CHECKIN,
    LEAKED_CHECKOUTS,
    SCRATCH,
    SUM,
    UNTRACKED,
    WAIT,
)

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable
    from types import CodeType

    from .connection_row import ConnectionRow
    from .recorder import Recorder

_CONNECT_ERROR, _CANCELLED, _OTHER_ERROR = (CHECKOUT_ERRORS + at for at in range(len(ERROR_REASONS)))
_FIRST_BUCKET: Final = BUCKETS[0]


class SlowPath(Protocol):
    """What records the checkouts and returns that are not recorded here."""

    def checked_out(self, connection: Any, began: float, error: Exception) -> object:
        """Record a checkout that raised ``error`` on the hot path."""

    def returned(self, record: Any, row: ConnectionRow, since: float) -> object:
        """Record a return, before it happens; ``row`` is marked as returned already."""

    def return_failed(self, record: Any, error: Exception) -> object:
        """Record a return that raised ``error`` on the hot path."""

    def release_if_discarded(self, record: Any) -> object:
        """Free the row of a record that went back without a connection, if the pool did not keep it."""


def connect_hook(
    slow_path: SlowPath, recorder: Recorder, original: Callable[[], Any], creator: CodeType
) -> Callable[[], Any]:
    """Return what stands in for the ``connect()`` of a pool.

    Args:
        slow_path: records what is not recorded here.
        recorder: the recorder of the pool.
        original: the method that it stands in for.
        creator: the code of the hook around the creator, by which a traceback says that connecting failed.
    """
    take, give, clock = recorder.waiters.free.pop, recorder.waiters.free.append, recorder.clock
    wait_first, wait_sum, first_bucket = WAIT, WAIT + SUM, _FIRST_BUCKET

    def connect() -> Any:
        waiter, began = SCRATCH, 0.0
        try:
            try:
                waiter = take()
                recorder.block[waiter] = began = clock()
            except IndexError:  # no free slot yet
                waiter, began = recorder.acquire_waiter(waiter)
            except Exception as error:  # noqa: BLE001 - recording never raises
                recorder.fault(error)
            connection = original()
        except BaseException as error:
            try:
                # No call before this store, here and below: an interrupt would leave a caller pending for ever.
                recorder.block[waiter] = 0.0
                recorder.checkout_failed(waiter, began, _error_field(error, connect.__code__, creator))
            except Exception as fault:  # noqa: BLE001 - recording never raises
                recorder.fault(fault)
            raise
        # The hot path is 2. What raises (3 and 4) is for the slow path to tell apart.
        # 1. SingletonThreadPool hands one proxy out again to the thread that holds it: no new checkout.
        # 2. The record has a row: the checkout is stored there.
        # 3. The record has none, since it connected before its pool was instrumented.
        # 4. The recording failed, or the pool is not instrumented any more.
        try:
            recorder.block[waiter] = 0.0
            if waiter > UNTRACKED:
                give(waiter)
            elif waiter == UNTRACKED:
                recorder.release_waiter(waiter)
            now = clock()
            record = connection._connection_record
            holder = record.fairy_ref
            row = record._pool_exporter_row
            if record._pool_exporter_holder is not holder:
                record._pool_exporter_holder = holder
                wait = now - began
                # Most waits fall into the first bucket; the comparison costs a fifth of the search.
                bucket = wait_first if wait <= first_bucket else wait_first + bisect_left(BUCKETS, wait)
                block = recorder.block
                # straight line
                row.table[row.held_at] = now
                block[bucket] += 1.0
                block[wait_sum] += wait
                # end of straight line
        except Exception as error:  # noqa: BLE001 - recording never raises
            slow_path.checked_out(connection, began, error)
        return connection

    return connect


def return_hook(
    slow_path: SlowPath, recorder: Recorder, original: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Return what stands in for the ``_do_return_conn()`` of a pool."""
    clock = recorder.clock
    hold_first, hold_sum, first_bucket = HOLD, HOLD + SUM, _FIRST_BUCKET

    def _do_return_conn(record: Any) -> Any:
        vacant = False
        # The hot path is 1.
        # 1. A connection that was checked out comes back.
        # 2. There is no connection any more, or its checkout was not seen, or it was not checked out.
        # 3. The record has no row, since its connection was out when its pool was instrumented; or a fault.
        try:
            vacant = record.dbapi_connection is None
            row = record._pool_exporter_row
            # straight line: before the record goes back, since the next holder may have it at once, and before any
            # call, since an interrupt would leave it in use for ever
            since = row.table[row.held_at]
            row.table[row.held_at] = 0.0
            # end of straight line
            if since > 0.0 and not vacant:
                now = clock()
                held = now - since
                bucket = hold_first if held <= first_bucket else hold_first + bisect_left(BUCKETS, held)
                collected = record._pool_exporter_holder() is None
                # Dropped before the proxy is, like SQLAlchemy's own, or its callback would be called each time.
                record._pool_exporter_holder = None
                block = recorder.block
                # straight line
                block[bucket] += 1.0
                block[hold_sum] += held
                block[LAST_CHECKIN] = now
                if collected:
                    block[LEAKED_CHECKOUTS] += 1.0
                # end of straight line
            else:
                slow_path.returned(record, row, since)
        except Exception as error:  # noqa: BLE001 - recording never raises
            slow_path.return_failed(record, error)
        finally:
            # Also if a signal handler raised in between: a record that does not go back is lost to the pool.
            result = original(record)
        if vacant:
            slow_path.release_if_discarded(record)
        return result

    return functools.update_wrapper(_do_return_conn, original)


def mark_held(record: Any, row: ConnectionRow, holder: weakref.ref[Any] | None, before: float) -> None:
    """Mark a connection as checked out if it still is, although its checkout was not seen.

    Args:
        record: the record of the connection.
        row: the row of the record.
        holder: refers to the proxy that the holder has, if it is known.
        before: a moment at which it was checked out already.
    """
    since, table, held_at = -before, row.table, row.held_at
    # straight line: the holder may return it at any moment
    if record.fairy_ref is not None and not table[held_at]:
        record._pool_exporter_holder = holder
        table[held_at] = since
    # end of straight line


def _error_field(error: BaseException, connect: CodeType, creator: CodeType) -> int:
    """Return the field that counts a checkout that raised ``error``."""
    if not isinstance(error, Exception):
        return _CANCELLED
    if _failed_to_connect(error, connect, creator):
        return _CONNECT_ERROR
    return CHECKOUT_TIMEOUTS if isinstance(error, exc.TimeoutError) else _OTHER_ERROR


def _failed_to_connect(error: BaseException, connect: CodeType, creator: CodeType) -> bool:
    """Return whether ``error`` came out of the driver's connect, which only its traceback says.

    A driver can raise any exception. Behind the hook of another checkout, which a listener or a creator makes of
    another pool, it is that checkout that failed to connect.
    """
    frame = error.__traceback__ and error.__traceback__.tb_next
    while frame:
        code = frame.tb_frame.f_code
        if code is connect:
            return False
        if code is creator:
            return True
        frame = frame.tb_next
    return False
