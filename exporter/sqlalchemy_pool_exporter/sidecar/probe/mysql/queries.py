# SPDX-License-Identifier: Apache-2.0
"""What a probe asks a MySQL or MariaDB server: the queries, and the `ServerState` made from their rows.

A probe sets nothing on its session, since that would stay on the connection that a proxy such as ProxySQL lends to an
application next. So each query has its own time limit, as the server's product writes it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy_pool_exporter.sidecar.probe.server_state import ServerFacts, ServerState, count_by_name

from .sessions import Process, Transaction, process_of, session_state, sessions_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy_pool_exporter.metrics import SessionState
    from sqlalchemy_pool_exporter.sidecar.probe.sessions import Sessions

    from .sessions import Arrivals

_PRODUCT: Final = "SELECT VERSION() AS version, CONNECTION_ID() AS id"

# One row for each variable that the server has: products and versions differ.
_VARIABLES: Final = """
SHOW GLOBAL VARIABLES WHERE Variable_name IN (
    'max_connections', 'wait_timeout', 'interactive_timeout', 'idle_transaction_timeout', 'read_only',
    'super_read_only', 'innodb_read_only', 'transaction_read_only', 'tx_read_only', 'performance_schema',
    'server_uuid', 'server_uid', 'hostname', 'port')
"""
# The server counts its uptime to the second in which a statement began, which is also what UNIX_TIMESTAMP() returns. So
# the difference is exactly its start, at each probe and for each client.
_STATUS: Final = """
SELECT LOWER(variable_name) AS name, variable_value AS value, UNIX_TIMESTAMP() AS now
  FROM {schema}.global_status
 WHERE variable_name IN ('Threads_running', 'Uptime', 'Slave_running', 'Threads_connected')
"""
_PROCESSES: Final = """
SELECT id, user, host, command, {seconds} AS seconds, state, {statement} AS statement
  FROM {schema}.processlist
"""
# InnoDB shows times in the zone of the server's system, whatever zone the session has.
_TRANSACTIONS: Final = """
SELECT trx_mysql_thread_id AS id, trx_state AS state,
       TIMESTAMPDIFF(SECOND, trx_started, CONVERT_TZ(UTC_TIMESTAMP(), '+00:00', 'SYSTEM')) AS seconds
  FROM information_schema.innodb_trx
 WHERE trx_mysql_thread_id > 0
"""
_BLOCKERS: Final = """
SELECT waiting.trx_mysql_thread_id AS id, blocking.trx_mysql_thread_id AS blocker
  FROM {waits} AS waits
  JOIN information_schema.innodb_trx AS waiting ON waiting.trx_id = waits.{requesting}
  JOIN information_schema.innodb_trx AS blocking ON blocking.trx_id = waits.{blocking}
 LIMIT 400
"""
_PROGRAMS: Final = """
SELECT processlist_id AS id, attr_value AS program
  FROM performance_schema.session_connect_attrs
 WHERE attr_name = 'program_name'
