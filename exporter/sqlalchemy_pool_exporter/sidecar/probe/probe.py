# SPDX-License-Identifier: Apache-2.0
"""The database's side: one small read-only connection that asks a server how full it is.

A `Probe` runs on its own clock and keeps its last `Snapshot`; a scrape reads that and never waits for a
server.

Nothing is set on the session, neither as a startup parameter nor by ``SET``: a connection pooler refuses the
first and would hand the second on to the application whose connection the probe had borrowed. What the probe
needs (read-only, a statement timeout) it says in each transaction, so the same words work directly and behind
pgbouncer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import socket
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args
from urllib.parse import urlsplit

import asyncpg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.metrics import DATABASE_METRICS, PREFIX, ProbeFailure, SessionState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from prometheus_client.metrics_core import Metric as AnyFamily

APPLICATION_NAME: Final = "sqlalchemy-pool-exporter"

# First and largest delay between failed attempts, in seconds; a longer interval is never shortened.
BACKOFF: Final = (1.0, 60.0)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tls:
    """How to encrypt and whom to trust, with libpq's names; ``require`` verifies only if a CA is given.

    The files are read again at each connect, so renewed certificates need no reload.
    """

    mode: Literal["disable", "require", "verify-ca", "verify-full"]
    ca_file: Path | str | None = None
    cert_file: Path | str | None = None
    key_file: Path | str | None = None

    def context(self) -> ssl.SSLContext | Literal[False]:
        """Return the context for asyncpg, or ``False`` for no TLS.

        Raises:
            ConfigError: A file cannot be read or used, or the settings contradict each other.
        """
        if self.mode == "disable":
            return False
        if self.mode == "verify-ca" and self.ca_file is None:
            # The public roots sign for anybody: without the host name that would be no check at all.
            raise ConfigError("tls: 'verify-ca' needs a CA file; 'verify-full' can do with the system's")
        if self.key_file is not None and self.cert_file is None:
            raise ConfigError("tls: a key file without a certificate file")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.mode == "verify-full"
        context.set_alpn_protocols(["postgresql"])
        file = self.ca_file
        try:
            if self.ca_file is not None:
                context.load_verify_locations(cafile=self.ca_file)
            elif self.mode == "verify-full":
                context.load_default_certs()
            else:
                context.verify_mode = ssl.CERT_NONE
            file = self.cert_file
            if self.cert_file is not None:
                # An empty passphrase, so that an encrypted key is an error and not a prompt on a terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password=str)
        except ssl.SSLError as error:
            raise ConfigError(f"tls: {str(file)!r} (or its key) is not usable: {error.reason}") from error
        except OSError as error:
            raise ConfigError(f"tls: cannot read {str(file)!r} (or its key): {error.strerror}") from error
        return context


@dataclass(frozen=True, slots=True)
class Target:
    """One database to probe.

    A ``dsn`` that is a function is asked at each connect, so that a password can change. ``tls=None`` leaves TLS to
    the DSN's ``sslmode``. ``pools`` are those that connect to it; none stands for the one called like the database.

    Raises:
        ConfigError: The DSN cannot be meant as it is written. The message never shows it.
    """

    name: str
    dsn: str | Callable[[], str] = field(repr=False)
    interval_seconds: float = 15.0
    timeout_seconds: float = 5.0
    tls: Tls | None = None
    application_names_limit: int = 20
    pools: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a DSN of which part of the password would be taken for a host and looked up."""
        if isinstance(self.dsn, str):
            self._check(self.dsn)

    def arguments(self) -> dict[str, Any]:
        """Return what asyncpg.connect() takes, read from the files now."""
        dsn = self.dsn if isinstance(self.dsn, str) else self._check(self.dsn())
        return {"dsn": dsn, "ssl": None if self.tls is None else self.tls.context()}

    def _check(self, dsn: str) -> str:
        if fault := _dsn_fault(dsn):
            raise ConfigError(f"database {self.name!r}: dsn: {fault}")
        return dsn


