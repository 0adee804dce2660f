# SPDX-License-Identifier: Apache-2.0
"""The Pool dashboard: who holds the connections, where a checkout's time goes, and why connections close."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import units

from .holders import FEW, SHOWN, holders
from .panels import (
    POOL,
    TARGET_VARIABLES,
    WORKER,
    Column,
    Query,
    dashboard,
    heatmap,
    stat,
    table,
    timeseries,
)
from .promql import IN_USE, PROCESS, fullness, largest, limit, pool, quantile, rate, state

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

UID = "sqlalchemy-pool-pool"
NAME = "{{instance}} {{pool}} {{worker}}"
HELD = state("connections", IN_USE)


def of_processes(expr: str) -> Query:
    """Return a query of the processes with the largest values, one series for each process."""
    return Query(largest(PROCESS, SHOWN, expr), NAME)


def total(counter: str) -> str:
    """Return the increase per second of a counter, summed over all processes."""
    return f"sum({rate(pool(counter))})"


def seconds_of(histogram: str) -> str:
    """Return the seconds spent in a phase per second, summed over all processes."""
    return total(f"{histogram}_sum")


def health() -> list[Builder[Panel]]:
    """Return the panels for a first look."""
    return [
        stat(
            "In use",
            "Connections checked out now, in all chosen processes. Good: follows the traffic. Bad: at the capacity.",
            f"sum({HELD})",
            unit=units.Short,
        ),
        stat(
            "Fullest process",
            "The largest share of its connections that one process has in use. Good: under 80 %. Bad: 100 %; the next "
            "caller of that process waits. Nothing is shown for a pool without a limit.",
            f"max({fullness(of_chosen_workers=True)})",
            unit=units.PercentUnit,
            warning=0.8,
            critical=0.95,
        ),
        stat(
            "Callers waiting",
            "Callers inside connect() now. Good: near 0. Bad: a number that stays.",
            f"sum({state('pending_checkouts')})",
            unit=units.Short,
            warning=1,
            critical=10,
        ),
        stat(
            "Longest wait now",
            "How long the caller who has waited longest has done so. Good: near 0. Bad: close to pool_timeout.",
            f"max({state('longest_pending_seconds')})",
            unit=units.Seconds,
            warning=1,
            critical=10,
        ),
        stat(
            "Longest held now",
            "How long the oldest checkout has not been returned. Good: as long as your longest request. Bad: minutes; "
            "a leak, a stuck query, or code that waits for something else while it holds a connection.",
            f"max({state('longest_held_seconds')})",
            unit=units.Seconds,
            warning=10,
            critical=60,
        ),
        stat(
            "Last return",
            "Time since a connection last came back, in the process that has waited longest for one. Good: seconds "
            "under traffic. Bad: long, while the pool is full: it is stuck, not busy. Long without traffic is "
            "harmless.",
            f"max(time() - ({state('last_checkin_timestamp_seconds')} > 0))",
            unit=units.Seconds,
        ),
        stat(
            "Wait, 99 %",
            "99 of 100 checkouts got their connection within this time. Good: milliseconds. Bad: more than a request "
            "may take in all.",
            f"{quantile(0.99, 'checkout_wait_seconds')} >= 0",
            unit=units.Seconds,
            warning=0.1,
            critical=1,
        ),
        stat(
            "Turned away",
            "Callers a second who got an error from pool_timeout. Good: 0. Bad: anything else.",
            total("checkout_timeouts_total"),
            unit=units.CountsPerSecond,
            critical=1e-9,
        ),
    ]


def problems() -> list[Builder[Panel]]:
    """Return the panels on starvation, stuck processes, failures and leaks."""
    stuck = (
        f"(time() - ({state('last_checkin_timestamp_seconds')} > 0)) * ignoring (state) ({HELD} >= bool ignoring "
        f"(state) {limit(of_chosen_workers=True)})"
    )
    return [
        timeseries(
            "In use against capacity, by process",
            "Connections in use, and what one process may have (dashed). Good: below it. Bad: on it: that process "
            f"starves, even if its neighbours are idle. {FEW}",
            of_processes(HELD),
            Query(f"max({limit(of_chosen_workers=True)})", "capacity of one process", limit=True),
            unit=units.Short,
            span=12,
        ),
        timeseries(
            "Full, and nothing comes back",
            "How long a process that is full has got no connection back; 0 while it is not full or returns. Good: 0, "
            f"or under a second, which is busy. Bad: it climbs, which is stuck: look at what the holders do. {FEW}",
            of_processes(stuck),
            unit=units.Seconds,
            span=12,
        ),
        timeseries(
            "Callers waiting, by process",
            f"Callers inside connect(). Good: 0 with short peaks. Bad: a level that stays. {FEW}",
            of_processes(state("pending_checkouts")),
            unit=units.Short,
        ),
        timeseries(
            "Longest wait, by process",
            "Age of the oldest checkout under way, and pool_timeout (dashed), at which it fails. Good: near 0. Bad: "
            f"a saw that reaches the dashed line: each tooth is a caller who got an error. {FEW}",
            of_processes(state("longest_pending_seconds")),
            Query(f"min({state('timeout_seconds')})", "pool_timeout", limit=True),
            unit=units.Seconds,
        ),
        timeseries(
            "Longest held, by process",
            "Age of the oldest checkout that is not returned. Good: as your longest request. Bad: a line that climbs "
            f"without end: that connection is lost until its holder lets go. {FEW}",
            of_processes(state("longest_held_seconds")),
            unit=units.Seconds,
        ),
        timeseries(
            "Checkouts that failed",
            "By pool_timeout (turned away), and otherwise by reason: connect, cancelled by the caller, or other. "
            "Good: 0. Bad: anything else, each is a failed request.",
            Query(total("checkout_timeouts_total"), "turned away"),
            Query(f"sum by (reason) ({rate(pool('checkout_errors_total'))})", "{{reason}}"),
            unit=units.CountsPerSecond,
            span=6,
        ),
        timeseries(
            "Errors, by layer",
            "Waits for a connection that timed out (pool), connections that could not be made (connect), pre-pings "
            "that failed (ping), and statements (statement). Good: 0, and a few fatal statements that the code "
            "expects. Bad: retryable that rises points at the server, the network or the load; fatal at a release.",
            Query(f"sum by (layer, disposition) ({rate(pool('errors_total'))})", "{{layer}} {{disposition}}"),
            unit=units.CountsPerSecond,
            span=6,
        ),
        timeseries(
            "Dead connections",
            "Pings that failed, connections invalidated after an error (hard) or to be replaced (soft), and attempts "
            "to connect that failed. Good: 0. Bad: pings fail after quiet times: something cuts idle connections. "
            "Hard invalidations without failed pings: turn pool_pre_ping on. All at once: the database restarted.",
            Query(total("ping_failures_total"), "pings failed"),
            Query(f"sum by (kind) ({rate(pool('invalidations_total'))})", "invalidated {{kind}}"),
            Query(total("connect_errors_total"), "connecting failed"),
            unit=units.CountsPerSecond,
            span=6,
        ),
        timeseries(
            "Leaked and detached",
            "Leaked: nobody returned the connection and the garbage collector found it. Detached: taken out of the "
            "pool for good, by detach(). Good: 0. Bad: leaked at all; each held a slot until it was found.",
            Query(total("leaked_checkouts_total"), "leaked"),
            Query(total("detaches_total"), "detached"),
            unit=units.CountsPerSecond,
            span=6,
        ),
    ]


def performance() -> list[Builder[Panel]]:
    """Return the panels on where the time goes."""
    attempts = total("checkout_wait_seconds_count")
    wait, connecting, pinging = map(seconds_of, ("checkout_wait_seconds", "connect_seconds", "ping_seconds"))
    return [
        heatmap(
            "Wait for a connection",
            "How many checkouts a second took how long, failures too. Good: one dark band at the bottom. Bad: a "
            "second band above it; at pool_timeout it is made of callers who got nothing.",
            f"sum by (le) ({rate(pool('checkout_wait_seconds_bucket'))})",
            unit=units.Seconds,
        ),
        timeseries(
            "Wait for a connection, percentiles",
            "The whole of connect(). Good: the lines lie near each other, in milliseconds. Bad: 99 % leaves the "
            "others, which is a queue.",
            *(Query(quantile(q, "checkout_wait_seconds"), f"{q:.0%}") for q in (0.5, 0.9, 0.99)),
            unit=units.Seconds,
            span=12,
        ),
        timeseries(
            "Where a checkout's time goes",
            "The mean wait in its parts: in the queue, connecting, and the pre-ping. Good: hardly anything, of which "
            "the ping is most. Bad: queue: the pool is too small or connections are held too long. connect: it "
            "connects at each checkout, or the database accepts slowly. ping: the network is slow.",
            Query(f"clamp_min(({wait} - {connecting} - {pinging}) / {attempts}, 0)", "queue"),
            Query(f"{connecting} / {attempts}", "connect"),
            Query(f"{pinging} / {attempts}", "ping"),
            unit=units.Seconds,
            span=12,
            stacked=True,
        ),
        timeseries(
            "Time held, percentiles",
            "From checkout to return. Good: a little more than the queries take. Bad: far more: code holds the "
            "connection while it does something else. Those that never come back are not in it; see Longest held.",
            *(Query(quantile(q, "hold_seconds"), f"{q:.0%}") for q in (0.5, 0.9, 0.99)),
            unit=units.Seconds,
            span=12,
        ),
        timeseries(
            "Time to connect and to ping",
            "Time to open a connection, failures too, and of a pre-ping. Good: as the network is: a ping under a "
            "millisecond next door, a connection some ten of them. Bad: connecting near its timeout.",
            Query(quantile(0.5, "connect_seconds"), "connect 50%"),
            Query(quantile(0.99, "connect_seconds"), "connect 99%"),
            Query(quantile(0.5, "ping_seconds"), "ping 50%"),
            Query(quantile(0.99, "ping_seconds"), "ping 99%"),
            unit=units.Seconds,
        ),
        timeseries(
            "Checkouts and returns",
            "Connections handed out and given back a second. Good: the same line twice. Bad: returns stay below: "
            "connections are lost, detached, or ever more of them are out.",
            Query(total("checkouts_total"), "handed out"),
            Query(total("checkins_total"), "returned"),
            unit=units.CountsPerSecond,
        ),
        timeseries(
            "Connections that the traffic needs",
            "Mean number in use, from how long the returned ones were held (Little's law), against all processes' "
            "pool_size and capacity (dashed). Good: half of the size. Bad: near the size, which lives on overflow; "
            "near the capacity, which queues; a tenth of it, which keeps connections for nothing.",
            Query(seconds_of("hold_seconds"), "needed"),
            Query(f"sum({state('size')})", "pool_size"),
            Query(f"sum({pool('capacity')})", "capacity", limit=True),
            unit=units.Short,
        ),
    ]


def maintenance() -> list[Builder[Panel]]:
    """Return the panels on why connections open and close, and on the pool's configuration."""
    thrown_away = pool("closes_total", 'reason="overflow"')
    return [
        timeseries(
            "Closed, by reason",
            "Connections closed a second. recycle: by pool_recycle. overflow: beyond pool_size. ping_failed, error: "
            "dead. pool_invalidated: the whole pool after one was dead. gc: leaked. unpooled: NullPool. Good: a "
            "little recycle. Bad: any other that stays; overflow in step with the traffic.",
            Query(f"sum by (reason) ({rate(pool('closes_total'))})", "{{reason}}"),
            unit=units.CountsPerSecond,
            span=12,
            stacked=True,
        ),
        timeseries(
            "Overflow churn",
            "Connections opened, opened beyond pool_size, and closed on return for that. Good: opened near 0. Bad: "
            "all three together: the pool opens and throws away a connection for each burst; a larger pool_size would "
            "keep them.",
            Query(total("connects_total"), "opened"),
            Query(total("overflow_opened_total"), "opened as overflow"),
            Query(f"sum({rate(thrown_away)})", "closed as overflow"),
            unit=units.CountsPerSecond,
            span=12,
        ),
        timeseries(
            "Open connections",
            "Connections by state, and of them those beyond pool_size; and slots whose connection was closed and not "
            "replaced yet. Good: some are idle. Bad: none is idle; all are, for days.",
            Query(f"sum by (state) ({state('connections')})", "{{state}}"),
            Query(f"sum({state('overflow_connections')})", "overflow"),
            Query(f"sum({state('empty_slots')})", "empty slots"),
            unit=units.Short,
        ),
        timeseries(
            "Oldest connection, by process",
            "Age of the oldest open connection, and pool_recycle (dashed) if it is set. Good: falls back at "
            "restarts, deployments and failovers. Bad: older than the last failover: it leads to the old primary. "
            f"{FEW}",
            of_processes(state("oldest_connection_seconds")),
            Query(f"min({state('recycle_seconds')})", "pool_recycle", limit=True),
            unit=units.Seconds,
        ),
        timeseries(
            "Not seen",
            "Open connections that found no room in the table, and faults while recording. Good: 0. Bad: the numbers "
            "above are too small; report it.",
            Query(f"sum({state('untracked_connections')})", "untracked"),
            Query(total("exporter_recording_faults_total"), "faults/s"),
            unit=units.Short,
        ),
        table(
            "Configuration",
            "How each pool is set up; where processes differ, the smallest, and for the overflow the largest. Good: "
            "recycle below what the server allows an idle connection, pre-ping on against a database that cuts them. "
            "Bad: recycle under 300 s: connections are made anew for nothing; ever more pools of a name: an engine is "
            "made again and again.",
            Query(f"count by (job, pool, pool_class, dialect, driver) ({pool('info')})", ""),
            Query(f"sum by (job, pool) ({state('instances')})", "pools"),
            Query(f"min by (job, pool) ({state('size')})", "pool_size"),
            Query(f"max by (job, pool) ({state('max_overflow')})", "max_overflow"),
            Query(f"min by (job, pool) ({state('timeout_seconds')})", "pool_timeout"),
            Query(f"min by (job, pool) ({state('recycle_seconds')})", "pool_recycle"),
            Query(f"min by (job, pool) ({state('pre_ping')})", "pre-ping"),
            Query(f"sum by (job, pool) ({pool('capacity')})", "capacity of all"),
            keys=("job", "pool", "pool_class", "dialect", "driver"),
            columns={
                "pools": Column(),
                "pool_size": Column(),
                "max_overflow": Column(),
                "pool_timeout": Column(units.Seconds),
                "pool_recycle": Column(units.Seconds),
                "pre-ping": Column(units.BoolYesNo),
                "capacity of all": Column(),
            },
            height=6,
        ),
    ]


def board() -> Dashboard:
    """Return the dashboard."""
    return dashboard(
        UID,
        "SQLAlchemy pools / Pool",
        "One connection pool in depth. Choose one; the numbers of several are added up.",
        variables=[*TARGET_VARIABLES, POOL, WORKER],
        rows={
            "Health": health(),
            "Who holds it": holders(),
            "Problems": problems(),
            "Performance": performance(),
            "Maintenance": maintenance(),
        },
    )
