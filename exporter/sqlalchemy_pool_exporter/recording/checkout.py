# SPDX-License-Identifier: Apache-2.0
"""The hot path: the two hooks that every checkout and every return runs through.

These hooks use private names of SQLAlchemy themselves; the other modules get theirs from ``sqlalchemy_pool``.

Each hook records in its own ``try``. A fault in recording is counted and never reaches the application. An exception of
the application's call is raised again unchanged.
"""

from __future__ import annotations

import functools
from asyncio.events import _get_running_loop
from bisect import bisect_left
from threading import get_ident
from types import CodeType
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import exc

from sqlalchemy_pool_exporter.metrics import BUCKETS, ERROR_REASONS
from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.block import (
    CHECKINS_UNTIMED,
    CHECKOUT_ERRORS,
    CHECKOUT_TIMEOUTS,
    DETACHES,
    EMPTY,
    HOLD,
    LAST_CHECKIN,
    LEAKED_CHECKOUTS,
    SCRATCH,
    SERVER_PID,
    SUM,
    UNTRACKED,
    UNTRACKED_PENDING,
    WAIT,
)
from sqlalchemy_pool_exporter.segment.entries import LEAKED
from sqlalchemy_pool_exporter.segment.own_errors import is_own

from . import nesting
from .holders import holder_in, holder_of_call, new_for_thread
from .labels import current_label

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

    from sqlalchemy_pool_exporter.segment.pool_block import SiteEntry

    from .connection_row import ConnectionRow, Holder
    from .recorder import Recorder
    from .sqlalchemy_pool import FillLevel

_CONNECT_ERROR, _CANCELLED, _OTHER_ERROR = (CHECKOUT_ERRORS + at for at in range(len(ERROR_REASONS)))
_FIRST_BUCKET: Final = BUCKETS[0]


class SlowPath(Protocol):
    """Records the checkouts and returns that the hot path does not."""

    pool: Any

    def checked_out(self, connection: Any, began: float, error: BaseException) -> object:
        """Record a checkout that raised ``error`` on the hot path."""

    def record_late(self, connection: Any, began: float) -> Any:
        """Record a checkout that the hot path could not; return the connection."""

    def timed_out(self, began: float, site: SiteEntry | None, holder: Holder | None) -> object:
        """Report who has the connections, after a checkout timed out."""

    def take_back(self, connection: Any, began: float) -> object:
        """Return a connection that its caller will not get, because a time limit struck."""

    def returned(self, record: Any, row: ConnectionRow, since: float) -> object:
        """Record a return before the record goes back."""

    def return_failed(self, record: Any, error: BaseException) -> object:
        """Record a return that raised ``error`` on the hot path."""

    def release_if_discarded(self, record: Any) -> object:
        """Free the row of a record that went back without a connection, if the pool did not keep the record."""