"""
_REPLICATION: Final = """
SELECT COUNT(*) AS running FROM performance_schema.replication_connection_status WHERE service_state = 'ON'
"""
_STATEMENT_CHARACTERS: Final = 1000
# Threads of the server itself, which are in the list of processes and do not count against max_connections.
_SERVERS_OWN: Final = frozenset(("system user", "event_scheduler"))
# The first setting that is on is what makes the server refuse writes.
_READ_ONLY: Final = (
    "innodb_read_only",
    "super_read_only",
    "read_only",
    "transaction_read_only",
    "tx_read_only",
)
_OFF: Final = frozenset(("OFF", "0", ""))
_UNKNOWN: Final = "unknown"


class Client(Protocol):
    """What this module needs of a connection."""

    @property
    def server_id(self) -> int:
        """The id that the server, or a proxy in front of it, gave the connection."""

    @property
    def client_port(self) -> int | None:
        """The port of the connection here; None through a Unix socket."""

    async def fetch(self, query: str) -> Sequence[dict[str, Any]]:
        """Return the rows of a query."""

    async def fetch_if_allowed(self, query: str) -> Sequence[dict[str, Any]] | None:
        """Return the rows of a query; None if the account lacks the privilege."""


@dataclass(frozen=True, slots=True)
class Product:
    """Which product a server is, and how it writes what the probe asks."""

    is_mariadb: bool
    version: tuple[int, ...]

    @classmethod
    def of(cls, version: str) -> Product:
        """Return the product of a version such as ``10.11.6-MariaDB-0+deb12u1`` or ``8.4.3``."""
        # Some MariaDB begin with "5.5.5-" for clients that take 10 for less than 5.
        numbers = re.match(r"(?:5\.5\.5-)?(\d+)\.(\d+)\.(\d+)", version)
        return cls("mariadb" in version.lower(), tuple(map(int, numbers.groups())) if numbers else (0,))

    @property
    def status_schema(self) -> str:
        """Where the status of the server is."""
        return "information_schema" if self.is_mariadb else "performance_schema"

    def limited(self, query: str, seconds: float) -> str:
        """Return a query that the server ends after a time."""
        if self.is_mariadb:
            return f"SET STATEMENT max_statement_time={seconds:f} FOR {query.strip()}"
        return query.strip().replace(
            "SELECT ", f"SELECT /*+ MAX_EXECUTION_TIME({int(seconds * 1000)}) */ ", 1
        )

    def processes(self, variables: Mapping[str, str], *, statements: bool) -> str:
        """Return the query of the list of processes."""
        # The old list stops the server's threads for a moment; the new one needs performance_schema.
        has_new_list = (
            not self.is_mariadb and self.version >= (8, 0, 22) and _is_on(variables, "performance_schema")
        )
        return _PROCESSES.format(
            schema="performance_schema" if has_new_list else "information_schema",
            seconds="time_ms / 1000" if self.is_mariadb else "time",
            statement=f"LEFT(info, {_STATEMENT_CHARACTERS})" if statements else "NULL",
        )

    @property
    def blockers(self) -> str:
        """The query of which transaction waits for which."""
        if self.is_mariadb or self.version < (8,):
            table, requesting, blocking = (
                "information_schema.innodb_lock_waits",
                "requesting_trx_id",
                "blocking_trx_id",
            )
        else:
            table, requesting, blocking = (
                "performance_schema.data_lock_waits",
                "requesting_engine_transaction_id",
                "blocking_engine_transaction_id",
            )
        return _BLOCKERS.format(waits=table, requesting=requesting, blocking=blocking)


async def read_server_state(  # noqa: PLR0913 - as the other kind of server
    client: Client,
    arrivals: Arrivals,
    *,
    timeout_seconds: float,
    names_limit: int,
    statements: bool,
    clock: Callable[[], float],
) -> ServerState:
    """Ask a server, and summarize its rows.

    Args:
        client: a connection to it.
        arrivals: when its sessions began, as far as earlier probes have seen.
        timeout_seconds: for each query.
        names_limit: how many users, and how many programs, are kept.
        statements: also read the texts of statements.
        clock: seconds, for the time at which the sessions were read.
    """
    reading = _Reading(client, timeout_seconds)
    own_id = await reading.product_and_id()
    variables = {row["variable_name"].lower(): row["value"] for row in await client.fetch(_VARIABLES)}
    status = await reading.status()
    # A proxy makes up the id that it reports when a client connects. The handshake has the lower 32 bits of the id.
    behind_pooler = client.server_id != own_id % 2**32
    asked_at = clock()
    processes = await reading.processes(variables, statements=statements)
    answered_at = clock()
    transactions = await reading.transactions()
    programs = await reading.programs(variables)
    facts = _facts(
        variables, status, sees_all=transactions is not None, is_replica=await reading.is_replica(status)
    )
    sessions = None
    if not behind_pooler:
        waits = any(one.waits for one in (transactions or {}).values())
        began = arrivals.note(
            [one.id for one in processes],
            uptime=float(status["uptime"]),
            start_time=facts.start_time,
            asked_at=asked_at,
            answered_at=answered_at,
        )
        sessions = sessions_of(
            [one for one in processes if one.id != own_id],
            transactions,
            await reading.blockers() if waits else {},
            programs or {},
            began,
            asked_at=asked_at,
            answered_at=answered_at,
            keeps_ports=_keeps_ports(client, processes, own_id),
        )
    return _state(
        _Answers(variables, status, processes, transactions, programs),
        facts,
        own_id=own_id,
        behind_pooler=behind_pooler,
        names_limit=names_limit,
        sessions=sessions,
    )


class _Reading:
    """One probe's queries. Mutable state: the product, once it is known."""

    def __init__(self, client: Client, timeout_seconds: float) -> None:
        self._client = client
        self._seconds = timeout_seconds
        self._product = Product(is_mariadb=False, version=(0,))

    async def product_and_id(self) -> int:
        row = (await self._client.fetch(_PRODUCT))[0]
        self._product = Product.of(row["version"])
        return int(row["id"])

    async def status(self) -> Mapping[str, str]:
        rows = await self._client.fetch(self._limited(_STATUS.format(schema=self._product.status_schema)))
        return {"now": str(rows[0]["now"]), **{row["name"]: row["value"] for row in rows}}

    async def processes(self, variables: Mapping[str, str], *, statements: bool) -> Sequence[Process]:
        rows = await self._client.fetch(
            self._limited(self._product.processes(variables, statements=statements))
        )
        return [
            process
            for process in map(process_of, rows)
            if process.user not in _SERVERS_OWN and process.command != "Daemon"
        ]

    async def transactions(self) -> Mapping[int, Transaction] | None:
        """Return the open transactions by session; None without the privilege PROCESS."""
        rows = await self._client.fetch_if_allowed(self._limited(_TRANSACTIONS))
        if rows is None:
            return None
        return {
            int(row["id"]): Transaction(max(0.0, float(row["seconds"] or 0)), row["state"] == "LOCK WAIT")
            for row in rows
        }

    async def blockers(self) -> Mapping[int, Sequence[int]]:
        found = defaultdict(list)
        for row in await self._client.fetch_if_allowed(self._limited(self._product.blockers)) or ():
            found[int(row["id"])].append(int(row["blocker"]))
        return found

    async def programs(self, variables: Mapping[str, str]) -> Mapping[int, str] | None:
        """Return the names of programs by session; None if the server does not tell."""
        if not _is_on(variables, "performance_schema"):
            return None
        rows = await self._client.fetch_if_allowed(self._limited(_PROGRAMS))
        return None if rows is None else {int(row["id"]): row["program"] for row in rows}

    async def is_replica(self, status: Mapping[str, str]) -> bool | None:
        """Return whether the server replicates another one; None if the account may not know."""
        if "slave_running" in status:
            return status["slave_running"] == "ON"
        rows = await self._client.fetch_if_allowed(self._limited(_REPLICATION))
        return None if rows is None else int(rows[0]["running"]) > 0

    def _limited(self, query: str) -> str:
        return self._product.limited(query, self._seconds)


