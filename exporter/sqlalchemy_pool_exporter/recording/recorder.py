# SPDX-License-Identifier: Apache-2.0
"""The recorder: stores what happens to one pool into its block.

The recorder works on rows and knows no SQLAlchemy. The hooks pass what they know of a connection as arguments.

There are no locks. CPython lets another thread, a signal handler or (since 3.12) the garbage collector run only where
the bytecode calls something or jumps backwards. A run of stores without a call or a loop is therefore atomic. Each run
that relies on this is marked *straight line*, and a test disassembles it. This holds only with the GIL;
``instrument()`` warns if there is none.

The garbage collector can return a connection in the middle of any method here, in the same thread. So free slots are
taken without a call and given back with the atomic ``list.append``, and no value that was read before a call is trusted
after it. A time limit of the application can strike at any call, too. So what one event changes is stored in one
straight line.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from sqlalchemy_pool_exporter.metrics import BUCKETS, CLOSE_REASONS, ERRORS
from sqlalchemy_pool_exporter.segment import fork, texts
from sqlalchemy_pool_exporter.segment.block import (
    ACTIVE,
    CHECKINS_UNTIMED,
    CHECKOUT_TIMEOUTS,
    CLOSES,
    CONNECT,
    CONNECT_FAILED,
    DETACHES,
    EMPTY,
    ERROR_COUNTS,
    FAULTS,
    HAS_OVERFLOW,
    HELD_SINCE,
    HOLD,
    HOLDER,
    INVALIDATIONS,
    LABEL,
    LAST_CHECKIN,
    LEAK_AFTER,
    LEAKED_CHECKOUTS,
    LIVE,
    MADE_AT,
    OVERFLOW_OPENED,
    PING,
    PING_FAILURES,
    REPLACED,
    REQUEST_DEADLINE,
    SCRATCH,
    SERVER_PID,
    SITE,
    SITES_OFF,
    SIZE,
    SUM,
    UNTRACKED,
    UNTRACKED_PENDING,
    WAIT,
    WAIT_FAILED,
    WAITERS,
    WAITERS_AT,
    WAITERS_USED,
)
from sqlalchemy_pool_exporter.segment.entries import HELD_SECONDS, HOLDS, LEAKED
from sqlalchemy_pool_exporter.segment.identity import written
from sqlalchemy_pool_exporter.segment.own_errors import is_own
from sqlalchemy_pool_exporter.segment.pages import Pages
from sqlalchemy_pool_exporter.segment.snapshot import Snapshot

from .connection_row import IN_POOL, NOT_YET, BackupRef, ConnectionRow, row_of
from .connection_table import ConnectionTable
from .exhaustion import Schedule
from .failure_reports import FailureReports
from .leaks import WATCH, Suspects
from .origins import Origins
from .slots import FreeSlots

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy_pool_exporter.segment.identity import Identity
    from sqlalchemy_pool_exporter.segment.snapshot import Value
    from sqlalchemy_pool_exporter.segment.store import BlockStore

    from .classification import Failure
    from .leaks import LeakOptions

DISPOSE, DETACHED, GC = map(CLOSE_REASONS.index, ("dispose", "detached", "gc"))
PING_FAILED, ERROR = map(CLOSE_REASONS.index, ("ping_failed", "error"))
_TIMED_OUT, _PING_FAILED = (ERROR_COUNTS + ERRORS.index((layer, "retryable")) for layer in ("pool", "ping"))
_FEW_CHECKOUTS = 10
# One field for each of INVALIDATION_KINDS.
_HARD, _SOFT = INVALIDATIONS, INVALIDATIONS + 1


class Recorder:
    """Records what happens to one pool.

    The mutable state is the block, the free slots for waiters, and the table of connections. Methods may raise
    ``Exception``; the hooks catch and count it.
    """

    __slots__ = (
        "__weakref__",
        "_earlier_checkouts",
        "_size",
        "block",
        "clock",
        "configuration",
        "connections",
        "failures",
        "identity",
        "info",
        "is_brief",
        "is_ended",
        "is_replaced",
        "leaks",
        "name",
        "origins",
        "pool_ref",
        "reports",
        "request_deadline",
        "storage",
        "store",
        "text",
        "waiters",
        "watches_loops",
    )

    def __init__(  # noqa: PLR0913 - what a pool is, where its block is, and options
        self,
        identity: Identity,
        *,
        info: dict[str, str],
        configuration: dict[int, float],
        store: BlockStore,
        prefixes: Sequence[str] | None = (),
        leaks: LeakOptions | None = None,
        watches_loops: bool = True,
        request_deadline: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Record nothing yet.

        Args:
            identity: of the pool.
            info: the labels of the metric ``info``.
            configuration: the limits of the pool, by field.
            store: the blocks of this process.
            prefixes: of the modules that are the application's, if it named any; None to record no sites.
            leaks: when a connection that is held is suspected of a leak; None for never.
            watches_loops: whether the lag of the event loops that use the pool is recorded.
            request_deadline: seconds that a request has, as the application says; 0 if it does not.
            clock: seconds.
        """
        self.identity = identity
        self.info = info
        self.text = written(identity, info, has_overflow=bool(configuration[HAS_OVERFLOW]))
        self.clock = clock
        self.waiters = FreeSlots(first=WAITERS_AT, stride=1, used=WAITERS_USED)
        self.connections = ConnectionTable(self._record_collected, self._more_rows)
        self.store = store
        self.storage = store.block(self.text)
        self.block = self.storage.doubles
        self.origins = None if prefixes is None else Origins(self, prefixes)
        if self.origins is not None:
            texts.write_into(self.storage.pages)
        self.reports = Schedule()
        self.failures = FailureReports()
        self.leaks = None if leaks is None else Suspects(leaks)
        self.watches_loops = watches_loops
        self.request_deadline = request_deadline
        # Of the pool, as it is shown, which can change.
        self.name: Callable[[], str] = lambda: identity.name
        self.is_ended = False
        self.is_brief = False  # it went with its engine after a few checkouts
        self._earlier_checkouts = 0.0  # of the pools that this one has replaced
        self.is_replaced = False
        self.pool_ref: weakref.ref[Any] | None = None
        self._size = math.nan
        self.configuration = configuration
        self.configure(configuration)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.identity.name!r} rows={len(self.connections.rows())}>"

    # -- configuration and lifetime

    def configure(self, configuration: dict[int, float]) -> None:
        """Store the pool's limits: values by field."""
        self.configuration = configuration
        self.block[ACTIVE] = REPLACED if self.is_replaced else LIVE
        self.block[MADE_AT] = self.clock()
        self.block[REQUEST_DEADLINE] = self.request_deadline
        self.block[SITES_OFF] = float(self.origins is None)
        self.block[LEAK_AFTER] = 0.0 if self.leaks is None else self.leaks.options.after
        for field, value in configuration.items():
            self.block[field] = value
        self._size = configuration[SIZE] if configuration[HAS_OVERFLOW] else math.nan

    def snapshot(self) -> Snapshot:
        """Copy what is recorded now; once the recorder has ended, only the counts mean something."""
        return Snapshot.of(self.storage.doubles, self.connections.more, self.storage.sites())

    def values(self) -> Iterator[tuple[str, Value]]:
        """Yield the key and value of each metric that applies to the pool now."""
        return self.snapshot().values(now=self.clock(), wall=time.time())

    def _more_rows(self) -> memoryview[float] | None:
        return self.storage.more_rows()

    def disposed(self) -> None:
        """Count the connections that are open now against ``pool_size`` no more: the pool was disposed of."""
        self.connections.disposed()

    def replaced(self, *, is_replaced: bool = True) -> None:
        """Note that a new pool has taken the place of this one, or that this one lives on all the same."""
        if not self.is_ended:
            self.is_replaced = is_replaced
            self.block[ACTIVE] = REPLACED if is_replaced else LIVE

    def successor(self, configuration: dict[int, float]) -> Recorder:
        """Return a recorder for the pool that takes the place of this one, with these limits."""
        new = Recorder(
            self.identity,
            info=self.info,
            configuration=configuration,
            store=self.store,
            prefixes=None if self.origins is None else self.origins.prefixes,
            leaks=None if self.leaks is None else self.leaks.options,
            watches_loops=self.watches_loops,
            request_deadline=self.request_deadline,
            clock=self.clock,
        )
        new.block[LAST_CHECKIN] = self.block[LAST_CHECKIN]
        new.reports, new.failures = self.reports, self.failures
        new._earlier_checkouts = self._checkouts
        return new

    @property
    def _checkouts(self) -> float:
        """How many checkouts the engine has made."""
        return self._earlier_checkouts + sum(self.block[WAIT : WAIT + SUM])

    def leave(self) -> None:
        """In a forked child, write to the parent's block no more."""
        self.connections.clear()
        self.waiters.clear()
        self.reports = Schedule()
        self.failures = FailureReports()
        if self.leaks is not None:
            self.leaks = Suspects(self.leaks.options)
        if self.origins is not None:
            self.origins.forget()
        self.storage = Pages().pool(self.text)
        self.block = self.storage.doubles

    def restart(self) -> None:
        """In a forked child that left its parent's block, take a block of its own."""
        self.storage = self.store.block(self.text)
        self.block = self.storage.doubles
        if self.origins is not None:
            self.origins.forget()  # what a signal handler stored in between
            texts.write_into(self.storage.pages)
        self.configure(self.configuration)

    def pool_attached(self, pool_ref: weakref.ref[Any]) -> None:
        """Note that the pool is recorded; the callback of ``pool_ref`` runs when it is garbage-collected."""
        self.pool_ref = pool_ref

    def pool_collected(self) -> bool:
        """Note that the pool was garbage-collected; return whether it was recorded until now.

        This can run in the middle of anything, as garbage collection can.
        """
        if self.is_ended:
            return False
        # Its records are garbage, too, but the collector calls back in any order.
        for row in self.connections.rows():
            self._record_collected(row)
        # A pool that was replaced went without its engine.
        self.is_brief = not self.is_replaced and self._checkouts < _FEW_CHECKOUTS
        self._end()
        return True

    def stop(self) -> None:
        """Stop recording: the pool is no longer instrumented."""
        # An empty block: a hook that is still running, or that the application wrapped, fails to store, and its error
        # path sees that the recorder is stopped.
        self.block = memoryview(b"").cast("d")
        self._end()
        self.connections.clear()

    def _end(self) -> None:
        self.is_ended = True
        self.pool_ref = None  # breaks the reference cycle, and drops the callback
        self.storage.doubles[ACTIVE] = 0.0

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

    # -- checkouts that do not succeed at once

    def acquire_waiter(self) -> tuple[int, float]:
        """Begin a checkout for which the hot path found no free slot.

        Returns:
            The slot (``UNTRACKED`` if the table is full) and the time at which the checkout began.
        """
        began = self.clock()
        waiter = self.waiters.acquire(self.block, WAITERS)
        # straight line: a time limit that strikes in between would lose the slot
        if waiter:
            self.block[waiter] = began
        else:
            waiter = UNTRACKED
            self.block[UNTRACKED_PENDING] += 1.0
        # end of straight line
        return waiter, began

    def checkout_failed(self, began: float, field: int) -> None:
        """Record a checkout that raised, in the counter ``field``; ``began`` is 0 if that is not known."""
        if began:
            self._observe(WAIT_FAILED, began, field, _TIMED_OUT if field == CHECKOUT_TIMEOUTS else SCRATCH)

    def checked_out(self, row: ConnectionRow, began: float) -> None:
        """Record a checkout off the hot path."""
        now, storage = self.clock(), self.storage
        bucket = WAIT + bisect_left(BUCKETS, now - began)
        site = None if self.origins is None else self.origins.find()
        block = self.block
        if site is None:
            number, counts, at = 0, block, SCRATCH
        else:
            if self.storage is not storage:  # the process forked meanwhile: the site is the parent's
                site = self.storage.other_sites
            number, counts, at = site.number, site.table, site.at
        # straight line
        row.table[row.held_at] = now
        row.site, row.holder, row.label = site, None, 0
        row.table[row.held_at + SITE - HELD_SINCE] = number
        row.table[row.held_at + HOLDER - HELD_SINCE] = row.table[row.held_at + LABEL - HELD_SINCE] = 0.0
        counts[at] += 1.0
        block[bucket] += 1.0
        block[WAIT + SUM] += now - began
        # end of straight line

    def failed(self, failure: Failure) -> None:
        """Count an error of the driver, and report it if it comes from the server or the network."""
        field = ERROR_COUNTS + ERRORS.index((str(failure.layer), failure.disposition))
        self.block[field] += 1.0
        self.failures.failed(self, failure, self)

    def _observe(self, histogram: int, began: float, counter: int = SCRATCH, other: int = SCRATCH) -> None:
        elapsed = self.clock() - began
        bucket = histogram + bisect_left(BUCKETS, elapsed)
        block = self.block
        # straight line
        block[counter] += 1.0
        block[other] += 1.0
        block[bucket] += 1.0
        block[histogram + SUM] += elapsed
        # end of straight line

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
        if for_good and not row.table[row.held_at]:
            self.release_row(row)

    def closed_detached(self, connection: object) -> None:
        """Record that a detached connection was closed, unless ``detached()`` counted the close already."""
        if not self.connections.is_close_expected(connection):
            self.block[CLOSES + DETACHED] += 1.0

    def release_row(self, row: ConnectionRow, *, if_empty: bool = False) -> None:
        """Free the row of a record that will not be used again; ``if_empty``: only if it has no connection."""
        self.connections.release(self.block, row, if_empty=if_empty)

    def _record_collected(self, reference: ConnectionRow | BackupRef) -> None:
        """Free the row of a garbage-collected record; if its connection is open, count that as closed."""
        try:
            if not fork.mark[0] and not fork.notice():
                return  # a forked child that is leaving the blocks of its parent
            row = reference.row
            if row.is_released:
                return
            counters: tuple[int, ...] = ()
            site = None
            if row.has_connection:
                is_leaked = bool(row.table[row.held_at])
                is_disposed = self.is_replaced or row.state != IN_POOL
                counters = (
                    CLOSES + (DISPOSE if is_disposed else GC),
                    LEAKED_CHECKOUTS if is_leaked else SCRATCH,
                )
                site = (row.site or self.storage.other_sites) if is_leaked else None
            self.connections.release(self.block, row, *counters, leaked=site)
        except Exception as error:
            if not self.fault(error):
                raise

    # -- pings and invalidations

    def pinged(self, row: ConnectionRow, began: float, *, alive: bool | None) -> None:
        """Record a pre-ping; ``alive`` is None if the ping raised."""
        if alive is False:
            row.close_reason = PING_FAILED
        if began:
            failed, error = (PING_FAILURES, _PING_FAILED) if alive is False else (SCRATCH, SCRATCH)
            self._observe(PING, began, failed, error)

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

    def returned(self, row: ConnectionRow, since: float, *, collected: bool) -> None:
        """Record a return off the hot path.

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
