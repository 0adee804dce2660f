# SPDX-License-Identifier: Apache-2.0
"""What a reader says of an event loop: how late it is now, and how late it was of late."""

from __future__ import annotations

from sqlalchemy_pool_exporter.segment.block import FIRST_COUNTER, LOOP_DUE, LOOP_PEAK, LOOP_PEAK_AT
from sqlalchemy_pool_exporter.segment.event_loop import RECENT_SECONDS, lag, lag_now, peak_since
from sqlalchemy_pool_exporter.segment.snapshot import Snapshot

NOW = 1000.0


def snapshot(*due: float, peak: float = 0.0, at: float = 0.0) -> Snapshot:
    fields = [0.0] * FIRST_COUNTER
    fields[LOOP_DUE : LOOP_DUE + len(due)] = due
    fields[LOOP_PEAK], fields[LOOP_PEAK_AT] = peak, at
    return Snapshot(fields, [], [], [])


def test_no_loop() -> None:
    """A process without a loop has no lag, which is not the lag 0."""
    assert lag([snapshot()], NOW) is None
    assert lag([], NOW) is None
    assert lag_now([snapshot()], NOW) == 0


def test_a_blocked_loop_is_later_and_later() -> None:
    """While no timer runs, the lag is the time since the one that was due."""
    one = snapshot(NOW - 3.0, peak=0.01, at=NOW - 4.0)
    assert (lag([one], NOW), lag([one], NOW + 2.0)) == (3.0, 5.0)
    assert lag_now([one], NOW + 2.0) == 5.0


def test_a_loop_that_waits_is_not_late() -> None:
    """Before its timer is due, a loop is not late, and the lag is what it was of late."""
    one = snapshot(NOW + 0.1, peak=0.02, at=NOW - 5.0)
    assert (lag([one], NOW), lag_now([one], NOW)) == (0.02, 0.0)


def test_the_largest_lag_stays_for_a_minute() -> None:
    """A scrape after a block still sees it, and one that is much later does not."""
    one = snapshot(0.0, peak=5.0, at=NOW)
    assert lag([one], NOW + RECENT_SECONDS - 0.1) == 5.0
    assert lag([one], NOW + RECENT_SECONDS + 0.1) is None


def test_of_several_loops_and_pools_the_latest_counts() -> None:
    """The lag of a process is that of its latest loop, whichever pool uses it."""
    assert lag([snapshot(NOW + 0.1, NOW - 2.0), snapshot(NOW - 1.0)], NOW) == 2.0


def test_what_was_in_a_time() -> None:
    """The largest lag belongs to a time if the timer ran in it."""
    one = snapshot(peak=5.0, at=NOW)
    assert (peak_since(one, NOW - 1.0), peak_since(one, NOW + 1.0)) == (5.0, 0.0)
