# SPDX-License-Identifier: Apache-2.0
"""The sessions of a server, one by one: what each does, for how long, and which ones it waits for.

The query is PostgreSQL's; ``mysql.sessions`` makes the same of what MySQL and MariaDB tell.

A connection of a pool is matched with a session by the number of the server's process. Such a number can also be that
of another session: of another server, if the configuration names the wrong one, or a later one, after the server was
restarted. So both sides must agree on two more facts, or the session is not known:

* **When it began.** The server's clock and this host's can differ, so only ages are compared.
* **The client's port**, if both sides know it, and if nothing between this host and the server translates ports: then
  the server sees the probe's own connection with the port that it has here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter.held_connections import ServerHealth, ServerLimits, Session

from .statements import without_literals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy_pool_exporter.metrics import HeldState
    from sqlalchemy_pool_exporter.segment.held import Held

# Of a server with more sessions, those that have been idle for the shortest time are left out.
MOST_SESSIONS: Final = 5000
# Each call of pg_blocking_pids() stops the lock manager for a moment, so not all of a long queue ask.
_MOST_WAITING: Final = 50
_MOST_BLOCKERS: Final = 8
_STATEMENT_CHARACTERS: Final = 1000

# The start is null for sessions that are hidden from the role. The client's port is -1 through a Unix socket, and null
# for a process that serves no client, such as autovacuum, which can block others, too. A text and no array, because
# asyncpg would ask the server what an array is, and change the session for that.
_SESSIONS: Final = """
WITH session AS (
    SELECT pid,
           state,
           wait_event_type,
           wait_event,
           client_port,
           CASE backend_type WHEN 'client backend' THEN application_name ELSE backend_type END AS application,
           extract(epoch FROM pg_catalog.clock_timestamp() - backend_start)::float8 AS age,
           extract(epoch FROM pg_catalog.clock_timestamp() - state_change)::float8 AS state_seconds,
           extract(epoch FROM pg_catalog.clock_timestamp() - xact_start)::float8 AS transaction_seconds,
           extract(epoch FROM pg_catalog.clock_timestamp() - query_start)::float8 AS statement_seconds,
           {statement} AS statement
      FROM pg_catalog.pg_stat_activity
     WHERE backend_start IS NOT NULL
       AND datid IS NOT NULL
       AND pid <> pg_catalog.pg_backend_pid()
     ORDER BY state = 'idle', state_change
     LIMIT {most_sessions}
), waiting AS (
    SELECT pid,
           pg_catalog.array_to_string((pg_catalog.pg_blocking_pids(pid))[1:{most_blockers}], ' ') AS blocked_by
      FROM (SELECT pid FROM session WHERE wait_event_type = 'Lock'
             ORDER BY statement_seconds DESC LIMIT {most_waiting}) AS longest
)
SELECT * FROM session LEFT JOIN waiting USING (pid)
"""

_STATES: Final[Mapping[str | None, HeldState]] = {
    "active": "active",
    "fastpath function call": "active",
    "idle": "idle",
    "idle in transaction": "idle_in_transaction",
    "idle in transaction (aborted)": "idle_in_transaction",
}

# A session begins before its client is authenticated, and so before the application has the connection. If the pool was
# instrumented later, SQLAlchemy's time is known instead, which is from before the session began.
_LATER: Final = 30.0
_EARLIER: Final = 2.0
# How much two clocks may drift apart, in seconds a second.
_DRIFT: Final = 1e-4


class Began(NamedTuple):
    """The earliest and the latest time at which a session can have begun, on the monotonic clock."""

    earliest: float
    latest: float


@dataclass(frozen=True, slots=True)
class Known:
    """A session, and what tells whether it is that of a connection."""

    session: Session
    began: Began
    client_port: int | None  # -1 through a Unix socket; None if it serves no client
    statement: str | None  # with its literals


@dataclass(frozen=True, slots=True)
class Sessions:
    """The sessions that one probe saw, by the server's process. Times are on the monotonic clock."""

    asked_at: float
    answered_at: float
    keeps_ports: bool  # the server sees the ports that clients on this host have
    known: Mapping[int, Known]
    normalised: Callable[[str], str] = without_literals  # shows a statement without its literals

    @classmethod
    def of(
        cls, rows: Iterable[Mapping[str, Any]], *, asked_at: float, answered_at: float, keeps_ports: bool
    ) -> Sessions:
        """Return the sessions that the rows of the query describe."""
        known = {
            row["pid"]: Known(
                _session(row), _began(row["age"], asked_at, answered_at), row["client_port"], row["statement"]
            )
            for row in rows
        }
        return cls(asked_at, answered_at, keeps_ports, known)

    def get(self, pid: int) -> Session | None:
        """Return the session of a process of the server."""
        known = self.known.get(pid)
        return None if known is None else known.session

    def serving(self, connection: Held) -> Session | None:
        """Return the session that serves a connection; None if that is not certain."""
        known = self.known.get(connection.server_pid)
        if known is None or known.client_port is None:
            return None
        if self.keeps_ports and connection.client_port and connection.client_port != known.client_port:
            return None
        earliest, latest = known.began
        if not earliest - _EARLIER <= connection.connected_at <= latest + _LATER:
            return None
        if not known.statement:
            return known.session
        return replace(known.session, statement=_normalised(self.normalised, known.statement))


