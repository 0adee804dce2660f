# SPDX-License-Identifier: Apache-2.0
"""Every metric, declared once.

The exposition, the reference in ``docs/metrics.md``, the checks of dashboards and rules, and the fields of a block are
all derived from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, get_args

Kind = Literal["counter", "gauge", "histogram", "info", "summary"]

PREFIX: Final = "sqlalchemy_pool_"
_SUFFIXES: Final = {"counter": "_total", "info": "_info"}

# Upper bounds in seconds. They reach past SQLAlchemy's default pool_timeout of 30 s, so that a caller that waited for
# the whole timeout is in another bucket than a caller that waited much longer.
BUCKETS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)

STATES: Final = ("in_use", "idle")
ERROR_REASONS: Final = ("connect", "cancelled", "other")
CLOSE_REASONS: Final = (
    "recycle",
    "ping_failed",
    "pool_invalidated",
    "soft_invalidated",
    "error",
    "overflow",
    "unpooled",
    "dispose",
    "detached",
    "gc",
)
INVALIDATION_KINDS: Final = ("hard", "soft")
# When a pool ended with connections open though nobody had called dispose().
UNDISPOSED: Final = ("collected", "exit")
# Where an error of a driver struck, and whether the same work, done again, may succeed.
Layer = Literal["pool", "connect", "ping", "statement"]
Disposition = Literal["retryable", "fatal"]
ERRORS: Final[tuple[tuple[str, ...], ...]] = tuple(product(get_args(Layer), get_args(Disposition)))


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    ``name`` is the name of the samples in Prometheus (with ``_total`` for a counter). ``labels`` are the metric's own
    labels, which follow the owner's labels such as ``pool``. ``values`` are all values that its only label can have, if
    they are a closed set.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name without the prefix, by which collectors refer to the metric."""
        return self.name.removeprefix(PREFIX)

    @property
    def family(self) -> str:
        """The name of the family in OpenMetrics: without the suffix that the type adds to the samples."""
        return self.name.removesuffix(_SUFFIXES.get(self.kind, ""))

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of its samples end with, after the name; not of a histogram."""
        return ("_count", "_sum") if self.kind == "summary" else ("",)

    @property
    def unit(self) -> str:
        """The base unit at the end of the name, or an empty string for plain counts."""
        return "seconds" if self.name.endswith("_seconds") else ""


def _pool(
    key: str, kind: Kind, help_: str, *, labels: tuple[str, ...] = (), values: tuple[str, ...] = ()
) -> Metric:
    return Metric(PREFIX + key, kind, help_, labels, values)


# The labels of the metric ``info``; a segment has the same facts about each of its pools.
INFO_LABELS: Final = ("pool_class", "dialect", "driver")

# One sample (or one per label value, or one histogram) for each pool, with the label ``pool``.
POOL_METRICS: Final = (
    _pool(
        "info",
        "info",
        "Which pool this is: its class, and the dialect and driver of its connections.",
        labels=INFO_LABELS,
    ),
    _pool("size", "gauge", "Configured pool_size: connections kept open. Absent where nothing limits it."),
    _pool(
        "max_overflow",
        "gauge",
        "Configured max_overflow: connections opened beyond pool_size when it is exhausted. Absent where unlimited.",
    ),
    _pool(
        "capacity",
        "gauge",
        "Most connections that can be checked out at once: pool_size + max_overflow of all live pools of the name. "
        "Absent where one of them is unlimited.",
    ),
    _pool("instances", "gauge", "How many live pools have the name. Their sizes and their state are summed."),
    _pool(
        "timeout_seconds",
        "gauge",
        "Configured pool_timeout: how long a checkout waits in the queue before it fails. "
        "Absent where nothing waits.",
    ),
    _pool(
        "recycle_seconds",
        "gauge",
        "Configured pool_recycle: age at which a checkout replaces a connection. Absent where it is off.",
    ),
    _pool(
        "pre_ping", "gauge", "1 if connections are tested when they are checked out (pool_pre_ping), else 0."
    ),
    _pool(
        "connections",
        "gauge",
        "Open connections: in_use are checked out, idle wait in the pool. Connections of a pool that was disposed "
        "of while they were out are counted until they close.",
        labels=("state",),
        values=STATES,
    ),
    _pool(
        "overflow_connections",
        "gauge",
        "Connections beyond pool_size now; closed as they are returned. Never negative; absent where the pool "
        "has no overflow.",
    ),
    _pool(
        "empty_slots",
        "gauge",
        "Slots of the pool whose connection was closed and not replaced yet; the next checkout through one "
        "connects. SQLAlchemy's checkedin() counts them, the server does not.",
    ),
    _pool(
        "pending_checkouts", "gauge", "Callers that wait for a connection now: calls of connect() under way."
    ),
    _pool(
        "longest_pending_seconds",
        "gauge",
        "Age of the oldest checkout under way; 0 when there is none.",
    ),
    _pool("longest_held_seconds", "gauge", "Age of the oldest checkout not returned; 0 when nothing is out."),
    _pool(
        "held_connections",
        "gauge",
        "Connections that are checked out, by the place in the application that did it (module:function:line): the "
        "20 that hold most, and other, which is also what was checked out while the pool was not busy. The sum "
        "is connections in use.",
        labels=("site",),
    ),
    _pool(
        "site_longest_held_seconds",
        "gauge",
        "Age of the oldest checkout not returned of each of these places.",
        labels=("site",),
    ),
    _pool(
        "self_deadlocked",
        "gauge",
        "How many pools are full of connections whose holders all wait for another connection of the same pool: "
        "none of them can go on before a checkout times out.",
    ),
    _pool(
        "leak_suspects",
        "gauge",
        "Connections that are held for longer than leak_after. Absent where leak_after is off.",
    ),
    _pool(
        "finding",
        "gauge",
        "1 for each rule of the audit that finds a mistake in how the pool is configured or used. Absent if none does.",
        labels=("rule",),
    ),
    _pool("oldest_connection_seconds", "gauge", "Age of the oldest open connection; 0 when none is open."),
    _pool(
        "last_checkin_timestamp_seconds",
        "gauge",
        "Unix time of the last return to the pool; 0 before the first. A pool that is full and returns nothing is "
        "stuck; one that is full and returns is busy.",
    ),
    _pool("checkouts_total", "counter", "Connections handed out to callers."),
    _pool(
        "checkins_total", "counter", "Connections returned to the pool by their holders or their collection."
    ),
    _pool(
        "checkout_timeouts_total",
        "counter",
        "Checkouts that failed because pool_timeout passed in the queue.",
    ),
    _pool(
        "exhaustion_reports_total",
        "counter",
        "Reports in the application's log of who had the connections when a checkout timed out, and why; at most one a "
        "minute of each pool.",
    ),
    _pool(
        "checkout_errors_total",
        "counter",
        "Checkouts that failed otherwise: the connection could not be made (connect), the caller was cancelled or "
        "interrupted (cancelled), or anything else, such as a listener that raised (other).",
        labels=("reason",),
        values=ERROR_REASONS,
    ),
    _pool(
        "checkouts_by_site_total",
        "counter",
        "Connections handed out, by the place in the application that asked; the sum is checkouts_total. At most 20 "
        "sites, and other, which is also what was checked out while the pool was not busy.",
        labels=("site",),
    ),
    _pool(
        "hold_seconds_by_site",
        "summary",
        "Time from checkout to return, by the place in the application that checked out. The sums are those of "
        "hold_seconds.",
        labels=("site",),
    ),
    _pool(
        "nested_checkouts_total",
        "counter",
        "Checkouts by a thread or task that held a connection of the same pool, by the place of the second one. "
        "Counted when both are returned, or when the second one times out. One pool is enough for a deadlock.",
        labels=("site",),
    ),
    _pool(
        "leaked_checkouts_by_site_total",
        "counter",
        "Checkouts that were never returned, by the place in the application that made them; the sum is "
        "leaked_checkouts_total.",
        labels=("site",),
    ),
    _pool(
        "suspected_leaks_total",
        "counter",
        "Checkouts that were held for longer than leak_after, by the place in the application that made them; also "
        "those that came back.",
        labels=("site",),
    ),
    _pool(
        "errors_total",
        "counter",
        "Errors by where they struck: the wait for a connection timed out (pool), a connection could not be made "
        "(connect), a pre-ping failed (ping), or a statement, begin, commit or rollback did (statement); and by "
        "whether the same work, done again, may succeed (retryable) or not (fatal).",
        labels=("layer", "disposition"),
    ),
    _pool("connects_total", "counter", "Physical connections opened."),
    _pool(
        "connect_errors_total",
        "counter",
        "Attempts to open a physical connection that failed or were cancelled.",
    ),
    _pool(
        "closes_total",
        "counter",
        "Physical connections closed, by reason: older than pool_recycle (recycle), found dead by pre-ping "
        "(ping_failed), made before the whole pool was invalidated (pool_invalidated), invalidated softly "
        "(soft_invalidated), invalidated after an error (error), returned beyond pool_size (overflow), returned to "
        "a pool that keeps none (unpooled), pool disposed of (dispose), closed after detach() (detached), "
        "collected by the garbage collector (gc).",
        labels=("reason",),
        values=CLOSE_REASONS,
    ),
    _pool(
        "overflow_opened_total",
        "counter",
        "Connections opened beyond pool_size. Absent where the pool has no overflow.",
    ),
    _pool("ping_failures_total", "counter", "Pre-pings that found a dead connection."),
    _pool(
        "invalidations_total",
        "counter",
        "Connections invalidated: closed at once (hard) or at their next checkout (soft).",
        labels=("kind",),
        values=INVALIDATION_KINDS,
    ),
    _pool("detaches_total", "counter", "Connections detached from the pool while they were checked out."),
    _pool(
        "leaked_checkouts_total",
        "counter",
        "Checkouts that were never returned: the garbage collector found the connection.",
    ),
    _pool(
        "undisposed_total",
        "counter",
        "Pools that ended with connections open though nobody had called dispose(): their engine was garbage-collected "
        "(collected), or the interpreter ended (exit).",
        labels=("when",),
        values=UNDISPOSED,
    ),
    _pool(
        "checkout_wait_seconds",
        "histogram",
        "Time in connect(), failures too: queue, connecting and pre-ping together.",
    ),
    _pool("connect_seconds", "histogram", "Time to open a physical connection, failures too."),
    _pool("ping_seconds", "histogram", "Time of a pre-ping, failures too."),
    _pool("hold_seconds", "histogram", "Time from checkout to return."),
    _pool(
        "untracked_connections",
        "gauge",
        "Open connections that found no room in the table. They have no age, and count in connections as in use in the "
        "same share as the others. Not 0 only beyond 65,000, or without disk space.",
    ),
)

# Of the exporter itself, in the application and in the sidecar. Only those that name the label ``pool`` have it.
EXPORTER_METRICS: Final = (
    _pool(
        "exporter_build_info",
        "gauge",
        "1, with the versions at work: of the exporter that answers the scrape, and of Python and SQLAlchemy in the "
        "application, where the hot path is compiled or interpreted. The sidecar has one sample for each set of these "
        "three among the live workers, and an empty label for what no worker tells.",
        labels=("version", "python", "sqlalchemy", "hot_path"),
    ),
    _pool(
        "exporter_recording_faults_total",
        "counter",
        "Faults while recording, caught so that the application never saw them. Not 0: report it.",
        labels=("pool",),
    ),
    _pool("exporter_scrape_duration_seconds", "gauge", "Time this collection took."),
)

# Of each process of the application that has a pool.
PROCESS_METRICS: Final = (
    _pool(
        "event_loop_lag_seconds",
        "gauge",
        "How late the event loop of an asyncio engine is: the most of the last minute, and of now, so it grows while a "
        "loop is blocked. The largest, if a process has several. Absent where no loop runs.",
        labels=("worker",),
    ),
)

# Of the exporter in the application only.
APPLICATION_METRICS: Final = (
    _pool(
        "exporter_segment_shared",
        "gauge",
        "1 if other processes see the pool of the process that answers; 0 if its directory cannot be used or has no "
        "room for it, and the numbers are in memory alone. "
        "Absent where no directory was asked for.",
        labels=("pool",),
    ),
    _pool(
        "exporter_scrape_errors_total",
        "counter",
        "Pools left out of a scrape because they could not be read. Not 0: report it.",
    ),
    _pool(
        "exporter_forked_processes",
        "gauge",
        "Processes that this one forked after it instrumented its first pool. Their pools are not in these numbers. "
        "Absent where a directory was asked for: there every endpoint shows every process.",
    ),
)

WORKER_STATES: Final = ("live", "parent", "gone")
# Why a file of the directory is left out.
SegmentErrorKind = Literal["unreadable", "foreign", "version", "damaged"]

# Of everything that reads a directory: the sidecar, and the application's own endpoint.
FLEET_METRICS: Final = (
    _pool(
        "exporter_workers",
        "gauge",
        "Segments in the directory: of workers that run (live), of processes that forked workers and have not used a "
        "pool themselves (parent: a preloading master), and of processes that ended and whose counts stay (gone).",
        labels=("state",),
        values=WORKER_STATES,
    ),
    _pool(
        "exporter_worker_info",
        "gauge",
        "1 for each live worker or parent, with what finds its process on the host (or in its container): process id, "
        "program, the first words of its command without values that may be secret, and start time "
        "(UTC).",
        labels=("worker", "pid", "program", "command", "started"),
    ),
    _pool(
        "exporter_segment_errors",
        "gauge",
        "Files left out of this scrape: not readable, not of this project or of a user that the directory does not "
        "allow (foreign), of another layout version, or damaged.",
        labels=("reason",),
        values=get_args(SegmentErrorKind),
    ),
)

RELOAD_METRICS: Final = (
    _pool(
        "exporter_config_last_reload_successful",
        "gauge",
        "1 if the configuration at work is the one in the files, 0 if those are wrong and the old one stays.",
    ),
    _pool(
        "exporter_config_last_reload_success_timestamp_seconds",
        "gauge",
        "Unix time at which the configuration at work was read.",
    ),
)

# Of the sidecar, if it pushes over OTLP.
OTLP_METRICS: Final = (
    _pool(
        "exporter_otlp_pushes_total",
        "counter",
        "Pushes to the OTLP endpoint, by result. Absent where none is configured.",
        labels=("result",),
        values=("success", "failure"),
    ),
    _pool(
        "exporter_otlp_last_success_timestamp_seconds",
        "gauge",
        "Unix time of the last push that the OTLP endpoint took; 0 before the first.",
    ),
)

# What the server says of a connection that is checked out.
HeldState = Literal["active", "idle_in_transaction", "idle", "waiting_for_lock", "unknown"]

# Of the sidecar: what its probes of databases tell of pools. With the label ``pool``.
PROBED_POOL_METRICS: Final = (
    _pool(
        "held_connections_by_server_state",
        "gauge",
        "Connections that are checked out, by what their session in the database server did at the last probe: runs a "
        "statement (active), waits for its application inside a transaction (idle_in_transaction) or outside (idle), "
        "waits for a lock of another session (waiting_for_lock). unknown are those checked out since then, those "
        "behind a connection pooler, and those whose session is hidden from the probe's role or not found for certain. "
        "The sum is connections in use. Absent for a pool of no probed database.",
        labels=("server_state",),
        values=get_args(HeldState),
    ),
)

# The states of sessions that the probe distinguishes, and the reasons for which a probe fails.
SessionState = Literal[
    "active", "idle", "idle_in_transaction", "idle_in_transaction_aborted", "fastpath", "starting", "unknown"
]
ProbeFailure = Literal[
    "connect",
    "timeout",
    "tls",
    "authentication",
    "too_many_connections",
    "unavailable",
    "disconnected",
    "configuration",
    "other",
]


def _database(key: str, kind: Kind, help_: str, label: str = "", values: tuple[str, ...] = ()) -> Metric:
    return Metric(f"{PREFIX}database_{key}", kind, help_, (label,) if label else (), values)


# Of the sidecar's probes: one sample (or one per label value) for each database, with the label ``database``.
DATABASE_METRICS: Final = (
    _database(
        "pool_info",
        "info",
        "Which pools connect to the database, as the configuration says: what joins the pools' metrics and the "
        "database's. There whether the database is up or not.",
        "pool",
    ),
    _database(
        "up",
        "gauge",
        "1 if the last probe of the database succeeded, else 0. Absent before the first. Once it has been 0 for one "
        "interval of the probe, what only the server knows is absent; until then its last values stay.",
    ),
    _database(
        "max_connections", "gauge", "The server's max_connections: client connections it can have at once."
    ),
    _database(
        "reserved_connections",
        "gauge",
        "Of max_connections, how many an ordinary role cannot have: superuser_reserved_connections, and "
        "reserved_connections from PostgreSQL 16 on. 0 for MySQL, which adds one for an administrator.",
    ),
    _database(
        "connections",
        "gauge",
        "Client connections of the whole server, all databases, by state: what counts against "
        "max_connections. unknown are sessions whose state the probe's role may not see; then the other "
        "states are lower bounds, and absent instead of 0. The probe's own connection counts as idle. The sum is "
        "MySQL's Threads_connected.",
        "state",
        get_args(SessionState),
    ),
    _database(
        "application_connections",
        "gauge",
        "Client connections of the whole server by application_name: the largest, all others as other, "
        "those without a name as unnamed. Absent behind a pooler, which passes on the name of its latest client. Of "
        "MySQL the program_name that clients send; unknown where the server does not tell it.",
        "application_name",
    ),
    _database(
        "user_connections",
        "gauge",
        "Client connections of the whole server by user: the largest, all others as other, those that are hidden from "
        "the probe's account as unknown. Only of MySQL and MariaDB.",
        "user",
    ),
    _database(
        "threads_running",
        "gauge",
        "The server's Threads_running, without the probe's own: those that run a statement. Only of MySQL and MariaDB, "
        "where every account may know it.",
    ),
    _database(
        "longest_idle_in_transaction_seconds",
        "gauge",
        "How long the session that is idle in a transaction for longest has been so; 0 when none is. Absent "
        "when none is seen and some sessions are hidden from the probe's role.",
    ),
    _database(
        "idle_session_timeout_seconds",
        "gauge",
        "The server's idle_session_timeout, as the probe's role has it; MySQL's wait_timeout. Absent when off, before "
        "PostgreSQL 14 and behind a pooler.",
    ),
    _database(
        "interactive_timeout_seconds",
        "gauge",
        "MySQL's interactive_timeout: takes the place of wait_timeout for clients that call themselves interactive "
        "(CLIENT_INTERACTIVE), as no driver of Python does by itself. Absent behind a pooler.",
    ),
    _database(
        "idle_in_transaction_session_timeout_seconds",
        "gauge",
        "The server's idle_in_transaction_session_timeout, as the probe's role has it; MariaDB's "
        "idle_transaction_timeout. Absent when off.",
    ),
    _database(
        "behind_pooler",
        "gauge",
        "1 if a connection pooler such as pgbouncer or ProxySQL stands before the server, else 0.",
    ),
    _database(
        "server_info",
        "info",
        "Which server this is, to join databases that are on one server: its system identifier or MySQL's server_uuid, "
        "or its address and port where the probe's role may not read that, and its start time, by which a server and "
        "its replicas differ.",
        "server",
    ),
    _database(
        "read_only",
        "gauge",
        "1 if a new session of the probe's role cannot write: the server is in recovery, or "
        "default_transaction_read_only is on for the server, the database or the role. Of MySQL 1 if read_only, "
        "super_read_only, innodb_read_only or transaction_read_only is on. Else 0.",
    ),
    _database(
        "read_only_expected",
        "gauge",
        "1 if the configuration says that the database's pools only read (databases[].read_only), else 0.",
    ),
    _database(
        "in_recovery",
        "gauge",
        "1 if the server is in recovery, as a replica is, else 0. Of MySQL 1 if it replicates another server; absent "
        "where the probe's account may not know.",
    ),
    _database("start_time_seconds", "gauge", "Unix time at which the server was started."),
    _database("probes_total", "counter", "Probes of the database, failed ones too."),
    _database(
        "probe_failures_total", "counter", "Probes that failed, by reason.", "reason", get_args(ProbeFailure)
    ),
    _database("probe_duration_seconds", "gauge", "How long the last probe took, connecting included."),
    _database("probe_age_seconds", "gauge", "Time since the last probe ended: the age of all these numbers."),
    _database("last_success_timestamp_seconds", "gauge", "Unix time of the last probe that succeeded."),
)

ALL_METRICS: Final = (
    *POOL_METRICS,
    *EXPORTER_METRICS,
    *PROCESS_METRICS,
    *APPLICATION_METRICS,
    *FLEET_METRICS,
    *RELOAD_METRICS,
    *OTLP_METRICS,
    *DATABASE_METRICS,
    *PROBED_POOL_METRICS,
)
