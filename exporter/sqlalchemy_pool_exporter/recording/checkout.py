# SPDX-License-Identifier: Apache-2.0
"""The hot path: the two hooks that every checkout and every return runs through.

These hooks use private names of SQLAlchemy themselves; the other modules get theirs from ``sqlalchemy_pool``.

Each hook records in its own ``try``. A fault in recording is counted and never reaches the application. An exception of
the application's call is raised again unchanged.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import exc

from sqlalchemy_pool_exporter.metrics import BUCKETS, ERROR_REASONS
from sqlalchemy_pool_exporter.segment import fork
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
    """Records the checkouts and returns that the hot path does not."""

    def checked_out(self, connection: Any, began: float, error: Exception) -> object:
        """Record a checkout that raised ``error`` on the hot path."""

    def returned(self, record: Any, row: ConnectionRow, since: float) -> object:
        """Record a return before the record goes back; ``row`` is already marked as returned."""

    def return_failed(self, record: Any, error: Exception) -> object:
        """Record a return that raised ``error`` on the hot path."""

    def release_if_discarded(self, record: Any) -> object:
        """Free the row of a record that went back without a connection, if the pool did not keep the record."""


def connect_hook(  # noqa: C901 - a call would cost
    slow_path: SlowPath, recorder: Recorder, original: Callable[[], Any], creator: CodeType
) -> Callable[[], Any]:
    """Return the wrapper around a pool's ``connect()``.

    Args:
        slow_path: records what the wrapper does not.
        recorder: the recorder of the pool.
        original: the method that is wrapped.
        creator: the code of the wrapper around the creator. If an exception's traceback contains it, connecting failed.
    """
    take, give, clock = recorder.waiters.free.pop, recorder.waiters.free.append, recorder.clock
    mark, notice_fork = fork.mark, fork.notice
    wait_first, wait_sum, first_bucket = WAIT, WAIT + SUM, _FIRST_BUCKET

    def connect() -> Any:  # noqa: C901 - as above
        waiter, began, here = SCRATCH, 0.0, mark[0]
        try:
            try:
                if not here:  # a forked child
                    here = notice_fork()
                waiter = take()
                recorder.block[waiter] = began = clock()
            except IndexError:  # no free slot yet
                waiter, began = recorder.acquire_waiter(waiter)
            except Exception as error:  # noqa: BLE001 - recording never raises
                recorder.fault(error)
            connection = original()
        except BaseException as error:
            try:
                # Here and below, no call may come before this store: an exception of a signal handler in that call
                # would leave the caller pending for ever.
                if mark[0] != here:  # forked meanwhile: the slot is the parent's
                    waiter = _no_waiter()
                recorder.block[waiter] = 0.0
                recorder.checkout_failed(waiter, began, _error_field(error, connect.__code__, creator))
            except Exception as fault:  # noqa: BLE001 - recording never raises
                recorder.fault(fault)
            raise
        # Four cases. 2 is the hot path; 3 and 4 raise, and the slow path tells them apart.
        # 1. SingletonThreadPool gives a thread the proxy that it already holds: no new checkout.
        # 2. The record has a row, and the checkout is stored in it.
        # 3. The record has no row, because it connected before its pool was instrumented.
        # 4. Recording failed, or the pool is no longer instrumented.
        try:
            if mark[0] != here:
                waiter = _no_waiter()
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
                # Most waits fall into the first bucket. The comparison costs a fifth of the search.
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
    """Return the wrapper around a pool's ``_do_return_conn()``."""
    clock, mark, notice_fork = recorder.clock, fork.mark, fork.notice
    hold_first, hold_sum, first_bucket = HOLD, HOLD + SUM, _FIRST_BUCKET

    def _do_return_conn(record: Any) -> Any:
        vacant = False
        # Three cases. 1 is the hot path; 2 and 3 are for the slow path.
        # 1. A connection whose checkout was recorded comes back.
        # 2. The record has lost its connection, or the checkout was not recorded, or there was none.
        # 3. The record has no row, because its connection was out when its pool was instrumented; or recording failed.
        try:
            if not mark[0]:  # a forked child
                notice_fork()
            vacant = record.dbapi_connection is None
            row = record._pool_exporter_row
            # straight line: before the record goes back, because another caller can check it out at once; before any
            # call, because an exception of a signal handler in that call would leave the row in use for ever
            since = row.table[row.held_at]
            row.table[row.held_at] = 0.0
            # end of straight line
            if since > 0.0 and not vacant:
                now = clock()
                held = now - since
                bucket = hold_first if held <= first_bucket else hold_first + bisect_left(BUCKETS, held)
                collected = record._pool_exporter_holder() is None
                # Drop this reference while the proxy lives, as SQLAlchemy drops its own: if the proxy went first, the
                # reference's callback would run at each return.
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
            # Even if a signal handler raised above: a record that does not go back is lost to the pool.
            result = original(record)
        if vacant:
            slow_path.release_if_discarded(record)
        return result

    return functools.update_wrapper(_do_return_conn, original)


def mark_held(record: Any, row: ConnectionRow, holder: weakref.ref[Any] | None, before: float) -> None:
    """Mark a connection as checked out, if it still is, although its checkout was not recorded.

    Args:
        record: the record of the connection.
        row: the row of the record.
        holder: a weak reference to the caller's proxy, if it is known.
        before: a time at which the connection was already checked out.
    """
    since, table, held_at = -before, row.table, row.held_at
    # straight line: in between, another thread could return the connection
    if record.fairy_ref is not None and not table[held_at]:
        record._pool_exporter_holder = holder
        table[held_at] = since
    # end of straight line


def _no_waiter() -> int:
    """In a child that was forked inside of ``connect()``: leave the parent's block; return the slot of no caller."""
    fork.notice()
    return SCRATCH


def _error_field(error: BaseException, connect: CodeType, creator: CodeType) -> int:
    """Return the field that counts a checkout that raised ``error``."""
    if not isinstance(error, Exception):
        return _CANCELLED
    if _failed_to_connect(error, connect, creator):
        return _CONNECT_ERROR
    return CHECKOUT_TIMEOUTS if isinstance(error, exc.TimeoutError) else _OTHER_ERROR


def _failed_to_connect(error: BaseException, connect: CodeType, creator: CodeType) -> bool:
    """Return whether ``error`` came out of the driver's connect.

    A driver can raise any exception, so only the traceback tells. A listener or a creator can check out of another
    instrumented pool. If the traceback reaches that pool's ``connect`` wrapper first, that checkout failed to connect
    and not this one.
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
