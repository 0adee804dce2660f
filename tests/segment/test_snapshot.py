# SPDX-License-Identifier: Apache-2.0
"""The metrics that are derived from one block."""

from __future__ import annotations

import math

import pytest

from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.snapshot import Histogram, Snapshot, Value, counters
from tests.support.segments import zeros

NOW, WALL = 1000.0, 5000.0


@pytest.fixture
def block() -> memoryview[float]:
    """A fresh block of a pool with size 2 and one overflow connection."""
    block = zeros()
    block[layout.ACTIVE] = block[layout.HAS_OVERFLOW] = 1.0
    block[layout.SIZE], block[layout.MAX_OVERFLOW], block[layout.TIMEOUT] = 2.0, 1.0, 30.0
    block[layout.RECYCLE] = layout.NOT_APPLICABLE
    block[layout.WAITERS_USED] = block[layout.CONNECTIONS_USED] = 16.0
    return block


def row(
    block: memoryview[float], number: int, connected: float, since: float = 0.0, retired: float = 0.0
) -> None:
    at = layout.CONNECTIONS_AT + layout.ROW * number
    block[at], block[at + layout.HELD_SINCE], block[at + layout.LIFECYCLE] = connected, since, retired


def values(block: memoryview[float]) -> dict[str, Value]:
    return dict(Snapshot.of(block).values(now=NOW, wall=WALL))


def test_limits_that_do_not_apply_are_absent(block: memoryview[float]) -> None:
    """A limit is shown only if the pool has it; without a size there is no capacity."""
    shown = values(block)
    assert {key: shown.get(key) for key in ("size", "max_overflow", "timeout_seconds", "capacity")} == {
        "size": 2.0,
        "max_overflow": 1.0,
        "timeout_seconds": 30.0,
        "capacity": 3.0,
    }
    assert "recycle_seconds" not in shown
    block[layout.SIZE] = block[layout.MAX_OVERFLOW] = layout.NOT_APPLICABLE
    assert {"size", "max_overflow", "capacity"} & values(block).keys() == set()


def test_state_of_the_rows(block: memoryview[float]) -> None:
    """Connections in use and idle, empty slots, overflow and ages are derived from the rows."""
    row(block, 0, 900.0, 990.0)
    row(block, 1, 800.0, -980.0)  # negative: held since before the pool was instrumented
    row(block, 2, 850.0)
    row(block, 3, layout.EMPTY)
    row(block, 4, 700.0, 995.0, retired=layout.DISPOSED)
    shown = values(block)
    assert shown["connections"] == {"in_use": 3.0, "idle": 1.0}
    assert shown["overflow_connections"] == 2.0
    assert shown["empty_slots"] == 1.0
    assert (shown["longest_held_seconds"], shown["oldest_connection_seconds"]) == (20.0, 300.0)
    block[layout.ACTIVE] = layout.REPLACED
    shown = values(block)
    assert shown["connections"] == {"in_use": 3.0, "idle": 1.0}
    assert (shown["overflow_connections"], shown["empty_slots"]) == (0.0, 0.0)


def test_waiters_and_what_found_no_room(block: memoryview[float]) -> None:
    """Callers and connections without a table slot are counted, but callers without a slot have no age."""
    block[layout.WAITERS_AT + 3] = 999.0
    block[layout.UNTRACKED_PENDING], block[layout.UNTRACKED_CONNECTIONS] = 2.0, 1.0
    shown = values(block)
    assert (shown["pending_checkouts"], shown["longest_pending_seconds"]) == (3.0, 1.0)
    assert shown["untracked_connections"] == 1.0


@pytest.mark.parametrize(("held", "in_use", "idle"), [(0, 0, 14), (2, 7, 7), (4, 14, 0)])
def test_connections_without_a_row(block: memoryview[float], held: int, in_use: int, idle: int) -> None:
    """They are in use in the share of those that have a row, and overflow if the others fill the pool."""
    for number in range(4):
        row(block, number, 900.0, 990.0 * (number < held))
    block[layout.UNTRACKED_CONNECTIONS] = 10.0
    shown = values(block)
    assert shown["connections"] == {"in_use": in_use, "idle": idle}
    assert shown["overflow_connections"] == 12.0


def test_a_store_later_than_the_clock_was_read(block: memoryview[float]) -> None:
    """If a store is later than the reader's clock, the age is 0 and not negative."""
    row(block, 0, NOW + 1, NOW + 1)
    assert values(block)["longest_held_seconds"] == 0.0


def test_last_return(block: memoryview[float]) -> None:
    """The time of the last return is Unix time rounded to milliseconds; 0 before the first return."""
    assert values(block)["last_checkin_timestamp_seconds"] == 0.0
    block[layout.LAST_CHECKIN] = NOW - 1.23456
    assert values(block)["last_checkin_timestamp_seconds"] == WALL - 1.235


def test_an_unlimited_size_has_no_overflow(block: memoryview[float]) -> None:
    """With pool_size=0 no connection is overflow, as in SQLAlchemy."""
    block[layout.SIZE] = layout.NOT_APPLICABLE
    row(block, 0, 900.0, 990.0)
    assert values(block)["overflow_connections"] == 0.0


def test_counters_follow_from_a_row_of_counts(block: memoryview[float]) -> None:
    """All counters can be derived from the copied counts alone, without the block."""
    for at in range(layout.FIRST_COUNTER, layout.FIELDS):
        block[at] = float(at)
    counts = Snapshot.of(block).counts
    assert len(counts) == layout.FIELDS - layout.FIRST_COUNTER
    shown = dict(counters(counts, has_overflow=True))
    assert shown["checkout_timeouts_total"] == layout.CHECKOUT_TIMEOUTS
    assert shown["checkouts_total"] == sum(range(layout.WAIT, layout.WAIT + layout.SUM))
    assert shown["hold_seconds"] == Histogram(
        tuple(map(float, range(layout.HOLD, layout.HOLD + layout.SUM))), float(layout.HOLD + layout.SUM)
    )
    assert shown.keys() - dict(counters(counts, has_overflow=False)).keys() == {"overflow_opened_total"}
    assert {key: value for key, value in values(block).items() if key in shown} == shown


def test_histograms_are_added_bucket_by_bucket() -> None:
    """Adding two histograms adds their buckets and their sums."""
    both = Histogram((1.0, 2.0), 0.5) + Histogram((3.0, 4.0), 0.25)
    assert (both, both.count) == (Histogram((4.0, 6.0), 0.75), 10.0)


def test_a_snapshot_is_a_copy(block: memoryview[float]) -> None:
    """Later stores into the block do not change a snapshot."""
    snapshot = Snapshot.of(block)
    before = dict(snapshot.values(now=NOW, wall=WALL))
    for at in range(layout.FIRST_COUNTER, layout.FIELDS):
        block[at] = 1.0
    row(block, 0, 900.0, 990.0)
    assert dict(snapshot.values(now=NOW, wall=WALL)) == before
    assert snapshot.is_active
    assert not math.isnan(snapshot.capacity)
