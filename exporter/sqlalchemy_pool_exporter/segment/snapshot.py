# SPDX-License-Identifier: Apache-2.0
"""The snapshot of one block, and what is derived from it: limits, state and counters, by the key of the metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sqlalchemy_pool_exporter.metrics import CLOSE_REASONS, ERROR_REASONS, ERRORS, INVALIDATION_KINDS

from .block import (
    ACTIVE,
    CHECKINS_UNTIMED,
    CHECKOUT_ERRORS,
    CHECKOUT_TIMEOUTS,
    CLOSES,
    CONNECT,
    CONNECT_FAILED,
    CONNECTIONS_AT,
    CONNECTIONS_USED,
    DETACHES,
    ERROR_COUNTS,
    EXHAUSTION_REPORTS,
    FAULTS,
    FIELDS,
    FIRST_COUNTER,
    HAS_OVERFLOW,
    HELD_SINCE,
    HOLD,
    INVALIDATIONS,
    LAST_CHECKIN,
    LEAK_AFTER,
    LEAKED_CHECKOUTS,
    LIFECYCLE,
    MAX_OVERFLOW,
    OVERFLOW_OPENED,
    PING,
    PING_FAILURES,
    PRE_PING,
    RECYCLE,
    REPLACED,
    ROW,
    SITES_OFF,
    SIZE,
    SUM,
    TIMEOUT,
    UNTRACKED_CONNECTIONS,
    UNTRACKED_PENDING,
    USES,
    WAIT,
    WAIT_FAILED,
    WAITERS_AT,
    WAITERS_USED,
)
from .entries import with_sites
from .page import ROWS_AT, ROWS_USED

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator

    from .entries import SiteCounts

L = TypeVar("L", str, tuple[str, ...])

# The counters of a block: its fields from FIRST_COUNTER to FIELDS, which only grow.
Counts = Sequence[float]

_LIMITS: Final = (
    ("size", SIZE),
    ("max_overflow", MAX_OVERFLOW),
    ("timeout_seconds", TIMEOUT),
    ("recycle_seconds", RECYCLE),
    ("pre_ping", PRE_PING),
)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations per bucket (not cumulative; the last has no upper bound) and their sum in seconds."""

    buckets: tuple[float, ...]
    sum: float

    @property
    def count(self) -> float:
        """The number of observations."""
        return sum(self.buckets)

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(tuple(map(sum, zip(self.buckets, other.buckets, strict=True))), self.sum + other.sum)


class Summary(NamedTuple):
    """How many observations there were, and their sum in seconds."""

    number: float
    seconds: float


# The value of a metric of one pool: a number, numbers by the value of the metric's own label (by a tuple, if it has
# several), or a histogram.
Value = float | dict[str, float] | dict[tuple[str, ...], float] | dict[str, Summary] | Histogram


