# SPDX-License-Identifier: Apache-2.0
"""The memory of one pool: a block of doubles.

One process writes a block through ``memoryview.cast("d")``. Each write is one aligned store of eight bytes, so a reader
never sees half a value. Every state (in use, idle, pending, ages) is derived from two tables of timestamps. No number
is incremented at a checkout and decremented at a return, so none can drift. Counters and buckets only grow, and every
total that is shown is a sum of them, never a difference. So a reader in another process sees each total grow, in
whatever order the stores reach it.

Layout of a block, in doubles::

    fields | waiters: one timestamp each | connections: rows, see below

All blocks have the same length, so the place of a pool that is gone fits the next pool, whatever its limits. A pool
with more connections than rows gets further tables of rows (see ``page``), each when it is needed.

Times are seconds of ``time.monotonic()``, which all processes of one host share on Linux.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.metrics import (
    BUCKETS,
    CLOSE_REASONS,
    ERROR_REASONS,
    ERRORS,
    INVALIDATION_KINDS,
    UNDISPOSED,
)

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
ACTIVE: Final = _take(
    1
)  # LIVE or REPLACED while a pool writes the block; afterwards only its counts mean something
WAITERS_USED: Final = _take(1)  # slots of the table that were ever in use; a reader reads only these
CONNECTIONS_USED: Final = _take(1)  # likewise, of the rows in the block itself
SIZE: Final = _take(1)
MAX_OVERFLOW: Final = _take(1)
TIMEOUT: Final = _take(1)
RECYCLE: Final = _take(1)
PRE_PING: Final = _take(1)
HAS_OVERFLOW: Final = _take(1)
LAST_CHECKIN: Final = _take(1)
UNTRACKED_PENDING: Final = _take(1)
UNTRACKED_CONNECTIONS: Final = _take(1)
LEAK_AFTER: Final = _take(
    1
)  # seconds after which a connection that is held is suspected of a leak; 0 if never
IS_ASYNC: Final = _take(1)  # 1 if the driver is an asyncio driver, -1 if not, 0 if that is not known
MADE_AT: Final = _take(1)  # when the block began; the process may have gone on in it after a fork
REQUEST_DEADLINE: Final = _take(1)  # seconds that a request has, as the application says; 0 if it does not
SITES_OFF: Final = _take(1)  # 1 if the pool records no sites
# Event loops that use the pool; see ``event_loop``.
LOOPS: Final = 4  # that are watched while they are blocked; all are watched afterwards
LOOP_DUE: Final = _take(LOOPS)  # when a timer of the loop should run next; 0 if the loop does not run
LOOP_PEAK: Final = _take(1)  # how late a timer was at most of late, in seconds, and when that was
LOOP_PEAK_AT: Final = _take(1)
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
# Counts of checkouts whose site has no entry of its own (see ``sites``).
SITE_COUNTS: Final = 6
OTHER_SITES: Final = _take(SITE_COUNTS)
# Likewise, of pools that record no sites. Their blocks have 0 here; who reads or folds them adds it (see ``entries``).
WITHOUT_SITES: Final = _take(SITE_COUNTS)
ERROR_COUNTS: Final = _take(len(ERRORS))
EXHAUSTION_REPORTS: Final = _take(1)
UNDISPOSED_POOLS: Final = _take(len(UNDISPOSED))
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
# One of them is not 0 from the first connection or checkout on.
USES: Final = (CONNECTIONS_USED, WAITERS_USED, LAST_CHECKIN)

PAGE_BYTES: Final = 8192  # see ``page``; the block takes what the page's header and description leave
LENGTH: Final = (PAGE_BYTES - 1024) // 8  # of a block, in doubles
WAITERS: Final = 512
WAITERS_AT: Final = FIELDS
CONNECTIONS_AT: Final = FIELDS + WAITERS
ROW: Final = 8
# Indexes into a row. connected_at, at 0, is 0 in a free row and EMPTY in a row whose connection is closed. held_since
# is 0 while the connection is idle. It is negative if the checkout was not recorded: the connection was already checked
# out at the time -held_since. What follows up to WAITS_SINCE tells of the last checkout, also after the return.
HELD_SINCE: Final = 1
SITE: Final = 2  # where the application checked the connection out: number of an entry, or 0; see ``sites``
HOLDER: Final = (
    3  # which thread or task did: number of a text, or negative for one without a name, or 0; see ``Texts``
)
LABEL: Final = 4  # what the application said it was doing: number of a text, or 0; see ``texts``
# Since when the holder waits for another connection of this pool; negative if that wait timed out; 0 if it did not
# wait, or got one. What is older than the checkout is of an earlier holder.
WAITS_SINCE: Final = 5
LIFECYCLE: Final = 6
SERVER_PID: Final = 7  # what serves the connection in the database server, or 0; see ``server_process``
EMPTY: Final = -1.0
# Value of lifecycle, beside 0: the pool was disposed of while the connection was in use.
DISPOSED: Final = 1.0
# Values of ACTIVE, beside 0. Nobody but its connections in use refers to a pool that was replaced.
LIVE: Final = 1.0
REPLACED: Final = 2.0

# In the block itself; a pool with more connections gets more tables.
ROWS: Final = (LENGTH - CONNECTIONS_AT) // ROW
