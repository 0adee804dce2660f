# SPDX-License-Identifier: Apache-2.0
"""The limits and the state of pools as rows of numbers, which a scrape makes for each pool of each worker.

A number that does not apply to a pool is NaN.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter import cython

from .block import (
    ACTIVE,
    HAS_OVERFLOW,
    HELD_SINCE,
    LAST_CHECKIN,
    LEAK_AFTER,
    LIFECYCLE,
    MAX_OVERFLOW,
    PRE_PING,
    RECYCLE,
    REPLACED,
    ROW,
    SIZE,
    TIMEOUT,
    UNTRACKED_CONNECTIONS,
    UNTRACKED_PENDING,
)

if cython.compiled:  # never run; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Sequence

# The numbers of a row, by the key of their metric; the metric of the last two has the label ``state``.
KEYS: Final = (
    "instances",
    "size",
    "max_overflow",
    "timeout_seconds",
    "recycle_seconds",
    "pre_ping",
    "empty_slots",
    "pending_checkouts",
    "untracked_connections",
    "overflow_connections",
    "longest_pending_seconds",
    "longest_held_seconds",
    "oldest_connection_seconds",
    "last_checkin_timestamp_seconds",
    "leak_suspects",
    "self_deadlocked",
    "in_use",
    "idle",
)
_AT: Final = {key: at for at, key in enumerate(KEYS)}
_SIZES: Final = (_AT["size"], _AT["max_overflow"])
_OTHER_LIMITS: Final = (_AT["timeout_seconds"], _AT["recycle_seconds"], _AT["pre_ping"])
LIMITS: Final = slice(_AT["size"], _AT["pre_ping"] + 1)
DEADLOCKED: Final = _AT["self_deadlocked"]
IN_USE: Final = _AT["in_use"]
# Ages and points in time are not added up; the largest one counts.
_LARGEST: Final = tuple(_AT[key] for key in KEYS[10:14])
_ADDED: Final = tuple(_AT[key] for key in (*KEYS[6:10], *KEYS[14:]))

_NAN: Final = math.nan
_NEVER: Final = math.inf
_MILLISECONDS: Final = 1e3  # in a second
_MICROSECONDS: Final = 1e6
_FIELDS: Final = (
    ACTIVE,
    SIZE,
    MAX_OVERFLOW,
    TIMEOUT,
    RECYCLE,
    PRE_PING,
    HAS_OVERFLOW,
    UNTRACKED_CONNECTIONS,
    UNTRACKED_PENDING,
    LAST_CHECKIN,
    LEAK_AFTER,
)


def row(
    fields: Sequence[float],
    waiters: Sequence[float],
    connections: Sequence[float],
    *,
    now: float,
    wall: float,
) -> array[float]:
    """Return the numbers of one pool.

    ``instances`` is 0 if another pool has replaced it, and ``self_deadlocked`` is 1 if the pool is full: only then it
    can be so.

    Args:
        fields: of its ``Snapshot``.
        waiters: likewise.
        connections: likewise.
        now: seconds of ``time.monotonic()``.
        wall: seconds since the epoch at the same moment.
    """
    active, size, max_overflow, timeout, recycle, pre_ping, has_overflow, untracked, waiting, last, leak = [
        fields[at] for at in _FIELDS
    ]
    is_replaced = active == REPLACED
    callers, first_caller = _callers(_table(waiters)) if waiters else (0.0, _NEVER)
    held, idle, empty, slots, first_held, first_opened = _connections(_table(connections))
    # Those without a row are as busy as those with one: all of them, if the pool is saturated.
    busy = float(round(untracked * held / (held + idle))) if held and untracked else 0.0
    overflow = _NAN
    if has_overflow:
        # With pool_size=0 the size is unlimited (NaN), and SQLAlchemy's overflow() is 0 as well.
        overflow = 0.0 if is_replaced or size != size else max(0.0, slots + untracked - size)  # noqa: PLR0124
    numbers = (
        0.0 if is_replaced else 1.0,
        size,
        max_overflow,
        timeout,
        recycle,
        pre_ping,
        # The empty slots of a pool that was replaced will not be checked out again.
        0.0 if is_replaced else empty,
        callers + waiting,
        untracked,
        overflow,
        age(first_caller, now),
        age(first_held, now),
        age(first_opened, now),
        # Rounded, so that jitter between the two clocks does not change the value at each scrape.
        math.floor((wall - (now - last)) * _MILLISECONDS + 0.5) / _MILLISECONDS if last else 0.0,
        _suspects(connections, now - leak) if leak else _NAN,
        1.0 if held and held >= size + max_overflow else 0.0,
        held + busy,
        idle + untracked - busy,
    )
    return array("d", numbers)


def joined(rows: Sequence[array[float]]) -> array[float]:
    """Return the numbers of several pools together, of one worker or of several.

    Sizes are the sum, and NaN if one pool has no limit. Of the other limits the smallest one counts: some caller fails
    after that time, some connection is replaced at that age, and only 1 means that all connections are tested. Of pools
    that were replaced no limit counts, unless there are no others. Ages and points in time are the largest, all other
    numbers the sum.
    """
    if len(rows) == 1:  # as nearly always, where each worker is shown
        rows[0][0] = 1.0
        return rows[0]
    current = [one for one in rows if one[0]] or rows
    together = array("d", current[0])
    together[0] = float(len(current))
    for at in _SIZES:
        together[at] = math.fsum(one[at] for one in current)
    for at in _OTHER_LIMITS:
        together[at] = min((one[at] for one in current if not math.isnan(one[at])), default=_NAN)
    for at in _LARGEST:
        together[at] = max(one[at] for one in rows)
    for at in _ADDED:
        known = [one[at] for one in rows if not math.isnan(one[at])]
        together[at] = math.fsum(known) if known else _NAN
    return together


def _table(doubles: Sequence[float]) -> Sequence[float]:
    """Return a table as a buffer where this is compiled, or else as a list, whose numbers are objects already."""
    if cython.compiled:
        return doubles if isinstance(doubles, array) else array("d", doubles)
    return doubles.tolist() if isinstance(doubles, array) else doubles


@cython.locals(since="double", now="double", seconds="double")
def age(since: float, now: float) -> float:
    """Return an age in whole microseconds, whose text is short; 0 of nothing, and of what is later than the clock."""
    seconds = now - since
    return math.floor(seconds * _MICROSECONDS + 0.5) / _MICROSECONDS if seconds > 0.0 else 0.0


@cython.boundscheck(False)  # noqa: FBT003 - Cython's signature
@cython.wraparound(False)  # noqa: FBT003
@cython.locals(doubles="double[::1]", at="Py_ssize_t", since="double", first="double", number="double")
def _callers(table: Sequence[float]) -> tuple[float, float]:
    """Return how many callers wait, and since when the first one does."""
    doubles, number, first = table, 0.0, _NEVER
    for at in range(len(table)):
        since = doubles[at]
        if since:
            number += 1.0
            first = min(first, since)
    return number, first


@cython.boundscheck(False)  # noqa: FBT003
@cython.wraparound(False)  # noqa: FBT003
@cython.locals(
    doubles="double[::1]",
    at="Py_ssize_t",
    connected="double",
    since="double",
    held="double",
    idle="double",
    empty="double",
    slots="double",
    first_held="double",
    first_opened="double",
    end="Py_ssize_t",
    width="Py_ssize_t",
    held_since="Py_ssize_t",
    lifecycle="Py_ssize_t",
)
def _connections(table: Sequence[float]) -> tuple[float, float, float, float, float, float]:
    """Look at all rows once, because a scrape can read many tables, and most rows of most tables are free.

    Returns how many connections are checked out and idle; how many slots are empty, and how many count against
    ``pool_size``; and the moments since when the first is checked out, and since when it is open.
    """
    held, idle, empty, slots, first_held, first_opened = 0.0, 0.0, 0.0, 0.0, _NEVER, _NEVER
    # As numbers of C, not as objects of the module.
    doubles, at, end, width, held_since, lifecycle = table, 0, len(table), ROW, HELD_SINCE, LIFECYCLE
    while at < end:
        connected, since = doubles[at], doubles[at + held_since]
        if since:
            held += 1.0
            first_held = min(first_held, abs(since))
        elif connected > 0.0:
            idle += 1.0
        elif connected < 0.0:
            empty += 1.0
        if connected > 0.0:
            first_opened = min(first_opened, connected)
        if connected and not doubles[at + lifecycle]:
            slots += 1.0
        at += width
    return held, idle, empty, slots, first_held, first_opened


def _suspects(table: Sequence[float], before: float) -> float:
    """Return how many connections were checked out before a moment."""
    return float(sum(0.0 < abs(since) < before for since in table[HELD_SINCE::ROW]))
