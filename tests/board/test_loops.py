# SPDX-License-Identifier: Apache-2.0
"""Event loops that are blocked, on the board."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.segment.block import LOOP_DUE, LOOP_PEAK, LOOP_PEAK_AT
from tests.support.segments import NOW

if TYPE_CHECKING:
    from tests.support.boards import Directory


def test_a_loop_that_is_blocked(directory: Directory) -> None:
    """The process whose loop is blocked is named, with for how long, and how to see what it does."""
    process = directory.process()
    process.block[LOOP_DUE] = NOW - 4.25
    text = (
        f"event loop blocked: worker 000 (pid {os.getpid()}) has run no task for 4.2 s; none can return a connection; "
        f"py-spy dump --pid {os.getpid()} says what it does"
    )
    expected = {"kind": "loop_blocked", "severity": "critical", "pool": None, "text": text}
    board = directory.board()
    assert board["conditions"] == [expected]
    assert board["pools"][0]["workers"][0]["event_loop_lag_seconds"] == 4.25


def test_the_last_checkout(directory: Directory) -> None:
    """What blocks a loop is likely to come after the last checkout that is still out: its place is named."""
    process = directory.process()
    process.hold(NOW - 90, 0, site="app:list:3", holder=-7)
    process.hold(NOW - 5, 1, site="app:thumbnail:88", holder=-9)
    process.block[LOOP_DUE] = NOW - 4.25
    text = directory.board()["conditions"][0]["text"]
    assert "; the last checkout was 5.0 s ago, at app:thumbnail:88 (Task-9); py-spy" in text


def test_a_loop_that_was_blocked(directory: Directory) -> None:
    """A block that is over stays for a minute, as a warning."""
    process = directory.process()
    process.block[LOOP_DUE] = NOW + 1000.0
    process.block[LOOP_PEAK], process.block[LOOP_PEAK_AT] = 5.0, NOW - 10.0
    condition = directory.condition()
    assert (condition["kind"], condition["severity"]) == ("loop_blocked", "warning")
    assert condition["text"].endswith("was blocked for 5.0 s in the last minute")
    assert directory.board(after=60.0)["conditions"] == []


def test_a_loop_that_is_a_little_late(directory: Directory) -> None:
    """Half a second is no condition; a process without a loop has no lag."""
    process = directory.process()
    process.block[LOOP_DUE] = NOW - 0.5
    directory.process()
    board = directory.board()
    assert board["conditions"] == []
    lags = {one["event_loop_lag_seconds"] for one in board["pools"][0]["workers"]}
    assert lags == {0.5, None}


def test_many_loops_that_are_blocked(directory: Directory) -> None:
    """Three processes are named, those that are blocked for longest, and the others are counted."""
    for at in range(6):
        directory.process().block[LOOP_DUE] = NOW - 2.0 - at
    texts = [one["text"] for one in directory.board()["conditions"]]
    assert ["7.0 s", "6.0 s", "5.0 s"] == [text.partition("no task for ")[2][:5] for text in texts[:3]]
    assert texts[3:] == ["event loop blocked: 3 more workers"]
