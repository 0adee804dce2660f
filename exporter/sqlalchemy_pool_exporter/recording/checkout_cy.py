# SPDX-License-Identifier: Apache-2.0
"""The hot path: the hook that every checkout runs through; ``checkin_cy`` has that of every return.

These hooks use private names of SQLAlchemy themselves; the other modules get theirs from ``sqlalchemy_pool``.

Each hook records in its own ``try``. A fault in recording is counted and never reaches the application. An exception of
the application's call is raised again unchanged.

One source runs interpreted and compiled. Compiled, ``doubles()`` gives the memory of a view, so that a store makes no
object, and the clock and the context are read by functions of C. No other code runs in these, nor in what reads and
writes typed attributes, a list or a dictionary of numbers: only calls of Python code can be interrupted.
"""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import time
from asyncio import current_task
from asyncio.events import _get_running_loop
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import exc
from sqlalchemy.pool import base

from sqlalchemy_pool_exporter.metrics import BUCKETS, ERROR_REASONS
from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.block import (
    CHECKOUT_ERRORS,
    CHECKOUT_TIMEOUTS,
    SCRATCH,
    SUM,
    UNTRACKED,
    UNTRACKED_PENDING,
    WAIT,
)
from sqlalchemy_pool_exporter.segment.own_errors import is_own

from . import nesting
from .connection_row_cy import RecordRef, record_state
from .holders_cy import HOLDER_ATTRIBUTE, holder_of_call, new_for_task, new_for_thread
from .labels import NO_LABEL, current_label

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.c_api import (
        bytes_of,
        doubles,
        get_ident,
        monotonic,
        slot,
        slot_at,
        state_of,
        value_of,
    )
    from cython.cimports.sqlalchemy_pool_exporter.recording.connection_row_cy import (
        ConnectionRow,
        HeldRows,
        Holder,
        RecordState,
    )
    from cython.cimports.sqlalchemy_pool_exporter.recording.recorder_state_cy import RecorderState
    from cython.cimports.sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry
else:
    from contextvars import ContextVar
    from threading import get_ident

    value_of = ContextVar.get

if not cython.compiled and TYPE_CHECKING:
    from sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry

    from .connection_row_cy import ConnectionRow, HeldRows, Holder, RecordState
    from .recorder import Recorder as RecorderState

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable
    from types import CodeType

    from .sqlalchemy_pool import FillLevel

_CONNECT_ERROR, _CANCELLED, _OTHER_ERROR = (CHECKOUT_ERRORS + at for at in range(len(ERROR_REASONS)))
_FIRST_BUCKET: Final = BUCKETS[0]
_GLOBALS: Final = globals()


