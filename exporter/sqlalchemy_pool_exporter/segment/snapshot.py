# SPDX-License-Identifier: Apache-2.0
"""The snapshot of one block, and what is derived from it: limits, state and counters, by the key of the metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy_pool_exporter.metrics import (
    CLOSE_REASONS,
    ERROR_REASONS,
    ERRORS,
    INVALIDATION_KINDS,
    STATES,
    UNDISPOSED,
)

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
    HOLD,
    INVALIDATIONS,
    LEAKED_CHECKOUTS,
    MAX_OVERFLOW,
    OVERFLOW_OPENED,
    PING,
    PING_FAILURES,
    REPLACED,
    ROW,
    SITES_OFF,
    SIZE,
    SUM,
    UNDISPOSED_POOLS,
    USES,
    WAIT,
    WAIT_FAILED,
    WAITERS_AT,
    WAITERS_USED,
)
from .entries import with_sites
from .page import ROWS_AT, ROWS_USED
from .state_cy import DEADLOCKED, IN_USE, KEYS, LIMITS, row

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator

    from .entries import SiteCounts
    from .exemplars import Exemplars

L = TypeVar("L", str, tuple[str, ...])

# The counters of a block: its fields from FIRST_COUNTER to FIELDS, which only grow.
Counts = Sequence[float]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations per bucket (not cumulative; the last has no upper bound) and their sum in seconds."""

    buckets: tuple[float, ...]
    sum: float
    exemplars: Exemplars = ()  # by bucket; empty if there is none

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

    fields: Sequence[float]  # those before FIRST_COUNTER
    waiters: list[float] | array[float]
    connections: list[float] | array[float]
    counts: Counts
    sites: Sequence[SiteCounts] = ()  # those with an entry of their own; a row refers to the first one as 1
    exemplars: Exemplars = ()

    @classmethod
    def of(
        cls,
        block: memoryview[float],
        more_rows: Iterable[memoryview[float]] = (),
        sites: Sequence[SiteCounts] = (),
        exemplars: Exemplars = (),
    ) -> Snapshot:
        """Copy a block. A field that is written meanwhile has its old value or its new one.

        Args:
            block: the block.
            more_rows: pages of rows that belong to it.
            sites: the sites that have an entry of their own.
            exemplars: of its histograms.
        """
        doubles: Any = block  # typeshed gives tolist() the type of memoryview[int]
        waiters = doubles[WAITERS_AT : WAITERS_AT + int(block[WAITERS_USED])].tolist()
        connections = doubles[CONNECTIONS_AT : CONNECTIONS_AT + ROW * int(block[CONNECTIONS_USED])].tolist()
        for page in more_rows:
            rows: Any = page
            connections += rows[ROWS_AT : ROWS_AT + ROW * int(page[ROWS_USED])].tolist()
        fields = doubles[:FIELDS].tolist()
        counts = with_sites(fields[FIRST_COUNTER:], are_off=bool(fields[SITES_OFF]))
        return cls(fields[:FIRST_COUNTER], waiters, connections, counts, sites, exemplars)

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
        yield from self.limits().items()
        if not math.isnan(self.capacity):
            yield "capacity", self.capacity
        yield from self.state(now=now, wall=wall).items()
        yield from counters(self.counts, has_overflow=self.has_overflow)

    def limits(self) -> dict[str, float]:
        """Return the limits that the pool has."""
        return limits_of(row(self.fields, self.waiters, self.connections, 0.0, 0.0))

    def state(self, *, now: float, wall: float) -> dict[str, float | dict[str, float]]:
        """Return the state: connections, waiting callers and ages. The arguments are those of ``values()``."""
        return state_of(row(self.fields, self.waiters, self.connections, now, wall))


def state_of(numbers: array[float]) -> dict[str, float | dict[str, float]]:
    """Return the state in the numbers of one pool or of several, by the key of the metric."""
    connections = dict(zip(STATES, numbers[IN_USE:], strict=True))
    return {"connections": connections, **_applying(numbers, slice(LIMITS.stop, DEADLOCKED))}


def limits_of(numbers: array[float]) -> dict[str, float]:
    """Return the limits in the numbers of one pool or of several, by the key of the metric."""
    return _applying(numbers, LIMITS)


def _applying(numbers: array[float], part: slice) -> dict[str, float]:
    return {
        key: number for key, number in zip(KEYS[part], numbers[part], strict=True) if not math.isnan(number)
    }


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
    yield "undisposed_total", _labelled(counts, UNDISPOSED_POOLS, UNDISPOSED)
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
