# SPDX-License-Identifier: Apache-2.0
"""The flight recorder's memory: one block of doubles for each pool, and what a reader sees in it.

A block is written by one process, one aligned eight-byte store at a time, through ``memoryview.cast("d")``; a
reader never sees half a value. Everything that is a state (in use, idle, pending, ages) is derived from two tables
of timestamps, so nothing is incremented on the way in and decremented on the way out, and nothing can drift.
Counters and buckets only grow, and a total that is shown is a sum of them, never a difference: a reader in another
process sees each grow, in whatever order the stores reach it.

Layout of a block, in doubles::

    fields | waiters: one timestamp each | connections: rows of connected_at, held_since, site, retired

Times are seconds of ``time.monotonic()``, which all processes of one host share on Linux.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter.metrics import BUCKETS, CLOSE_REASONS, ERROR_REASONS, INVALIDATION_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOT_APPLICABLE: Final = math.nan


def _fields() -> Callable[[int], int]:
    taken = 0

    def take(count: int = 1) -> int:
        nonlocal taken
        taken += count
        return taken - count

    return take


_take = _fields()

# The first field is written by those who have nowhere else to write, and read by nobody.
SCRATCH: Final = _take(1)
UNTRACKED: Final = _take(1)  # written by those for whom the table of waiters has no slot, and read by nobody
ACTIVE: Final = _take(1)  # 1 while a pool writes here; its counts stay when it does not any more
WAITERS_USED: Final = _take(1)  # slots of the table that were ever in use; a reader looks no further
CONNECTIONS_USED: Final = _take(1)
SIZE: Final = _take(1)
MAX_OVERFLOW: Final = _take(1)
TIMEOUT: Final = _take(1)
RECYCLE: Final = _take(1)
PRE_PING: Final = _take(1)
HAS_OVERFLOW: Final = _take(1)
LAST_CHECKIN: Final = _take(1)
UNTRACKED_PENDING: Final = _take(1)
UNTRACKED_CONNECTIONS: Final = _take(1)
# From here on everything only grows.
FIRST_COUNTER: Final = _take(0)
CHECKINS_UNTIMED: Final = _take(
    1
)  # returns of connections that were out already when the pool was instrumented
CHECKOUT_TIMEOUTS: Final = _take(1)
CHECKOUT_ERRORS: Final = _take(len(ERROR_REASONS))
CLOSES: Final = _take(len(CLOSE_REASONS))
OVERFLOW_OPENED: Final = _take(1)
PING_FAILURES: Final = _take(1)
INVALIDATIONS: Final = _take(len(INVALIDATION_KINDS))
DETACHES: Final = _take(1)
LEAKED_CHECKOUTS: Final = _take(1)
FAULTS: Final = _take(1)
# A histogram is its buckets, not cumulative, the last of them for what exceeds every bound, and the sum behind them.
HISTOGRAM: Final = len(BUCKETS) + 2
SUM: Final = len(BUCKETS) + 1
WAIT: Final = _take(HISTOGRAM)
WAIT_FAILED: Final = _take(HISTOGRAM)
CONNECT: Final = _take(HISTOGRAM)
CONNECT_FAILED: Final = _take(HISTOGRAM)
PING: Final = _take(HISTOGRAM)
HOLD: Final = _take(HISTOGRAM)
FIELDS: Final = _take(0)

WAITERS: Final = 1024
WAITERS_AT: Final = FIELDS
CONNECTIONS_AT: Final = FIELDS + WAITERS
ROW: Final = 4
# Where in its row: connected_at is 0 in a free row and EMPTY in one whose connection is closed; held_since is 0
# while idle, and negative if the checkout was not seen, so that its age is known to be at least that.
HELD_SINCE: Final = 1
SITE: Final = 2
RETIRED: Final = 3
EMPTY: Final = -1.0
# Values of retired: its pool was disposed of and goes on, or is replaced.
DISPOSED: Final = 1.0
REPLACED: Final = 2.0

_FEWEST_ROWS: Final = 64
_MOST_ROWS: Final = 4096


def rows_for(capacity: float) -> int:
    """Return how many connection rows a pool of this capacity (NaN: unlimited) gets.

    Twice the capacity, since the connections of a disposed pool can still be out while its successor fills up.
    """
    if math.isnan(capacity):
        return _MOST_ROWS
    return int(min(max(2 * capacity, _FEWEST_ROWS), _MOST_ROWS))


def length(rows: int) -> int:
    """Return how many doubles a block with room for ``rows`` connections has."""
    return CONNECTIONS_AT + ROW * rows


def rows_of(block: memoryview[float]) -> int:
    """Return for how many connections a block has room."""
    return (len(block) - CONNECTIONS_AT) // ROW


def allocate(rows: int) -> memoryview[float]:
    """Return a zeroed block with room for ``rows`` connections, in memory of this process alone.

    Not anonymous ``mmap``: Python maps that shared, so a forked child would write into its parent's block.
    """
    return memoryview(bytearray(8 * length(rows))).cast("d")


def clear(block: memoryview[float]) -> None:
    """Clear the state in a block that nobody writes any more, and keep what only grows and whether it applies."""
    has_overflow = block[HAS_OVERFLOW]
    for first, end in ((SCRATCH, FIRST_COUNTER), (FIELDS, len(block))):
        block[first:end] = memoryview(bytearray(8 * (end - first))).cast("d")
    block[HAS_OVERFLOW] = has_overflow


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations per bucket (not cumulative, the last beyond every bound) and their sum in seconds."""

    buckets: tuple[float, ...]
    sum: float

    @property
    def count(self) -> float:
        """How many observations there are."""
        return sum(self.buckets)