class Snapshot(NamedTuple):
    """A copy of the used part of a block."""

    fields: list[float]  # those before FIRST_COUNTER
    waiters: list[float] | array[float]
    connections: list[float] | array[float]
    counts: Counts
    sites: Sequence[SiteCounts] = ()  # those with an entry of their own; a row refers to the first one as 1

    @classmethod
    def of(
        cls,
        block: memoryview[float],
        more_rows: Iterable[memoryview[float]] = (),
        sites: Sequence[SiteCounts] = (),
    ) -> Snapshot:
        """Copy a block. A field that is written meanwhile has its old value or its new one.

        Args:
            block: the block.
            more_rows: pages of rows that belong to it.
            sites: the sites that have an entry of their own.
        """
        doubles: Any = block  # typeshed gives tolist() the type of memoryview[int]
        waiters = doubles[WAITERS_AT : WAITERS_AT + int(block[WAITERS_USED])].tolist()
        connections = doubles[CONNECTIONS_AT : CONNECTIONS_AT + ROW * int(block[CONNECTIONS_USED])].tolist()
        for page in more_rows:
            rows: Any = page
            connections += rows[ROWS_AT : ROWS_AT + ROW * int(page[ROWS_USED])].tolist()
        fields = doubles[:FIELDS].tolist()
        counts = with_sites(fields[FIRST_COUNTER:], are_off=bool(fields[SITES_OFF]))
        return cls(fields[:FIRST_COUNTER], waiters, connections, counts, sites)

    @property
    def is_active(self) -> bool:
        """Whether a pool is writing the block."""
        return bool(self.fields[ACTIVE])

    @property
    def is_replaced(self) -> bool:
        """Whether another pool has taken the place of the one that writes the block."""
        return self.fields[ACTIVE] == REPLACED

    @property
    def was_used(self) -> bool:
        """Whether the process that writes the block has opened a connection or begun a checkout."""
        return any(self.fields[at] for at in USES)

    @property
    def has_overflow(self) -> bool:
        """Whether the pool can open connections beyond its size."""
        return bool(self.fields[HAS_OVERFLOW])

    @property
    def capacity(self) -> float:
        """How many connections can be checked out at once; NaN if there is no limit."""
        return self.fields[SIZE] + self.fields[MAX_OVERFLOW]

    def values(self, *, now: float, wall: float) -> Iterator[tuple[str, Value]]:
        """Yield the key and value of each metric that applies to the pool.

        Args:
            now: seconds of ``time.monotonic()``.
            wall: seconds since the epoch at the same moment.
        """
        yield from self.limits()
        if not math.isnan(self.capacity):
            yield "capacity", self.capacity
        yield from self.state(now=now, wall=wall)
        yield from counters(self.counts, has_overflow=self.has_overflow)

    def limits(self) -> Iterator[tuple[str, float]]:
        """Yield the limits that the pool has."""
        fields = self.fields
        for key, at in _LIMITS:
            value = fields[at]
            if value == value:  # noqa: PLR0124 - not NaN; runs five times for each pool of each worker
                yield key, value

    def state(self, *, now: float, wall: float) -> Iterator[tuple[str, float | dict[str, float]]]:
        """Yield the state: connections, waiting callers and ages. The arguments are those of ``values()``."""
        fields, is_replaced = self.fields, self.is_replaced
        waiting = list(filter(None, self.waiters))
        # One pass, because a scrape can read many tables, and most rows of most tables are free.
        in_use, opened, idle, empty, slots = [], [], 0.0, 0.0, 0.0
        rows = self.connections
        for connected, since, lifecycle in zip(
            rows[::ROW], rows[HELD_SINCE::ROW], rows[LIFECYCLE::ROW], strict=True
        ):
            if since:
                in_use.append(abs(since))
            elif connected > 0.0:
                idle += 1.0
            elif connected < 0.0:
                empty += 1.0
            if connected > 0.0:
                opened.append(connected)
            if connected and not lifecycle:
                slots += 1.0
        held = float(len(in_use))
        # Those without a row are as busy as those with one: all of them, if the pool is saturated.
        untracked = fields[UNTRACKED_CONNECTIONS]
        busy = round(untracked * held / (held + idle)) if held else 0.0
        yield "connections", {"in_use": held + busy, "idle": idle + untracked - busy}
        if self.has_overflow:
            # With pool_size=0 the size is unlimited (NaN), and SQLAlchemy's overflow() is 0 as well.
            size = fields[SIZE]
            is_none = is_replaced or math.isnan(size)
            yield "overflow_connections", 0.0 if is_none else max(0.0, slots + untracked - size)
        # The empty slots of a pool that was replaced will not be checked out again.
        yield "empty_slots", 0.0 if is_replaced else empty
        yield "pending_checkouts", len(waiting) + fields[UNTRACKED_PENDING]
        yield "longest_pending_seconds", _age(waiting, now)
        yield "longest_held_seconds", _age(in_use, now)
        leak_after = fields[LEAK_AFTER]
        if leak_after:
            yield "leak_suspects", float(sum(now - since > leak_after for since in in_use))
        yield "oldest_connection_seconds", _age(opened, now)
        # Rounded, so that jitter between the two clocks does not change the value at each scrape.
        last = fields[LAST_CHECKIN]
        yield "last_checkin_timestamp_seconds", round(wall - (now - last), 3) if last else 0.0
        yield "untracked_connections", untracked


def counters(counts: Counts, *, has_overflow: bool) -> Iterator[tuple[str, Value]]:
    """Yield the counters of one block, or of the sum of several.

    Args:
        counts: the fields from FIRST_COUNTER on.
        has_overflow: whether the pool can open connections beyond its size.
    """
    waited, failed = _histogram(counts, WAIT), _histogram(counts, WAIT_FAILED)
    connected, unconnected = _histogram(counts, CONNECT), _histogram(counts, CONNECT_FAILED)
    hold = _histogram(counts, HOLD)
    yield "checkouts_total", waited.count
    yield "checkins_total", hold.count + counts[CHECKINS_UNTIMED - FIRST_COUNTER]
    yield "checkout_timeouts_total", counts[CHECKOUT_TIMEOUTS - FIRST_COUNTER]
    yield "exhaustion_reports_total", counts[EXHAUSTION_REPORTS - FIRST_COUNTER]
    yield "checkout_errors_total", _labelled(counts, CHECKOUT_ERRORS, ERROR_REASONS)
    yield "errors_total", _labelled(counts, ERROR_COUNTS, ERRORS)
    yield "connects_total", connected.count
    yield "connect_errors_total", unconnected.count
    yield "closes_total", _labelled(counts, CLOSES, CLOSE_REASONS)
    if has_overflow:
        yield "overflow_opened_total", counts[OVERFLOW_OPENED - FIRST_COUNTER]
    yield "ping_failures_total", counts[PING_FAILURES - FIRST_COUNTER]
    yield "invalidations_total", _labelled(counts, INVALIDATIONS, INVALIDATION_KINDS)
    yield "detaches_total", counts[DETACHES - FIRST_COUNTER]
    yield "leaked_checkouts_total", counts[LEAKED_CHECKOUTS - FIRST_COUNTER]
    yield "checkout_wait_seconds", waited + failed
    yield "connect_seconds", connected + unconnected
    yield "ping_seconds", _histogram(counts, PING)
    yield "hold_seconds", hold
    yield "exporter_recording_faults_total", counts[FAULTS - FIRST_COUNTER]


def _labelled(counts: Counts, at: int, names: Sequence[L]) -> dict[L, float]:
    first = at - FIRST_COUNTER
    return dict(zip(names, counts[first : first + len(names)], strict=True))


def _histogram(counts: Counts, at: int) -> Histogram:
    total = at + SUM - FIRST_COUNTER
    return Histogram(tuple(counts[at - FIRST_COUNTER : total]), counts[total])


def _age(since: list[float], now: float) -> float:
    # A writer can store a timestamp after the reader read the clock.
    return max(0.0, now - min(since)) if since else 0.0
