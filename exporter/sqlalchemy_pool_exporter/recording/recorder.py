# SPDX-License-Identifier: Apache-2.0
"""The writer: what happens to one pool, stored into its block.

The recorder takes rows and knows no SQLAlchemy: what a hook found out about a connection reaches it as an argument.

No locks. CPython lets another thread, a signal handler or (since 3.12) the garbage collector run only where the
bytecode calls something or jumps backwards, so a stretch of stores without either is done as one; each stretch that
relies on it is marked *straight line*, and a test disassembles them. That holds with the GIL; ``instrument()`` warns
where there is none.

The garbage collector can return a connection in the middle of any method here, in the same thread. So free slots are
taken and given with the atomic ``list.pop`` and ``list.append``, and nothing read before a call is trusted after it.
"""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from bisect import bisect_left
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.metrics import BUCKETS, CLOSE_REASONS
from sqlalchemy_pool_exporter.segment.block import (
    ACTIVE,
    CHECKINS_UNTIMED,
    CLOSES,
    CONNECT,
    CONNECT_FAILED,
    DETACHES,
    EMPTY,
    FAULTS,
    HAS_OVERFLOW,
    HOLD,
    INVALIDATIONS,
    LAST_CHECKIN,
    LEAKED_CHECKOUTS,
    OVERFLOW_OPENED,
    PING,
    PING_FAILURES,
    SCRATCH,
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
from sqlalchemy_pool_exporter.segment.snapshot import Snapshot

from .connection_row import IN_POOL, BackupRef, ConnectionRow, row_of
from .connection_table import ConnectionTable
from .faults import is_from_signal_handler
from .slots import FreeSlots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy_pool_exporter.segment.snapshot import Value
    from sqlalchemy_pool_exporter.segment.store import BlockStore

DISPOSE, DETACHED, GC = map(CLOSE_REASONS.index, ("dispose", "detached", "gc"))
PING_FAILED, ERROR = map(CLOSE_REASONS.index, ("ping_failed", "error"))
# One field for each of INVALIDATION_KINDS.
_HARD, _SOFT = INVALIDATIONS, INVALIDATIONS + 1


class Recorder:
    """Records what happens to one pool and to those that replace it.

    The mutable state is the block, the free slots for waiters, and the table of connections. Methods may raise
    ``Exception``; the hooks catch and count it.
    """

    __slots__ = (
        "__weakref__",
        "_give_back",
        "_size",
        "_table_rows",
        "block",
        "clock",
        "configuration",
        "connections",
        "info",
        "name",
        "store",
        "waiters",
    )

    def __init__(  # noqa: PLR0913 - each is a fact of its own
        self,
        name: str,
        *,
        info: dict[str, str],
        configuration: dict[int, float],
        store: BlockStore,
        rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.info = info
        self.clock = clock
        self.waiters = FreeSlots(first=WAITERS_AT, stride=1, used=WAITERS_USED)
        self.connections = ConnectionTable(self._record_collected)
        self.store = store
        self._table_rows = rows
        self.block = store.block(name, info, rows)
        # Also when the pool is simply collected.
        self._give_back = weakref.finalize(self, store.give_back, name)
        self._give_back.atexit = False
        self._size = math.nan
        self.configuration = configuration
        self.configure(configuration)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} rows={len(self.connections.rows())}>"

    # -- configuration and lifetime

    def configure(self, configuration: dict[int, float]) -> None:
        """Store the pool's limits: values by field."""
        self.configuration = configuration
        self.block[ACTIVE] = 1.0
        for field, value in configuration.items():
            self.block[field] = value
        self._size = configuration[SIZE] if configuration[HAS_OVERFLOW] else math.nan

    def values(self) -> Iterator[tuple[str, Value]]:
        """Yield the key and value of every metric that applies to the pool now."""
        return Snapshot.of(self.block).values(now=self.clock(), wall=time.time())

    def disposed_or_replaced(self, state: float) -> None:
        """Take the connections that are open now out of the account of ``pool_size``.

        Args:
            state: ``DISPOSED`` if their pool was disposed of, ``REPLACED`` if a new one took its place.
        """
        for row in self.connections.rows():
            row.disposed_or_replaced(state)

    def restart(self) -> None:
        """Go on in another block, in a forked child: the connections are its parent's, and so are the counts."""
        self.connections.clear()
        self.waiters.clear()
        self.block = self.store.block(self.name, self.info, self._table_rows)
        self.configure(self.configuration)

    def stop(self) -> None:
        """Write to nowhere from now on: the pool is not instrumented any more."""
        # A block without room: a caller that is inside a hook, or a wrapper around one, fails to write and finds the
        # recorder stopped.
        self.block = memoryview(b"").cast("d")
        self.connections.clear()
        self._give_back()

    @property
    def stopped(self) -> bool:
        """Whether the pool is not instrumented any more."""
        return not self.block

    def fault(self, error: Exception | None = None) -> None:
        """Count a fault while recording.

        Raises:
            error: if a signal handler of the application raised it, since then it is no fault.
        """
        if error is not None and is_from_signal_handler(error):
            raise error
        with contextlib.suppress(Exception):  # nothing is left to count it with
            self.block[FAULTS] += 1.0

    # -- checkouts that do not succeed at once

    def acquire_waiter(self, waiter: int) -> tuple[int, float]:
        """Begin a checkout for which the hot path found no free slot.

        Args:
            waiter: the slot that was taken already, or ``SCRATCH``.

        Returns:
            The slot (``UNTRACKED`` if the table is full, ``SCRATCH`` after a fault) and when the checkout began, 0
            after a fault.
        """
        try:
            if waiter == SCRATCH:
                waiter = self._free_waiter()
            began = self.clock()
            self.block[waiter] = began
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.fault(error)
            return (waiter, 0.0)
        return waiter, began

    def _free_waiter(self) -> int:
        waiter = self.waiters.acquire(self.block, WAITERS)
        if waiter:
            return waiter
        self.block[UNTRACKED_PENDING] += 1.0
        return UNTRACKED

    def release_waiter(self, waiter: int) -> None:
        """Give back the slot of a checkout that ended."""
        if waiter > UNTRACKED:
            self.block[waiter] = 0.0
            self.waiters.free.append(waiter)
        elif waiter == UNTRACKED:
            self.block[UNTRACKED_PENDING] -= 1.0

    def checkout_failed(self, waiter: int, began: float, field: int) -> None:
        """Record a checkout that raised; ``field`` counts its kind."""
        self.release_waiter(waiter)
        if began:
            self._observe(WAIT_FAILED, began, field)

    def checked_out(self, row: ConnectionRow, began: float) -> None:
        """Record a checkout off the hot path."""
        row.table[row.held_at] = self.clock()
        self._observe(WAIT, began)

    def _observe(self, histogram: int, began: float, counter: int = SCRATCH) -> None:
        elapsed = self.clock() - began
        bucket = histogram + bisect_left(BUCKETS, elapsed)
        block = self.block
        # straight line
        block[counter] += 1.0
        block[bucket] += 1.0
        block[histogram + SUM] += elapsed
        # end of straight line

    # -- connections that open

    def connected(self, record: object, connection: object, began: float, *, state: float = IN_POOL) -> None:
        """Record that ``connection`` was opened for ``record``, in a new row or in its old one.

        Args:
            record: what the row is about.
            connection: what is now open.
            began: when the attempt to connect began, 0 if that is not known.
            state: ``REPLACED`` if a new pool took the place of the record's meanwhile.
        """
        if self.stopped:
            return
        if began:
            self._observe(CONNECT, began)
        row = row_of(record)
        if row is None:
            row = self.add_row(record, self.clock(), connection, state=state)
            if state == IN_POOL and self.connections.is_overflow(row, self._size):
                self.block[OVERFLOW_OPENED] += 1.0
        else:
            row.close_reason = None
            self.connections.index_connection(row, connection)
            # Last: after an interrupt before it the row is empty, as SQLAlchemy's record is.
            row.table[row.at] = self.clock()

    def connect_failed(self, began: float) -> None:
        """Record that a connection could not be opened."""
        if began:
            self._observe(CONNECT_FAILED, began)

    def add_row(
        self, record: object, connected_at: float, connection: object, *, state: float = IN_POOL
    ) -> ConnectionRow:
        """Return the row of a record that has none yet.

        Args:
            record: what the row is about.
            connected_at: since when its connection is open, ``EMPTY`` if it has none.
            connection: that connection.
            state: ``IN_POOL``, or ``REPLACED`` if a new pool took the place of the record's.
        """
        if self.stopped:
            # A caller is still inside a hook. The record may have a row with another recorder by now.
            return self.connections.unlisted(record)
        row = self.connections.add(self.block, record, connected_at, state=state)
        if connected_at != EMPTY:
            self.connections.index_connection(row, connection)
        return row

    # -- connections that close

    def closed(self, row: ConnectionRow, reason: int, *, for_good: bool) -> None:
        """Record that the connection of a row was closed.

        Args:
            row: whose connection.
            reason: index into ``CLOSE_REASONS``.
            for_good: the pool gives up the record too, instead of connecting again in it.
        """
        table, block = row.table, self.block
        invalidated = row.close_reason is not None
        # straight line
        table[row.at] = EMPTY
        block[CLOSES + reason] += 1.0
        block[_HARD] += invalidated
        # end of straight line
        row.close_reason = None
        self.connections.forget_connection(row)
        if for_good and not table[row.held_at]:
            self.release_row(row)

    def closed_detached(self, connection: object) -> None:
        """Record that a detached connection was closed, unless that was counted before."""
        if not self.connections.is_close_expected(connection):
            self.block[CLOSES + DETACHED] += 1.0

    def release_row(self, row: ConnectionRow) -> None:
        """Free the row of a connection that will not be used again."""
        self.connections.release(self.block, row)

    def _record_collected(self, reference: ConnectionRow | BackupRef) -> None:
        """Record that a record was collected: with its connection, if that is still open."""
        try:
            row = reference.row
            if row.is_released:
                return
            counters: tuple[int, ...] = ()
            if row.has_connection:
                leaked = LEAKED_CHECKOUTS if row.table[row.held_at] else SCRATCH
                counters = (CLOSES + (GC if row.state == IN_POOL else DISPOSE), leaked)
            self.connections.release(self.block, row, *counters)
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.fault(error)

    # -- pings and invalidations

    def pinged(self, row: ConnectionRow, began: float, *, alive: bool | None) -> None:
        """Record a pre-ping; ``alive`` is None if it raised instead of answering."""
        if alive is False:
            row.close_reason = PING_FAILED
        if began:
            self._observe(PING, began, PING_FAILURES if alive is False else SCRATCH)

    def invalidated(self, row: ConnectionRow, reason: int) -> None:
        """Record that the connection of a row will be closed at once, and why."""
        if row.close_reason != PING_FAILED:
            row.close_reason = reason

    def soft_invalidated(self, row: ConnectionRow | None) -> None:
        """Record that a connection will be closed at its next checkout."""
        self.block[_SOFT] += 1.0
        if row is not None:
            # An earlier invalidation was interrupted: SQLAlchemy did not close the connection then.
            row.close_reason = None

    # -- connections that come back

    def returned(self, since: float, *, collected: bool) -> None:
        """Record a return off the hot path.

        Args:
            since: when the connection was checked out; negative if that was not seen.
            collected: the holder was collected instead of returning it.
        """
        now = self.clock()
        held = now - since if since > 0.0 else 0.0
        bucket, total = (
            (HOLD + bisect_left(BUCKETS, held), HOLD + SUM) if since > 0.0 else (CHECKINS_UNTIMED, SCRATCH)
        )
        block = self.block
        # straight line
        block[bucket] += 1.0
        block[total] += held
        block[LAST_CHECKIN] = now
        block[LEAKED_CHECKOUTS] += collected
        # end of straight line

    def detached(
        self, row: ConnectionRow, *, was_out: bool, collected: bool, is_closed_next: bool = False
    ) -> None:
        """Record that a connection left its record without being closed.

        Args:
            row: the row of the record.
            was_out: it was checked out, so this ends a checkout.
            collected: the holder was collected, and SQLAlchemy lets go of the connection; else the holder keeps it.
            is_closed_next: SQLAlchemy will say that it closes the detached connection, which is counted here already.
        """
        self.connections.forget_connection(row)
        if is_closed_next:
            self.connections.expect_close(row.connection_id)
        table, block = row.table, self.block
        leaked = collected and was_out
        # straight line
        table[row.at] = EMPTY
        block[DETACHES] += was_out
        block[LEAKED_CHECKOUTS] += leaked
        block[CLOSES + GC] += collected
        # end of straight line
