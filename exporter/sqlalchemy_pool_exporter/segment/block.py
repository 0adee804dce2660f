# SPDX-License-Identifier: Apache-2.0
"""The memory of one pool: a block of doubles.

One process writes a block through ``memoryview.cast("d")``. Each write is one aligned store of eight bytes, so a reader
never sees half a value. Every state (in use, idle, pending, ages) is derived from two tables of timestamps. No number
is incremented at a checkout and decremented at a return, so none can drift. Counters and buckets only grow, and every
total that is shown is a sum of them, never a difference. So a reader in another process sees each total grow, in
whatever order the stores reach it.

Layout of a block, in doubles::

    fields | waiters: one timestamp each | connections: rows of connected_at, held_since, site, lifecycle

Times are seconds of ``time.monotonic()``, which all processes of one host share on Linux.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.metrics import BUCKETS, CLOSE_REASONS, ERROR_REASONS, INVALIDATION_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

NOT_APPLICABLE: Final = math.nan


def _fields() -> Callable[[int], int]:
    taken = 0

    def take(count: int = 1) -> int:
        nonlocal taken
        taken += count
        return taken - count

    return take


_take = _fields()

# SCRATCH and UNTRACKED take stores that have no slot, so that the hot path need not branch. No reader reads them.
SCRATCH: Final = _take(1)
UNTRACKED: Final = _take(1)  # for a checkout for which the table of waiters has no slot
ACTIVE: Final = _take(1)  # 1 while a pool writes the block; the counts stay afterwards
WAITERS_USED: Final = _take(1)  # slots of the table that were ever in use; a reader reads only these
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
# From here on every field only grows.
FIRST_COUNTER: Final = _take(0)
CHECKINS_UNTIMED: Final = _take(1)  # returns of connections that were out when the pool was instrumented
CHECKOUT_TIMEOUTS: Final = _take(1)
CHECKOUT_ERRORS: Final = _take(len(ERROR_REASONS))
CLOSES: Final = _take(len(CLOSE_REASONS))
OVERFLOW_OPENED: Final = _take(1)
PING_FAILURES: Final = _take(1)
INVALIDATIONS: Final = _take(len(INVALIDATION_KINDS))
DETACHES: Final = _take(1)
LEAKED_CHECKOUTS: Final = _take(1)
FAULTS: Final = _take(1)
# A histogram is its buckets (not cumulative; the last one has no upper bound), followed by the sum.
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
# Indexes into a row. connected_at, at 0, is 0 in a free row and EMPTY in a row whose connection is closed. held_since
# is 0 while the connection is idle. It is negative if the checkout was not recorded: the connection was already checked
# out at the time -held_since.
HELD_SINCE: Final = 1
SITE: Final = 2  # reserved for the place in the application that checked the connection out; always 0 now
LIFECYCLE: Final = 3
EMPTY: Final = -1.0
# Values of lifecycle, beside 0: the pool was disposed of while the connection was in use; another pool replaced it.
DISPOSED: Final = 1.0
REPLACED: Final = 2.0

_FEWEST_ROWS: Final = 64
_UNLIMITED_ROWS: Final = 4096
MOST_ROWS: Final = 16384


def rows_for(capacity: float) -> int:
    """Return how many connection rows a pool of this capacity (NaN: unlimited) gets.

    It is twice the capacity, because the connections of a disposed pool can still be out while the next pool fills up.
    So a pool with a limit has a row for each connection that is in use, and its saturation is true.
    """
    if math.isnan(capacity):
        return _UNLIMITED_ROWS
    return int(min(max(2 * capacity, _FEWEST_ROWS), MOST_ROWS))


def length(rows: int) -> int:
    """Return how many doubles a block with ``rows`` connection rows has."""
    return CONNECTIONS_AT + ROW * rows


def rows_of(block: memoryview[float]) -> int:
    """Return how many connection rows a block has."""
    return (len(block) - CONNECTIONS_AT) // ROW


def allocate(rows: int) -> memoryview[float]:
    """Return a zeroed block with ``rows`` connection rows, in private memory.

    It is not an anonymous ``mmap``: Python maps that shared, so a forked child would write into its parent's block.
    """
    return memoryview(bytearray(8 * length(rows))).cast("d")


def clear(block: memoryview[float]) -> None:
    """Clear the state of a block that no pool writes any more; keep the counters and HAS_OVERFLOW."""
    has_overflow = block[HAS_OVERFLOW]
    for first, end in ((SCRATCH, FIRST_COUNTER), (FIELDS, len(block))):
        block[first:end] = memoryview(bytearray(8 * (end - first))).cast("d")
    block[HAS_OVERFLOW] = has_overflow
