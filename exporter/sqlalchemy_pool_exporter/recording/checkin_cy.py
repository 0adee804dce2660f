# SPDX-License-Identifier: Apache-2.0
"""The hot path: the hook that every return runs through. What ``checkout_cy`` says holds here, too."""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.pool import base

from sqlalchemy_pool_exporter.metrics import BUCKETS
from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.block import (
    CHECKINS_UNTIMED,
    DETACHES,
    EMPTY,
    HOLD,
    LAST_CHECKIN,
    LEAKED_CHECKOUTS,
    SERVER_PID,
    SUM,
)
from sqlalchemy_pool_exporter.segment.entries import LEAKED
from sqlalchemy_pool_exporter.segment.own_errors import is_own

from . import nesting
from .connection_row_cy import RecordRef

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.c_api import (
        bytes_of,
        doubles,
        is_dead,
        monotonic,
        slot,
        slot_at,
        state_of,
    )
    from cython.cimports.sqlalchemy_pool_exporter.recording.connection_row_cy import (
        ConnectionRow,
        HeldRows,
        Holder,
        RecordState,
    )
    from cython.cimports.sqlalchemy_pool_exporter.recording.recorder_state_cy import RecorderState
    from cython.cimports.sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry
elif TYPE_CHECKING:
    from sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry

    from .connection_row_cy import ConnectionRow, HeldRows, Holder, RecordState
    from .recorder import Recorder as RecorderState

if TYPE_CHECKING:
    from collections.abc import Callable

    from .checkout_cy import SlowPath

_FIRST_BUCKET: Final = BUCKETS[0]


def return_hook(  # noqa: C901, PLR0915 - as in connect_hook()
    slow_path: SlowPath, recorder: RecorderState, original: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Return the wrapper around a pool's ``_do_return_conn()``."""
    clock, notice_fork = recorder.clock, fork.notice
    is_monotonic: cython.bint = clock is time.monotonic
    hold_first: cython.Py_ssize_t = HOLD
    hold_sum: cython.Py_ssize_t = HOLD + SUM
    last_checkin: cython.Py_ssize_t = LAST_CHECKIN
    first_bucket: cython.double = _FIRST_BUCKET
    trace_after: cython.double = recorder.trace_after
    if cython.compiled:
        mark: cython.p_uchar = bytes_of(fork.mark)
        record_class = base._ConnectionRecord
        connection_at: cython.Py_ssize_t = slot_at(record_class, "dbapi_connection")
        reference_class = RecordRef
        state_at: cython.Py_ssize_t = slot_at(reference_class, "state")
    else:
        mark = fork.mark

    def _do_return_conn(record: Any) -> Any:  # noqa: C901, PLR0912, PLR0915 - as above
        row: ConnectionRow | None = None
        vacant: cython.bint = False
        collected: cython.bint
        since: cython.double
        now: cython.double
        held: cython.double
        bucket: cython.Py_ssize_t
        state: RecordState
        who: Holder | None
        rows: HeldRows
        is_first: cython.bint
        site: SiteEntry | None
        # Three cases. 1 is the hot path; 2 and 3 are for the slow path.
        # 1. A connection whose checkout was recorded comes back.
        # 2. The record has lost its connection, or the checkout was not recorded, or there was none.
        # 3. The record has no row, because its connection was out when its pool was instrumented; or recording failed.
        # All store before the record goes back, because another caller can check it out at once.
        try:
            if not mark[0]:  # a forked child
                notice_fork()
            if cython.compiled:
                vacant = slot(record, record_class, connection_at, "dbapi_connection") is None
                state = state_of(record, reference_class, state_at, "_pool_exporter_state")
            else:
                vacant = record.dbapi_connection is None
                state = record._pool_exporter_state
            row = state.row
            table = row.table
            if cython.compiled:
                cells: cython.p_double = doubles(table)
            else:
                cells = table
            # straight line: another thread can release the row, which moves it
            since = cells[row.held_at]
            # end of straight line
            if since > 0.0 and not vacant:
                if cython.compiled:
                    now = monotonic() if is_monotonic else clock()
                else:
                    now = clock()
                held = now - since
                bucket = hold_first if held <= first_bucket else hold_first + bisect_left(BUCKETS, held)
                proxy_ref = state.proxy_ref
                # None if another thread returns the connection of a StaticPool at the same time.
                if cython.compiled:
                    collected = proxy_ref is not None and is_dead(proxy_ref)
                else:
                    collected = proxy_ref is not None and proxy_ref() is None
                proxy_ref = None
                who, site = row.holder, row.site
                if who is not None:
                    rows = who.rows
                    # straight line
                    is_first = rows.first is row
                    if is_first:
                        rows.first = None
                    # end of straight line
                    if not is_first:
                        try:  # noqa: SIM105 - a call takes longer
                            del rows.others[row.record_id]
                        except KeyError:  # another checkout of its holder found it out of date
                            pass
                    if row.nesting is not None:
                        nesting.returned(row, row.nesting)
                # Drop this reference while the proxy lives, as SQLAlchemy drops its own: if the proxy went first, the
                # reference's callback would run at each return.
                state.proxy_ref = None
                # If the process forked meanwhile, the checkout was the parent's. If the recorder was stopped, another
                # pool may have the place.
                if cython.compiled:
                    block: cython.p_double = doubles(recorder.block)
                    counts: cython.p_double = block if site is None else doubles(site.table)
                else:
                    block = recorder.block
                    counts = block if site is None else site.table
                # straight line: a return that is stored is counted, also if a time limit strikes
                if row.table is table:
                    cells[row.held_at] = 0.0
                    block[bucket] += 1.0
                    block[hold_sum] += held
                    block[last_checkin] = now
                    if site is not None:
                        counts[site.holds_at] += 1.0
                        counts[site.held_seconds_at] += held
                    if collected:
                        block[LEAKED_CHECKOUTS] += 1.0
                        if site is not None:
                            counts[site.at + LEAKED] += 1.0
                # end of straight line
                if held >= trace_after:
                    slow_path.held(row, since, held, collected)
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
