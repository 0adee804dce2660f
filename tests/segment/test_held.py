# SPDX-License-Identifier: Apache-2.0
"""Connections that are checked out, and whether their holders wait for each other."""

from __future__ import annotations

import math

import pytest

from sqlalchemy_pool_exporter.segment import block
from sqlalchemy_pool_exporter.segment.block import FIRST_COUNTER, HELD_SINCE, ROW, WAITS_SINCE
from sqlalchemy_pool_exporter.segment.held import held, is_deadlocked
from sqlalchemy_pool_exporter.segment.page import COUNTS
from sqlalchemy_pool_exporter.segment.snapshot import Snapshot

NOW = 1000.0


def pool(*connections: tuple[float, float], capacity: int = 2, timeout: float = 30.0) -> Snapshot:
    """Return a pool with connections: since when each is held, and what its row says of a wait."""
    fields = [0.0] * FIRST_COUNTER
    fields[block.SIZE], fields[block.TIMEOUT] = capacity, timeout
    rows: list[float] = []
    for since, waits in connections:
        row = [0.0] * ROW
        row[0], row[HELD_SINCE], row[WAITS_SINCE] = 1.0, since, waits
        rows += row
    return Snapshot(fields, [], rows, [0.0] * COUNTS, [])


@pytest.mark.parametrize(
    ("expected", "snapshot"),
    [
        (True, pool((NOW - 20, NOW - 19), (NOW - 10, NOW - 5))),
        (True, pool((NOW - 75, NOW - 19), (NOW - 10, NOW - 5))),
        (True, pool((NOW - 600, NOW - 19), (NOW - 10, NOW - 5), timeout=math.nan)),
        (True, pool((NOW - 9, NOW - 1), capacity=1, timeout=0.1)),
        (False, pool((NOW - 20, NOW - 19), (NOW - 10, 0.0))),
        (False, pool((NOW - 20, NOW - 19), (NOW - 10, NOW - 5), capacity=3)),
        # Its holder asked for others before, and would have returned it with the error of a timeout.
        (False, pool((NOW - 600, NOW - 19), (NOW - 10, NOW - 5))),
        # Its wait timed out.
        (False, pool((NOW - 20, NOW - 19), (NOW - 35, -(NOW - 31)))),
        # An earlier holder waits, that handed it on.
        (False, pool((NOW - 20, NOW - 19), (NOW - 10, NOW - 15))),
    ],
)
def test_a_self_deadlock(expected: bool, snapshot: Snapshot) -> None:
    """It is one only if all connections of a full pool are held by holders that wait for another one of it."""
    assert expected is is_deadlocked(snapshot)


def test_what_a_row_says_of_a_wait() -> None:
    """A wait has begun, or has timed out, or is another holder's."""
    said = [
        (one.waits_since, one.gave_up_since) for one in held(pool((10.0, 11.0), (10.0, -11.0), (10.0, -9.0)))
    ]
    assert said == [(11.0, 0.0), (0.0, 11.0), (0.0, 0.0)]
