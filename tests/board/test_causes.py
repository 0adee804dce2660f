# SPDX-License-Identifier: Apache-2.0
"""Why callers wait, in the same line: from what the pool's numbers and the database server say together."""

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

ACTIVE = Session("active", "", 3.0, 4.0, 3.0, "app", "", ())
IDLE = replace(ACTIVE, state="idle_in_transaction")
HERE = f"worker 000 (pid {os.getpid()})"


def exhausted(directory: Directory, *sessions: Session) -> Process:
    """Return a process whose connections are all held, each served by a session; a caller waits for 4 s."""
    process = directory.process(size=float(len(sessions)), max_overflow=0.0)
    for row, _ in enumerate(sessions):
        process.hold(NOW - 5, row, site="app:pay:88", server_pid=40 + row)
    process.block[layout.LAST_CHECKIN] = NOW - 5
    process.wait(NOW - 4)
    directory.servers = (Probed({40 + row: session for row, session in enumerate(sessions)}),)
    return process


def cause(directory: Directory) -> str:
    found = {one["kind"]: one["text"] for one in directory.board()["conditions"]}
    return found["waiting"].partition("; likely cause: ")[2]


def test_slow_statements(directory: Directory) -> None:
    """Sessions that work on statements for as long as callers wait are the cause."""
    exhausted(directory, ACTIVE, replace(ACTIVE, state_seconds=3.5))
    assert "slow statements: 2 of 2 connections run one, the longest for 3.5 s, from app:pay:88" == cause(
        directory
    )


def test_a_site_that_is_not_known(directory: Directory) -> None:
    """If the longest statement is of a checkout whose site was not recorded, another one names its site."""
    process = exhausted(directory, ACTIVE, replace(ACTIVE, state_seconds=2.5))
    process.hold(NOW - 5, 0, site="", server_pid=40)
    process.block[layout.CONNECTIONS_AT + layout.SITE] = 0.0
    assert cause(directory).endswith("run one, the longest for 3.0 s, another one from app:pay:88")


def test_short_statements(directory: Directory) -> None:
    """Statements that are much shorter than the wait are not the cause."""
    exhausted(directory, replace(ACTIVE, state_seconds=0.1), replace(ACTIVE, state_seconds=0.2))
    directory.servers = (replace(directory.servers[0], asked_at=NOW),)
    assert "slow statements" not in cause(directory)


def test_few_of_them(directory: Directory) -> None:
    """What less than half of the connections do is not the cause."""
    hidden = replace(ACTIVE, state="unknown")
    exhausted(directory, ACTIVE, hidden, hidden)
    assert "slow statements" not in cause(directory)


def test_something_else(directory: Directory) -> None:
    """Sessions that have nothing to do are held while the application does something else."""
    exhausted(directory, IDLE, replace(IDLE, state_seconds=3.5))
    assert (
        "connections are held while the application does something else: 2 of 2 connections are idle in transaction, "
        "the longest for 3.5 s, from app:pay:88"
    ) == cause(directory)


def test_locks(directory: Directory) -> None:
    """Sessions that wait for a lock are the consequence of who has it."""
    waits = replace(ACTIVE, state="waiting_for_lock", blocked_by=(99,))
    exhausted(directory, waits)
    directory.servers = (Probed({40: waits, 99: replace(IDLE, application="psql")}),)
    assert (
        "a lock: 1 of 1 connections wait for one, the longest for 3.0 s, from app:pay:88; session 99 of 'psql' has it, "
        "idle in transaction"
    ) == cause(directory)


def test_leak(directory: Directory) -> None:
    """What the application calls a leak is one, however evenly old it is; the server's state is said beside it."""
    exhausted(directory, IDLE, IDLE).block[layout.LEAK_AFTER] = 2.0
    assert (
        "2 of 2 connections are held for far longer than is usual and may never come back (all from app:pay:88); "
        "2 of 2 connections are idle in transaction, the longest for 3.0 s, from app:pay:88"
    ) == cause(directory)
    text = next(one["text"] for one in directory.board()["conditions"] if one["kind"] == "held_long")
    assert (
        "held: 2 connections are out for over 2.0 s (leak_after); the oldest is held for 5.0 s, by app:pay:88 in "
        f"{HERE}"
    ) == text


def test_a_slow_statement_is_no_leak(directory: Directory) -> None:
    """A connection that the server works for has not been forgotten, however long it is held."""
    exhausted(directory, ACTIVE).block[layout.LEAK_AFTER] = 2.0
    assert cause(directory).startswith("slow statements")


def test_one_worker_of_several(directory: Directory) -> None:
    """If one process of several is full, it is named."""
    exhausted(directory, IDLE)
    directory.process(size=1.0)
    found = {one["kind"]: one["text"] for one in directory.board()["conditions"]}
    assert f"the only connection of {HERE}, one of 2, is in use" in found["waiting"]


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        (0, "they were opened together, and pool_recycle=30 s ended them together"),
        (1, "pre-ping found them dead"),
        (5, ""),
    ],
)
def test_opened_anew_together(directory: Directory, reason: int, why: str) -> None:
    """If several connections are opened in the place of closed ones, what closed them is the likely cause."""
    process = directory.process()
    process.block[layout.RECYCLE] = 30.0
    directory.board()
    for row in range(2):
        process.idle(layout.EMPTY, row)
    process.block[layout.CLOSES + reason] += 2.0
    process.wait(NOW + 2)
    found = {one["kind"]: one["text"] for one in directory.board(after=6.0)["conditions"]}
    _, says, text = found["slow_connect"].partition("; likely cause: ")
    assert (f"2 connections are opened anew at once: {why}" if why else "") == text
    assert bool(says) == bool(why)
