# SPDX-License-Identifier: Apache-2.0
"""What the database server says of held connections that is worth a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .causes import blocker, where, who
from .words import counted, duration, number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy_pool_exporter.held_connections import HeldConnection

    from .schema import ConditionKind, Severity

# A transaction that does nothing for so long while its connection is held waits for something else than the database.
IDLE_SECONDS: Final = 10.0


def of_sessions(records: Sequence[HeldConnection]) -> Iterator[tuple[ConditionKind, Severity, str]]:
    """Yield what is wrong with connections that are checked out.

    Args:
        records: of the held connections of a pool, if a server is probed.
    """
    blocked = [one for one in records if one.server_state == "waiting_for_lock"]
    if blocked:
        first = max(blocked, key=lambda one: one.state_seconds or 0.0)
        wait = "connection waits" if len(blocked) == 1 else "connections wait"
        seconds = "" if first.state_seconds is None else f" for {duration(first.state_seconds)}"
        text = (
            f"blocked: {number(len(blocked))} {wait} for a lock, {who(first)} in {where(first.worker, first.pid)}"
            f"{seconds}{blocker(first)}"
        )
        yield "blocked", "warning", text
    idle = [
        one
        for one in records
        if one.server_state == "idle_in_transaction" and (one.state_seconds or 0.0) >= IDLE_SECONDS
    ]
    if idle:
        first = max(idle, key=lambda one: one.state_seconds or 0.0)
        text = (
            f"idle in transaction: {counted(len(idle), 'connection')} {'is' if len(idle) == 1 else 'are'} held with a "
            f"transaction that does nothing, the first for {duration(first.state_seconds or 0.0)}, by {who(first)} in "
            f"{where(first.worker, first.pid)}"
        )
        yield "idle_in_transaction", "warning", text
