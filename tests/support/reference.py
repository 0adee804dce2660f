# SPDX-License-Identifier: Apache-2.0
"""A model of SQLAlchemy's pool, step by step, without threads, a driver or a database.

It follows SQLAlchemy's source and its order of steps, because the order decides the result if a listener raises in the
middle. Nothing in it is taken from the exporter: the model counts events itself. It also has the pool's own numbers,
including wrong ones. A checkout is a generator that yields where its caller waits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Generator

Waiting = Literal["queue", "connect"]
Collected = Literal["returned", "closed", "left"]
ResetFails = Literal["always", "in a transaction", "never"]

# Times are ticks from 1 on; a connection made at a negative time is older than pool_recycle.
NEVER = -1_000_000_000_000
AGED = -1_000_000


class Fault(Exception):  # noqa: N818 - not always an error
    """An exception that SQLAlchemy raises or lets through, by kind."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    @property
    def is_exit(self) -> bool:
        """Whether the exception is no ``Exception``, but a cancellation or an interrupt."""
        return self.kind in ("cancelled", "interrupted")

    @property
    def counted_as(self) -> str:
        """The counter of a checkout that ends with this fault."""
        if self.kind == "timeout":
            return "checkout_timeouts"
        if self.is_exit:
            return "checkout_errors.cancelled"
        return "checkout_errors.connect" if self.kind == "refused" else "checkout_errors.other"


@dataclass(eq=False)
class Slot:
    """A connection record, with the state of its connection."""

    pool: Pool
    open: bool = False
    dead: bool = False  # the server ended it, and the pool has not noticed
    dirty: bool = False  # in a transaction
    fresh: bool = False
    made: int = 0  # when, in ticks
    invalidated: int = NEVER  # by a soft invalidation, in ticks
    out: bool = False  # it has a proxy, also before connect() returns
    handed_out: bool = False  # connect() has returned it
    timed: bool = False  # the instrumentation saw its checkout
    retired: bool = False  # its pool was disposed of
    interrupted: bool = False
    known_to: int = 0  # the instrumentation that knows of it
    record: Any = None  # a weak reference, once it is known


@dataclass(eq=False)
class Pool:
    """A pool, with the numbers that it reports."""

    size: int
    max_overflow: int
    queue: list[Slot] = field(default_factory=list)
    overflow: int = 0  # as SQLAlchemy counts it, from -size
    invalidated: int = NEVER
    instrumentation: int = 0  # which one is attached; 0: none
    keeps_none: bool = False  # a NullPool
    has_listeners: bool = False
    replaced: bool = False
    reference: Any = None  # a weak reference

    def __post_init__(self) -> None:
        self.overflow = -self.size
        if not self.size:
            self.max_overflow = -1

    @property
    def has_room(self) -> bool:
        return self.keeps_none or self.max_overflow == -1 or self.overflow < self.max_overflow


@dataclass(eq=False)
class Caller:
    """A call of ``connect()``."""

    pool: Pool
    instrumentation: int
    at: Waiting | None = None
    steps: Generator[Waiting, bool, Slot] = field(init=False)
    slot: Slot | None = None
    fault: str = ""


@dataclass(eq=False)
class Detached:
    """A connection that left its pool."""

    slot: Slot
    pool: Pool
    dead: bool
    dirty: bool