class SlowPath(Protocol):
    """Records the checkouts and returns that the hot path does not."""

    pool: Any

    def checked_out(self, connection: Any, began: float, error: BaseException) -> object:
        """Record a checkout that raised ``error`` on the hot path."""

    def record_late(self, connection: Any, began: float) -> Any:
        """Record a checkout that the hot path could not; return the connection."""

    def call(self, original: Callable[[], Any]) -> Any:
        """Call the pool's own method, so that a listener of the checkout sees that it runs through the hook."""

    def waited(self, row: ConnectionRow, began: float, now: float) -> object:
        """Tie a checkout that waited for long to its trace."""

    def wait_failed(self, wait: float, error: BaseException) -> object:
        """Likewise a checkout that raised, after a wait in seconds."""

    def held(self, row: ConnectionRow, since: float, held: float, collected: bool) -> object:  # noqa: FBT001 - of C
        """Tie a connection that was held for long to its trace."""

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
    recorder: RecorderState,
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
    free: list[int] = recorder.waiters.free
    clock, origins = recorder.clock, recorder.origins
    is_monotonic: cython.bint = clock is time.monotonic
    has_origins: cython.bint = origins is not None
    find = origins.find if origins is not None else _no_site
    idle = None if level is None else level.idle
    fields: dict[str, Any] = {} if level is None else level.fields
    least: cython.Py_ssize_t = 0 if level is None else level.least
    notice_fork = fork.notice
    scratch: cython.Py_ssize_t = SCRATCH
    untracked: cython.Py_ssize_t = UNTRACKED
    wait_first: cython.Py_ssize_t = WAIT
    wait_sum: cython.Py_ssize_t = WAIT + SUM
    first_bucket: cython.double = _FIRST_BUCKET
    trace_after: cython.double = recorder.trace_after
    running_loop, task_in, of_task = _get_running_loop, current_task, HOLDER_ATTRIBUTE
    of_call, of_label, no_label = holder_of_call, current_label, NO_LABEL
    if cython.compiled:
        # The mark is the generation, too.
        mark: cython.p_uchar = bytes_of(fork.mark)
        generation: cython.p_uchar = mark
        proxy_class, record_class = base._ConnectionFairy, base._ConnectionRecord
        record_at: cython.Py_ssize_t = slot_at(proxy_class, "_connection_record")
        proxy_ref_at: cython.Py_ssize_t = slot_at(record_class, "fairy_ref")
        reference_class = RecordRef
        state_at: cython.Py_ssize_t = slot_at(reference_class, "state")
    else:
        mark = fork.mark
        generation = fork.generation  # type: ignore[assignment]

    def connect() -> Any:  # noqa: C901, PLR0912, PLR0915 - see above
        waiter: cython.Py_ssize_t = scratch
        began: cython.double = 0.0
        here: cython.long = generation[0]
        now: cython.double
        wait: cython.double
        bucket: cython.Py_ssize_t
        at: cython.Py_ssize_t
        held_at: cython.Py_ssize_t
        overflow: cython.Py_ssize_t
        label: cython.long
        is_current: cython.bint
        who: Holder | None = None
        known: Holder | None
        rows: HeldRows
        state: RecordState
        row: ConnectionRow
        site: SiteEntry
        of_pool: cython.p_double
        of_site: cython.p_double
        cells: cython.p_double
        outer = None
        try:
            try:
                if not mark[0]:  # a forked child
                    notice_fork()
                    here = generation[0]
                if cython.compiled:
                    taken: Any = None
                    # straight line: the list has one for this caller
                    if free:
                        taken = free[-1]; del free[-1]  # fmt: skip # noqa: E702
                    # end of straight line
                    if taken is not None:
                        waiter = taken
                        began = monotonic() if is_monotonic else clock()
                        doubles(recorder.block)[waiter] = began
                    else:  # no free slot yet
                        taken, began = recorder.acquire_waiter()
                        waiter = taken
                else:
                    try:
                        # A call would lose the slot to a time limit. A debugger can switch threads between two lines.
                        waiter = taken = free[-1]; del free[-1]  # fmt: skip # noqa: E702
                    except IndexError:
                        waiter, began = recorder.acquire_waiter()
                        taken = waiter
                    else:
                        began = clock()
                        recorder.block[waiter] = began
                if has_origins:
                    # As current_holder() does; to call it takes twice as long.
                    loop = running_loop()
                    task = None if loop is None else task_in(loop)
                    if task is not None:
                        known = getattr(task, of_task, None)
                        if known is None:
                            known = new_for_task(task)
                    else:
                        known = value_of(of_call)
                        if known is None or known.thread_id != get_ident():
                            known = new_for_thread()
                    who = known
                    rows = who.rows
                    if rows.first is not None or rows.others:
                        outer = nesting.began(recorder, who, began) or None
            except Exception as error:
                if not recorder.fault(error):
                    raise
            connection = slow_path.call(original) if recorder.has_latecomers else original()
        except BaseException as error:
            try:
                # Here and below, no call may come before these stores: a time limit that strikes in that call would
                # leave the caller pending for ever, or its slot in use.
                if generation[0] != here:  # forked meanwhile: the slot is the parent's
                    waiter = _no_waiter()
                recorder.block[waiter] = 0.0
                if waiter > untracked:
                    free.append(waiter)
                elif waiter == untracked:
                    recorder.block[UNTRACKED_PENDING] -= 1.0
                field = _error_field(error, creator)
                wait = recorder.checkout_failed(began, field)
                if outer is not None:
                    nesting.ended(outer, by_timeout=field == CHECKOUT_TIMEOUTS)
                if field == CHECKOUT_TIMEOUTS:
                    where = find()
                    if outer is not None:
                        nesting.timed_out(where, who)
                    slow_path.timed_out(began, where, who)
                if wait >= trace_after:
                    slow_path.wait_failed(wait, error)
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
            if cython.compiled:
                doubles(recorder.block)[waiter] = 0.0
            else:
                recorder.block[waiter] = 0.0
            if waiter > untracked:
                free.append(taken)
            elif waiter == untracked:
                recorder.block[UNTRACKED_PENDING] -= 1.0
            if outer is not None:
                nesting.ended(outer)
            if cython.compiled:
                now = monotonic() if is_monotonic else clock()
                record = slot(connection, proxy_class, record_at, "_connection_record")
                proxy_ref = slot(record, record_class, proxy_ref_at, "fairy_ref")
                state = state_of(record, reference_class, state_at, "_pool_exporter_state")
            else:
                now = clock()
                record = connection._connection_record
                proxy_ref = record.fairy_ref
                state = record._pool_exporter_state
            if state.proxy_ref is not proxy_ref:
                state.proxy_ref = proxy_ref
                row = state.row
                wait = now - began
                # Most waits fall into the first bucket. The comparison costs a fifth of the search.
                bucket = wait_first if wait <= first_bucket else wait_first + bisect_left(BUCKETS, wait)
                if who is None:
                    if not began or has_origins:
                        return slow_path.record_late(connection, began)
                    block = recorder.block
                    if cython.compiled:
                        of_pool = doubles(block)
                        cells = doubles(row.table)
                    else:
                        of_pool, cells = block, row.table
                    # straight line
                    cells[row.held_at] = now
                    of_pool[bucket] += 1.0
                    of_pool[wait_sum] += wait
                    # end of straight line
                else:
                    block = recorder.block
                    # To find the site takes time, and it says most when others may soon have to wait.
                    if idle is None:
                        site = find()
                    else:
                        overflow = fields["_overflow"]
                        site = find() if overflow - len(idle) >= least else recorder.other_sites
                    said = value_of(of_label)
                    label = 0 if said is no_label else said.number
                    if outer is not None:
                        nesting.checked_out(row, outer)
                    if cython.compiled:
                        of_pool = doubles(block)
                        of_site = doubles(site.table)
                        cells = doubles(row.table)
                    else:
                        of_pool, of_site, cells = block, site.table, row.table
                    # straight line
                    is_current = recorder.block is block
                    if is_current:
                        at = site.at
                        held_at = row.held_at
                        if rows.first is None and not rows.others:
                            rows.first = row
                        else:
                            rows.others[row.record_id] = row
                        cells[held_at] = now
                        # A comparison costs a tenth of a store, and most callers are those of the last checkout.
                        if row.site is not site:
                            row.site = site
                            cells[held_at + 1] = site.number
                        if row.holder is not who:
                            row.holder = who
                            cells[held_at + 2] = who.number
                        if row.label != label:
                            row.label = label
                            cells[held_at + 3] = label
                        of_site[at] += 1.0
                        of_pool[bucket] += 1.0
                        of_pool[wait_sum] += wait
                    # end of straight line
                    if not is_current:
                        # The process forked, or the recorder was stopped: another pool may have the site's place now.
                        return slow_path.record_late(connection, began)
                if wait >= trace_after:
                    slow_path.waited(row, began, now)
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


