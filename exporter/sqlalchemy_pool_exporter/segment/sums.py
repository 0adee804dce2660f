# SPDX-License-Identifier: Apache-2.0
"""Adds up the snapshots of several workers: sums of counts, and one state for each pool.

Seconds are fractions, and the rounded sum of floats depends on the order of adding. When a worker ends, its counts are
added in another order. The sum could then shrink in its last digit, and Prometheus would take that for a restart. So
sums are exact and rounded once, at the end: ``total()`` uses ``math.fsum()``, and ``compacted()`` replaces many rows by
a few rows with exactly the same sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.pausing import pause

from .block import ACTIVE, REPLACED
from .held import is_deadlocked
from .snapshot import limits_of, state_of
from .state_cy import DEADLOCKED, joined, row
from .total_cy import total as exact

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from .snapshot import Counts, Snapshot

State = float | dict[str, float]


def total(rows: Sequence[Counts]) -> Counts:
    """Return the sum of rows of counts, rounded once."""
    pause()
    return rows[0] if len(rows) == 1 else exact(rows)


def compacted(rows: Sequence[Counts]) -> list[Counts]:
    """Return few rows with exactly the same sum: the rounded sum, the rounding error, and so on."""
    left, few = list(rows), []
    while any(rounded := total(left)):
        few.append(rounded)
        left.append([-count for count in rounded])
    return few or left[:1]


def current(snapshots: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """Return those of pools that no other pool has replaced: only these can open connections. All, if there is none."""
    return [snapshot for snapshot in snapshots if snapshot.fields[ACTIVE] != REPLACED] or snapshots


def capacity(snapshots: Sequence[Snapshot]) -> float:
    """Return how many connections these pools can have checked out at once; NaN if one of them has no limit."""
    return math.fsum([snapshot.capacity for snapshot in current(snapshots)])


def numbers(snapshots: Sequence[Snapshot], *, now: float, wall: float) -> array[float]:
    """Return the limits and the state of several pools together, of one worker or of several; see ``state_cy``.

    Args:
        snapshots: at least one.
        now: seconds of ``time.monotonic()``.
        wall: seconds since the epoch at the same moment.
    """
    return joined([_row(snapshot, now, wall) for snapshot in snapshots])


def _row(snapshot: Snapshot, now: float, wall: float) -> array[float]:
    numbers = row(snapshot.fields, snapshot.waiters, snapshot.connections, now, wall)
    if numbers[DEADLOCKED]:  # most pools are not full, and their connections are not looked at one by one
        numbers[DEADLOCKED] = float(is_deadlocked(snapshot))
    return numbers


def state(snapshots: Sequence[Snapshot], *, now: float, wall: float) -> dict[str, State]:
    """Return ``numbers()`` by the key of the metric."""
    found = numbers(snapshots, now=now, wall=wall)
    return limits_of(found) | state_of(found)


def limits(snapshots: Sequence[Snapshot]) -> dict[str, float]:
    """Return the limits of several pools together, by the key of the metric."""
    return limits_of(numbers(snapshots, now=0.0, wall=0.0))