class Model:
    """An engine's pool and the disposed pools before it."""

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

    # -- expected values

    def gauges(self) -> dict[str, float]:
        known = [slot for slot in self.slots if slot.known_to == self.instrumentation]
        idle = [slot for slot in known if not slot.handed_out]
        gauges: dict[str, float] = {
            "in_use": len(known) - len(idle),
            "idle": sum(slot.open for slot in idle),
            "empty_slots": sum(not slot.open and not slot.pool.replaced for slot in idle),
            "pending_checkouts": sum(
                caller.instrumentation == self.instrumentation for caller in self.callers
            ),
        }
        if not self.pool.keeps_none:
            beyond = sum(not slot.retired for slot in known) - self.pool.size
            gauges["overflow"] = max(0, beyond) if self.pool.size else 0
        return gauges

    @property
    def on_server(self) -> int:
        """How many connections the server has."""
        slots = sum(slot.open and not slot.dead for slot in self.slots)
        return slots + sum(not connection.dead for connection in self.detached)

    # -- counting

    def _count(self, key: str, instrumentation: int) -> None:
        if instrumentation and instrumentation == self.instrumentation:
            self.counted[key] += 1

    def _tick(self) -> int:
        return next(self._ticks)

    def _fire(self, event: str, pool: Pool) -> None:
        if pool.has_listeners and event in self.raises:
            raise Fault(self.raises[event])

    # -- checkout

    def connect(self) -> Caller:
        """Begin a checkout; it ends at once or waits."""
        caller = Caller(self.pool, self.pool.instrumentation)
        caller.steps = self._connect(caller)
        self.callers.append(caller)
        self.resume(caller)
        return caller

    def resume(self, caller: Caller, *, expired: bool = False, fault: Fault | None = None) -> None:
        """Resume a caller: its wait is over, its time has expired, or ``fault`` is raised in it."""
        try:
            if fault:
                caller.at = caller.steps.throw(fault)
            else:
                caller.at = caller.steps.send(expired) if caller.at else next(caller.steps)
        except StopIteration as returned:
            caller.slot = returned.value
        except Fault as raised:
            caller.fault = raised.kind
        else:
            return
        caller.at = None
        self.callers.remove(caller)

    def settle(self) -> None:
        """Resume the callers for which the queue has a connection, first come, first served."""
        while True:
            served = next(
                (caller for caller in self.callers if caller.at == "queue" and caller.pool.queue), None
            )
            if served is None:
                return
            self.resume(served)

    def _connect(self, caller: Caller) -> Generator[Waiting, bool, Slot]:
        slots: list[Slot] = []
        try:
            slot = yield from self._check_out(caller.pool, slots)
        except Fault as fault:
            self._count(fault.counted_as, caller.instrumentation)
            self._count("checkout_wait_seconds_count", caller.instrumentation)
            self._collect_proxies(slots)
            raise
        self._count("checkouts", caller.instrumentation)
        self._count("checkout_wait_seconds_count", caller.instrumentation)
        slot.handed_out = True
        slot.timed = bool(caller.instrumentation) and caller.instrumentation == caller.pool.instrumentation
        slot.known_to = caller.pool.instrumentation
        return slot

    def _collect_proxies(self, slots: list[Slot]) -> None:
        # The checkout raised where SQLAlchemy does not expect it, so no caller has the proxy.
        for slot in slots:
            if slot.out:
                self.drop(slot)

    def _check_out(self, pool: Pool, slots: list[Slot]) -> Generator[Waiting, bool, Slot]:
        slot = yield from self._get(pool)
        slots.append(slot)
        try:
            yield from self._get_connection(slot)
        except Fault:
            self._failed(slot)
            raise
        slot.out = True
        for _ in range(2):
            fresh, slot.fresh = slot.fresh, False
            try:
                if self._pre_ping and not fresh:
                    self._ping(slot)
                self._fire("checkout", pool)
            except Fault as fault:
                if fault.kind not in ("disconnected", "ping"):
                    self._failed(slot)
                    raise
                self._invalidate(slot, "ping_failed" if fault.kind == "ping" else "error")
                if fault.kind == "ping" and pool.invalidated < slot.made:
                    pool.invalidated = self._tick()
                try:
                    yield from self._get_connection(slot)
                except Fault:
                    self._failed(slot)
                    raise
            else:
                return slot
        self._invalidate_and_return(slot)
        raise Fault("exhausted")

    def _ping(self, slot: Slot) -> None:
        self._count("ping_seconds_count", slot.pool.instrumentation)
        if slot.dead:
            self._count("ping_failures", slot.pool.instrumentation)
            self.logged["ping_failures"] += 1
            raise Fault("ping")

    def _get(self, pool: Pool) -> Generator[Waiting, bool, Slot]:
        while not pool.queue:
            if pool.has_room:
                pool.overflow += 1
                slot = Slot(pool)
                try:
                    yield from self._open(slot)
                except Fault:
                    pool.overflow -= 1
                    self._lose(slot)
                    raise
                return slot
            expired = yield "queue"
            if expired and not pool.has_room:
                raise Fault("timeout")
        return pool.queue.pop(-1 if self._lifo else 0)

    def _get_connection(self, slot: Slot) -> Generator[Waiting, bool, None]:
        pool = slot.pool
        if slot.open:
            if self._recycle and slot.made < 0:
                reason = "recycle"
            elif pool.invalidated > slot.made:
                reason = "pool_invalidated"
            elif slot.invalidated > slot.made:
                reason = "soft_invalidated"
            else:
                return
            self.logged[reason] += 1
            self._close(slot, reason)
        yield from self._open(slot)

    def _open(self, slot: Slot) -> Generator[Waiting, bool, None]:
        slot.made = self._tick()
        instrumentation = slot.pool.instrumentation
        try:
            if self.holds_connects:
                yield "connect"
            if self.refuses:
                raise Fault(self.refuses)  # noqa: TRY301 - like any error of the driver
        except Fault:
            self._count("connect_errors", instrumentation)
            self._count("connect_seconds_count", instrumentation)
            self.logged["connect_errors"] += 1
            raise
        slot.open, slot.fresh, slot.dead, slot.dirty = True, True, False, False
        self.logged["connects"] += 1
        self._count("connects", instrumentation)
        self._count("connect_seconds_count", instrumentation)
        self._become_known(slot, instrumentation)
        try:
            self._fire("connect", slot.pool)
        except Fault:
            if self._version > (2, 0, 50):
                self._closed(slot, "error")
                self.logged["closes"] += 1
            raise

    def _become_known(self, slot: Slot, instrumentation: int) -> None:
        if slot not in self.slots:
            slot.retired = slot.pool.replaced
            self.slots.append(slot)
        if not instrumentation or instrumentation != self.instrumentation or slot.known_to == instrumentation:
            return
        slot.known_to = instrumentation
        slots = sum(slot.known_to == instrumentation and not slot.retired for slot in self.slots)
        if not slot.retired and 0 < slot.pool.size < slots:
            self._count("overflow_opened", instrumentation)

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
            if collected:
                self._count("leaked_checkouts", instrumentation)
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

    # -- the whole pool

    def dispose(self, *, close: bool, replace: bool = True) -> str:
        pool = self.pool
        if close and not pool.keeps_none:
            while pool.queue:
                slot = pool.queue.pop(-1 if self._lifo else 0)
                try:
                    if slot.open:
                        self._close(slot, "dispose")
                except Fault as fault:
                    # The other connections stay, and the engine keeps this pool.
                    self._lose(slot)
                    return fault.kind
                self.slots.remove(slot)
            pool.overflow = -pool.size  # even if connections are checked out
        for slot in self.slots:
            if slot.pool is pool:
                slot.retired = True
        if replace:
            pool.replaced = True
            self.pool = Pool(
                pool.size,
                pool.max_overflow,
                instrumentation=pool.instrumentation,
                keeps_none=pool.keeps_none,
                has_listeners=pool.has_listeners,
            )
            self.pools.append(self.pool)
        return ""

    def kill(self) -> None:
        for slot in self.slots:
            slot.dead = slot.open
        for connection in self.detached:
            connection.dead = True

    def instrument(self) -> None:
        self.instrumentation = self.pool.instrumentation = next(self._instrumentations)
        for slot in self.slots:
            if slot.pool is not self.pool:
                continue
            slot.timed = slot.retired = False
            # A connection on its way to a caller becomes known when the caller gets it.
            if slot.out or slot in self.pool.queue:
                slot.known_to = self.instrumentation
                slot.handed_out = slot.out and slot.open

    def uninstrument(self) -> None:
        self.instrumentation = 0
        self.counted.clear()
        for slot in self.slots:
            slot.known_to = 0
        for pool in self.pools:
            pool.instrumentation = 0

    def reap(self) -> None:
        """Apply the effects of a garbage collection."""
        for pool in self.pools[:]:
            if pool is not self.pool and not self._is_in_use(pool):
                assert pool.reference is None or pool.reference() is None, "a disposed pool is kept alive"
                self.lost.extend(pool.queue)
                pool.queue.clear()
                self.pools.remove(pool)
        for slot in [slot for slot in self.lost if not self._is_kept(slot)]:
            assert slot.record is None or slot.record() is None, "a lost connection is kept alive"
            self.lost.remove(slot)
            self.slots.remove(slot)
            if slot.open:
                if slot.handed_out:
                    self._count("leaked_checkouts", slot.known_to)
                self._closed(slot, "dispose" if slot.retired else "gc")

    def _is_in_use(self, pool: Pool) -> bool:
        users: list[Slot | Caller | Detached] = [
            *(slot for slot in self.slots if slot.out),
            *self.callers,
            *self.detached,
        ]
        return any(user.pool is pool for user in users)
