# SPDX-License-Identifier: Apache-2.0
"""What is wrong now, in words: one line from which an engineer knows what to look at."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.held_connections import Session
from sqlalchemy_pool_exporter.segment import block as layout
from tests.support.probed_sessions import Probed
from tests.support.segments import NOW

if TYPE_CHECKING:
    from tests.support.boards import Directory
    from tests.support.segments import Process

HERE = f"(pid {os.getpid()})"  # all simulated processes are this one
SESSION = Session("active", "", 3.0, 4.0, 3.0, "app", "", ())


def full(directory: Directory, *, held: float = 5.0, returned: float = 0.2) -> Process:
    """Return a process whose three connections are held, and that returned one some seconds ago."""
    process = directory.process()
    for row in range(3):
        process.hold(NOW - held + row, row, site="app.orders:pay:88")
    process.block[layout.LAST_CHECKIN] = NOW - returned
    return process


def test_nothing_is_wrong(directory: Directory) -> None:
    """A pool with a connection in use and no caller that waits has no condition."""
    directory.process().hold(NOW - 1)
    board = directory.board()
    assert [] == board["conditions"]
    assert board["pools"][0]["severity"] is None


def test_full(directory: Directory) -> None:
    """A full pool that nobody waits for is worth a note and no more."""
    full(directory)
    assert {
        "kind": "full",
        "severity": "info",
        "pool": "orders",
        "text": f"full: all 3 connections of worker 000 {HERE} are in use, and nobody waits",
    } == directory.condition()


def test_busy(directory: Directory) -> None:
    """A full pool that callers wait for is busy while connections come back."""
    process = full(directory)
    process.wait(NOW - 1.25)
    process.wait(NOW - 0.5, slot=1)
    condition = directory.condition()
    assert ("waiting", "warning") == (condition["kind"], condition["severity"])
    assert (
        f"busy: 2 callers wait, the first for 1.2 s; all 3 connections of worker 000 {HERE} are in use, and the last "
        "came back 200 ms ago; "
        "likely cause: app.orders:pay:88 has 3 of 3 connections"
    ) == condition["text"]
    process.block[layout.LAST_CHECKIN] = 0.0
    text = directory.board(after=1.0)["conditions"][0]["text"]
    assert text.startswith("slow: ")
    assert "and none has come back yet" in text


def test_a_moment_is_no_condition(directory: Directory) -> None:
    """A caller that has waited for some milliseconds is on its way to a connection."""
    full(directory).wait(NOW - 0.02)
    assert [] == directory.board()["conditions"]


def test_stuck(directory: Directory) -> None:
    """A full pool that callers wait for, and that returns nothing, is stuck; the oldest holder is named."""
    process = full(directory, held=45.0, returned=42.0)
    process.wait(NOW - 40)
    condition = directory.condition()
    assert ("stuck", "critical") == (condition["kind"], condition["severity"])
    pid = directory.board()["held"][0]["pid"]
    assert (
        f"stuck: worker 000 (pid {pid}) has all 3 connections out and returned none for 42 s; 1 caller waits, "
        "for 40 s; the oldest is held for 45 s, by app.orders:pay:88"
    ) == condition["text"]


def test_stuck_since_the_start(directory: Directory) -> None:
    """A pool that never returned a connection is silent since its oldest checkout."""
    process = full(directory, held=35.0)
    process.block[layout.LAST_CHECKIN] = 0.0
    process.wait(NOW - 3)
    assert "returned none for 35 s" in directory.condition()["text"]


def test_self_deadlock(directory: Directory) -> None:
    """If every holder waits for another connection of the pool, the place of the first is named, and what ends it."""
    process = directory.process(size=1.0)
    process.block[layout.TIMEOUT] = 30.0
    for row in range(2):
        process.hold(NOW - 12, row, site="app.orders:pay:88", waits_since=NOW - 10 + row)
        process.wait(NOW - 10 + row, slot=row)
    board = directory.board()
    (condition,) = board["conditions"]
    assert ("self_deadlock", "critical") == (condition["kind"], condition["severity"])
    assert (
        "the holders of all 2 connections wait for another one of this pool, the first for 10 s, at app.orders:pay:88; "
        "that ends when a checkout fails after 30 s"
    ) in condition["text"]
    assert board["pools"][0]["workers"][0]["self_deadlocked"]


def test_many_deadlocks(directory: Directory) -> None:
    """Three processes are named, those whose callers wait longest; the others are counted."""
    for at in range(6):
        process = directory.process(size=0.0)
        process.hold(NOW - 20, site="app.orders:pay:88", waits_since=NOW - 10 - at)
        process.wait(NOW - 10 - at)
    found = directory.board()["conditions"]
    assert ["005", "004", "003"] == [one["text"].split()[3] for one in found[:3]]
    assert "self-deadlock in 3 more workers: 3 callers wait, the first for 12 s" == found[3]["text"]


def test_many_stuck(directory: Directory) -> None:
    """Three processes that are stuck are named; the others are counted, with the oldest hold."""
    for at in range(5):
        process = full(directory, held=60.0 - at, returned=50.0)
        process.wait(NOW - 40 - at)
    found = directory.board()["conditions"]
    assert ["stuck"] * 4 == [one["kind"] for one in found]
    assert (
        "stuck: 2 more workers; 2 callers wait, the first for 41 s; the oldest is held for 1 min, by app.orders:pay:88 "
        f"in worker 000 {HERE}"
    ) == found[3]["text"]


def test_nested(directory: Directory) -> None:
    """A holder that waits for a second connection is named before all of them do."""
    process = directory.process()
    process.hold(NOW - 12, 0, site="app.orders:pay:88", waits_since=NOW - 0.2)
    process.hold(NOW - 5, 1, site="app.orders:list:3")
    process.wait(NOW - 0.2)
    condition = directory.condition()
    assert ("nested", "warning") == (condition["kind"], condition["severity"])
    assert (
        "a holder waits for another connection of this pool, from app.orders:pay:88 in worker 000"
        in condition["text"]
    )


def test_slow_to_connect(directory: Directory) -> None:
    """A caller that waits for a pool with room waits for a connection to be opened."""
    directory.process().wait(NOW - 3)
    condition = directory.condition()
    assert ("slow_connect", "warning") == (condition["kind"], condition["severity"])
    assert (
        f"1 caller waits, for 3.0 s in worker 000 {HERE}, although the pool is not full" in condition["text"]
    )


def test_held_for_long(directory: Directory) -> None:
    """Connections that are out for over a minute are counted, and the oldest is named."""
    process = directory.process()
    process.hold(NOW - 310, 0, site="app.report:make:7")
    process.hold(NOW - 61, 1, site="app.orders:pay:88")
    condition = directory.condition()
    assert ("held_long", "warning") == (condition["kind"], condition["severity"])
    assert (
        "held: 2 connections are out for over 1 min; the oldest is held for 5 min 10 s, by app.report:make:7 "
        f"in worker 000 {HERE}"
    ) == condition["text"]


def test_held_for_longer_than_the_pool_says(directory: Directory) -> None:
    """Where the pool has a leak_after, that is too long and a minute is not."""
    process = directory.process()
    process.block[layout.LEAK_AFTER] = 300.0
    process.hold(NOW - 310, 0, site="app.report:make:7")
    process.hold(NOW - 61, 1, site="app.orders:pay:88")
    assert directory.condition()["text"].startswith("held: 1 connection is out for over 5 min (leak_after); ")
    process.block[layout.LEAK_AFTER] = 400.0
    assert directory.board(after=1.0)["conditions"] == []


@pytest.mark.parametrize(
    ("field", "kind", "severity"),
    [
        (layout.CHECKOUT_TIMEOUTS, "timeouts", "critical"),
        (layout.CONNECT_FAILED, "connect_errors", "critical"),
        (layout.LEAKED_CHECKOUTS, "leaked", "warning"),
        (layout.UNDISPOSED_POOLS, "undisposed", "warning"),
        (layout.UNDISPOSED_POOLS + 1, "undisposed", "warning"),
    ],
)
def test_rates(directory: Directory, field: int, kind: str, severity: str) -> None:
    """What fails or leaks now is said with its rate, and no longer once it has ended."""
    process = directory.process()
    process.block[field] = 100.0
    assert [] == directory.board()["conditions"]
    process.block[field] += 3.0
    (condition,) = directory.board(after=6.0)["conditions"]
    assert (kind, severity) == (condition["kind"], condition["severity"])
    assert "0.5/s" in condition["text"]
    directory.board(after=6.0)
    assert [] == directory.board(after=6.0)["conditions"]


def test_blocked(directory: Directory) -> None:
    """A connection that waits for a lock is named with who has the lock."""
    waits, holds = directory.process(), directory.process("billing")
    waits.hold(NOW - 13, site="app.orders:pay:88", server_pid=41)
    holds.hold(NOW - 50, site="app.bill:run:7", server_pid=51)
    sessions = {
        41: replace(SESSION, state="waiting_for_lock", state_seconds=12.0, blocked_by=(51,)),
        51: replace(SESSION, state="idle_in_transaction", state_seconds=4.0),
    }
    directory.servers = (Probed(sessions, pools=("orders", "billing")),)
    condition = directory.condition()
    assert ("blocked", "warning", "orders") == (condition["kind"], condition["severity"], condition["pool"])
    assert (
        f"blocked: 1 connection waits for a lock, app.orders:pay:88 in worker 000 {HERE} for 12 s; app.bill:run:7 in "
        f"worker 001 {HERE} has it, idle in transaction, as session 51"
    ) == condition["text"]


@pytest.mark.parametrize(
    ("pid", "session", "text"),
    [
        (99, replace(SESSION, application="psql"), "session 99 of 'psql' has it, active"),
        (99, None, "session 99 has it"),
        (0, None, "a prepared transaction has it"),
    ],
)
def test_blocked_by_another(directory: Directory, pid: int, session: Session | None, text: str) -> None:
    """A session that is none of the pools' is named as the server knows it."""
    directory.process().hold(NOW - 13, server_pid=41)
    waits = replace(SESSION, state="waiting_for_lock", blocked_by=(pid,))
    directory.servers = (Probed({41: waits} | ({pid: session} if session else {})),)
    assert directory.condition()["text"].endswith(f"; {text}")