def connect_hook(  # noqa: C901, PLR0915 - a call would cost, and a time limit could strike in it
    slow_path: SlowPath,
    recorder: Recorder,
    original: Callable[[], Any],
    creator: CodeType,
    level: FillLevel | None = None,
) -> Callable[[], Any]:
    """Return the wrapper around a pool's ``connect()``.

    Args:
        slow_path: records what the wrapper does not.
        recorder: the recorder of the pool.
        original: the method that is wrapped.
        creator: the code of the wrapper around the creator. If an exception's traceback contains it, connecting failed.
        level: how full the pool must be for the site of a checkout to be found; None for each checkout.
    """
    free, clock, origins = recorder.waiters.free, recorder.clock, recorder.origins
    find = origins.find if origins is not None else _no_site
    pool, idle, least = (slow_path.pool, None, 0) if level is None else level
    give, mark, generation, notice_fork = free.append, fork.mark, fork.generation, fork.notice
    wait_first, wait_sum, first_bucket, get_label = WAIT, WAIT + SUM, _FIRST_BUCKET, current_label.get
    running_loop, get_holder = _get_running_loop, holder_of_call.get

    def connect() -> Any:  # noqa: C901, PLR0912, PLR0915 - see above
        waiter, began, here = SCRATCH, 0.0, generation[0]
        who, outer = None, None
        try:
            try:
                if not mark[0]:  # a forked child
                    notice_fork()
                    here = generation[0]
                try:
                    # A call would lose the slot to a time limit. A debugger can switch threads between two lines.
                    waiter = free[-1]; del free[-1]  # fmt: skip # noqa: E702
                except IndexError:  # no free slot yet
                    waiter, began = recorder.acquire_waiter()
                else:
                    recorder.block[waiter] = began = clock()
                if origins is not None:
                    # As current_holder() does; to call it takes twice as long.
                    loop = running_loop()
                    if loop is not None:
                        who = holder_in(loop)
                    else:
                        known = get_holder()
                        if known is None or known.thread_id != get_ident():
                            known = new_for_thread()
                        who = known
                    if who.rows:
                        outer = nesting.began(recorder, who, began) or None
            except Exception as error:
                if not recorder.fault(error):
                    raise
            connection = original()
        except BaseException as error:
            try:
                # Here and below, no call may come before these stores: a time limit that strikes in that call would
                # leave the caller pending for ever, or its slot in use.
                if generation[0] != here:  # forked meanwhile: the slot is the parent's
                    waiter = _no_waiter()
                recorder.block[waiter] = 0.0
                if waiter > UNTRACKED:
                    give(waiter)
                elif waiter == UNTRACKED:
                    recorder.block[UNTRACKED_PENDING] -= 1.0
                field = _error_field(error, connect.__code__, creator)
                recorder.checkout_failed(began, field)
                if outer is not None:
                    nesting.ended(outer, by_timeout=field == CHECKOUT_TIMEOUTS)
                if field == CHECKOUT_TIMEOUTS:
                    site = find()
                    if outer is not None:
                        nesting.timed_out(site, who)
                    slow_path.timed_out(began, site, who)
            except Exception as fault:
                if not recorder.fault(fault):
                    raise
            raise
        # Four cases. 2 is the hot path; 3 and 4 raise, and the slow path tells them apart.
        # 1. SingletonThreadPool gives a thread the proxy that it already holds: no new checkout.
        # 2. The record has a row, and the checkout is stored in it.
        # 3. The record has no row, because it connected before its pool was instrumented.
        # 4. Recording failed, or the pool is no longer instrumented, or the process forked meanwhile, or a time limit
        #    of the application struck.
        try:
            if generation[0] != here:
                waiter = _no_waiter()
            recorder.block[waiter] = 0.0
            if waiter > UNTRACKED:
                give(waiter)
            elif waiter == UNTRACKED:
                recorder.block[UNTRACKED_PENDING] -= 1.0
            if outer is not None:
                nesting.ended(outer)
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
                if who is None:
                    if not began or origins is not None:
                        return slow_path.record_late(connection, began)
                    # straight line
                    row.table[row.held_at] = now
                    block[bucket] += 1.0
                    block[wait_sum] += wait
                    # end of straight line
                else:
                    # To find the site takes time, and it says most when others may soon have to wait.
                    if idle is None or pool._overflow - len(idle) >= least:
                        site = find()
                    else:
                        site = recorder.storage.other_sites
                    label = get_label().number
                    if outer is not None:
                        nesting.checked_out(row, outer)
                    if recorder.block is not block:
                        # The process forked, or the recorder was stopped: another pool may have the site's place now.
                        return slow_path.record_late(connection, began)
                    # straight line, with the comparison above
                    counts = site.table
                    at = site.at
                    table = row.table
                    held_at = row.held_at
                    who.rows[row.record_id] = row
                    table[held_at] = now
                    # A comparison costs a tenth of a store, and most callers are those of the last checkout.
                    if row.site is not site:
                        row.site = site
                        table[held_at + 1] = site.number
                    if row.holder is not who:
                        row.holder = who
                        table[held_at + 2] = who.number
                    if row.label != label:
                        row.label = label
                        table[held_at + 3] = label
                    counts[at] += 1.0
                    block[bucket] += 1.0
                    block[wait_sum] += wait
                    # end of straight line
        except BaseException as error:  # noqa: BLE001 - recording never raises
            try:
                if not is_own(error):
                    raise
                slow_path.checked_out(connection, began, error)
            except BaseException:
                slow_path.take_back(connection, began)
                raise
        return connection

    return connect


