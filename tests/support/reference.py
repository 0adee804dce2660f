# SPDX-License-Identifier: Apache-2.0
"""A model of SQLAlchemy's pool, step by step, without threads, a driver or a database.

It follows SQLAlchemy's source and its order of steps, because the order decides the result if a listener raises in the
middle. Nothing in it is taken from the exporter: the model counts events itself. It also has the pool's own numbers,
including wrong ones. A checkout is a generator that yields where its caller waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.reference_connections import Connections
from tests.support.reference_parts import Caller, Fault, Pool, Slot

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.reference_parts import Detached, Waiting


class Model(Connections):
    """An engine's pool and the disposed pools before it."""

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

    def held(self) -> list[tuple[str, str]]:
        """Return the site and the holder of each connection that is checked out."""
        out = [slot for slot in self.slots if slot.known_to == self.instrumentation and slot.handed_out]
        return sorted((slot.site, slot.holder) if slot.timed else ("other", "") for slot in out)

    @property
    def on_server(self) -> int:
        """How many connections the server has."""
        slots = sum(slot.open and not slot.dead for slot in self.slots)
        return slots + sum(not connection.dead for connection in self.detached)

    # -- checkout

    def connect(self, site: str, holder: str) -> Caller:
        """Begin a checkout; it ends at once or waits."""
        caller = Caller(self.pool, self.pool.instrumentation, site, holder)
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
        slot.site, slot.holder = caller.site, caller.holder
        self._count_at("checkouts", slot, caller.instrumentation)
        slot.known_to = caller.pool.instrumentation
        return slot

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
        self.by_site.clear()
        self.nested = 0
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
                    self._count_at("leaked", slot, slot.known_to)
                self._closed(slot, "dispose" if slot.retired else "gc")

    def _is_in_use(self, pool: Pool) -> bool:
        users: list[Slot | Caller | Detached] = [
            *(slot for slot in self.slots if slot.out),
            *self.callers,
            *self.detached,
        ]
        return any(user.pool is pool for user in users)
