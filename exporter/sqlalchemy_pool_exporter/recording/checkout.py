# SPDX-License-Identifier: Apache-2.0
"""The hot path: the two hooks that every checkout and every return runs through.

Each records in its own ``try``: a fault in recording is counted and never reaches the application, and what the
application's call raises is raised on, untouched.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

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
    from collections.abc import Callable
    from types import CodeType

    from .hooks import Hooks
    from .recorder import Recorder

_CONNECT_ERROR, _CANCELLED, _OTHER_ERROR = (CHECKOUT_ERRORS + at for at in range(len(ERROR_REASONS)))
_FIRST_BUCKET: Final = BUCKETS[0]
# The hook of ``_invoke_creator``, as tracebacks name it.
_CREATOR_NAME: Final = "Hooks._creator_hook.<locals>.invoke_creator"


def connect_hook(hooks: Hooks, recorder: Recorder, original: Callable[[], Any]) -> Callable[[], Any]:
    """Return what stands in for the ``connect()`` of a pool."""
    take, give, clock = recorder.waiters.pop, recorder.waiters.append, recorder.clock
    wait_first, wait_sum, first_bucket = WAIT, WAIT + SUM, _FIRST_BUCKET

    def connect() -> Any:
        waiter, began = SCRATCH, 0.0
        try:
            try:
                waiter = take()
                recorder.block[waiter] = began = clock()
            except IndexError:  # no free slot yet
                waiter, began = recorder.enter(waiter)
            except Exception as error:  # noqa: BLE001 - recording never raises
                recorder.fault(error)
            connection = original()
        except BaseException as error:
            try:
                # No call before this store, here and below: an interrupt would leave a caller pending for ever.
                recorder.block[waiter] = 0.0
                recorder.checkout_failed(waiter, began, _error_field(error, connect.__code__))
            except Exception as fault:  # noqa: BLE001 - recording never raises
                recorder.fault(fault)
            raise
        try:
            recorder.block[waiter] = 0.0
            if waiter > UNTRACKED:
                give(waiter)
            elif waiter == UNTRACKED:
                recorder.leave(waiter)
            now = clock()
            record = connection._connection_record
            holder = record.fairy_ref
            place = record._pool_exporter_place
            # SingletonThreadPool hands one proxy out again to the thread that holds it: no new checkout.
            if record._pool_exporter_holder is not holder:
                record._pool_exporter_holder = holder
                wait = now - began
                # Most waits fall into the first bucket; the comparison costs a fifth of the search.
                bucket = wait_first if wait <= first_bucket else wait_first + bisect_left(BUCKETS, wait)
                block = recorder.block
                # straight line
                place.table[place.held] = now
                block[bucket] += 1.0
                block[wait_sum] += wait
                # end of straight line
        except Exception as error:  # noqa: BLE001 - a record never seen, or a fault
            hooks.checked_out_unseen(connection, began, error)
        return connection

    return connect


def return_hook(hooks: Hooks, recorder: Recorder, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what stands in for the ``_do_return_conn()`` of a pool."""
    clock = recorder.clock
    hold_first, hold_sum, first_bucket = HOLD, HOLD + SUM, _FIRST_BUCKET

    def _do_return_conn(record: Any) -> Any:
        vacant = False
        try:
            vacant = record.dbapi_connection is None
            place = record._pool_exporter_place
            # straight line: before the record goes back, since the next holder may have it at once, and before any
            # call, since an interrupt would leave it in use for ever
            since = place.table[place.held]
            place.table[place.held] = 0.0
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
                hooks.returned(record, place, since)
        except Exception as error:  # noqa: BLE001 - a record never seen, or a fault
            hooks.returned_unseen(record, error)
        finally:
            # Also if a signal handler raised in between: a record that does not go back is lost to the pool.
            result = original(record)
        if vacant:
            hooks.settle(record)
        return result

    return functools.update_wrapper(_do_return_conn, original)


def _error_field(error: BaseException, connect: CodeType) -> int:
    """Return the field that counts a checkout that raised ``error``."""
    if not isinstance(error, Exception):
        return _CANCELLED
    if _failed_to_connect(error, connect):
        return _CONNECT_ERROR
    return CHECKOUT_TIMEOUTS if isinstance(error, exc.TimeoutError) else _OTHER_ERROR


def _failed_to_connect(error: BaseException, connect: CodeType) -> bool:
    # Any exception can come out of a driver; that it came out of it is written in its traceback. What lies behind
    # another checkout, one that a listener or a creator makes of another pool, is that one's failure.
    frame = error.__traceback__ and error.__traceback__.tb_next
    while frame:
        name = frame.tb_frame.f_code.co_qualname
        if frame.tb_frame.f_code is connect:
            return False
        if name == _CREATOR_NAME:
            return True
        frame = frame.tb_next
    return False
