# SPDX-License-Identifier: Apache-2.0
"""The likely cause of an exhausted pool, from its state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.segment import block
from sqlalchemy_pool_exporter.segment.block import FIRST_COUNTER, HELD_SINCE, HOLD, ROW, SUM, WAITS_SINCE
from sqlalchemy_pool_exporter.segment.entries import HELD_SECONDS, SiteCounts
from sqlalchemy_pool_exporter.segment.exhaustion import CAUSES, Cause, likely_cause
from sqlalchemy_pool_exporter.segment.page import COUNTS
from sqlalchemy_pool_exporter.segment.snapshot import Snapshot
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = 1000.0
SINCE = NOW - 30.0  # when the caller that timed out began to wait


def cause(
    ages: Sequence[float],
    *,
    sites: Sequence[str] = (),
    waits: int = 0,
    usual: float | None = 0.05,
    capacity: int | None = None,
    came_back: float = 1.0,
    gave_up: int = 0,
    timeout: float = 30.0,
    leak_after: float = math.inf,
    blocked: float = 0.0,
    blocked_before: float = 0.0,
    held_before: Sequence[float] = (),
    oldest_does: str = "",
) -> Cause:
    """Return the likely cause.

    Args:
        ages: of the connections that are held.
        sites: of those.
        waits: how many of their holders wait for another one.
        usual: how long connections were held before; None if nothing was.
        capacity: of the pool; as many as are held by default.
        came_back: how many seconds ago the last connection came back.
        gave_up: how many more have waited for one, until they timed out when the caller did.
        timeout: of the pool, in seconds; NaN if it has none.
        leak_after: seconds.
        blocked: for how many seconds the event loop was blocked, until a second ago.
        blocked_before: likewise, until the caller that timed out began to wait.
        held_before: for how many seconds the sites, in alphabetical order, have held connections that came back.
        oldest_does: what the holder of the oldest does.
    """
    fields = [0.0] * FIRST_COUNTER
    fields[block.SIZE] = len(ages) if capacity is None else capacity
    fields[block.LAST_CHECKIN], fields[block.TIMEOUT] = NOW - came_back, timeout
    fields[block.LOOP_PEAK] = blocked or blocked_before
    fields[block.LOOP_PEAK_AT] = NOW - 1.0 if blocked else SINCE
    counts = [0.0] * COUNTS
    if usual is not None:
        counts[HOLD - FIRST_COUNTER], counts[HOLD + SUM - FIRST_COUNTER] = 100.0, 100 * usual
    texts = sorted(set(sites))
    rows: list[float] = []
    for at, age in enumerate(ages):
        row = [0.0] * ROW
        row[0], row[HELD_SINCE] = 1.0, NOW - age
        row[WAITS_SINCE] = SINCE if at < waits else -SINCE if at < waits + gave_up else 0.0
        row[block.SITE] = texts.index(sites[at]) + 1.0 if sites else 0.0
        rows += row
    known = []
    for at, text in enumerate(texts):
        counts_of_site = [0.0] * 6
        counts_of_site[HELD_SECONDS] = held_before[at] if held_before else 0.0
        known.append(SiteCounts(text, counts_of_site))
    snapshot = Snapshot(fields, [], rows, counts, known)
    return likely_cause(
        snapshot,
        now=NOW,
        since=SINCE,
        leak_after=leak_after,
        oldest_does=oldest_does,
    )


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("busy", cause([0.1, 0.02, 0.05, 0.07], sites=["a", "b", "c", "d"])),
        ("busy", cause([0.1, 0.02], usual=None)),
        ("busy", cause([0.1, 0.02, 0.05, 0.07], sites=["a", "b", "c", "d"], blocked=5.0)),
        ("loop_blocked", cause([31.0, 32.0], came_back=31.0, blocked=20.0)),
        ("loop_blocked", cause([], capacity=4, blocked=20.0)),
        ("loop_blocked", cause([31.0, 32.0], came_back=31.0, blocked=14.0, timeout=1.0)),
        ("loop_blocked", cause([31.0, 32.0], came_back=31.0, blocked_before=14.0, timeout=1.0)),
        ("stuck", cause([31.0, 32.0], came_back=31.0, blocked=14.0)),
        ("stuck", cause([31.0, 32.0], came_back=31.0, blocked=14.0, timeout=math.nan)),
        ("stuck", cause([31.0, 32.0], came_back=31.0, timeout=1.0)),
        ("slow", cause([1.0, 2.0, 3.0, 4.0], sites=["a", "b", "c", "d"])),
        ("slow", cause([31.0, 100.0, 300.0, 400.0], sites=["a", "b", "c", "d"])),
        ("one_site", cause([0.1] * 5, sites=["a", "a", "a", "a", "b"])),
        ("one_site", cause([0.1] * 5, sites=["a", "a", "a", "a", "b"], held_before=[50.0, 50.0])),
        ("busy", cause([0.1] * 5, sites=["a", "a", "a", "a", "b"], held_before=[90.0, 10.0])),
        ("stuck", cause([31.0, 32.0, 33.0, 34.0], came_back=31.0)),
        ("stuck", cause([31.0, 32.0, 33.0, 34.0], came_back=31.0, usual=None)),
        ("stuck", cause([600.0], came_back=600.0, usual=None)),
        ("leak", cause([600.0], came_back=600.0)),
        ("stuck", cause([600.0], came_back=600.0, oldest_does="database")),
        ("leak", cause([31.0, 30.0], came_back=31.0, oldest_does="ended")),
        ("stuck", cause([31.0, 30.0], came_back=31.0, oldest_does="elsewhere")),
        ("stuck", cause([30.2, 30.1, 29.9], came_back=31.0)),
        ("stuck", cause([29.8, 29.7, 29.6], sites=["a", "a", "a"], came_back=29.5)),
        ("leak", cause([100.0, 400.0, 700.0, 900.0], came_back=100.0)),
        ("leak", cause([0.1, 400.0, 700.0, 900.0])),
        ("leak", cause([10.0, 20.0, 0.1], leak_after=5.0)),
        ("leak", cause([33.0, 32.0, 31.0], leak_after=5.0, came_back=31.0)),
        ("busy", cause([10.0, 0.1, 0.1], usual=5.0, leak_after=5.0)),
        ("self_deadlock", cause([31.0, 32.0], waits=2, came_back=40.0)),
        ("self_deadlock", cause([31.0, 32.0], waits=1, gave_up=1, came_back=40.0)),
        ("self_deadlock", cause([31.0, 89.0], waits=1, gave_up=1, came_back=40.0)),
        ("self_deadlock", cause([31.0, 900.0], waits=1, gave_up=1, timeout=math.nan, came_back=40.0)),
        # One was held through more than one timeout, and its holder asks for another.
        ("nested_checkouts", cause([31.0, 900.0], waits=1, gave_up=1, came_back=40.0)),
        ("leak", cause([200.0, 900.0], waits=1, gave_up=1, came_back=40.0)),
        ("leak", cause([900.0], waits=1, came_back=40.0, oldest_does="queue")),
        # The third is being opened.
        ("nested_checkouts", cause([31.0, 32.0], waits=2, capacity=3, came_back=40.0)),
        ("nested_checkouts", cause([31.0, 32.0, 1.0], waits=2)),
        ("connecting", cause([], capacity=4)),
        ("connecting", cause([0.1], capacity=4)),
        ("unknown", cause([], capacity=0)),
    ],
)
def test_causes(kind: str, found: Cause) -> None:
    """The state of the pool and what is usual for it lead to one cause."""
    assert found.kind == kind
    assert found.words


def test_the_site_is_named() -> None:
    """If all connections in question are from one site, the words name it."""
    assert "(all from a)" in cause([31.0, 32.0], sites=["a", "a"], came_back=31.0).words
    assert "a has 3 of 3 connections" in cause([0.1] * 3, sites=["a"] * 3).words


def test_sites_that_are_not_known() -> None:
    """Of connections that were checked out while the pool was not busy no site is known: none is said to have all."""
    ages = [0.1] * 8
    found = cause(ages, sites=["other"] * 3 + ["a"] * 4 + ["b"])
    assert (found.kind, found.words) == ("one_site", "a has 4 of 8 connections")
    assert cause(ages, sites=["other"] * 5 + ["a"] * 3).kind == "busy"
    assert "(3 of 8 from a)" in cause(ages, sites=["other"] * 5 + ["a"] * 3).words
    assert "places" not in cause(ages, sites=["other"] * 4 + ["a", "b", "c", "d"]).words
    assert "(1 of 2 from a)" in cause([31.0, 32.0], sites=["a", "other"], came_back=31.0).words


def test_all_causes_are_documented() -> None:
    """docs/errors.md has every cause."""
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert [one for one in CAUSES if f"| `{one}` |" not in text] == []