def _dsn_fault(dsn: str) -> str | None:
    try:
        url = urlsplit(dsn)
    except ValueError:
        return "not a URL"
    if url.scheme not in ("postgresql", "postgres"):
        return "must begin with postgresql://"
    hosts = url.netloc.rpartition("@")[2].split(",")
    odd_port = any(not re.fullmatch(r"(\[[^]]*\]|[^:]*)(:[0-9]*)?", host) for host in hosts)
    if odd_port or url.fragment or url.netloc.count("@") > 1 or "@" in url.path:
        return "special characters in the user or the password must be percent-encoded"
    return None


@dataclass(frozen=True, slots=True)
class Observation:
    """What one probe saw; ``None`` and missing keys are what cannot be known or does not apply."""

    max_connections: int
    reserved_connections: int
    connections: Mapping[SessionState, int]
    application_connections: Mapping[str, int] | None
    longest_idle_in_transaction_seconds: float | None
    idle_session_timeout_seconds: float | None
    idle_in_transaction_session_timeout_seconds: float | None
    behind_pooler: bool

    @property
    def hidden(self) -> int:
        """Sessions whose state the probe's role may not see."""
        return self.connections.get("unknown", 0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a probe: the last result, and how it came about.

    ``completed_at`` is on the monotonic clock, ``succeeded_at`` is Unix time.
    """

    database: str
    pools: tuple[str, ...] = ()
    probes: int = 0
    failures: Mapping[ProbeFailure, int] = field(default_factory=dict)
    completed_at: float | None = None
    duration_seconds: float | None = None
    succeeded_at: float | None = None
    observation: Observation | None = None


_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = {:d}"

# A setting that this version of the server has not is a row less. Timeouts come in milliseconds.
_SETTINGS: Final = """
SELECT pg_catalog.pg_backend_pid() AS pid, name, setting::float8 AS value
  FROM pg_catalog.pg_settings
 WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections',
                'idle_session_timeout', 'idle_in_transaction_session_timeout')
"""

# Only client backends use up max_connections: WAL senders, autovacuum and background (so also parallel)
# workers have limits of their own. Of other users' sessions an unprivileged role sees neither type nor state.
# Those with a user and a database are taken for clients; few others have both.
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

# Anything else is unknown: null is hidden from the role, and "disabled" is a session that does not tell.
_STATES: Final[Mapping[str | None, SessionState]] = {
    "active": "active",
    "idle": "idle",
    "idle in transaction": "idle_in_transaction",
    "idle in transaction (aborted)": "idle_in_transaction_aborted",
    "fastpath function call": "fastpath",
    "starting": "starting",
}


def observe(
    settings: Mapping[str, float], sessions: Iterable[Mapping[str, Any]], *, behind_pooler: bool, names: int
) -> Observation:
    """Make an observation of the rows of both queries; at most ``names`` applications, the others as one."""
    states: Counter[SessionState] = Counter()
    applications: Counter[str] = Counter()
    idle_in_transaction = []
    for row in sessions:
        states[_STATES.get(row["state"], "unknown")] += row["sessions"]
        applications[_label(row["application_name"])] += row["sessions"]
        if row["idle_in_transaction"] is not None:
            idle_in_transaction.append(max(0.0, row["idle_in_transaction"]))
    if not states["unknown"]:
        # Only who sees every session can say that there is none in a state. (Before PostgreSQL 18 nobody sees
        # one that is starting, so that state is never said to be empty.)
        states.update({state: 0 for state in _STATES.values() if state != "starting"})
        idle_in_transaction.append(0.0)
    idle_session = None if behind_pooler else settings.get("idle_session_timeout")
    return Observation(
        max_connections=int(settings["max_connections"]),
        reserved_connections=int(
            settings["superuser_reserved_connections"] + settings.get("reserved_connections", 0)
        ),
        connections=dict(states),
        application_connections=None if behind_pooler else _largest(applications, names),
        longest_idle_in_transaction_seconds=max(idle_in_transaction, default=None),
        idle_session_timeout_seconds=_seconds(idle_session),
        idle_in_transaction_session_timeout_seconds=_seconds(
            settings.get("idle_in_transaction_session_timeout")
        ),
        behind_pooler=behind_pooler,
    )


def _seconds(milliseconds: float | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


def _label(name: str | None) -> str:
    """Make a label of what some client called itself: printable, bounded, never empty."""
    text = "".join(c if c.isprintable() else "?" for c in (name or "")[:64]).strip()
    return text or "unnamed"


def _largest(applications: Mapping[str, int], names: int) -> dict[str, int]:
    ranked = sorted(applications.items(), key=lambda item: (-item[1], item[0]))
    largest = Counter(dict(ranked[:names]))
    # Added, not set: an application may be called "other".
    largest["other"] += sum(sessions for _, sessions in ranked[names:])
    return dict(largest)


class AdminConsoleError(Exception):
    """The DSN leads to pgbouncer's admin console."""