# The code of every wrapper that connect_hook() returns.
CONNECT_CODE: Final = next(
    code
    for code in connect_hook.__code__.co_consts
    if isinstance(code, CodeType) and code.co_name == "connect"
)


def return_hook(  # noqa: C901, PLR0915 - as above
    slow_path: SlowPath, recorder: Recorder, original: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Return the wrapper around a pool's ``_do_return_conn()``."""
    clock, mark, notice_fork = recorder.clock, fork.mark, fork.notice
    hold_first, hold_sum, first_bucket = HOLD, HOLD + SUM, _FIRST_BUCKET

    def _do_return_conn(record: Any) -> Any:  # noqa: C901, PLR0912, PLR0915 - as above
        row, vacant = None, False
        # Three cases. 1 is the hot path; 2 and 3 are for the slow path.
        # 1. A connection whose checkout was recorded comes back.
        # 2. The record has lost its connection, or the checkout was not recorded, or there was none.
        # 3. The record has no row, because its connection was out when its pool was instrumented; or recording failed.
        # All store before the record goes back, because another caller can check it out at once.
        try:
            if not mark[0]:  # a forked child
                notice_fork()
            vacant = record.dbapi_connection is None
            row = record._pool_exporter_row
            table = row.table
            since = table[row.held_at]
            if since > 0.0 and not vacant:
                now = clock()
                held = now - since
                bucket = hold_first if held <= first_bucket else hold_first + bisect_left(BUCKETS, held)
                holder = record._pool_exporter_holder
                # None if another thread returns the connection of a StaticPool at the same time.
                collected = holder is not None and holder() is None
                holder = None
                who, site = row.holder, row.site
                if who is not None:
                    try:  # noqa: SIM105 - a call takes longer
                        del who.rows[row.record_id]
                    except KeyError:  # another checkout of its holder found it out of date
                        pass
                    if row.nesting is not None:
                        nesting.returned(row, row.nesting)
                # Drop this reference while the proxy lives, as SQLAlchemy drops its own: if the proxy went first, the
                # reference's callback would run at each return.
                record._pool_exporter_holder = None
                block = recorder.block
                # If the process forked meanwhile, the checkout was the parent's. If the recorder was stopped, another
                # pool may have the place.
                # straight line: a return that is stored is counted, also if a time limit strikes
                if row.table is table:
                    table[row.held_at] = 0.0
                    block[bucket] += 1.0
                    block[hold_sum] += held
                    block[LAST_CHECKIN] = now
                    if site is not None:
                        counts = site.table
                        counts[site.holds_at] += 1.0
                        counts[site.held_seconds_at] += held
                    if collected:
                        block[LEAKED_CHECKOUTS] += 1.0
                        if site is not None:
                            site.table[site.at + LEAKED] += 1.0
                # end of straight line
            else:
                slow_path.returned(record, row, since)
        except BaseException as error:
            try:
                # straight line: first, because a time limit that strikes in a call would leave the row in use for ever
                if row is not None and row.table[row.held_at]:
                    row.table[row.held_at] = 0.0
                    if vacant and row.table[row.at] > 0.0:
                        row.table[row.at + SERVER_PID] = 0.0
                        row.table[row.at] = EMPTY
                        recorder.block[DETACHES] += 1.0
                    else:
                        recorder.block[CHECKINS_UNTIMED] += 1.0
                # end of straight line
            except Exception as fault:  # noqa: BLE001 - recording never raises, and no time limit can strike in there
                recorder.fault(fault)
            if not is_own(error):
                raise
            slow_path.return_failed(record, error)
        finally:
            # Even if a time limit struck above: a record that does not go back is lost to the pool.
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
        row.site = row.holder = None
        row.label = 0
        table[held_at + 1] = table[held_at + 2] = table[held_at + 3] = 0.0
        table[held_at] = since
    # end of straight line


def _no_site() -> Any:
    """Stand for ``find()`` if sites are not recorded; nothing calls it then."""


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