def test_idle_in_transaction(directory: Directory) -> None:
    """A connection that is held over something else than the database is told from a slow query."""
    process = directory.process()
    process.hold(NOW - 45, 0, site="app.orders:pay:88", server_pid=41)
    process.hold(NOW - 45, 1, site="app.orders:list:3", server_pid=42)
    sessions = {41: replace(SESSION, state="idle_in_transaction", state_seconds=44.0), 42: SESSION}
    directory.servers = (Probed(sessions),)
    condition = directory.condition()
    assert "idle_in_transaction" == condition["kind"]
    assert (
        "idle in transaction: 1 connection is held with a transaction that does nothing, the first for 44 s, "
        f"by app.orders:pay:88 in worker 000 {HERE}"
    ) == condition["text"]


def test_some_workers(directory: Directory) -> None:
    """Where several processes have the pool, the text says how many of them it is."""
    full(directory).wait(NOW - 2)
    full(directory).wait(NOW - 1)
    directory.process()
    assert (
        "2 callers wait, the first for 2.0 s; all 6 connections of 2 of 3 workers"
        in directory.condition()["text"]
    )


def test_all_workers(directory: Directory) -> None:
    """If all processes are full, the text says so."""
    for _ in range(2):
        full(directory).wait(NOW - 2)
    assert "all 6 connections of all 2 workers are in use" in directory.condition()["text"]


def test_the_worst_first(directory: Directory) -> None:
    """Conditions of all pools are in order of severity."""
    directory.process("billing").hold(NOW - 100)
    full(directory, held=50.0, returned=49.0).wait(NOW - 40)
    found = directory.board()["conditions"]
    assert [("orders", "critical"), ("billing", "warning")] == [
        (one["pool"], one["severity"]) for one in found
    ]


def test_unreadable_files(directory: Directory) -> None:
    """Files that cannot be read are said first: the pools in them are not shown."""
    directory.process()
    (directory.path / "worker-007").write_bytes(b"no segment" * 1000)
    board = directory.board()
    assert {"damaged": 1} == board["unreadable"] or {"foreign": 1} == board["unreadable"]
    assert "unreadable: 1 file of processes cannot be read" in board["conditions"][0]["text"]


def test_no_process(directory: Directory) -> None:
    """If no process of a pool lives, that is said, and the pool is shown without workers."""
    directory.process().kill()
    assert "no_process" == directory.condition()["kind"]
    pool = directory.pool()
    assert ([], None, 0) == (pool["workers"], pool["limits"], pool["instances"])