# pgbouncer has one SQLSTATE, 08P01, for most of what it says; told apart by its words.
_POOLER: Final[Sequence[tuple[str, ProbeFailure, str]]] = (
    ("unsupported startup parameter", "configuration", "the pooler refuses a parameter of the DSN"),
    ("no such database", "configuration", "the pooler knows no such database"),
    ("transaction blocks not allowed", "configuration", "a pooler in statement mode cannot be used"),
    ("pqexec disallowed", "configuration", "a pooler with disable_pqexec cannot be used"),
    ("authentication failed", "authentication", "the pooler refuses user or password"),
    ("no such user", "authentication", "the pooler refuses user or password"),
    ("ssl required", "tls", "the pooler requires TLS"),
    ("no more connections allowed", "too_many_connections", "the pooler is at its max_client_conn"),
    ("client connections exceeded", "too_many_connections", "the pooler is at a limit of client connections"),
    ("query_wait_timeout", "timeout", "the pooler had no connection to the server free in time"),
    ("query_timeout", "timeout", "the pooler ended the query"),
    ("client_idle_timeout", "disconnected", "the pooler closed an idle connection"),
    ("server", "unavailable", "the pooler cannot reach the server"),
    ("shutting down", "unavailable", "the pooler is shutting down"),
)
_SQLSTATES: Final[Sequence[tuple[str, ProbeFailure, str]]] = (
    ("28", "authentication", "the server refuses user or password, or has no pg_hba.conf entry for them"),
    ("53300", "too_many_connections", "no connection is left for the probe's role"),
    ("57P03", "unavailable", "the server is starting up or shutting down"),
    ("57014", "timeout", "the statement timeout passed, or somebody cancelled the query"),
    ("57P", "disconnected", "the server ended the connection"),
    ("08", "disconnected", "the connection broke"),
    ("3D000", "configuration", "there is no such database"),
    ("42704", "configuration", "the server does not know a parameter of the DSN"),
    ("42501", "configuration", "the role lacks the privilege"),
    ("0A000", "configuration", "the server does not support what the probe needs"),
)
_ERRORS: Final[Sequence[tuple[type[Exception], ProbeFailure, str]]] = (
    (AdminConsoleError, "configuration", "this is pgbouncer's admin console; name a database behind it"),
    (TimeoutError, "timeout", "no answer in time"),
    (ssl.SSLError, "tls", "the TLS handshake failed"),
    (socket.gaierror, "connect", "the host name cannot be resolved"),
    (UnicodeDecodeError, "other", "the server sends text that cannot be read"),
    (ValueError, "configuration", "the DSN or a PG* environment variable cannot be used"),
    (asyncpg.InterfaceError, "disconnected", "the connection broke"),
)


def explain(error: Exception) -> tuple[ProbeFailure, str]:
    """Say why a probe failed, in our own words only.

    What asyncpg, the server and the parsers say may quote parts of the DSN (``invalid literal for int():
    'pass'``), so none of it is passed on but the name of the class and the SQLSTATE.
    """
    cause = error.__cause__
    if isinstance(error, asyncpg.ConnectionDoesNotExistError) and isinstance(cause, asyncpg.PostgresError):
        error = cause  # the server said why before it hung up
    reason, text = _reason(error)
    state = getattr(error, "sqlstate", None)
    return reason, f"{text} ({type(error).__name__}{f', SQLSTATE {state}' if state else ''})"


