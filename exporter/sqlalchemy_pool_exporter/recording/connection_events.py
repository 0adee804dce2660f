# SPDX-License-Identifier: Apache-2.0
"""The part of the recorder that stores what happens to connections: they open, close, are tested and come back.

What ``recorder`` says of locks and straight lines holds here, too.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from sqlalchemy_pool_exporter.metrics import BUCKETS, CLOSE_REASONS, ERRORS
from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.block import (
    CHECKINS_UNTIMED,
    CLOSES,
    CONNECT,
    CONNECT_FAILED,
    DETACHES,
    EMPTY,
    ERROR_COUNTS,
    FAULTS,
    HOLD,
    INVALIDATIONS,
    LAST_CHECKIN,
    LEAKED_CHECKOUTS,
    OVERFLOW_OPENED,
    PING,
    PING_FAILURES,
    SCRATCH,
    SERVER_PID,
    SUM,
)
from sqlalchemy_pool_exporter.segment.entries import HELD_SECONDS, HOLDS, LEAKED
from sqlalchemy_pool_exporter.segment.own_errors import is_own

from .connection_row_cy import IN_POOL, NOT_YET, Phases, row_of
from .leaks import WATCH
from .recorder_state_cy import RecorderState
from .undisposed import WATCH as ENDINGS

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

    from sqlalchemy_pool_exporter.segment.store import BlockStore

    from .connection_row_cy import ConnectionRow, RecordRef
    from .leaks import Suspects
    from .origins_cy import Origins

DISPOSE, DETACHED, GC = map(CLOSE_REASONS.index, ("dispose", "detached", "gc"))
PING_FAILED, ERROR = map(CLOSE_REASONS.index, ("ping_failed", "error"))
_PING_ERROR = ERROR_COUNTS + ERRORS.index(("ping", "retryable"))
# One field for each of INVALIDATION_KINDS.
_HARD, _SOFT = INVALIDATIONS, INVALIDATIONS + 1
_QUICK = BUCKETS[0]  # seconds: what a checkout need not tell of


class ConnectionEvents(RecorderState):
    """Records what happens to the connections of one pool. The recorder has the state."""

    __slots__ = ()

    is_ended: bool
    is_replaced: bool
    leaks: Suspects | None
    lost: list[bool]
    name: Callable[[], str]
    origins: Origins | None
    pool_ref: weakref.ref[Any] | None
    store: BlockStore
    _size: float

    @property
    def stopped(self) -> bool:
        """Whether the pool is no longer instrumented."""
        return not self.block

    def fault(self, error: BaseException) -> bool:
        """Count a fault while recording; return False if ``error`` is the application's: the caller must raise it."""
        is_fault = is_own(error)
        if is_fault and self.block:  # a stopped recorder has no field to count in
            self.block[FAULTS] += 1.0
        return is_fault

    def _observe(self, histogram: int, began: float, counter: int = SCRATCH, other: int = SCRATCH) -> float:
        elapsed = self.clock() - began
        bucket = histogram + bisect_left(BUCKETS, elapsed)
        block = self.block
        # straight line
        block[counter] += 1.0
        block[other] += 1.0
        block[bucket] += 1.0
        block[histogram + SUM] += elapsed
        # end of straight line
        return elapsed

    # -- connections that open

    def connected(self, record: object, connection: object, began: float, *, server: float = 0.0) -> None:
        """Record that ``connection`` was opened for ``record``, in a new row or in the record's row.

        Args:
            record: the connection record.
            connection: its new connection.
            began: when the attempt to connect began; 0 if that is not known.
            server: what serves the connection, see ``server_process``.
        """
        if self.stopped:
            return
        self.store.check()
        now = self.clock()
        row, is_overflow = row_of(record), False
        if row is None:
            row = self.add_row(record, NOT_YET, connection)
            is_overflow = not self.is_replaced and row.order > self._size  # _size is NaN without a limit
        else:
            row.close_reason = None
            self.connections.index_connection(row, connection)
        elapsed = now - began if began else 0.0
        if elapsed > _QUICK or row.phases is not None:
            Phases.of(row).opening = elapsed
        bucket, total = (
            (CONNECT + bisect_left(BUCKETS, elapsed), CONNECT + SUM) if began else (SCRATCH, SCRATCH)
        )
        block = self.block
        # straight line: last, because SQLAlchemy's record does not get the connection if a time limit strikes before
        row.table[row.at + SERVER_PID] = server
        row.table[row.at] = now
        block[bucket] += 1.0
        block[total] += elapsed
        block[OVERFLOW_OPENED] += is_overflow
        # end of straight line
        if row.is_released:  # by a thread that took the record for one that the pool had discarded
            self.add_row(record, now, connection)

    def connect_failed(self, began: float) -> None:
        """Record that a connection could not be opened."""
        if began:
            self._observe(CONNECT_FAILED, began)

    def add_row(
        self, record: object, connected_at: float, connection: object, *, server: float = 0.0
    ) -> ConnectionRow:
        """Return the row of a record that has none yet.

        Args:
            record: the connection record.
            connected_at: when its connection was opened; ``EMPTY`` if it has none, ``NOT_YET`` if that is yet to come.
            connection: that connection.
            server: what serves it, see ``server_process``.
        """
        if self.stopped:
            # A hook is still running. Meanwhile another recorder may have given the record a row.
            return self.connections.unlisted(record)
        row = self.connections.add(self.block, record, connected_at, server)
        if connected_at != EMPTY:
            self.connections.index_connection(row, connection)
        if self.leaks is not None:
            WATCH.begin(self, self.leaks)
        if not ENDINGS.is_awaiting:
            ENDINGS.await_end()
        return row

    # -- connections that close

    def closed(self, row: ConnectionRow, reason: int, *, for_good: bool) -> None:
        """Record that the connection of a row was closed.

        Args:
            row: the row of the connection's record.
            reason: index into ``CLOSE_REASONS``.
            for_good: the pool discards the record too, so it will not connect again.
        """
        block = self.block
        invalidated = row.close_reason is not None
        # straight line
        row.table[row.at + SERVER_PID] = 0.0
        row.table[row.at] = EMPTY
        block[CLOSES + reason] += 1.0
        block[_HARD] += invalidated
        # end of straight line
        row.close_reason = None
        self.connections.forget_connection(row)
        if for_good and not row.held_since:
            self.release_row(row)

    def closed_detached(self, connection: object) -> None:
        """Record that a detached connection was closed, unless ``detached()`` counted the close already."""
        if not self.connections.is_close_expected(connection):
            self.block[CLOSES + DETACHED] += 1.0

    def release_row(self, row: ConnectionRow, *, if_empty: bool = False) -> None:
        """Free the row of a record that will not be used again; ``if_empty``: only if it has no connection."""
        self.connections.release(self.block, row, if_empty=if_empty)

    def _record_collected(self, reference: RecordRef) -> None:
        """Free the row of a garbage-collected record; if its connection is open, count that as closed."""
        try:
            if not fork.mark[0] and not fork.notice():
                return  # a forked child that is leaving the blocks of its parent
            row = reference.row
            if row is None or row.is_released:
                return
            counters: tuple[int, ...] = ()
            site = None
            if row.has_connection:
                is_leaked = bool(row.held_since)
                is_disposed = self.is_disposed(row)
                # Python clears all weak references to what one collection frees before it calls back for any.
                if not is_disposed and self.pool_ref is not None and self.pool_ref() is None:
                    self.lost.append(is_leaked)
                counters = (
                    CLOSES + (DISPOSE if is_disposed else GC),
                    LEAKED_CHECKOUTS if is_leaked else SCRATCH,
                )
                site = (row.site or self.storage.other_sites) if is_leaked else None
            self.connections.release(self.block, row, *counters, leaked=site)
        except Exception as error:
            if not self.fault(error):
                raise

    def is_disposed(self, row: ConnectionRow) -> bool:
        """Return whether the pool of a row was disposed of while the connection was open."""
        return self.is_replaced or row.state != IN_POOL

    # -- pings and invalidations

    def pinged(self, row: ConnectionRow, began: float, *, alive: bool | None) -> None:
        """Record a pre-ping; ``alive`` is None if the ping raised."""
        if alive is False:
            row.close_reason = PING_FAILED
        if began:
            failed, error = (PING_FAILURES, _PING_ERROR) if alive is False else (SCRATCH, SCRATCH)
            phases = Phases.of(row)
            phases.ping_began, phases.pinging = began, self._observe(PING, began, failed, error)

    def invalidated(self, row: ConnectionRow, reason: int) -> None:
        """Record why the connection of a row is about to be closed."""
        if row.close_reason != PING_FAILED:
            row.close_reason = reason

    def soft_invalidated(self, row: ConnectionRow | None) -> None:
        """Record that a connection will be closed at its next checkout."""
        if row is None:  # the record belongs to a copy of the pool, which has the same listeners
            return
        self.block[_SOFT] += 1.0
        # Clears the reason of an earlier invalidation that an interrupt ended before SQLAlchemy closed the connection.
        row.close_reason = None

    # -- connections that come back

    def returned(self, row: ConnectionRow, since: float, *, collected: bool) -> float:
        """Record a return off the hot path; return for how long the connection was held, 0 if that is not known.

        Args:
            row: the row of the record that comes back.
            since: when the connection was checked out; negative if the checkout was not recorded.
            collected: the proxy was garbage-collected instead of returned.
        """
        now = self.clock()
        held = now - since if since > 0.0 else 0.0
        bucket, total = (
            (HOLD + bisect_left(BUCKETS, held), HOLD + SUM) if since > 0.0 else (CHECKINS_UNTIMED, SCRATCH)
        )
        block = self.block
        site = row.forget_checkout() or self.storage.other_sites
        counts, at = site.table, site.at
        # straight line
        row.table[row.held_at] = 0.0
        block[bucket] += 1.0
        block[total] += held
        counts[at + HOLDS] += since > 0.0
        counts[at + HELD_SECONDS] += held
        counts[at + LEAKED] += collected
        block[LAST_CHECKIN] = now
        block[LEAKED_CHECKOUTS] += collected
        # end of straight line
        return held

    def detached(
        self, row: ConnectionRow, *, was_out: bool, collected: bool, is_closed_next: bool = False
    ) -> None:
        """Record that a connection left its record without being closed.

        Args:
            row: the row of the record.
            was_out: the connection was checked out, so the detach ends a checkout.
            collected: the proxy was garbage-collected, and SQLAlchemy drops the connection. Otherwise the caller keeps
                the connection.
            is_closed_next: a ``close_detached`` event will follow, for the close that is counted here.
        """
        self.connections.forget_connection(row)
        if is_closed_next:
            self.connections.expect_close(row.connection_id)
        block = self.block
        leaked = collected and was_out
        site = row.forget_checkout() or self.storage.other_sites
        counts, at = site.table, site.at
        # straight line
        row.table[row.held_at] = 0.0
        counts[at + LEAKED] += leaked
        row.table[row.at + SERVER_PID] = 0.0
        row.table[row.at] = EMPTY
        block[DETACHES] += was_out
        block[LEAKED_CHECKOUTS] += leaked
        block[CLOSES + GC] += collected
        # end of straight line