@dataclass(frozen=True, slots=True)
class _Answers:
    variables: Mapping[str, str]
    status: Mapping[str, str]
    processes: Sequence[Process]
    transactions: Mapping[int, Transaction] | None
    programs: Mapping[int, str] | None


def _facts(
    variables: Mapping[str, str], status: Mapping[str, str], *, sees_all: bool, is_replica: bool | None
) -> ServerFacts:
    start_time = float(int(status["now"]) - int(status["uptime"]))
    name = variables.get("server_uuid") or variables.get("server_uid")
    name = name or f"{variables.get('hostname', 'local')}:{variables.get('port', '')}"
    setting = next((one for one in _READ_ONLY if _is_on(variables, one)), None)
    return ServerFacts(
        identity=f"{name}@{start_time:.0f}",
        start_time=start_time,
        is_in_recovery=is_replica,
        is_read_only=setting is not None,
        sees_all_sessions=sees_all,
        is_monitor=sees_all,
        session_settings="",  # the limits are the server's; no account has its own
        read_only_setting=setting or "read_only",
        why_hidden="they are hidden from the account: GRANT PROCESS ON *.* to it",
    )


def _state(  # noqa: PLR0913 - what was read, and how
    answers: _Answers,
    facts: ServerFacts,
    *,
    own_id: int,
    behind_pooler: bool,
    names_limit: int,
    sessions: Sessions | None,
) -> ServerState:
    variables, processes = answers.variables, answers.processes
    # Between both queries a session can come or go, so only an account that sees too little compares them.
    connected = int(answers.status["threads_connected"])
    hidden = 0 if facts.sees_all_sessions else max(0, connected - len(processes))
    unknown: list[tuple[str | None, int]] = [(_UNKNOWN, hidden)] if hidden else []
    return ServerState(
        max_connections=int(variables["max_connections"]),
        reserved_connections=0,  # one more than max_connections can connect, for an administrator
        connections=_by_state(answers, own_id, hidden),
        application_connections=(
            None
            if behind_pooler
            else count_by_name([*_by_program(processes, answers.programs), *unknown], names_limit)
        ),
        longest_idle_in_transaction_seconds=_longest_idle_in_transaction(answers),
        idle_session_timeout_seconds=None if behind_pooler else _seconds(variables, "wait_timeout"),
        idle_in_transaction_session_timeout_seconds=_seconds(variables, "idle_transaction_timeout"),
        behind_pooler=behind_pooler,
        facts=facts,
        sessions=sessions,
        user_connections=count_by_name([*((one.user, 1) for one in processes), *unknown], names_limit),
        interactive_timeout_seconds=None if behind_pooler else _seconds(variables, "interactive_timeout"),
        threads_running=max(0, int(answers.status["threads_running"]) - 1),  # one asks
    )