def _reason(error: Exception) -> tuple[ProbeFailure, str]:  # noqa: PLR0911 - one for each kind
    if isinstance(error, asyncpg.ProtocolViolationError):
        said = str(error).lower()
        known = ((reason, text) for words, reason, text in _POOLER if words in said)
        return next(known, ("other", "the server or a pooler before it speaks another protocol"))
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        known = ((reason, text) for code, reason, text in _SQLSTATES if state.startswith(code))
        return next(known, ("other", "the server refuses"))
    if isinstance(error, ConfigError):
        return "configuration", str(error)  # in our own words already
    if isinstance(error, ssl.SSLCertVerificationError):
        # What comes after the comma is the host name.
        return "tls", f"the server's certificate: {error.verify_message.partition(',')[0]}"
    for kind, reason, text in _ERRORS:
        if isinstance(error, kind):
            return reason, text
    if isinstance(error, OSError) and error.errno:
        return "connect", os.strerror(error.errno)
    if isinstance(error, ConnectionError):
        # asyncpg's own, which has no number, is about the words before TLS.
        return "tls", "the server refuses TLS, or hung up while it was negotiated"
    if isinstance(error, OSError):
        return "connect", "no address of the host can be reached"
    return "other", "unexpected"


class Probe:
    """Watches one database over one connection, for as long as `run` runs.

    The mutable state is the snapshot, which is replaced as a whole so that any thread may read it, and the
    connection, which only the task in `run` touches.
    """

    def __init__(
        self,
        target: Target,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._target = target
        self._clock = clock
        self._wall = wall
        self._sleep = sleep
        self._uniform = uniform
        self._snapshot = Snapshot(target.name, target.pools or (target.name,))
        self._connection: Any = None
        self._told: set[str] = set()  # what is said once in the log

    def __repr__(self) -> str:
        shown = self._snapshot
        state = "not probed" if shown.completed_at is None else "up" if shown.observation else "down"
        return f"<Probe {self._target.name!r} {state}, {shown.probes} probes>"

    @property
    def snapshot(self) -> Snapshot:
        """The last result; safe to read from any thread."""
        return self._snapshot

    async def run(self) -> None:
        """Probe until cancelled, then close the connection. Nothing but the cancellation is raised."""
        attempts = 0
        told: ProbeFailure | None = None
        try:
            while True:
                failure = await self._probe()
                if failure is None:
                    self._tell(answers_again=told is not None)
                    attempts, told, delay = 0, None, self._target.interval_seconds
                else:
                    reason, text = failure
                    attempts += 1
                    delay = backoff(attempts, self._target.interval_seconds, self._uniform)
                    # Told once and not at each attempt; the counter has them all.
                    tell, told = (_log.debug if reason == told else _log.warning), reason
                    tell("database %r: %s: %s; next in %.1f s", self._target.name, reason, text, delay)
                await self._sleep(delay)
        finally:
            connection, self._connection = self._connection, None
            if connection is not None and not connection.is_closed():
                with contextlib.suppress(Exception):  # asyncpg has aborted the connection by then
                    await connection.close(timeout=1.0)

    async def _probe(self) -> tuple[ProbeFailure, str] | None:
        began = self._clock()
        observation = failure = None
        try:
            async with asyncio.timeout(self._target.timeout_seconds):
                observation = await self._ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs up 0 and not the task
            failure = explain(error)
        finally:
            # Also when cancelled: a connection left in the middle of an exchange is of no use to anybody.
            if observation is None and self._connection is not None:
                self._connection.terminate()
                self._connection = None
        ended = self._clock()
        last = self._snapshot
        failures = last.failures if failure is None else Counter(last.failures) + Counter([failure[0]])
        self._snapshot = Snapshot(
            database=last.database,
            pools=last.pools,
            probes=last.probes + 1,
            failures=failures,
            completed_at=ended,
            duration_seconds=ended - began,
            succeeded_at=last.succeeded_at if failure else self._wall(),
            observation=observation,
        )
        return failure

    async def _ask(self) -> Observation:
        target = self._target
        # A connection that was closed while it idled (restart, idle_session_timeout) is no failure in itself.
        if self._connection is None or self._connection.is_closed():
            self._connection = await _connect(target)
        connection = self._connection
        if "bouncer" in getattr(connection.get_settings(), "server_version", ""):
            raise AdminConsoleError
        await connection.execute(_BEGIN.format(max(1, int(target.timeout_seconds * 1000))))
        settings = await connection.fetch(_SETTINGS)
        sessions = await connection.fetch(_SESSIONS)
        await connection.execute("COMMIT")
        # A pooler makes up the process id it tells its clients, as the key by which they cancel.
        behind_pooler = connection.get_server_pid() != settings[0]["pid"]
        return observe(
            {row["name"]: row["value"] for row in settings},
            sessions,
            behind_pooler=behind_pooler,
            names=target.application_names_limit,
        )

    def _tell(self, *, answers_again: bool) -> None:
        name, seen = self._target.name, self._snapshot.observation
        if answers_again:
            _log.info("database %r: answers again", name)
        if seen and seen.behind_pooler and "pooler" not in self._told:
            self._told.add("pooler")
            _log.warning(
                "database %r: behind a connection pooler: connections by application, idle_session_timeout "
                "and who waits in the pooler cannot be known; give the probe a DSN of the server itself",
                name,
            )
        if seen and seen.hidden and "hidden" not in self._told:
            self._told.add("hidden")
            _log.warning(
                "database %r: the state of %d sessions is hidden from the role: GRANT pg_monitor to it",
                name,
                seen.hidden,
            )


async def _connect(target: Target) -> Any:
    return await asyncpg.connect(
        **await asyncio.to_thread(target.arguments),  # reads files
        timeout=None,  # the probe's is around all of it
        # No named prepared statements: the next transaction behind a pooler may be on another connection.
        statement_cache_size=0,
        # The one startup parameter that every pooler takes, and keeps with its client.
        server_settings={"application_name": APPLICATION_NAME},
    )


def backoff(failures: int, interval: float, uniform: Callable[[float, float], float]) -> float:
    """Seconds to wait after that many failures in a row: doubling, bounded, half of it by chance."""
    first, largest = BACKOFF
    delay = min(first * 2.0 ** min(failures - 1, 32), max(largest, interval))
    return delay * uniform(0.5, 1.0)


def families(snapshots: Iterable[Snapshot], now: float) -> Iterator[AnyFamily]:
    """Yield the metric families of all snapshots; ``now`` is on the probes' (monotonic) clock.

    What no snapshot can tell is absent, the family too.
    """
    made: dict[str, Any] = {}
    for metric in DATABASE_METRICS:
        if metric.kind == "info":
            name = metric.name.removesuffix("_info")
            made[metric.name] = InfoMetricFamily(name, metric.help, labels=["database"])
        else:
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            made[metric.name] = family(metric.name, metric.help, labels=["database", *metric.labels])
    for snapshot in snapshots:
        for pool in snapshot.pools:
            made[f"{PREFIX}database_pool_info"].add_metric([snapshot.database], {"pool": pool})
        for key, label, value in _samples(snapshot, now):
            labels = [snapshot.database] if label is None else [snapshot.database, label]
            made[f"{PREFIX}database_{key}"].add_metric(labels, value)
    yield from (family for family in made.values() if family.samples)


def _samples(snapshot: Snapshot, now: float) -> Iterator[tuple[str, str | None, float]]:
    yield "probes_total", None, snapshot.probes
    for reason in get_args(ProbeFailure):
        yield "probe_failures_total", reason, snapshot.failures.get(reason, 0)
    if snapshot.completed_at is not None:
        yield "up", None, snapshot.observation is not None
        yield "probe_age_seconds", None, max(0.0, now - snapshot.completed_at)
    if snapshot.duration_seconds is not None:
        yield "probe_duration_seconds", None, snapshot.duration_seconds
    if snapshot.succeeded_at is not None:
        yield "last_success_timestamp_seconds", None, snapshot.succeeded_at
    seen = snapshot.observation
    if seen is None:
        return
    yield "max_connections", None, seen.max_connections
    yield "reserved_connections", None, seen.reserved_connections
    yield "behind_pooler", None, seen.behind_pooler
    # Always there, so that a role which sees too little can be told by a query.
    for state, sessions in {"unknown": 0, **seen.connections}.items():
        yield "connections", state, sessions
    for application, sessions in (seen.application_connections or {}).items():
        yield "application_connections", application, sessions
    for key in (
        "longest_idle_in_transaction_seconds",
        "idle_session_timeout_seconds",
        "idle_in_transaction_session_timeout_seconds",
    ):
        value: float | None = getattr(seen, key)
        if value is not None:
            yield key, None, value
