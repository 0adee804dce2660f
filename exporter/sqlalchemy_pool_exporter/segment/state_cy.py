# SPDX-License-Identifier: Apache-2.0
"""The limits and the state of pools as rows of numbers, which a scrape makes for each pool of each worker.

A number that does not apply to a pool is NaN.
"""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Final

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

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.libc.math import floor
    from cython.cimports.sqlalchemy_pool_exporter.c_api import array_of
else:
    from math import floor

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
_NUMBERS: Final = bytes(8 * len(KEYS))
# As numbers of C, not as objects of the module.
_active_at: cython.Py_ssize_t = ACTIVE
_size_at: cython.Py_ssize_t = SIZE
_max_overflow_at: cython.Py_ssize_t = MAX_OVERFLOW
_timeout_at: cython.Py_ssize_t = TIMEOUT
_recycle_at: cython.Py_ssize_t = RECYCLE
_pre_ping_at: cython.Py_ssize_t = PRE_PING
_has_overflow_at: cython.Py_ssize_t = HAS_OVERFLOW
_connections_at: cython.Py_ssize_t = UNTRACKED_CONNECTIONS
_pending_at: cython.Py_ssize_t = UNTRACKED_PENDING
_checkin_at: cython.Py_ssize_t = LAST_CHECKIN
_leak_at: cython.Py_ssize_t = LEAK_AFTER
_replaced: cython.double = REPLACED
_milliseconds: cython.double = _MILLISECONDS
_microseconds: cython.double = _MICROSECONDS
_width: cython.Py_ssize_t = ROW
_held_since: cython.Py_ssize_t = HELD_SINCE
_lifecycle: cython.Py_ssize_t = LIFECYCLE
_never: cython.double = _NEVER
_nan: cython.double = _NAN


@cython.cdivision(True)  # noqa: FBT003 - Cython's signature
def row(  # noqa: C901, PLR0912, PLR0915 - one pass over each table, and each number by itself
    fields: Sequence[float],
    waiters: Sequence[float],
    connections: Sequence[float],
    now: cython.double,
    wall: cython.double,
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
    at: cython.Py_ssize_t
    end: cython.Py_ssize_t
    since: cython.double
    connected: cython.double
    callers: cython.double = 0.0
    first_caller: cython.double = _never
    held: cython.double = 0.0
    idle: cython.double = 0.0
    empty: cython.double = 0.0
    slots: cython.double = 0.0
    suspects: cython.double = 0.0
    first_held: cython.double = _never
    first_opened: cython.double = _never
    found = array("d", _NUMBERS)
    if cython.compiled:
        every: list[object] = [_array(fields), _array(waiters), _array(connections)]  # which keeps them
        state: cython.p_double = array_of(every[0])
        calls: cython.p_double = array_of(every[1])
        rows: cython.p_double = array_of(every[2])
        numbers: cython.p_double = array_of(found)
    else:
        state = _list(fields)  # type: ignore[assignment]  # a pointer, where this is compiled
        calls, rows = _list(waiters), _list(connections)  # type: ignore[assignment]
        numbers = found  # type: ignore[assignment]
    for at in range(len(waiters)):
        since = calls[at]
        if since != 0.0:
            callers += 1.0
            first_caller = min(first_caller, since)
    leak: cython.double = state[_leak_at]
    suspected: cython.double = now - leak
    width: cython.Py_ssize_t = _width
    held_since: cython.Py_ssize_t = _held_since
    lifecycle: cython.Py_ssize_t = _lifecycle
    at, end = 0, len(connections)
    # All rows once, because a scrape can read many tables.
    while at < end:
        connected, since = rows[at], rows[at + held_since]
        if since != 0.0:
            since = abs(since)
            held += 1.0
            first_held = min(first_held, since)
            if since < suspected:
                suspects += 1.0
        elif connected > 0.0:
            idle += 1.0
        elif connected < 0.0:
            empty += 1.0
        if connected > 0.0:
            first_opened = min(first_opened, connected)
        if connected != 0.0 and rows[at + lifecycle] == 0.0:
            slots += 1.0
        at += width
    is_replaced: cython.bint = state[_active_at] == _replaced
    size: cython.double = state[_size_at]
    untracked: cython.double = state[_connections_at]
    last: cython.double = state[_checkin_at]
    # Those without a row are as busy as those with one: all of them, if the pool is saturated.
    busy: cython.double = 0.0
    if held > 0.0 and untracked != 0.0:
        busy = float(round(untracked * held / (held + idle)))
    overflow: cython.double = _nan
    if state[_has_overflow_at] != 0.0:
        # With pool_size=0 the size is unlimited (NaN), and SQLAlchemy's overflow() is 0 as well.
        overflow = 0.0 if is_replaced or size != size else max(0.0, slots + untracked - size)  # noqa: PLR0124
    numbers[0] = 0.0 if is_replaced else 1.0
    numbers[1] = size
    numbers[2] = state[_max_overflow_at]
    numbers[3] = state[_timeout_at]
    numbers[4] = state[_recycle_at]
    numbers[5] = state[_pre_ping_at]
    # The empty slots of a pool that was replaced will not be checked out again.
    numbers[6] = 0.0 if is_replaced else empty
    numbers[7] = callers + state[_pending_at]
    numbers[8] = untracked
    numbers[9] = overflow
    numbers[10] = age(first_caller, now)
    numbers[11] = age(first_held, now)
    numbers[12] = age(first_opened, now)
    # Rounded, so that jitter between the two clocks does not change the value at each scrape.
    numbers[13] = floor((wall - (now - last)) * _milliseconds + 0.5) / _milliseconds if last != 0.0 else 0.0
    numbers[14] = suspects if leak != 0.0 else _nan
    numbers[15] = 1.0 if held > 0.0 and held >= size + state[_max_overflow_at] else 0.0
    numbers[16] = held + busy
    numbers[17] = idle + untracked - busy
    return found


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


def _array(doubles: Sequence[float]) -> array[float]:
    return doubles if isinstance(doubles, array) else array("d", doubles)


def _list(doubles: Sequence[float]) -> Sequence[float]:
    """Return a list, whose numbers are objects already; each number of an array is made when it is asked for."""
    return doubles.tolist() if isinstance(doubles, array) else doubles


@cython.cdivision(True)  # noqa: FBT003
def age(since: cython.double, now: cython.double) -> cython.double:
    """Return an age in whole microseconds, whose text is short; 0 of nothing, and of what is later than the clock."""
    seconds: cython.double = now - since
    return floor(seconds * _microseconds + 0.5) / _microseconds if seconds > 0.0 else 0.0
