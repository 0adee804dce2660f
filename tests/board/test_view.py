# SPDX-License-Identifier: Apache-2.0
"""The board's data: pools, workers, who holds what, and rates."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from sqlalchemy_pool_exporter.board.moment import Moments
from sqlalchemy_pool_exporter.board.query import Query
from sqlalchemy_pool_exporter.board.view import board
from sqlalchemy_pool_exporter.held_connections import Session
from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.page import HOLDERS, LABELS
from tests.support.boards import WALL
from tests.support.probed_sessions import Probed
from tests.support.segments import NOW, QUEUE

if TYPE_CHECKING:
    from tests.support.boards import Directory


def test_an_empty_directory(directory: Directory) -> None:
    """Without processes there are no pools, and all numbers are zero."""
    found = directory.board()
    assert (1, [], [], []) == (found["version"], found["pools"], found["held"], found["conditions"])
    assert {"live": 0, "parent": 0, "gone": 0} == found["processes"]
    assert 0 == found["totals"]["in_use"]
    assert WALL == found["time"]


def test_state_and_limits(directory: Directory) -> None:
    """A pool has the sums of its processes, each process its own, and ages are the longest."""
    one, two = directory.process(), directory.process(size=5.0)
    one.block[layout.TIMEOUT], two.block[layout.TIMEOUT] = 30.0, 10.0
    one.block[layout.RECYCLE] = layout.NOT_APPLICABLE
    one.hold(NOW - 9, 0)
    one.hold(NOW - 8, 1)
    one.hold(NOW - 7, 2)
    one.wait(NOW - 2)
    two.hold(NOW - 3, 0)
    two.idle(NOW - 100, 1)
    two.block[layout.LAST_CHECKIN] = NOW - 4
    pool = directory.pool()
    assert {
        "in_use": 4,
        "idle": 1,
        "overflow": 1,
        "waiting": 1,
        "empty_slots": 0,
        "untracked": 0,
        "longest_held_seconds": 9.0,
        "longest_wait_seconds": 2.0,
        "oldest_connection_seconds": 100.0,
        "last_return": WALL - 4,
    } == pool["state"]
    assert pool["limits"] is not None
    assert (7.0, 2.0, 9.0) == tuple(pool["limits"][key] for key in ("size", "max_overflow", "capacity"))
    assert 10.0 == pool["limits"]["timeout_seconds"]
    assert 2 == pool["instances"]
    assert [QUEUE] == pool["info"]
    workers = pool["workers"]
    assert ["000", "001"] == [
        worker["worker"] for worker in workers
    ]  # the one that callers wait for comes first
    assert [3, 1] == [worker["state"]["in_use"] for worker in workers]
    assert {str(os.getpid())} == {worker["pid"] for worker in workers}


def test_counters_and_rates(directory: Directory) -> None:
    """Rates are known from the second read on, and are over the last seconds alone."""
    process = directory.process()
    process.count(10)
    process.block[layout.HOLD], process.block[layout.HOLD + layout.SUM] = 8.0, 4.0
    pool = directory.pool()
    assert pool["rates"] is None
    assert (10.0, 2.5) == (pool["counters"]["checkouts"], pool["counters"]["wait_seconds"])
    process.count(20)
    process.block[layout.HOLD] += 4.0
    process.block[layout.HOLD + layout.SUM] += 1.0
    process.block[layout.CLOSES] += 10.0
    rates = directory.pool(after=10.0)["rates"]
    assert rates is not None
    assert (10.0, 2.0, 0.25, 0.25) == (
        rates["over_seconds"],
        rates["checkouts"],
        rates["mean_wait_seconds"],
        rates["mean_hold_seconds"],
    )
    assert 1.0 == rates["closes"]
    later = directory.pool(after=10.0)["rates"]
    assert later is not None
    assert (20.0, 1.0) == (later["over_seconds"], later["checkouts"])
    latest = directory.pool(after=10.0)["rates"]
    assert latest is not None
    assert (20.0, 0.0, None) == (latest["over_seconds"], latest["checkouts"], latest["mean_wait_seconds"])


def test_rates_after_a_long_time(directory: Directory) -> None:
    """A read from minutes ago says nothing of now."""
    directory.process().count(10)
    directory.board()
    assert directory.pool(after=3600.0)["rates"] is None


def test_counts_that_shrink(directory: Directory) -> None:
    """A pool whose counts shrank has no rates."""
    process = directory.process()
    process.count(10)
    directory.board()
    process.count(-5)
    assert directory.pool(after=6.0)["rates"] is None


def test_requests_share_a_read(directory: Directory) -> None:
    """Within a second the directory is read once."""
    process = directory.process()
    process.hold(NOW)
    assert 1 == directory.pool()["state"]["in_use"]
    process.hold(NOW, 1)
    assert 1 == directory.pool(after=0.9)["state"]["in_use"]
    assert 2 == directory.pool(after=0.2)["state"]["in_use"]


def test_who_holds(directory: Directory) -> None:
    """Each held connection has its site, holder, label, process and backend; the oldest comes first."""
    process = directory.process()
    process.storage.pages.write_texts(HOLDERS, ["MainThread", "worker-1"])
    process.storage.pages.write_texts(LABELS, ["GET /pay"])
    process.hold(NOW - 4, 0, site="app:list:3", holder=-17)
    process.hold(NOW - 42, 1, site="app:pay:88", holder=2, label=1, waits_since=NOW - 5, server_pid=4711)
    process.hold(NOW - 3, 2)
    oldest, second, third = directory.board()["held"]
    assert {
        "pool": "orders",
        "worker": "000",
        "pid": str(os.getpid()),
        "program": oldest["program"],
        "site": "app:pay:88",
        "holder": "worker-1",
        "label": "GET /pay",
        "since": WALL - 42,
        "held_seconds": 42.0,
        "waits_seconds": 5.0,
        "server_pid": 4711,
        "server": None,
    } == oldest
    assert ("app:list:3", "Task-17", None, None) == (
        second["site"],
        second["holder"],
        second["label"],
        second["server_pid"],
    )
    assert ("other", None) == (third["site"], third["holder"])


def test_what_the_server_says(directory: Directory) -> None:
    """A held connection has what the server says of its session, and of those that block it."""
    process = directory.process()
    process.hold(NOW - 42, 0, server_pid=41)
    process.hold(NOW - 2, 1, server_pid=42)
    session = Session("waiting_for_lock", "Lock:tuple", 3.0, 41.5, 3.0, "app", "", (99,))
    directory.servers = (Probed({41: session}),)
    first, second = directory.board()["held"]
    assert {
        "state": "waiting_for_lock",
        "wait_event": "Lock:tuple",
        "state_seconds": 3.0,
        "transaction_seconds": 41.5,
        "statement_seconds": 3.0,
        "statement": None,
        "blocked_by": [
            {
                "server_pid": 99,
                "state": "unknown",
                "application": None,
                "pool": None,
                "worker": None,
                "pid": None,
                "site": None,
            }
        ],
        "asked_seconds_ago": 2.0,
    } == first["server"]
    assert second["server"] is None


def test_sites(directory: Directory) -> None:
    """The sites of a pool are those that hold most, over all processes, with their totals."""
    one, two = directory.process(), directory.process()
    one.hold(NOW - 5, 0, site="app:pay:88")
    one.hold(NOW - 9, 1, site="app:list:3")
    two.hold(NOW - 7, 0, site="app:pay:88")
    for process in (one, two):
        entry = process.storage.site("app:rare:1")
        assert entry is not None
        entry.table[entry.at] = 5.0
    found = {site["site"]: site for site in directory.pool()["sites"]}
    assert ["app:pay:88", "app:list:3", "app:rare:1"] == list(found)
    assert (2, 7.0) == (found["app:pay:88"]["held"], found["app:pay:88"]["longest_held_seconds"])
    assert (0, 0.0, 10.0) == (
        found["app:rare:1"]["held"],
        found["app:rare:1"]["longest_held_seconds"],
        found["app:rare:1"]["checkouts"],
    )


def test_the_worst_pool_first(directory: Directory) -> None:
    """Pools that callers wait for come first, then the fullest; then those that no process has."""
    directory.process("gone").kill()
    directory.process("idle")
    directory.process("half").hold(NOW - 1)
    waiting = directory.process("waiting")
    for row in range(3):
        waiting.hold(NOW - 1, row)
    waiting.wait(NOW - 1)
    assert ["waiting", "half", "idle", "gone"] == [pool["name"] for pool in directory.board()["pools"]]


def test_what_is_left_out_is_counted(directory: Directory) -> None:
    """More pools, workers and connections than asked for are left out, and their number is said."""
    for name in ("a", "b", "c"):
        for _ in range(2):
            process = directory.process(name)
            for row in range(3):
                process.hold(NOW - row, row)
    found = directory.board(pools=2, workers=1, held=5)
    assert (["a", "b"], 1) == ([pool["name"] for pool in found["pools"]], found["pools_left_out"])
    assert [(1, 1), (1, 1)] == [(len(pool["workers"]), pool["workers_left_out"]) for pool in found["pools"]]
    assert (5, 7) == (len(found["held"]), found["held_left_out"])
    assert (3, 18) == (found["totals"]["pools"], found["totals"]["in_use"])


def test_filters(directory: Directory) -> None:
    """A name chooses exactly one pool; a text chooses by name, site or process, whatever the case."""
    directory.process("orders").hold(NOW - 1, site="app:Pay:88")
    directory.process("orders-archive")
    directory.process("billing")

    def names(**query: Any) -> list[str]:
        return sorted(pool["name"] for pool in directory.board(**query)["pools"])

    assert ["orders"] == names(names=frozenset(("orders",)))
    assert ["orders", "orders-archive"] == names(text="ORDERS")
    assert ["orders"] == names(text="app:pay")
    assert ["billing", "orders", "orders-archive"] == names(text=str(os.getpid()))
    assert [] == names(text="nothing")
    found = directory.board(text="billing")
    assert ([], 3) == (found["held"], found["totals"]["pools"])


def test_unlimited(directory: Directory) -> None:
    """A pool without a limit has no capacity, and is never full."""
    process = directory.process(size=layout.NOT_APPLICABLE, max_overflow=layout.NOT_APPLICABLE)
    process.hold(NOW - 1)
    found = directory.board()
    limits = found["pools"][0]["limits"]
    assert limits is not None
    assert (None, None, None) == (limits["size"], limits["max_overflow"], limits["capacity"])
    assert [] == found["conditions"]
    json.dumps(found, allow_nan=False)


def test_nothing_to_read() -> None:
    """Where there is nothing to read, a note says why."""
    found = board(Moments(lambda: "no directory is configured").get(), Query())
    assert ("no directory is configured", []) == (found["note"], found["pools"])
