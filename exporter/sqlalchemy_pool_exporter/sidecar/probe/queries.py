# SPDX-License-Identifier: Apache-2.0
"""What a probe asks a PostgreSQL server: the queries, their columns, and the `ServerState` made from their rows.

A probe sets nothing on the session, neither by a startup parameter nor by ``SET``. A connection pooler refuses
unknown startup parameters, and a ``SET`` would stay on the server connection that the pooler lends to an application
next. Therefore each transaction states that it is read-only and has a statement timeout; this works directly and
behind pgbouncer.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from .server_state import ServerFacts, ServerState, count_by_name
from .sessions import read_sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy_pool_exporter.metrics import SessionState

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = {:d}"

# One row for each setting that the server has: older versions lack some of them. Timeouts are in milliseconds.
_SETTINGS: Final = """
SELECT name, setting::float8 AS value
  FROM pg_catalog.pg_settings
 WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections',
                'idle_session_timeout', 'idle_in_transaction_session_timeout')
"""

# What the server is, in one row. A server in recovery refuses writes whatever the setting says. The probe's own
# transaction is read-only, so transaction_read_only tells nothing here. Settings of the role and of the database reach
# new sessions only; `session_settings` tells that they have changed since this session began. The server refuses to
# even plan a call of pg_control_system() that the role may not make, hence the question first.
_SERVER: Final = """
SELECT pg_catalog.pg_backend_pid() AS pid,
       pg_catalog.pg_is_in_recovery() AS in_recovery,
       pg_catalog.current_setting('default_transaction_read_only')::bool AS read_only,
       extract(epoch FROM pg_catalog.pg_postmaster_start_time())::numeric(20, 6)::text AS start_time,
       pg_catalog.host(pg_catalog.inet_server_addr()) AS address,
       pg_catalog.current_setting('port') AS port,
       pg_catalog.inet_client_port() AS client_port,
       pg_catalog.has_function_privilege(
           pg_catalog.to_regprocedure('pg_catalog.pg_control_system()'), 'EXECUTE') AS shows_identifier,
       pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all_sessions,
       pg_catalog.pg_has_role('pg_monitor', 'MEMBER') AS is_monitor,
       (SELECT pg_catalog.string_agg(setting::text, ';' ORDER BY setting::text)
          FROM pg_catalog.pg_db_role_setting AS setting
         WHERE setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database
                                    WHERE datname = pg_catalog.current_database()))
           AND setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user))
       ) AS session_settings
"""
_IDENTIFIER: Final = "SELECT system_identifier FROM pg_catalog.pg_control_system()"

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


async def read_server_state(
    connection: Any,
    *,
    timeout_seconds: float,
    application_names_limit: int,
    statements: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> ServerState:
    """Run the queries in one read-only transaction and summarize their rows.

    Args:
        connection: of asyncpg.
        timeout_seconds: for each query.
        application_names_limit: how many application names are kept.
        statements: also read the texts of statements.
        clock: seconds, for the time at which the sessions were read.
    """
    await connection.execute(_BEGIN.format(max(1, int(timeout_seconds * 1000))))
    server = await connection.fetchrow(_SERVER)
    identifier = await connection.fetchval(_IDENTIFIER) if server["shows_identifier"] else None
    settings = await connection.fetch(_SETTINGS)
    # A pooler makes up the process id that it reports when a client connects.
    behind_pooler = connection.get_server_pid() != server["pid"]
    counted = await connection.fetch(_SESSIONS)
    sessions = None
    if not behind_pooler:  # a pool behind it has the ids that the pooler makes up, too
        sessions = await read_sessions(
            connection, clock=clock, client_port=server["client_port"], statements=statements
        )
    await connection.execute("COMMIT")
    state = summarize(
        {row["name"]: row["value"] for row in settings},
        counted,
        facts_of(server, identifier),
        behind_pooler=behind_pooler,
        application_names_limit=application_names_limit,
    )
    return replace(state, sessions=sessions)


def facts_of(server: Mapping[str, Any], identifier: int | None) -> ServerFacts:
    """Return the facts in the row about a server; ``identifier`` is its system identifier, None if it is hidden."""
    # Replicas, and copies made from a snapshot, have the system identifier of their original. No two of them started
    # in the same microsecond.
    name = identifier or f"{server['address'] or 'local'}:{server['port']}"
    return ServerFacts(
        identity=f"{name}@{server['start_time']}",
        start_time=float(server["start_time"]),
        is_in_recovery=server["in_recovery"],
        is_read_only=server["in_recovery"] or server["read_only"],
        sees_all_sessions=server["sees_all_sessions"],
        is_monitor=server["is_monitor"],
        session_settings=server["session_settings"] or "",
        why_hidden=_why_hidden(
            sees_all_sessions=server["sees_all_sessions"], is_monitor=server["is_monitor"]
        ),
    )


def _why_hidden(*, sees_all_sessions: bool, is_monitor: bool) -> str:
    """Return why the state of some sessions is unknown, and what the operator can do about it."""
    if sees_all_sessions:
        return "track_activities is off for them, or they are in a state that only later versions of this program know"
    if is_monitor:
        return "it is hidden from the role, a member of pg_monitor that does not inherit it; GRANT it WITH INHERIT"
    return "it is hidden from the role: GRANT pg_monitor to it"


def summarize(
    settings: Mapping[str, float],
    sessions: Sequence[Mapping[str, Any]],
    facts: ServerFacts,
    *,
    behind_pooler: bool,
    application_names_limit: int,
) -> ServerState:
    """Return the state that the rows about settings and sessions, and the facts, describe.

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
            None
            if behind_pooler
            else count_by_name(
                ((row["application_name"], row["sessions"]) for row in sessions), application_names_limit
            )
        ),
        longest_idle_in_transaction_seconds=_longest_idle_in_transaction(sessions, sees_all=sees_all),
        idle_session_timeout_seconds=(
            None if behind_pooler else _seconds(settings.get("idle_session_timeout"))
        ),
        idle_in_transaction_session_timeout_seconds=_seconds(
            settings.get("idle_in_transaction_session_timeout")
        ),
        behind_pooler=behind_pooler,
        facts=facts,
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


def _longest_idle_in_transaction(sessions: Iterable[Mapping[str, Any]], *, sees_all: bool) -> float | None:
    """Return seconds; 0 if there is no such session, ``None`` if there may be one that is hidden."""
    durations = (row["idle_in_transaction"] for row in sessions)
    # The difference is negative if the server's clock was set back in between.
    known = [max(0.0, seconds) for seconds in durations if seconds is not None]
    return max(known, default=0.0 if sees_all else None)


def _seconds(milliseconds: float | None) -> float | None:
    """Return ``None`` for a timeout that the server does not have or that is off (0)."""
    return milliseconds / 1000 if milliseconds else None