Value = float | dict[str, float] | Histogram


class Copy(NamedTuple):
    """What is in use of a block: its fields, and the used parts of its two tables."""

    fields: list[float]
    waiters: list[float]
    connections: list[float]


def copy(block: memoryview[float]) -> Copy:
    """Return a copy of a block; where it is written meanwhile, one that lies between before and after."""
    doubles: Any = block  # the type of tolist() is not that of what is viewed
    waiters = doubles[WAITERS_AT : WAITERS_AT + int(block[WAITERS_USED])].tolist()
    connections = doubles[CONNECTIONS_AT : CONNECTIONS_AT + ROW * int(block[CONNECTIONS_USED])].tolist()
    return Copy(doubles[:FIELDS].tolist(), waiters, connections)


_LIMITS: Final = (
    ("size", SIZE),
    ("max_overflow", MAX_OVERFLOW),
    ("timeout_seconds", TIMEOUT),
    ("recycle_seconds", RECYCLE),
    ("pre_ping", PRE_PING),
)


class Reading:
    """What one block said at one moment.

    Args:
        copied: a copy of the block.
        now: seconds of ``time.monotonic()``.
        wall: seconds since the epoch at the same moment.
    """

    __slots__ = ("_connections", "_doubles", "_now", "_waiters", "_wall")

    def __init__(self, copied: Copy, *, now: float, wall: float) -> None:
        self._doubles, self._waiters, self._connections = copied
        self._now = now
        self._wall = wall

    def values(self) -> Iterator[tuple[str, Value]]:
        """Yield the key and value of every metric that applies to the pool."""
        yield from self.configuration()
        yield from self.state()
        yield from self.counters()

    @property
    def capacity(self) -> float:
        """How many connections can be out at once; NaN if nothing limits that."""
        return self._doubles[SIZE] + self._doubles[MAX_OVERFLOW]

    def configuration(self) -> Iterator[tuple[str, Value]]:
        """Yield the limits that the pool has, and what they come to."""
        yield from self.limits()
        if not math.isnan(self.capacity):
            yield "capacity", self.capacity

    def limits(self) -> Iterator[tuple[str, Value]]:
        """Yield the limits that the pool has."""
        doubles = self._doubles
        for key, at in _LIMITS:
            value = doubles[at]
            if value == value:  # noqa: PLR0124 - not NaN; asked six times for each pool of each worker
                yield key, value

    def state(self) -> Iterator[tuple[str, Value]]:
        """Yield what is out, idle and waiting."""
        doubles, now = self._doubles, self._now
        waiting = list(filter(None, self._waiters))
        # One pass, since there are many of these tables and most rows of most of them are free.
        in_use, opened, idle, empty, slots = [], [], 0.0, 0.0, 0.0
        rows = self._connections
        for connected, since, retired in zip(
            rows[::ROW], rows[HELD_SINCE::ROW], rows[RETIRED::ROW], strict=True
        ):
            if since:
                in_use.append(abs(since))
            elif connected > 0.0:
                idle += 1.0
            # Through a slot of a pool that was replaced there is no next checkout.
            elif connected < 0.0 and retired < REPLACED:
                empty += 1.0
            if connected > 0.0:
                opened.append(connected)
            if connected and not retired:
                slots += 1.0
        yield "connections", {"in_use": float(len(in_use)), "idle": idle}
        if doubles[HAS_OVERFLOW]:
            # With pool_size=0 nothing is beyond it: SQLAlchemy's overflow() is 0 then, too.
            size = doubles[SIZE]
            yield "overflow_connections", 0.0 if math.isnan(size) else max(0.0, slots - size)
        yield "empty_slots", empty
        yield "pending_checkouts", len(waiting) + doubles[UNTRACKED_PENDING]
        yield "longest_pending_seconds", _age(waiting, now)
        yield "longest_held_seconds", _age(in_use, now)
        yield "oldest_connection_seconds", _age(opened, now)
        # Rounded, so that the two clocks' jitter does not make a new value of the same instant at each scrape.
        last = doubles[LAST_CHECKIN]
        yield "last_checkin_timestamp_seconds", round(self._wall - (now - last), 3) if last else 0.0
        yield "untracked_connections", doubles[UNTRACKED_CONNECTIONS]

    def counters(self) -> Iterator[tuple[str, Value]]:
        """Yield what only grows."""
        doubles = self._doubles
        waited, failed = self._histogram(WAIT), self._histogram(WAIT_FAILED)
        connected, unconnected = self._histogram(CONNECT), self._histogram(CONNECT_FAILED)
        hold = self._histogram(HOLD)
        yield "checkouts_total", waited.count
        yield "checkins_total", hold.count + doubles[CHECKINS_UNTIMED]
        yield "checkout_timeouts_total", doubles[CHECKOUT_TIMEOUTS]
        yield "checkout_errors_total", self._labelled(CHECKOUT_ERRORS, ERROR_REASONS)
        yield "connects_total", connected.count
        yield "connect_errors_total", unconnected.count
        yield "closes_total", self._labelled(CLOSES, CLOSE_REASONS)
        if doubles[HAS_OVERFLOW]:
            yield "overflow_opened_total", doubles[OVERFLOW_OPENED]
        yield "ping_failures_total", doubles[PING_FAILURES]
        yield "invalidations_total", self._labelled(INVALIDATIONS, INVALIDATION_KINDS)
        yield "detaches_total", doubles[DETACHES]
        yield "leaked_checkouts_total", doubles[LEAKED_CHECKOUTS]
        yield "checkout_wait_seconds", _merged(waited, failed)
        yield "connect_seconds", _merged(connected, unconnected)
        yield "ping_seconds", self._histogram(PING)
        yield "hold_seconds", hold
        yield "exporter_recording_faults_total", doubles[FAULTS]

    def _labelled(self, at: int, names: tuple[str, ...]) -> dict[str, float]:
        return dict(zip(names, self._doubles[at : at + len(names)], strict=True))

    def _histogram(self, at: int) -> Histogram:
        return Histogram(tuple(self._doubles[at : at + SUM]), self._doubles[at + SUM])


def _age(since: list[float], now: float) -> float:
    # A store can be younger than the reader's look at the clock.
    return max(0.0, now - min(since)) if since else 0.0


def _merged(one: Histogram, other: Histogram) -> Histogram:
    return Histogram(tuple(map(sum, zip(one.buckets, other.buckets, strict=True))), one.sum + other.sum)
