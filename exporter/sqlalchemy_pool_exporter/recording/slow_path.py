# SPDX-License-Identifier: Apache-2.0
"""Checkouts and returns off the hot path, and a pool that is in use when it is instrumented."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.segment import texts
from sqlalchemy_pool_exporter.segment.block import EMPTY, EXHAUSTION_REPORTS

from . import exhaustion, nesting
from .checkout_cy import mark_held
from .connection_row_cy import forget_proxy, has_row, remember_proxy, row_of, was_collected
from .exhaustion import TimedOut
from .faults import never_raises
from .labels import current_label
from .server_side import server_of
from .sqlalchemy_pool import (
    age_of,
    closes_collected,
    detaches_collected,
    has_connection,
    holder_of,
    is_of,
    is_out,
    keeps,
    may_be_connecting,
    record_of,
    records_of,
    timeout_of,
    unlisten,
)
from .traces import Traces

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.pool import Pool

    from sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry

    from .connection_row_cy import ConnectionRow, Holder
    from .recorder import Recorder

# Callers that wait in the queue of a pool when it is instrumented are expected for this long plus the pool's timeout.
_LATECOMERS_SECONDS: Final = 60.0
_EARLIEST: Final = 0.001  # in a row's connected_at, 0 and -1 mean that there is no connection


class SlowPath:
    """Records what the hot path does not, for one pool object."""

    __slots__ = ("_checkout_listener", "_latecomers_until", "_traces", "pool", "recorder")

    def __init__(self, pool: Pool, recorder: Recorder) -> None:
        self.pool = pool
        self.recorder = recorder
        self._traces = Traces(recorder)
        # The mutable state.
        self._latecomers_until = 0.0
        self._checkout_listener: Any = None

    # -- checkouts

    def call(self, original: Callable[[], Any]) -> Any:
        """Call the pool's own method, so that a listener of the checkout sees that it runs through the hook.

        A frame tells that, whichever thread or greenlet goes on with the checkout. The hook has none if it is compiled.
        """
        return original()

    @never_raises
    def checked_out(self, connection: Any, began: float, error: BaseException) -> None:
        """Record a checkout that raised ``error`` on the hot path.

        1. The pool is no longer instrumented: nothing is recorded.
        2. The record has a row, or the start of the checkout could not be recorded: ``error`` is a fault.
        3. The record connected before its pool was instrumented: it gets a row.
        """
        recorder = self.recorder
        record = record_of(connection)
        if recorder.stopped:
            return
        if row_of(record) is not None or not began:
            recorder.fault(error)
            return
        self._checked_out(self.adopt(record), began)

    def record_late(self, connection: Any, began: float) -> Any:
        """Record a checkout that the hot path could not; return the connection.

        1. A fault struck when it began, and is counted already. If it is not known when that was, the checkout is not
           counted, but the connection is out.
        2. The process forked while it was recorded. The record gets a row of the child.
        3. The pool is no longer instrumented: nothing is recorded.
        """
        self._record_late(connection, began)
        return connection

    @never_raises
    def _record_late(self, connection: Any, began: float) -> None:
        recorder, record = self.recorder, record_of(connection)
        if recorder.stopped:
            return
        row = row_of(record) or self.adopt(record)
        if began:
            self._checked_out(row, began)
        elif not row.held_since:
            mark_held(record, row, holder_of(record), recorder.clock())

    def _checked_out(self, row: ConnectionRow, began: float) -> None:
        now = self.recorder.checked_out(row, began)
        if now - began >= self.recorder.trace_after:
            self._traces.waited(row, began, now)

    @never_raises
    def waited(self, row: ConnectionRow, began: float, now: float) -> None:
        """Tie a checkout that waited for long to its trace.

        Args:
            row: of the connection.
            began: when the checkout began.
            now: when it was recorded.
        """
        self._traces.waited(row, began, now)

    @never_raises
    def wait_failed(self, wait: float, error: BaseException) -> None:
        """Tie a checkout that waited for long and raised to its trace; ``wait`` is in seconds."""
        self._traces.wait_failed(wait, error)

    @never_raises
    def held(self, row: ConnectionRow, since: float, held: float, collected: bool) -> None:  # noqa: FBT001 - of C
        """Tie a connection that was held for long to its trace.

        Args:
            row: of the connection, which came back just now.
            since: when it was checked out.
            held: for how long, in seconds.
            collected: the garbage collector returned it.
        """
        self._traces.held(row, since, held, collected=collected)

    @never_raises
    def shared(self, connection: Any) -> None:
        """Let the checkout of a connection that is out already count as part of the first: it is returned only once."""
        record = record_of(connection)
        row = row_of(record)
        if row is not None and row.held_since:
            remember_proxy(record, holder_of(record))

    @never_raises
    def timed_out(self, began: float, site: SiteEntry | None, holder: Holder | None) -> None:
        """Report who has the connections, after a checkout timed out.

        Args:
            began: when the checkout began; 0 if that is not known.
            site: where it was made, if that is known.
            holder: the thread or task, if that is known.
        """
        recorder = self.recorder
        now = recorder.clock()
        suppressed = recorder.reports.due(now) if began and not recorder.stopped else None
        if suppressed is None:
            return
        snapshot, names = recorder.snapshot(), texts.own()
        oldest = recorder.connections.oldest_holder()
        timed_out = TimedOut(
            snapshot,
            began,
            now,
            site=snapshot.sites[site.number - 1].text if site is not None and site.number else "",
            holder=0.0 if holder is None else holder.number,
            label=float(current_label.get().number),
            suppressed=suppressed,
            names=names,
            leak_after=math.inf if recorder.leaks is None else recorder.leaks.options.after,
            oldest=oldest if oldest is not holder else None,  # else it is the caller, who goes on
            prefixes=() if recorder.origins is None else recorder.origins.prefixes,
        )
        if exhaustion.log(recorder.name, timed_out, recorder.reports, recorder):
            recorder.block[EXHAUSTION_REPORTS] += 1.0
        else:
            recorder.reports.suppressed += suppressed + 1

    def take_back(self, connection: Any, began: float) -> None:
        """Return a connection that its caller will not get, because a time limit struck while it was recorded.

        It counts as a checkout and a return, as it does for a listener of SQLAlchemy's events.
        """
        try:
            self._was_checked_out(record_of(connection), began)
        finally:
            connection.close()

    @never_raises
    def _was_checked_out(self, record: Any, began: float) -> None:
        recorder = self.recorder
        if recorder.stopped or not began:
            return
        row = row_of(record) or self.adopt(record)
        if row.held_since <= 0.0:
            mark_held(record, row, holder_of(record), recorder.clock())
            recorder.checked_out(row, began)

    # -- connections that come back

    @never_raises
    def returned(self, record: Any, row: ConnectionRow, since: float) -> None:
        """Record a return before the record goes back.

        1. The record was not checked out and still has its connection: there is nothing to record.
        2. The record was not checked out and its connection is gone without a close: a listener of the checkout raised,
           the proxy was garbage-collected, and SQLAlchemy detached the connection.
        3. The record was checked out and its connection is gone without a close: a detach. The caller detached it, or
           SQLAlchemy did because the proxy of an asyncio connection was garbage-collected.
        4. Otherwise it is a return, of a connection that was closed or whose checkout was not recorded.

        Args:
            record: the record that is about to go back.
            row: its row.
            since: when it was checked out; negative if the checkout was not recorded, 0 if there was none.
        """
        is_detached = not has_connection(record) and row.has_connection
        if not since:
            if is_detached:
                self._detached(row, was_out=False, collected=detaches_collected(self.pool))
            return
        collected = was_collected(record)
        forget_proxy(record)
        if is_detached:
            self._detached(row, was_out=True, collected=collected)
        else:
            if row.nesting is not None and not collected:
                nesting.returned(row, row.nesting)
            held = self.recorder.returned(row, since, collected=collected)
            if held >= self.recorder.trace_after:
                self._traces.held(row, since, held, collected=collected)

    def _detached(self, row: ConnectionRow, *, was_out: bool, collected: bool) -> None:
        is_closed_next = collected and closes_collected(self.pool)
        self.recorder.detached(row, was_out=was_out, collected=collected, is_closed_next=is_closed_next)

    @never_raises
    def return_failed(self, record: Any, error: BaseException) -> None:
        """Record a return that raised ``error`` on the hot path.

        1. The pool is no longer instrumented: nothing is recorded.
        2. The record has a row: ``error`` is a fault.
        3. The connection was out when the pool was instrumented, but was not found then: its record gets a row.
        """
        if self.recorder.stopped:
            return
        if has_row(record):
            self.recorder.fault(error)
        else:
            self.adopt(record)

    @never_raises
    def release_if_discarded(self, record: Any) -> None:
        """Free the row of a record that went back without a connection, if the pool did not keep the record."""
        row = row_of(record)
        if row is not None and row.is_empty and not keeps(self.pool, record):
            # Another thread may have taken the record out of the pool just before keeps() looked.
            self.recorder.release_row(row, if_empty=True)

    # -- a pool that is in use already

    def is_in_use(self) -> bool:
        """Return whether connections are out or about to be handed out."""
        # The pool counts a checkout before it makes the record, so ask the pool first.
        # Not any(): a time limit that strikes while a generator that was not exhausted is closed is lost.
        return may_be_connecting(self.pool) or sum([record.in_use for record in records_of(self.pool)]) > 0

    def adopt_present(self) -> None:
        """Give a row to each connection that the pool has now."""
        for record in records_of(self.pool):
            # A record with none of these is about to be handed out or about to be garbage-collected.
            if record.in_use or has_connection(record) or keeps(self.pool, record):
                self.adopt(record)

    def adopt(self, record: Any) -> ConnectionRow:
        """Give a row to a record whose connect was not recorded; return the row."""
        recorder = self.recorder
        now = recorder.clock()
        # The age is by the wall clock. If that was set, the age can exceed the time since the host started.
        connected_at = max(now - age_of(record), _EARLIEST) if has_connection(record) else EMPTY
        connection = record.dbapi_connection
        server = 0.0 if connection is None else self._server_of(connection) or 0.0
        row = recorder.add_row(record, connected_at, connection, server=server)
        if is_out(record):
            mark_held(record, row, holder_of(record), recorder.clock())
        return row

    @never_raises
    def _server_of(self, connection: Any) -> float:
        return server_of(connection)

    def await_latecomers(self, listen: Callable[[str, Any], None]) -> None:
        """Listen for checkouts of the callers that wait in the queue now, since they do not run through our hook."""
        self._latecomers_until = self.recorder.clock() + timeout_of(self.pool) + _LATECOMERS_SECONDS
        # Kept, because each look-up of a bound method makes a new object, and unlisten() compares by identity.
        self._checkout_listener = self._on_checkout
        listen("checkout", self._checkout_listener)

    @never_raises
    def _on_checkout(self, _connection: object, record: Any, _proxy: object) -> None:
        recorder = self.recorder
        if recorder.clock() > self._latecomers_until:
            unlisten(self.pool, "checkout", self._checkout_listener)
            recorder.has_latecomers = False
            return
        if is_of(self.pool, record) and not self._is_hooked():
            row = row_of(record) or self.adopt(record)
            mark_held(record, row, holder_of(record), recorder.clock())

    def _is_hooked(self) -> bool:
        """Return whether the checkout under way runs through our hook, which records it if it succeeds."""
        frame = inspect.currentframe()
        while frame is not None:
            # The code first: f_locals copies the variables of a frame, and most frames are the application's.
            if frame.f_code is SlowPath.call.__code__ and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False
