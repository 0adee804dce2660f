# SPDX-License-Identifier: Apache-2.0
"""What becomes of connections in the model of SQLAlchemy's pool: returned, invalidated, detached, closed, collected."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Literal

from tests.support.reference_parts import Caller, Detached, Fault, Pool, Slot

Collected = Literal["returned", "closed", "left"]
ResetFails = Literal["always", "in a transaction", "never"]


class Connections:
    """The connections of an engine's pool and of the disposed pools before it, and the model's state."""

    def __init__(
        self,
        pool: Pool,
        *,
        lifo: bool,
        recycle: bool,
        pre_ping: bool,
        is_asyncio: bool,
        collected: Collected,
        closes_detached: bool,
        reset_fails: ResetFails,
        version: tuple[int, ...],
    ) -> None:
        self.pool = pool
        self.pools = [pool]
        self.slots: list[Slot] = []
        self.lost: list[Slot] = []  # only the garbage collector will find them
        self.callers: list[Caller] = []
        self.detached: list[Detached] = []
        self.instrumentation = 0
        self.counted: Counter[str] = Counter()  # while instrumented, by the names of the metrics
        self.by_site: Counter[tuple[str, str]] = Counter()  # likewise, with the site
        self.nested = 0
        self.logged: Counter[str] = Counter()  # always, by the names in PoolLog
        self.raises: dict[str, str] = {}  # the error that an event's listener raises, by event
        self.refuses = ""  # the error that the driver's connect() raises
        self.holds_connects = False
        self._lifo = lifo
        self._recycle = recycle
        self._pre_ping = pre_ping
        self._is_asyncio = is_asyncio
        self._collected = collected
        self._closes_detached = closes_detached
        self._reset_fails = reset_fails
        self._version = version
        self._ticks = count(1)
        self._instrumentations = count(1)

    # -- counting

    def _count(self, key: str, instrumentation: int) -> None:
        if instrumentation and instrumentation == self.instrumentation:
            self.counted[key] += 1

    def _count_at(self, key: str, slot: Slot, instrumentation: int) -> None:
        """Count with the site of a checkout; it is not known if the checkout was not seen."""
        if instrumentation and instrumentation == self.instrumentation:
            self.by_site[key, slot.site if slot.timed else "other"] += 1

    def _tick(self) -> int:
        return next(self._ticks)

    def _fire(self, event: str, pool: Pool) -> None:
        if pool.has_listeners and event in self.raises:
            raise Fault(self.raises[event])

    def _collect_proxies(self, slots: list[Slot]) -> None:
        # The checkout raised where SQLAlchemy does not expect it, so no caller has the proxy.
        for slot in slots:
            if slot.out:
                self.drop(slot)

    # -- return

    def give_back(self, slot: Slot) -> str:
        """Return a checked-out connection to the pool; the value is the kind of fault that SQLAlchemy raises."""
        try:
            self._finalize(slot, slot.open, collected=False)
        except Fault as fault:
            self._collect_proxies([slot])
            return fault.kind
        return ""

    def drop(self, slot: Slot) -> None:
        """Leave a checked-out connection to the garbage collector."""
        try:
            self._finalize(slot, slot.open, collected=True)
        except Fault:
            # The fault is lost, and the record is not returned.
            slot.out = False
            if slot not in slot.pool.queue:
                self._lose(slot)

    def _finalize(self, slot: Slot, connected: bool, *, collected: bool) -> None:
        # A collected asyncio connection is detached, since no rollback can be awaited.
        detaches = collected and self._collected != "returned"
        if connected:
            try:
                self._fire("reset", slot.pool)
                if not detaches:
                    self._roll_back(slot, unable=collected and self._is_asyncio)
                else:
                    self._detach(slot, collected=True)
                    self.logged["closes"] += self._collected == "closed"
            except Fault as fault:
                if fault.is_exit:
                    self._failed(slot, collected=collected)
                    raise
                self._invalidate(slot, "gc" if collected and slot.handed_out else "error")
        if slot.out:
            self._check_in(slot, collected=collected)

    def _roll_back(self, connection: Slot | Detached, *, unable: bool = False) -> None:
        if unable and connection.dirty:
            raise Fault("reset")
        if connection.dead and (
            self._reset_fails == "always" or (self._reset_fails[:2] == "in" and connection.dirty)
        ):
            raise Fault("reset")
        connection.dirty = False

    def _failed(self, slot: Slot, *, collected: bool = False) -> None:
        try:
            self._invalidate(slot, "gc" if collected and slot.handed_out else "error")
        finally:
            self._check_in(slot, collected=collected)

    def _check_in(self, slot: Slot, *, collected: bool = False) -> None:
        slot.out = False
        try:
            self._fire("checkin", slot.pool)
        except Fault:
            # The record does not reach its queue, and the pool counts it as checked out for ever.
            self._lose(slot)
            raise
        self._returned(slot, collected=collected)
        self._put(slot)

    def _returned(self, slot: Slot, *, collected: bool) -> None:
        instrumentation = slot.pool.instrumentation
        if slot.handed_out:
            self._count("checkins", instrumentation)
            if slot.timed:
                self._count("hold_seconds_count", instrumentation)
                self._count_at("holds", slot, instrumentation)
            if collected:
                self._count("leaked_checkouts", instrumentation)
                self._count_at("leaked", slot, instrumentation)
        slot.handed_out = False

    def _put(self, slot: Slot) -> None:
        pool = slot.pool
        slot.known_to = pool.instrumentation
        if not pool.keeps_none and (not pool.size or len(pool.queue) < pool.size):
            pool.queue.append(slot)
            if slot not in self.slots:
                self.slots.append(slot)
            return
        try:
            if slot.open:
                self._close(slot, "unpooled" if pool.keeps_none else "overflow")
        finally:
            pool.overflow -= 1
            self._lose(slot)

    def _lose(self, slot: Slot) -> None:
        """Leave a slot that its pool has dropped to the garbage collector; an open one stays until `reap()`."""
        if slot not in self.slots or slot in self.lost:
            return
        if slot.open or self._is_kept(slot):
            self.lost.append(slot)
            if not slot.open and not slot.handed_out:
                slot.known_to = 0
        else:
            self.slots.remove(slot)

    def _is_kept(self, slot: Slot) -> bool:
        # SQLAlchemy 2.0 keeps the record of a detached connection as long as the proxy.
        return self._version < (2, 1) and any(connection.slot is slot for connection in self.detached)

    # -- closing

    def _close(self, slot: Slot, reason: str) -> None:
        self._fire("close", slot.pool)
        self._closed(slot, reason)
        self.logged["closes"] += 1

    def _closed(self, slot: Slot, reason: str) -> None:
        if slot.known_to:
            self._count(f"closes.{reason}", slot.known_to)
        slot.open = slot.dead = slot.dirty = False

    def _invalidate(self, slot: Slot, reason: str = "error") -> None:
        if not slot.open:
            return
        try:
            self._fire("invalidate", slot.pool)
            self.logged["hard"] += 1
            self._close(slot, reason)
            self._count("invalidations.hard", slot.known_to)
        finally:
            if slot.open:
                # Interrupted: the next checkout closes the connection.
                slot.invalidated = self._tick()

    def invalidate(self, slot: Slot) -> str:
        """Invalidate a checked-out connection, which also returns its record."""
        try:
            self._invalidate_and_return(slot)
        except Fault as fault:
            self._collect_proxies([slot])
            return fault.kind
        return ""

    def _invalidate_and_return(self, slot: Slot) -> None:
        try:
            self._invalidate(slot)
        finally:
            self._finalize(slot, connected=False, collected=False)

    def invalidate_softly(self, slot: Slot) -> None:
        self._count("invalidations.soft", slot.pool.instrumentation)
        self.logged["soft"] += 1
        slot.invalidated = self._tick()

    def invalidate_pool(self, slot: Slot) -> str:
        """Invalidate a connection and the engine's current pool, even if the connection is of an earlier pool."""
        if self.pool.invalidated < slot.made:
            self.pool.invalidated = self._tick()
        return self.invalidate(slot)

    # -- detaching

    def detach(self, slot: Slot) -> Detached:
        connection = Detached(slot, slot.pool, slot.dead, slot.dirty)
        self.detached.append(connection)
        self._detach(slot)
        return connection

    def _detach(self, slot: Slot, *, collected: bool = False) -> None:
        instrumentation = slot.pool.instrumentation
        slot.out = slot.open = slot.dead = slot.dirty = False
        if slot.handed_out:
            self._count("detaches", instrumentation)
            if collected:
                self._count("leaked_checkouts", instrumentation)
                self._count_at("leaked", slot, instrumentation)
        if collected:
            self._count("closes.gc", instrumentation)
        slot.handed_out = False
        self._put(slot)

    def close_detached(self, connection: Detached) -> str:
        self.detached.remove(connection)
        try:
            self._fire("reset", connection.pool)
            self._roll_back(connection)
        except Fault as fault:
            # SQLAlchemy leaves the connection to the garbage collector, and logs no close.
            return fault.kind if fault.is_exit else ""
        if self._closes_detached:
            self.logged["closes"] += 1
            self._count("closes.detached", connection.pool.instrumentation)
        return ""
