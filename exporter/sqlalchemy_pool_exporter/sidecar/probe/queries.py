# SPDX-License-Identifier: Apache-2.0
"""What a probe asks a server: the queries, their columns, and the `ServerState` made from their rows.

A probe sets nothing on the session, neither by a startup parameter nor by ``SET``. A connection pooler refuses
unknown startup parameters, and a ``SET`` would stay on the server connection that the pooler lends to an application
next. Therefore each transaction states that it is read-only and has a statement timeout; this works directly and
behind pgbouncer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy_pool_exporter.metrics import SessionState

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = {:d}"

# One row for each setting that the server has: older versions lack some of them. Timeouts are in milliseconds.
_SETTINGS: Final = """
SELECT pg_catalog.pg_backend_pid() AS pid, name, setting::float8 AS value
  FROM pg_catalog.pg_settings
 WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections',
                'idle_session_timeout', 'idle_in_transaction_session_timeout')
"""

# Only client backends count against max_connections; WAL senders, autovacuum and background workers (which include
# parallel workers) have limits of their own. A role without pg_monitor reads null as the backend_type and the state
# of other users' sessions. The query counts such a session as a client if it has a user and a database; few backends
# of other types have both.
_SESSIONS: Final = """
SELECT CASE WHEN pid = pg_catalog.pg_backend_pid() THEN 'idle' ELSE state END AS state,
       application_name,
       pg_catalog.count(*) AS sessions,
       pg_catalog.max(extract(epoch FROM pg_catalog.clock_timestamp() - state_change)::float8)
           FILTER (WHERE state LIKE 'idle in transaction%') AS idle_in_transaction
  FROM pg_catalog.pg_stat_activity
 WHERE backend_type = 'client backend'
    OR (backend_type IS NULL AND usesysid IS NOT NULL AND datid IS NOT NULL)
 GROUP BY 1, 2
"""

# PostgreSQL's name of a state → its label value. All else is "unknown": null, which the server shows for a session
# that is hidden from the role; "disabled", which means track_activities is off; and states of later versions.
_STATES: Final[Mapping[str | None, SessionState]] = {
    "active": "active",
    "idle": "idle",
    "idle in transaction": "idle_in_transaction",
    "idle in transaction (aborted)": "idle_in_transaction_aborted",
    "fastpath function call": "fastpath",
    "starting": "starting",
}


@dataclass(frozen=True, slots=True)
class ServerState:
    """What one probe read from a server.

    A value that the probe cannot know, or that does not apply, is ``None`` or a missing key.
    """

    max_connections: int
    reserved_connections: int
    connections: Mapping[SessionState, int]
    application_connections: Mapping[str, int] | None
    longest_idle_in_transaction_seconds: float | None
    idle_session_timeout_seconds: float | None
    idle_in_transaction_session_timeout_seconds: float | None
    behind_pooler: bool

    @property
    def hidden_sessions(self) -> int:
        """Number of sessions whose state the probe's role may not see."""
        return self.connections.get("unknown", 0)


async def read_server_state(
    connection: Any, *, timeout_seconds: float, application_names_limit: int
) -> ServerState:
    """Run both queries in one read-only transaction and summarize their rows."""
    await connection.execute(_BEGIN.format(max(1, int(timeout_seconds * 1000))))
    settings = await connection.fetch(_SETTINGS)
    sessions = await connection.fetch(_SESSIONS)
    await connection.execute("COMMIT")
    return summarize(
        {row["name"]: row["value"] for row in settings},
        sessions,
        # A pooler makes up the process id that it reports when a client connects.
        behind_pooler=connection.get_server_pid() != settings[0]["pid"],
        application_names_limit=application_names_limit,
    )


def summarize(
    settings: Mapping[str, float],
    sessions: Sequence[Mapping[str, Any]],
    *,
    behind_pooler: bool,
    application_names_limit: int,
) -> ServerState:
    """Return the state that the rows of both queries describe.

    At most ``application_names_limit`` application names are kept; the sessions of all others are summed as "other".
    """
    connections = _count_by_state(sessions)
    sees_all = "unknown" not in connections
    return ServerState(
        max_connections=int(settings["max_connections"]),
        reserved_connections=int(
            settings["superuser_reserved_connections"] + settings.get("reserved_connections", 0)
        ),
        connections=connections,
        application_connections=(
            None if behind_pooler else _count_by_application(sessions, application_names_limit)
        ),
        longest_idle_in_transaction_seconds=_longest_idle_in_transaction(sessions, sees_all=sees_all),
        idle_session_timeout_seconds=(
            None if behind_pooler else _seconds(settings.get("idle_session_timeout"))
        ),
        idle_in_transaction_session_timeout_seconds=_seconds(
            settings.get("idle_in_transaction_session_timeout")
        ),
        behind_pooler=behind_pooler,
    )


def _count_by_state(sessions: Iterable[Mapping[str, Any]]) -> dict[SessionState, int]:
    counts: Counter[SessionState] = Counter()
    for row in sessions:
        counts[_STATES.get(row["state"], "unknown")] += row["sessions"]
    if "unknown" not in counts:
        # Only a role that sees every session can tell that a state has none. PostgreSQL before version 18 shows
        # sessions that are starting to no role, so "starting" is never set to 0.
        counts.update({state: 0 for state in _STATES.values() if state != "starting"})
    return dict(counts)


def _count_by_application(sessions: Iterable[Mapping[str, Any]], names_limit: int) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in sessions:
        counts[_application_label(row["application_name"])] += row["sessions"]
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    largest = Counter(dict(ranked[:names_limit]))
    # Added instead of assigned, because an application may call itself "other".
    largest["other"] += sum(count for _, count in ranked[names_limit:])
    return dict(largest)


def _application_label(name: str | None) -> str:
    """Return a printable, bounded label value that is not empty, from a name that a client chose."""
    text = "".join(c if c.isprintable() else "?" for c in (name or "")[:64]).strip()
    return text or "unnamed"


def _longest_idle_in_transaction(sessions: Iterable[Mapping[str, Any]], *, sees_all: bool) -> float | None:
    """Return seconds; 0 if there is no such session, ``None`` if there may be one that is hidden."""
    durations = (row["idle_in_transaction"] for row in sessions)
    # The difference is negative if the server's clock was set back in between.
    known = [max(0.0, seconds) for seconds in durations if seconds is not None]
    return max(known, default=0.0 if sees_all else None)


def _seconds(milliseconds: float | None) -> float | None:
    """Return ``None`` for a timeout that the server does not have or that is off (0)."""
    return milliseconds / 1000 if milliseconds else None