def _by_state(answers: _Answers, own_id: int, hidden: int) -> dict[SessionState, int]:
    counts: Counter[SessionState] = Counter({"unknown": hidden} if hidden else {})
    for one in answers.processes:
        counts["idle" if one.id == own_id else session_state(one, answers.transactions)] += 1
    if (
        answers.transactions is not None
    ):  # only an account that sees every session can tell that a state has none
        counts.update(dict.fromkeys(("active", "idle", "idle_in_transaction", "starting"), 0))
    return dict(counts)


def _by_program(
    processes: Iterable[Process], programs: Mapping[int, str] | None
) -> Iterable[tuple[str | None, int]]:
    for one in processes:
        yield (_UNKNOWN if programs is None else programs.get(one.id)), 1


def _longest_idle_in_transaction(answers: _Answers) -> float | None:
    if answers.transactions is None:
        return None
    idle = (
        one.seconds
        for one in answers.processes
        if session_state(one, answers.transactions) == "idle_in_transaction"
    )
    return max(idle, default=0.0)


def _keeps_ports(client: Client, processes: Iterable[Process], own_id: int) -> bool:
    """Return whether the server sees the ports that clients on this host have."""
    if client.client_port is None:
        return True  # a Unix socket, so the server is on this host
    return any(one.client_port == client.client_port for one in processes if one.id == own_id)


def _is_on(variables: Mapping[str, str], name: str) -> bool:
    return (variables.get(name) or "").upper() not in _OFF


def _seconds(variables: Mapping[str, str], name: str) -> float | None:
    """Return ``None`` for a timeout that the server does not have or that is off (0)."""
    return float(variables.get(name) or 0) or None
