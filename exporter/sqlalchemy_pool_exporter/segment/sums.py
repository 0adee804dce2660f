# SPDX-License-Identifier: Apache-2.0
"""Adds up the snapshots of several workers: sums of counts, and one state for each pool.

Seconds are fractions, and the rounded sum of floats depends on the order of adding. When a worker ends, its counts are
added in another order. The sum could then shrink in its last digit, and Prometheus would take that for a restart. So
sums are exact and rounded once, at the end: ``total()`` uses ``math.fsum()``, and ``compacted()`` replaces many rows by
a few rows with exactly the same sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.pausing import pause

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .snapshot import Counts, Snapshot

State = float | dict[str, float]

# Limits that are added up.
_ADDED: Final = frozenset(("size", "max_overflow"))
# Ages and points in time are not added up; the largest one counts.
_LARGEST: Final = frozenset(
    (
        "longest_pending_seconds",
        "longest_held_seconds",
        "oldest_connection_seconds",
        "last_checkin_timestamp_seconds",
    )
)


def total(rows: Sequence[Counts]) -> Counts:
    """Return the sum of rows of counts, rounded once."""
    pause()
    return rows[0] if len(rows) == 1 else list(map(math.fsum, zip(*rows, strict=True)))


def compacted(rows: Sequence[Counts]) -> list[Counts]:
    """Return few rows with exactly the same sum: the rounded sum, the rounding error, and so on."""
    left, few = list(rows), []
    while any(rounded := total(left)):
        few.append(rounded)
        left.append([-count for count in rounded])
    return few or left[:1]


def current(snapshots: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """Return those of pools that no other pool has replaced: only these can open connections. All, if there is none."""
    return [snapshot for snapshot in snapshots if not snapshot.is_replaced] or snapshots


def capacity(snapshots: Sequence[Snapshot]) -> float:
    """Return how many connections these pools can have checked out at once; NaN if one of them has no limit."""
    return math.fsum(snapshot.capacity for snapshot in current(snapshots))


def state(snapshots: Sequence[Snapshot], *, now: float, wall: float) -> dict[str, State]:
    """Return the limits and the state of several pools together, of one worker or of several.

    Sizes are the sum, and absent if one pool has no limit. Of the other limits the smallest one counts: some caller
    fails after that time, some connection is replaced at that age, and only 1 means that all connections are tested.
    Ages and points in time are the largest, all other values the sum.

    Args:
        snapshots: at least one.
        now: seconds of ``time.monotonic()``.
        wall: seconds since the epoch at the same moment.
    """
    states = [dict(snapshot.state(now=now, wall=wall)) for snapshot in snapshots]
    keys = dict.fromkeys(key for one in states for key in one)
    return limits(snapshots) | {key: _summed(key, [one[key] for one in states if key in one]) for key in keys}


def limits(snapshots: Sequence[Snapshot]) -> dict[str, State]:
    """Return the limits of several pools together; see ``state()``."""
    limited = current(snapshots)
    return {
        key: math.fsum(values) if key in _ADDED else min(values)
        for key, values in _by_key(snapshot.limits() for snapshot in limited).items()
        if key not in _ADDED or len(values) == len(limited)
    }


def _by_key(every: Iterable[Iterable[tuple[str, float]]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for values in every:
        for key, value in values:
            found.setdefault(key, []).append(value)
    return found


def _summed(key: str, values: list[State]) -> State:
    by_label = [value for value in values if isinstance(value, dict)]
    if by_label:
        return {label: sum(one[label] for one in by_label) for label in by_label[0]}
    numbers = [value for value in values if not isinstance(value, dict)]
    return max(numbers) if key in _LARGEST else sum(numbers)
