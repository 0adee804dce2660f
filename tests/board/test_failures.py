# SPDX-License-Identifier: Apache-2.0
"""What fails, and what the probe of the database knows of its cause."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.held_connections import ServerHealth, ServerLimits
from sqlalchemy_pool_exporter.metrics import CLOSE_REASONS, ERRORS
from sqlalchemy_pool_exporter.segment import block as layout
from tests.support.boards import WALL
from tests.support.probed_sessions import Probed
from tests.support.segments import NOW

if TYPE_CHECKING:
    from tests.support.boards import Directory

UP = ServerHealth(started_at=WALL - 3600.0)


def conditions(
    directory: Directory,
    health: ServerHealth | None,
    after: float = 0.0,
    idle_seconds: float | None = None,
) -> dict[str, tuple[str, str]]:
    """Return the conditions of the pool by kind: severity and text."""
    limits = ServerLimits(100, idle_seconds, is_behind_pooler=False)
    directory.servers = (Probed({}, health=health, limits=limits),)
    found = directory.board(after=after)["conditions"]
    return {one["kind"]: (one["severity"], one["text"]) for one in found if one["pool"] == "orders"}


def test_nothing_is_wrong(directory: Directory) -> None:
    """A server that has answered, and one that was never asked, are no conditions."""
    directory.process()
    assert {} == conditions(directory, UP)
    assert {} == conditions(directory, None, after=2.0)


def test_no_answer(directory: Directory) -> None:
    """A server that does not answer is critical, and explains why connects fail."""
    process = directory.process()
    down = ServerHealth("nothing listens there", NOW - 12)
    said = "no answer: database 'main' has not answered for 12 s: nothing listens there"
    assert {"database_down": ("critical", said)} == conditions(directory, down)
    process.block[layout.CONNECT_FAILED] += 3.0
    found = conditions(directory, down, after=6.0)
    why = "; database 'main': nothing listens there"
    assert ("critical", f"no connection: 0.5/s attempts to connect fail{why}") == found["connect_errors"]


def test_restarted(directory: Directory) -> None:
    """For a minute it is said that the server was restarted."""
    directory.process()
    said = "restarted: the server of database 'main' started 12 s ago"
    assert {"database_restarted": ("info", said)} == conditions(directory, replace(UP, started_at=WALL - 12))


def test_read_only(directory: Directory) -> None:
    """A server that refuses the writes of a pool is critical; why it does is said, and how many statements fail."""
    process = directory.process()
    replica = ServerHealth(started_at=WALL - 12, refuses_writes=True, is_in_recovery=True)
    directory.board()
    process.block[layout.ERROR_COUNTS + ERRORS.index(("statement", "retryable"))] += 3.0
    said = (
        "read-only: the server of database 'main' takes no writes: it is in recovery, as a replica is; it started "
        "18 s ago; 0.5/s statements fail"
    )
    assert ("critical", said) == conditions(directory, replica, after=6.0)["read_only"]
    changed = replace(UP, refuses_writes=True)
    assert (
        "read-only: the server of database 'main' takes no writes: default_transaction_read_only is on; 0.25/s "
        "statements fail"
    ) == conditions(directory, changed, after=6.0)["read_only"][1]


def test_dead_connections(directory: Directory) -> None:
    """Connections that are found dead are a warning, with the server's limit that the pool does not respect."""
    process = directory.process()
    process.block[layout.RECYCLE] = layout.NOT_APPLICABLE
    directory.board()
    for reason, count in (("error", 3.0), ("ping_failed", 6.0)):
        process.block[layout.CLOSES + CLOSE_REASONS.index(reason)] += count
    said = (
        "dead connections: found 0.5/s by a statement, which fails and 1/s by the pre-ping, which replaces them; "
        "likely cause: the server of database 'main' ends sessions that are idle for 1 min (idle_session_timeout), and "
        "the pool never recycles them and does not test them"
    )
    assert ("warning", said) == conditions(directory, UP, 6.0, 60.0)["dead_connections"]
    process.block[layout.RECYCLE] = 30.0
    assert "likely" not in conditions(directory, UP, 2.0, 60.0)["dead_connections"][1]
    process.block[layout.RECYCLE], process.block[layout.PRE_PING] = 300.0, 1.0
    text = conditions(directory, UP, 2.0, 60.0)["dead_connections"][1]
    assert text.endswith("and the pool recycles them only after 300 s")


def test_a_database_of_other_pools(directory: Directory) -> None:
    """A server says nothing of pools that do not connect to it."""
    directory.process()
    directory.servers = (Probed({}, pools=("billing",), health=ServerHealth("refused", NOW - 1)),)
    assert [] == directory.board()["conditions"]
