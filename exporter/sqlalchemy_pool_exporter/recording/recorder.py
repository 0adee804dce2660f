# SPDX-License-Identifier: Apache-2.0
"""The recorder: stores what happens to one pool into its block.

The recorder works on rows and knows no SQLAlchemy. The hooks pass what they know of a connection as arguments.

There are no locks. CPython lets another thread, a signal handler or (since 3.12) the garbage collector run only where
the bytecode calls something or jumps backwards. A run of stores without a call or a loop is therefore atomic. Each run
that relies on this is marked *straight line*, and a test disassembles it. Where there is no GIL, ``straight_lines``
puts a lock around each.

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

from sqlalchemy_pool_exporter.metrics import BUCKETS, ERRORS, UNDISPOSED
from sqlalchemy_pool_exporter.segment import texts
from sqlalchemy_pool_exporter.segment.block import (
    ACTIVE,
    CHECKOUT_TIMEOUTS,
    ERROR_COUNTS,
    HAS_OVERFLOW,
    HELD_SINCE,
    HOLDER,
    LABEL,
    LAST_CHECKIN,
    LEAK_AFTER,
    LIVE,
    MADE_AT,
    REPLACED,
    REQUEST_DEADLINE,
    SCRATCH,
    SITE,
    SITES_OFF,
    SIZE,
    SUM,
    UNDISPOSED_POOLS,
    UNTRACKED,
    UNTRACKED_PENDING,
    WAIT,
    WAIT_FAILED,
    WAITERS,
    WAITERS_AT,
    WAITERS_USED,
)
from sqlalchemy_pool_exporter.segment.identity import written
from sqlalchemy_pool_exporter.segment.pages import Pages
from sqlalchemy_pool_exporter.segment.snapshot import Snapshot
from sqlalchemy_pool_exporter.segment.stuck import stillness

from .connection_events import ConnectionEvents
from .connection_table import ConnectionTable
from .exhaustion import Schedule
from .failure_reports import FailureReports
from .leaks import Suspects
from .origins_cy import Origins
from .slots import FreeSlots
from .undisposed import Ending

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy_pool_exporter.segment.identity import Identity
    from sqlalchemy_pool_exporter.segment.snapshot import Value
    from sqlalchemy_pool_exporter.segment.store import BlockStore
    from sqlalchemy_pool_exporter.segment.stuck import Stillness

    from .classification import Failure
    from .connection_row_cy import ConnectionRow
    from .leaks import LeakOptions

_TIMED_OUT = ERROR_COUNTS + ERRORS.index(("pool", "retryable"))
_FEW_CHECKOUTS = 10
_COLLECTED, _EXIT = UNDISPOSED


class Recorder(ConnectionEvents):
    """Records what happens to one pool.

    The mutable state is the block, the free slots for waiters, and the table of connections. Methods may raise
    ``Exception``; the hooks catch and count it.
    """

    __slots__ = (
        "__weakref__",
        "_earlier_checkouts",
        "_size",
        "configuration",
        "ending",
        "failures",
        "identity",
        "info",
        "is_brief",
        "is_ended",
        "is_replaced",
        "leaks",
        "lost",
        "name",
        "origins",
        "pool_ref",
        "reports",
        "request_deadline",
        "store",
        "text",
        "trace_after",
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
        sites_from: float = 0.0,
        leaks: LeakOptions | None = None,
        watches_loops: bool = True,
        request_deadline: float = 0.0,
        trace_after: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Record nothing yet.

        Args:
            identity: of the pool.
            info: the labels of the metric ``info``.
            configuration: the limits of the pool, by field.
            store: the blocks of this process.
            prefixes: of the modules that are the application's, if it named any; None to record no sites.
            sites_from: the share of the pool's capacity from which on the sites of checkouts are found.
            leaks: when a connection that is held is suspected of a leak; None for never.
            watches_loops: whether the lag of the event loops that use the pool is recorded.
            request_deadline: seconds that a request has, as the application says; 0 if it does not.
            trace_after: seconds from which on a wait or a hold is tied to its trace.
            clock: seconds.
        """
        self.identity = identity
        self.info = info
        self.text = written(identity, info, has_overflow=bool(configuration[HAS_OVERFLOW]))
        self.waiters = FreeSlots(first=WAITERS_AT, stride=1, used=WAITERS_USED)
        self.store = store
        super().__init__(
            clock, ConnectionTable(self._record_collected, self._more_rows), store.block(self.text)
        )
        self.origins = None if prefixes is None else Origins(self, prefixes, sites_from)
        if self.origins is not None:
            texts.write_into(self.storage.pages)
        self.reports = Schedule()
        self.failures = FailureReports()
        self.leaks = None if leaks is None else Suspects(leaks)
        self.watches_loops = watches_loops
        self.request_deadline = request_deadline
        self.trace_after = trace_after
        # Of the pool, as it is shown, which can change.
        self.name: Callable[[], str] = lambda: identity.name
        self.is_ended = False
        self.is_brief = False  # it went with its engine after a few checkouts
        self._earlier_checkouts = 0.0  # of the pools that this one has replaced
        self.is_replaced = False
        # Of connections that were collected with the pool and not disposed of: whether each was checked out.
        self.lost: list[bool] = []
        self.ending: Ending | None = None  # if it ended with connections open
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
        storage = self.storage
        return Snapshot.of(storage.doubles, self.connections.more, storage.sites(), storage.exemplars())

    def stillness(self) -> Stillness | None:
        """Return for how long the pool has returned nothing, if it is full and callers wait for it."""
        return stillness(self.snapshot(), self.clock())

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
            sites_from=0.0 if self.origins is None else self.origins.share,
            leaks=None if self.leaks is None else self.leaks.options,
            watches_loops=self.watches_loops,
            request_deadline=self.request_deadline,
            trace_after=self.trace_after,
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
        self.lost, self.ending = [], None
        if self.leaks is not None:
            self.leaks = Suspects(self.leaks.options)
        if self.origins is not None:
            self.origins.forget()
        self.use(Pages().pool(self.text))

    def restart(self) -> None:
        """In a forked child that left its parent's block, take a block of its own."""
        self.use(self.store.block(self.text))
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
            self._record_collected(row.record_ref)
        # A pool that was replaced went without its engine.
        self.is_brief = not self.is_replaced and self._checkouts < _FEW_CHECKOUTS
        self._undisposed(_COLLECTED, self.lost)
        self._end()
        return True

    def undisposed_at_exit(self) -> Ending | None:
        """Count the pool if it has connections open that nobody disposed of; return it the first time."""
        if self.is_ended:
            return None
        rows = [row for row in self.connections.rows() if row.has_connection and not self.is_disposed(row)]
        return self._undisposed(_EXIT, [bool(row.held_since) for row in rows])

    def _undisposed(self, when: str, were_held: Sequence[bool]) -> Ending | None:
        if not were_held or self.ending is not None:
            return None
        field = UNDISPOSED_POOLS + UNDISPOSED.index(when)
        self.block[field] += 1.0
        self.ending = Ending(self.name, when, len(were_held), sum(were_held))
        return self.ending

    def stop(self) -> None:
        """Stop recording: the pool is no longer instrumented."""
        # An empty block: a hook that is still running, or that the application wrapped, fails to store, and its error
        # path sees that the recorder is stopped.
        empty = memoryview(b"").cast("d")
        # straight line: none that stores into the old block is under way when its counts are folded
        self.block = empty
        # end of straight line
        self._end()
        self.connections.clear()

    def _end(self) -> None:
        # straight line: as in stop(), of those that ask for this
        self.is_ended = True
        # end of straight line
        self.pool_ref = None  # breaks the reference cycle, and drops the callback
        self.storage.doubles[ACTIVE] = 0.0

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

    def checkout_failed(self, began: float, field: int) -> float:
        """Record a checkout that raised, in the counter ``field``; return how long it waited.

        ``began`` is 0 if that is not known, and so is what is returned then.
        """
        other = _TIMED_OUT if field == CHECKOUT_TIMEOUTS else SCRATCH
        return self._observe(WAIT_FAILED, began, field, other) if began else 0.0

    def checked_out(self, row: ConnectionRow, began: float) -> float:
        """Record a checkout off the hot path; return when that was."""
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
        return now

    def failed(self, failure: Failure) -> None:
        """Count an error of the driver, and report it if it comes from the server or the network."""
        field = ERROR_COUNTS + ERRORS.index((str(failure.layer), failure.disposition))
        self.block[field] += 1.0
        self.failures.failed(self, failure, self)
