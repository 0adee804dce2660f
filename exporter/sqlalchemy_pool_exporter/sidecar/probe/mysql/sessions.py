# SPDX-License-Identifier: Apache-2.0
"""The sessions of a MySQL or MariaDB server, one by one, from its list of processes and InnoDB's of transactions.

The server tells of no session when it began. But no session gets the id of an earlier one before the server is started
again. So a session that was not there at the last probe has begun since then, and every session has begun since the
server was started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter.held_connections import Session
from sqlalchemy_pool_exporter.sidecar.probe.sessions import (
    MOST_SESSIONS,
    Began,
    Known,
    Sessions,
    application_label,
)

from .statements import without_literals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy_pool_exporter.metrics import HeldState, SessionState

_THROUGH_A_SOCKET: Final = -1
_MOST_BLOCKERS: Final = 8
# State of a process in the server → what it waits for, if its name begins so.
_METADATA_LOCKS: Final = ("Waiting for table metadata lock", "Waiting for schema metadata lock")
_OTHER_LOCKS: Final = ("Waiting for table level lock", "User lock", "Waiting for global read lock")


class Transaction(NamedTuple):
    """An open transaction of InnoDB."""

    seconds: float  # its age
    waits: bool  # for a lock of a row


class Process(NamedTuple):
    """A row of the list of processes: a session of a client."""

    id: int
    user: str
    host: str  # with the client's port, if it has one
    command: str
    seconds: float  # in its state
    state: str  # what it does in detail
    statement: str | None

    @property
    def client_port(self) -> int:
        """The client's port; -1 through a Unix socket."""
        port = self.host.rpartition(":")[2] if ":" in self.host else ""
        return int(port) if port.isdecimal() else _THROUGH_A_SOCKET


def session_state(process: Process, transactions: Mapping[int, Transaction] | None) -> SessionState:
    """Return what a session does, in the names that PostgreSQL's sessions have.

    ``transactions`` are the open ones by session; None if they are hidden.
    """
    if process.command == "Sleep":
        if transactions is None:
            return "unknown"
        return "idle_in_transaction" if process.id in transactions else "idle"
    if process.command == "Connect":
        return "starting"
    return "active"


class Arrivals:
    """When the sessions that are there can have begun at the earliest and the latest.

    Mutable state: these times by the id of the session, the server's start, and when the last probe asked.
    """

    def __init__(self) -> None:
        self._began: dict[int, Began] = {}
        self._server_started = 0.0
        self._asked_at: float | None = None

    def note(
        self, ids: Iterable[int], *, uptime: float, start_time: float, asked_at: float, answered_at: float
    ) -> Mapping[int, Began]:
        """Return when each of the sessions began that a probe has seen.

        Args:
            ids: of the sessions.
            uptime: of the server, in seconds.
            start_time: of the server, by which a restart is known.
            asked_at: when the probe asked, on the monotonic clock.
            answered_at: when it was answered.
        """
        if start_time != self._server_started:
            self._began, self._server_started, self._asked_at = {}, start_time, None
        earliest = asked_at - uptime - 1.0 if self._asked_at is None else self._asked_at
        began = {one: self._began.get(one) or Began(earliest, answered_at) for one in ids}
        self._began, self._asked_at = began, asked_at
        return began


def sessions_of(  # noqa: PLR0913 - what several queries answer
    processes: Sequence[Process],
    transactions: Mapping[int, Transaction] | None,
    blockers: Mapping[int, Sequence[int]],
    programs: Mapping[int, str],
    began: Mapping[int, Began],
    *,
    asked_at: float,
    answered_at: float,
    keeps_ports: bool,
) -> Sessions:
    """Return the sessions, by the ids that the server gave them."""
    # Of a server with too many, those that have been idle for the shortest time are left out.
    chosen = sorted(processes, key=lambda one: (one.command == "Sleep", -one.seconds))[:MOST_SESSIONS]
    known = {
        one.id: Known(
            _session(one, transactions, blockers.get(one.id, ()), programs.get(one.id)),
            began[one.id],
            one.client_port,
            one.statement,
        )
        for one in chosen
    }
    return Sessions(asked_at, answered_at, keeps_ports, known, without_literals)


def _session(
    process: Process,
    transactions: Mapping[int, Transaction] | None,
    blockers: Sequence[int],
    program: str | None,
) -> Session:
    state = session_state(process, transactions)
    transaction = (transactions or {}).get(process.id)
    waits_for = _waits_for(process, transaction) if state == "active" else ""
    return Session(
        state="waiting_for_lock" if waits_for else _held_state(state),
        wait_event=waits_for,
        state_seconds=process.seconds,
        transaction_seconds=None if transaction is None else transaction.seconds,
        statement_seconds=process.seconds if state == "active" else None,
        application=application_label(program),
        statement="",
        blocked_by=tuple(dict.fromkeys(blockers))[:_MOST_BLOCKERS],
    )


def _held_state(state: SessionState) -> HeldState:
    if state in ("idle", "idle_in_transaction", "unknown"):
        return state
    return "active"


def _waits_for(process: Process, transaction: Transaction | None) -> str:
    if transaction is not None and transaction.waits:
        return "Lock:row"
    if process.state.startswith(_METADATA_LOCKS):
        return "Lock:metadata"
    return "Lock:other" if process.state.startswith(_OTHER_LOCKS) else ""


def process_of(row: Mapping[str, Any]) -> Process:
    """Return what a row of the list of processes says."""
    return Process(
        id=int(row["id"]),
        user=row["user"] or "",
        host=row["host"] or "",
        command=row["command"] or "",
        seconds=max(0.0, float(row["seconds"] or 0.0)),
        state=row["state"] or "",
        statement=row["statement"],
    )