def mark_held(record: Any, row: ConnectionRow, proxy_ref: weakref.ref[Any] | None, before: float) -> None:
    """Mark a connection as checked out, if it still is, although its checkout was not recorded.

    Args:
        record: the record of the connection.
        row: the row of the record.
        proxy_ref: a weak reference to the caller's proxy, if it is known.
        before: a time at which the connection was already checked out.
    """
    since, table, held_at, state = -before, row.table, row.held_at, record_state(record)
    # straight line: in between, another thread could return the connection
    if state is not None and record.fairy_ref is not None and not table[held_at]:
        state.proxy_ref = proxy_ref
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


def _error_field(error: BaseException, creator: CodeType) -> int:
    """Return the field that counts a checkout that raised ``error``."""
    if not isinstance(error, Exception):
        return _CANCELLED
    if _failed_to_connect(error, creator):
        return _CONNECT_ERROR
    return CHECKOUT_TIMEOUTS if isinstance(error, exc.TimeoutError) else _OTHER_ERROR


def _failed_to_connect(error: BaseException, creator: CodeType) -> bool:
    """Return whether ``error`` came out of the driver's connect.

    A driver can raise any exception, so only the traceback tells. A listener or a creator can check out of another
    instrumented pool. If the traceback reaches that pool's ``connect`` wrapper first, that checkout failed to connect
    and not this one.
    """
    step = error.__traceback__ and error.__traceback__.tb_next
    while step:
        frame = step.tb_frame
        if frame.f_code is creator:
            return True
        # Compiled, each step has a code of its own, whose name is qualified.
        if frame.f_globals is _GLOBALS and frame.f_code.co_name.rpartition(".")[2] == "connect":
            return False
        step = step.tb_next
    return False