@dataclass(frozen=True, slots=True)
class ServerSide:
    """What is known of the server of a database; a ``ProbedServer``."""

    database: str
    pools: tuple[str, ...]
    identity: str = ""
    sessions: Sessions | None = None  # None if nothing is known, or only what is too old
    limits: ServerLimits | None = None
    health: ServerHealth | None = None  # None if it was never probed

    @property
    def asked_at(self) -> float:
        """When the server was asked."""
        return 0.0 if self.sessions is None else self.sessions.asked_at

    def session(self, pid: int) -> Session | None:
        """Return the session of a process of the server."""
        return None if self.sessions is None else self.sessions.get(pid)

    def session_of(self, connection: Held) -> Session | None:
        """Return the session that serves a connection; None if that is not certain."""
        return None if self.sessions is None else self.sessions.serving(connection)


async def read_sessions(
    connection: Any, *, clock: Callable[[], float], client_port: int | None, statements: bool
) -> Sessions:
    """Read the sessions, in the transaction that the caller began.

    Args:
        connection: of asyncpg, to a server without a pooler.
        clock: seconds.
        client_port: the port of this connection, as the server sees it.
        statements: also read the texts of statements.
    """
    query = _SESSIONS.format(
        statement=f"pg_catalog.left(query, {_STATEMENT_CHARACTERS})" if statements else "NULL::text",
        most_sessions=MOST_SESSIONS,
        most_waiting=_MOST_WAITING,
        most_blockers=_MOST_BLOCKERS,
    )
    asked_at = clock()
    rows = await connection.fetch(query)
    return Sessions.of(
        rows,
        asked_at=asked_at,
        answered_at=clock(),
        keeps_ports=client_port is not None and client_port == _own_port(connection),
    )


def _own_port(connection: Any) -> int | None:
    # asyncpg does not tell in public which socket it has.
    name = getattr(connection, "_transport").get_extra_info("sockname")  # noqa: B009 - as the comment says
    return name[1] if isinstance(name, tuple) else None


def _session(row: Mapping[str, Any]) -> Session:
    state = _STATES.get(row["state"], "unknown")
    kind, event = row["wait_event_type"], row["wait_event"]
    return Session(
        state="waiting_for_lock" if kind == "Lock" and state == "active" else state,
        wait_event=f"{kind}:{event}" if kind else "",
        state_seconds=_age(row["state_seconds"]),
        transaction_seconds=_age(row["transaction_seconds"]),
        statement_seconds=_age(row["statement_seconds"]),
        application=application_label(row["application"]),
        statement="",
        blocked_by=tuple(dict.fromkeys(map(int, (row["blocked_by"] or "").split()))),
    )


def application_label(name: str | None) -> str:
    """Return a printable, bounded label value that is not empty, from a name that a client chose."""
    text = "".join(c if c.isprintable() else "?" for c in (name or "")[:64]).strip()
    return text or "unnamed"


def _began(age: float, asked_at: float, answered_at: float) -> Began:
    """Return when a session of an age began; the clocks of both hosts may drift apart while it lasts."""
    allowed = _DRIFT * age
    return Began(asked_at - age - allowed, answered_at - age + allowed)


def _age(seconds: float | None) -> float | None:
    # Negative if the server's clock was set back in between.
    return None if seconds is None else max(0.0, seconds)


@lru_cache(1024)
def _normalised(normalised: Callable[[str], str], statement: str) -> str:
    return normalised(statement)
