# SPDX-License-Identifier: Apache-2.0
"""The Database dashboard: connection limits, connections in use, and whether the pools could exceed the limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from grafana_foundation_sdk.models import units

from sqlalchemy_pool_exporter.metrics import HeldState

from .frame import DATABASE, TARGET_VARIABLES, dashboard
from .panels import AGE, EVENTS, LONG_AGE, Query, stat, timeseries
from .promql import FEW, database, exporter, rate, targets_up, top
from .recorded import folded, series, variables
from .tables import Column, table

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

UID = "sqlalchemy-pool-database"


def of_server(name: str) -> str:
    """Return a metric of each database: max, not sum, because every sidecar that probes it reports the same value."""
    return f"max by (database) ({database(name)})"


def of_pools(state: str, fold: str = "sum") -> str:
    """Return a state of the pools, for each pair of a database and a pool that uses it."""
    return f"{fold} by (pool) ({state}) * on (pool) group_right () {USERS}"


def of_recorded(name: str, fold: str = "sum") -> str:
    """Return a state of the pools, recorded or not, for each pair of a database and a pool that uses it."""
    total = folded(fold, "pool", series(f"fleet_pool:sqlalchemy_pool_{name}:{fold}"), exporter(name))
    return f"{total} * on (pool) group_right () {USERS}"


def _held(state: str) -> str:
    """Select the connections that the pools have handed out, in a state of the server."""
    return exporter("held_connections_by_server_state", f'server_state="{state}"')


EMPTY = "No database is probed"
HELD_BY_SITE = folded(
    "sum",
    "pool, site",
    series("fleet_pool_site:sqlalchemy_pool_held_connections:sum"),
    exporter("held_connections"),
)
USERS = f"max by (database, pool) ({database('pool_info')})"
ALLOWED = f"({of_server('max_connections')} - {of_server('reserved_connections')})"
TAKEN = f"sum by (database) (max by (database, state) ({database('connections')}))"
CEILING = f"sum by (database) ({of_recorded('capacity')})"
OPEN = f"sum by (database) ({of_recorded('connections')})"


def health() -> list[Builder[Panel]]:
    """Return the panels for a first look."""
    return [
        stat(
            "Targets up",
            "Targets that Prometheus can scrape, of those that showed pools within the last hour. Good: 100 %. Bad: "
            "less: what their probes say is not on this page.",
            targets_up(),
            unit=units.PercentUnit,
            warning=1,
            critical=0.5,
            is_good_high=True,
            empty="No target: scrape one",
        ),
        stat(
            "Databases",
            "Databases that a sidecar probes. Neither good nor bad; a pool whose database is not among them has no "
            "panel here: add it to databases in the sidecar's configuration.",
            f"count(count by (database) ({database('up')}))",
            unit=units.Short,
            empty=EMPTY,
        ),
        stat(
            "All databases answer",
            "Whether the last probe of every chosen database succeeded. Good: Yes. Bad: No; it is down, full, or "
            "refuses the probe: see Probes that failed.",
            f"min({database('up')})",
            unit=units.BoolYesNo,
            warning=1,
            is_good_high=True,
            empty=EMPTY,
        ),
        stat(
            "Last success",
            "How long ago the database that has not answered for longest last did. Good: under two probes' intervals. "
            "Bad: more: all else here is absent since then.",
            f"time() - min({database('last_success_timestamp_seconds')} > 0)",
            unit=AGE,
            warning=60,
            critical=300,
            empty="None ever answered",
        ),
        stat(
            "Oldest probe",
            "Age of the numbers on this page, of the database that was asked longest ago. Good: under the probe's "
            "interval. Bad: more; its probe hangs or backs off.",
            f"max({database('probe_age_seconds')})",
            unit=AGE,
            warning=60,
            critical=300,
            empty=EMPTY,
        ),
        stat(
            "Refusing writes",
            "Databases where a new session could not write, although nothing in the sidecar's configuration says that "
            "its pools only read. Good: 0. Bad: more, after a failover: the pools still lead to the old primary; see "
            "Refuses writes.",
            f"sum({of_server('read_only')} > bool {of_server('read_only_expected')})",
            unit=units.Short,
            critical=1,
            empty=EMPTY,
        ),
        stat(
            "Fullest database",
            "Share of the connections that an ordinary role can have, which are taken. Good: under 80 %. Bad: 100 %; "
            "nobody but a superuser can connect, and applications get `too many clients already`.",
            f"max({TAKEN} / {ALLOWED})",
            unit=units.PercentUnit,
            warning=0.8,
            critical=0.95,
            empty=EMPTY,
        ),
        stat(
            "Fewest connections left",
            "Connections that an ordinary role can still open, on the fullest database. Good: more than one more "
            "deployment needs. Bad: 0.",
            f"min({ALLOWED} - {TAKEN})",
            unit=units.Short,
            warning=10,
            critical=1,
            is_good_high=True,
            empty=EMPTY,
        ),
        stat(
            "Ceiling of the pools",
            "What all pools together may open, of what the database allows. Good: under 100 %: however busy it gets, "
            "no pool is refused. Bad: above; the day all pools are full, the last ones get errors.",
            f"max({CEILING} / {ALLOWED})",
            unit=units.PercentUnit,
            warning=0.9,
            critical=1,
            empty="No pool of a database",
        ),
        stat(
            "Idle in transaction now",
            "How long a session has sat in a transaction without doing anything. Good: under a second. Bad: minutes; "
            "it holds locks and keeps the server from cleaning up: look for code that awaits something else in "
            "between.",
            f"max({database('longest_idle_in_transaction_seconds')})",
            unit=AGE,
            warning=5,
            critical=60,
            empty=EMPTY,
        ),
        stat(
            "Held behind a lock",
            "Connections that the pools have handed out, whose sessions wait for a lock of another session. Good: 0. "
            "Bad: a number that stays; `sqlalchemy-pool-exporter top` says who has the lock.",
            f"sum({of_pools(_held('waiting_for_lock'))})",
            unit=units.Short,
            warning=1,
            critical=10,
            empty="No pool of a database",
        ),
        stat(
            "Failed probes",
            "Probes a second that failed. Good: 0. Bad: any other: the reason is in Probes that failed.",
            f"sum({rate(database('probe_failures_total'))})",
            unit=EVENTS,
            critical=1e-9,
            empty=EMPTY,
        ),
    ]


def problems() -> list[Builder[Panel]]:
    """Return the panels on full databases, servers that changed, sessions idle in a transaction, and failed probes."""
    in_transaction = database("connections", 'state=~"idle_in_transaction.*"')
    return [
        timeseries(
            "Connections against what is allowed",
            "All client connections of the server, all databases; max_connections, and that less the reserve "
            "(dashed), which is where applications are refused. Good: well below. Bad: at the dashed line.",
            Query(TAKEN, "{{database}} taken"),
            Query(ALLOWED, "{{database}} allowed", limit=True),
            Query(of_server("max_connections"), "{{database}} max_connections"),
            unit=units.Short,
            span=12,
        ),
        timeseries(
            "What the pools could ask for",
            "The capacity of all pools that use the database, what they have open, and what it allows (dashed). Good: "
            "the capacity stays below the dashed line. Bad: above it: it is a matter of time. Pools without a limit "
            "are not in it.",
            Query(CEILING, "{{database}} capacity of its pools"),
            Query(OPEN, "{{database}} open in its pools"),
            Query(ALLOWED, "{{database}} allowed", limit=True),
            unit=units.Short,
            span=12,
        ),
        timeseries(
            "Refuses writes",
            "1 while a new session could not write: the server is in recovery, as a replica is, or "
            "default_transaction_read_only is on. Good: 0, or 1 all along for a replica that is meant to be read. Bad: "
            "a step from 0 to 1: with recovery it is a replica now, without it somebody has set it or a disk is full.",
            Query(of_server("read_only"), "{{database}} refuses writes"),
            Query(of_server("in_recovery"), "{{database}} in recovery"),
            unit=units.Short,
            is_bad=True,
            span=12,
        ),
        timeseries(
            "Time since the server started",
            "Good: lines that climb. Bad: one that falls to 0: the server was restarted, or the name leads to another "
            "server, as after a failover. What broke at that moment broke with it.",
            Query(f"time() - {of_server('start_time_seconds')}", "{{database}}"),
            unit=LONG_AGE,
            span=12,
        ),
        timeseries(
            "What the pools' held connections do",
            "Connections that the pools have handed out, by what their sessions did at the last probe. Good: mostly "
            "unknown, since they were checked out after the probe. Bad: a level of waiting_for_lock (another session "
            "blocks them), idle_in_transaction or idle (the applications do something else while they hold them).",
            *(
                Query(f"sum by (database) ({of_pools(_held(state))})", f"{{{{database}}}} {state}")
                for state in get_args(HeldState)
            ),
            unit=units.Short,
            span=12,
            stacked=True,
        ),
        timeseries(
            "Who holds connections to them, by site",
            "Connections in use of the pools of these databases, by the place in the applications that checked them "
            "out (module:function:line). Good: a mixture. Bad: one that grows with the panel beside. "
            f"{FEW}",
            Query(
                top(f"{HELD_BY_SITE} * on (pool) group_left () max by (pool) ({database('pool_info')})"),
                "{{pool}} {{site}}",
            ),
            unit=units.Short,
            span=12,
            stacked=True,
        ),
        timeseries(
            "Longest idle in transaction",
            "Age of the session that sits in a transaction for longest, and the server's limit for that (dashed), if "
            "it has one. Good: near 0. Bad: a line that climbs: one session, for as long as it does.",
            Query(of_server("longest_idle_in_transaction_seconds"), "{{database}}"),
            Query(of_server("idle_in_transaction_session_timeout_seconds"), "{{database}} limit", limit=True),
            unit=AGE,
        ),
        timeseries(
            "Idle in transaction",
            "Sessions in a transaction that wait for their application; aborted are those whose transaction has "
            "failed. Good: few, for moments. Bad: a level that stays, or as many as a pool has connections.",
            Query(
                f"max by (database, state) ({in_transaction})",
                "{{database}} {{state}}",
            ),
            unit=units.Short,
        ),
        timeseries(
            "Probes that failed, by reason",
            "Good: 0. Bad: too_many_connections: it is full. connect, timeout: it is down or far. authentication, "
            "tls, configuration: the probe is set up wrong. unavailable: it starts or stops.",
            Query(
                f"sum by (database, reason) ({rate(database('probe_failures_total'))})",
                "{{database}} {{reason}}",
            ),
            unit=EVENTS,
            is_bad=True,
        ),
    ]


def performance() -> list[Builder[Panel]]:
    """Return the panels on connections by state and by application."""
    return [
        timeseries(
            "Connections by state",
            "What the server's client connections do. Good: most are idle and some active. Bad: active at the number "
            "of its processors or far above, which is a busy server; idle in transaction. unknown: the server does "
            "not say. Either the probe's role lacks pg_monitor (MySQL: PROCESS), then grant it; or track_activities is "
            "off. The sidecar's log says which.",
            Query(f"max by (database, state) ({database('connections')})", "{{database}} {{state}}"),
            unit=units.Short,
            stacked=True,
        ),
        timeseries(
            "Connections by application",
            "Who has them, by application_name. Good: each service has what its pools show. Bad: one that nobody "
            "knows; one with far more than its pools: it leaks them, or has engines that are not instrumented. "
            f"{FEW}",
            Query(
                top(f"max by (database, application_name) ({database('application_connections')})"),
                "{{database}} {{application_name}}",
            ),
            unit=units.Short,
            stacked=True,
        ),
        timeseries(
            "Connections by user",
            "Who has them on MySQL or MariaDB, by user. Good: each service has an account of its own, and what its "
            "pools show. Bad: one account with far more than its pools; unknown: GRANT PROCESS to the probe's account.",
            Query(top(f"max by (database, user) ({database('user_connections')})"), "{{database}} {{user}}"),
            unit=units.Short,
            stacked=True,
        ),
        timeseries(
            "Threads running",
            "Sessions of MySQL or MariaDB that run a statement now. Good: below the number of the server's processors. "
            "Bad: far above for long: the server is busy, or they wait for locks.",
            Query(of_server("threads_running"), "{{database}}"),
            unit=units.Short,
            span=12,
        ),
        timeseries(
            "Taken by others",
            "Connections of the server that are in none of the pools seen here. Good: a few, of people and jobs. Bad: "
            "many, or ever more: detached or lost connections, or services without this exporter.",
            Query(f"clamp_min({TAKEN} - {OPEN}, 0)", "{{database}}"),
            unit=units.Short,
            span=12,
        ),
    ]


def maintenance() -> list[Builder[Panel]]:
    """Return the panels on the servers, on their limits and the pools', which must fit together, and on the probe."""
    recycle = of_recorded("recycle_seconds", "max")
    return [
        table(
            "Servers",
            "What each database is reached through. Good: writes where pools write, and a start that was planned. Bad: "
            "refuses writes without being expected to. Behind a pooler, connections and states are the pooler's own "
            "to the server, and who uses them is not told.",
            Query(of_server("read_only"), "refuses writes"),
            Query(of_server("read_only_expected"), "expected to"),
            Query(of_server("in_recovery"), "in recovery"),
            Query(f"{of_server('start_time_seconds')} * 1000", "started"),
            Query(of_server("behind_pooler"), "behind a pooler"),
            Query(of_server("max_connections"), "max_connections"),
            keys=("database",),
            columns={
                "refuses writes": Column(units.BoolYesNo, width=120),
                "expected to": Column(units.BoolYesNo, width=110),
                "in recovery": Column(units.BoolYesNo, width=110),
                "started": Column(units.DatetimeISO, width=170),
                "behind a pooler": Column(units.BoolYesNo, width=130),
                "max_connections": Column(width=140),
            },
            height=6,
        ),
        table(
            "Limits of the server against those of the pools",
            "For each database and pool: when the pool replaces a connection, and when the server cuts an idle one. "
            "Good: pool_recycle well below the server's limit, or pre-ping on. Bad: above it, or none, without "
            "pre-ping: the first request after a quiet time fails. A limit that is off is empty.",
            Query(recycle, "pool_recycle"),
            Query(of_pools(exporter("pre_ping"), "min"), "pre-ping"),
            Query(
                f"max by (database, pool) ({database('pool_info')}) * on (database) group_left () "
                f"{of_server('idle_session_timeout_seconds')}",
                "idle limit",
            ),
            Query(
                f"max by (database, pool) ({database('pool_info')}) * on (database) group_left () "
                f"{of_server('idle_in_transaction_session_timeout_seconds')}",
                "idle in transaction limit",
            ),
            Query(
                f"max by (database, pool) ({database('pool_info')}) * on (database) group_left () "
                f"{of_server('interactive_timeout_seconds')}",
                "interactive limit",
            ),
            Query(of_pools(exporter("capacity")), "capacity of all"),
            keys=("database", "pool"),
            columns={
                "pool_recycle": Column(AGE, width=120),
                "pre-ping": Column(units.BoolYesNo),
                "idle limit": Column(AGE, width=110),
                "idle in transaction limit": Column(AGE, width=190),
                "interactive limit": Column(AGE, width=150),
                "capacity of all": Column(width=120),
            },
            height=6,
        ),
        timeseries(
            "Server's idle limit against pool_recycle",
            "When the server cuts an idle connection (dashed), and when the pools replace one. Good: recycle below. "
            "Bad: at or above: the server is first. No line: no limit, or no recycle.",
            Query(recycle, "{{database}} {{pool}} pool_recycle"),
            Query(of_server("idle_session_timeout_seconds"), "{{database}} idle limit", limit=True),
            unit=AGE,
        ),
        timeseries(
            "Time of a probe",
            "How long the last probe took, connecting included. Good: milliseconds. Bad: near its timeout; the server "
            "is busy or far.",
            Query(of_server("probe_duration_seconds"), "{{database}}"),
            unit=units.Seconds,
        ),
        timeseries(
            "Probes",
            "Probes a second, of all sidecars that ask the database. Good: one for each interval and sidecar. Bad: "
            "fewer: they back off after failures. Many: give the database to one sidecar alone.",
            Query(f"sum by (database) ({rate(database('probes_total'))})", "{{database}}"),
            unit=EVENTS,
        ),
    ]


def board() -> Dashboard:
    """Return the dashboard."""
    return dashboard(
        UID,
        "SQLAlchemy pools / Database",
        "The databases behind the pools: what they allow, who has it, and what all pools could ask for.",
        variables=[*TARGET_VARIABLES, *variables("instance"), DATABASE],
        rows={
            "Health": health(),
            "Problems": problems(),
            "Performance": performance(),
            "Maintenance": maintenance(),
        },
    )
