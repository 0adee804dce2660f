# SPDX-License-Identifier: Apache-2.0
"""The writer: what happens to one pool, stored into its block.

No locks. CPython lets another thread, a signal handler or (since 3.12) the garbage collector run only where the
bytecode calls something or jumps backwards, so a stretch of stores without either is done as one; each stretch that
relies on it is marked *straight line*, and a test disassembles them. That holds with the GIL; ``instrument()`` warns
where there is none.

The garbage collector can return a connection in the middle of anything here, in the same thread. So free slots are
taken and given with the atomic ``list.pop`` and ``list.append``, and nothing read before a call is trusted after it.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
import weakref
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.metrics import BUCKETS, CLOSE_REASONS
from sqlalchemy_pool_exporter.segment import block as segment
from sqlalchemy_pool_exporter.segment.block import (
    CHECKINS_UNTIMED,
    CLOSES,
    CONNECT,
    CONNECT_FAILED,
    CONNECTIONS_AT,
    CONNECTIONS_USED,
    DETACHES,
    EMPTY,
    FAULTS,
    HELD_SINCE,
    HOLD,
    INVALIDATIONS,
    LAST_CHECKIN,
    LEAKED_CHECKOUTS,
    OVERFLOW_OPENED,
    PING,
    PING_FAILURES,
    RETIRED,
    ROW,
    SCRATCH,
    SUM,
    UNTRACKED,
    UNTRACKED_CONNECTIONS,
    UNTRACKED_PENDING,
    WAIT,
    WAIT_FAILED,
    WAITERS,
    WAITERS_AT,
    WAITERS_USED,
)
from sqlalchemy_pool_exporter.segment.snapshot import Snapshot

from .connection_row import HOLDER, PLACE, Again, Place, unmark, was_collected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy_pool_exporter.segment.snapshot import Value
    from sqlalchemy_pool_exporter.segment.store import BlockStore

DISPOSE, DETACHED, GC = map(CLOSE_REASONS.index, ("dispose", "detached", "gc"))
SOFT_INVALIDATED, PING_FAILED, ERROR = map(CLOSE_REASONS.index, ("soft_invalidated", "ping_failed", "error"))

_CHUNK: Final = 16
_UNCOUNTED: Final = (SCRATCH, SCRATCH)


class Recorder:
    """Records what happens to one pool and to those that replace it.

    The mutable state is the block, the two lists of free slots, ``live``, and the places by record and by
    connection. Methods may raise ``Exception``; the hooks catch and count it.
    """

    __slots__ = (
        "__weakref__",
        "_collecting",
        "_give_back",
        "_live",
        "_places",
        "_rows",
        "_size",
        "_table_rows",
        "block",
        "by_connection",
        "clock",
        "configuration",
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
        self.waiters: list[int] = []
        self._rows: list[int] = []
        self.store = store
        self._table_rows = rows
        self.block = store.block(name, info, rows)
        # Also when the pool is simply collected.
        self._give_back = weakref.finalize(self, store.give_back, name)
        self._give_back.atexit = False
        self._places: dict[int, Place] = {}
        self.by_connection: dict[int, Place] = {}
        self._collecting: set[int] = set()
        self._live = 0  # places that count against pool_size
        self._size = math.nan
        self.configuration = configuration
        self.configure(configuration)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} places={len(self._places)}>"

    # -- configuration and lifetime

    def configure(self, configuration: dict[int, float]) -> None:
        """Store the pool's limits: values by field."""
        self.configuration = configuration
        self.block[segment.ACTIVE] = 1.0
        for field, value in configuration.items():
            self.block[field] = value
        self._size = configuration[segment.SIZE] if configuration[segment.HAS_OVERFLOW] else math.nan

    def values(self) -> Iterator[tuple[str, Value]]:
        """Yield the key and value of every metric that applies to the pool now."""
        return Snapshot.of(self.block).values(now=self.clock(), wall=time.time())

    def retire(self, how: float) -> None:
        """Take the connections that are open now out of the account of ``pool_size``: their pool is disposed of."""
        for place in list(self._places.values()):
            if not place.retired and not place.ended:
                place.retired = True
                self._live = self._live - 1
            at = place.row + RETIRED
            place.table[at] = max(place.table[at], how)

    def restart(self) -> None:
        """Go on in another block, in a forked child: the connections are its parent's, and so are the counts."""
        self._release_places()
        self._live = 0
        self.waiters.clear()
        self._rows.clear()
        self._collecting.clear()
        self.block = self.store.block(self.name, self.info, self._table_rows)
        self.configure(self.configuration)

    def stop(self) -> None:
        """Write to nowhere from now on: the pool is not instrumented any more."""
        # A block without room: whoever is inside a hook, or has wrapped one, fails to write and finds it stopped.
        self.block = memoryview(b"").cast("d")
        self._release_places()
        self._give_back()

    def _release_places(self) -> None:
        for place in list(self._places.values()):
            place.drop()
            record = place()
            if record is not None:
                unmark(record)
        self._places.clear()
        self.by_connection.clear()

    @property
    def stopped(self) -> bool:
        """Whether the pool is not instrumented any more."""
        return not self.block

    def fault(self, error: Exception | None = None) -> None:
        """Count a fault while recording.

        Raises:
            error: only if it is none, but was raised by a signal handler of the application's.
        """
        if error is not None and _is_of_a_signal_handler(error):
            raise error
        with contextlib.suppress(Exception):  # nothing is left to count it with
            self.block[FAULTS] += 1.0

    # -- checkout

    def enter(self, waiter: int) -> tuple[int, float]:
        """Begin a checkout where the short way failed: for want of a free slot, or by a fault.

        Returns the slot (``UNTRACKED`` if the table is full, ``SCRATCH`` after a fault) and when it began.
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
        block = self.block
        most = float(WAITERS)
        # straight line: two threads that find the list empty take different chunks. And one line, since a debugger
        # lets other threads in between two.
        block[WAITERS_USED] = end = start + _CHUNK if (start := block[WAITERS_USED]) + _CHUNK < most else most
        # end of straight line
        first = WAITERS_AT + int(start)
        self.waiters.extend(range(WAITERS_AT + int(end) - 1, first - 1, -1))
        try:
            return self.waiters.pop()
        except IndexError:
            block[UNTRACKED_PENDING] += 1.0
            return UNTRACKED

    def leave(self, waiter: int) -> None:
        """Give back the slot of a checkout that ended."""
        if waiter > UNTRACKED:
            self.block[waiter] = 0.0
            self.waiters.append(waiter)
        elif waiter == UNTRACKED:
            self.block[UNTRACKED_PENDING] -= 1.0

    def checkout_failed(self, waiter: int, began: float, error: int) -> None:
        """Record a checkout that raised; ``error`` is the field that counts its kind."""
        self.leave(waiter)
        if began:
            self._observe(WAIT_FAILED, began, error)

    def _observe(self, histogram: int, began: float, counter: int = SCRATCH) -> None:
        elapsed = self.clock() - began
        bucket = histogram + bisect_left(BUCKETS, elapsed)
        block = self.block
        # straight line
        block[counter] += 1.0
        block[bucket] += 1.0
        block[histogram + SUM] += elapsed
        # end of straight line

    def checked_out(self, place: Place, began: float) -> None:
        """Record a checkout of a place; what the hook does in its own way in the usual case."""
        place.table[place.held] = self.clock()
        self._observe(WAIT, began)

    def place_of(self, record: Any) -> Place | None:
        """Return the live place of a record, or None."""
        place: Place | None = getattr(record, PLACE, None)
        return None if place is None or place.ended else place

    def adopt(self, record: Any, *, connected_at: float, retired: bool = False) -> Place:
        """Give a row to a record whose connection was not seen to open; ``EMPTY`` if it has none."""
        place = self._new_place(record, connected_at, retired=retired)
        if connected_at != EMPTY:
            self._index(place, record.dbapi_connection)
        return place

    def hold_adopted(self, place: Place, record: Any, holder: weakref.ref[Any] | None) -> None:
        """Mark a place as checked out since some time before now; by whom, if that is known."""
        before, table, held = -self.clock(), place.table, place.held
        # straight line: if it is out still, for its holder may return it at any moment
        if record.fairy_ref is not None and not table[held]:
            record._pool_exporter_holder = holder
            table[held] = before
        # end of straight line

    # -- physical connections

    def connected(self, record: Any, connection: object, began: float, *, retired: bool) -> None:
        """Record that ``connection`` was opened for ``record``, in a new place or in its old one."""
        if self.stopped:
            return
        if began:
            self._observe(CONNECT, began)
        place = self.place_of(record)
        if place is None:
            place = self._new_place(record, self.clock(), retired=retired)
            self._index(place, connection)
            if self._live > self._size and not retired:
                self.block[OVERFLOW_OPENED] += 1.0
        else:
            place.reason = None
            self._index(place, connection)
            # Last: an interrupt before it leaves the row empty, as SQLAlchemy does its record.
            place.table[place.row] = self.clock()

    def connect_failed(self, began: float) -> None:
        """Record that a connection could not be opened."""
        if began:
            self._observe(CONNECT_FAILED, began)

    def _new_place(self, record: Any, connected_at: float, *, retired: bool) -> Place:
        if self.stopped:
            # Somebody is still inside a hook. The record may have a place with another recorder by now.
            place = Place(record, self._gone, memoryview(bytearray(8 * ROW)).cast("d"), 0)
            place.drop()
            return place
        row = self._free_row()
        table = self.block
        if not row:
            table = memoryview(bytearray(8 * ROW)).cast("d")
            self.block[UNTRACKED_CONNECTIONS] += 1.0
        place = Place(record, self._gone, table, row)
        # Atomic: while a pool in traffic is being hooked, two threads can meet the same record for the first time.
        first = self._places.setdefault(id(record), place)
        if first.ended:
            # Left behind by an interrupted end(), for a record that had this address before.
            first = self._places[id(record)] = place
        if first is not place:
            place.drop()
            if row:
                self._rows.append(row)
            else:
                self.block[UNTRACKED_CONNECTIONS] -= 1.0
            return first
        # Not through __dict__: that would make one, and the attribute slower to find at each checkout.
        setattr(record, HOLDER, None)
        setattr(record, PLACE, place)
        place.retired = retired
        # straight line
        table[row + HELD_SINCE] = 0.0
        table[row + RETIRED] = segment.REPLACED if retired else 0.0
        table[row] = connected_at
        if not retired:
            self._live = self._live + 1
        # end of straight line
        return place

    def _free_row(self) -> int:
        try:
            return self._rows.pop()
        except IndexError:
            pass
        block, used = self.block, CONNECTIONS_USED
        most = float(segment.rows_of(block))
        # straight line: likewise
        block[used] = end = start + _CHUNK if (start := block[used]) + _CHUNK < most else most
        # end of straight line
        rows = range(CONNECTIONS_AT + ROW * (int(end) - 1), CONNECTIONS_AT + ROW * int(start) - 1, -ROW)
        self._rows.extend(rows)
        try:
            return self._rows.pop()
        except IndexError:
            return 0

    def _index(self, place: Place, connection: object) -> None:
        if place.ended:
            return
        place.connection_id = id(connection)
        self.by_connection[place.connection_id] = place

    def place_of_connection(self, connection: object) -> Place | None:
        """Return the place whose record holds this very connection now, or None."""
        place = self.by_connection.get(id(connection))
        if place is None or place.ended:
            return None
        record = place()
        # An id can be reused; only the record says whose connection it is.
        return place if record is not None and record.dbapi_connection is connection else None

    def closed(self, place: Place, reason: int, *, for_good: bool) -> None:
        """Record that the connection of a place was closed.

        Args:
            place: whose connection.
            reason: index into ``CLOSE_REASONS``.
            for_good: the pool gives up the record too, instead of connecting again in it.
        """
        table, block = place.table, self.block
        invalidated = place.reason_now() is not None
        # straight line
        table[place.row] = EMPTY
        block[CLOSES + reason] += 1.0
        block[INVALIDATIONS] += invalidated
        # end of straight line
        place.reason = None
        self._forget_connection(place)
        if for_good and not table[place.held]:
            self.end(place)

    def closed_detached(self, connection: object) -> None:
        """Record that a detached connection was closed, unless its collection was counted already."""
        if id(connection) in self._collecting:
            self._collecting.discard(id(connection))
        else:
            self.block[CLOSES + DETACHED] += 1.0

    def end(self, place: Place, *counters: int) -> None:
        """Free the row of a place that will not be used again, and count that in these fields."""
        if place.ended:
            return
        first, second = counters or _UNCOUNTED
        table, row, block = place.table, place.row, self.block
        # straight line: first of all, since an interrupt later on would leave the row as it is for ever
        place.ended = True
        table[row] = table[row + 1] = table[row + 2] = table[row + 3] = 0.0
        block[first] += 1.0
        block[second] += 1.0
        if not place.retired:
            self._live = self._live - 1
        # end of straight line
        if place.is_tracked:
            self._rows.append(row)
        else:
            self.block[UNTRACKED_CONNECTIONS] -= 1.0
        place.drop()
        if self._places.get(place.record_id) is place:
            del self._places[place.record_id]
        self._forget_connection(place)
        record = place()
        if record is not None:
            unmark(record)

    def _forget_connection(self, place: Place) -> None:
        # The address of a connection that is gone can be another's by now.
        if self.by_connection.get(place.connection_id) is place:
            del self.by_connection[place.connection_id]

    def _gone(self, reference: Place | Again) -> None:
        """Record that a record was collected: with its connection, if that is still open."""
        try:
            place = reference.place
            if place.ended:
                return
            counters = _UNCOUNTED
            if place.table[place.row] > 0.0:
                leaked = LEAKED_CHECKOUTS if place.table[place.held] else SCRATCH
                counters = (CLOSES + (DISPOSE if place.retired else GC), leaked)
            self.end(place, *counters)
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.fault(error)

    def pinged(self, place: Place, began: float, *, alive: bool | None) -> None:
        """Record a pre-ping; ``alive`` is None if it raised instead of answering."""
        if alive is False:
            place.set_reason(PING_FAILED)
        if began:
            self._observe(PING, began, PING_FAILURES if alive is False else SCRATCH)

    def invalidated(self, record: Any, *, soft: bool) -> None:
        """Record an invalidation, and why the connection will be closed."""
        if soft:
            self.block[INVALIDATIONS + 1] += 1.0
            return
        place = self.place_of(record)
        if place is not None and place.reason_now() != PING_FAILED:
            place.set_reason(GC if was_collected(record) else ERROR)

    # -- return

    def returned(self, record: Any, place: Place, since: float, *, is_async: bool, terminates: bool) -> None:
        """Record a return that is out of the ordinary.

        A connection that is gone, one that was out before the pool was instrumented, a checkout that failed before
        it was handed out, a detached connection, or a record never seen.

        Args:
            record: SQLAlchemy's connection record, about to be put back.
            place: its place, which is marked as returned already.
            since: when it was checked out; negative if that was not seen, 0 if it was not checked out at all.
            is_async: whether SQLAlchemy detaches a connection that is collected.
            terminates: whether it closes it then.
        """
        left = record.dbapi_connection is None and place.table[place.row] > 0.0
        if not since:
            if left:
                # A listener raised, and SQLAlchemy collected the proxy that nobody got.
                self._detached(place, was_out=False, collected=is_async, terminates=terminates)
            return
        collected = was_collected(record)
        setattr(record, HOLDER, None)
        now = self.clock()
        if left:
            self._detached(place, was_out=True, collected=collected, terminates=terminates)
            return
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

    def _detached(self, place: Place, *, was_out: bool, collected: bool, terminates: bool) -> None:
        # Not closed but gone from its record: detach(), by the holder or, for an asyncio connection that was
        # collected, by SQLAlchemy.
        if collected and terminates:
            self._collecting.add(place.connection_id)
        self._forget_connection(place)
        table, block = place.table, self.block
        leaked = collected and was_out
        # straight line
        table[place.row] = EMPTY
        block[DETACHES] += was_out
        block[LEAKED_CHECKOUTS] += leaked
        block[CLOSES + GC] += collected
        # end of straight line


def _is_of_a_signal_handler(error: BaseException) -> bool:
    # A task queue ends a task that takes too long by an exception, raised wherever the task is.
    codes = {
        getattr(getattr(handler, "__func__", handler), "__code__", None)
        for handler in map(signal.getsignal, signal.valid_signals())
    } - {None}
    frame = error.__traceback__
    while frame:
        if frame.tb_frame.f_code in codes:
            return True
        frame = frame.tb_next
    return False
