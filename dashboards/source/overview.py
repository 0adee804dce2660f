# SPDX-License-Identifier: Apache-2.0
"""The Overview dashboard: which pools of all services have problems, and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import units

from .panels import (
    POOL,
    RUNBOOKS,
    TARGET_VARIABLES,
    Column,
    Query,
    dashboard,
    stat,
    table,
    timeseries,
)
from .promql import ALERTS_OF_TARGETS, IN_USE, exporter, fullness, pool, quantile, rate

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

UID = "sqlalchemy-pool-overview"
# Group by job as well: pools of several services may have the same name.
BY = "job, pool"
NAME = "{{job}} {{pool}}"
SITES = 10
TO_POOL = (
    "Look at this pool",
    "/d/sqlalchemy-pool-pool?var-job=${__data.fields.job}&var-pool=${__data.fields.pool}&${datasource:queryparam}&${instance:queryparam}&${__url_time_range}",
)


def by_pool(expr: str) -> str:
    """Return the sum over each pool's processes."""
    return f"sum by ({BY}) ({expr})"


def worst(expr: str) -> str:
    """Return the largest value among each pool's processes."""
    return f"max by ({BY}) ({expr})"


def health() -> list[Builder[Panel]]:
    """Return the panels for a first look."""
    return [
        stat(
            "Pools",
            "Pools that are seen, a name in several processes once. Good: as many as your services have. Bad: fewer "
            "than yesterday; a service is down, or its pool is not instrumented any more.",
            f"count(count by ({BY}) ({pool('info')}))",
            unit=units.Short,
        ),
        stat(
            "Processes",
            "Processes that have a pool and live, the workers behind a sidecar each for itself. Good: as many as are "
            "deployed. Bad: fewer; look at Workers below.",
            f"count(count by (job, instance, worker) ({pool('connections')}))",
            unit=units.Short,
        ),
        stat(
            "Fullest process",
            "The largest share of its connections that one process has in use, size and overflow together. Good: "
            "under 80 %. Bad: 100 %; the next caller in that process waits, however idle its neighbours are.",
            f"max({fullness(of_chosen_workers=False)})",
            unit=units.PercentUnit,
            warning=0.8,
            critical=0.95,
        ),
        stat(
            "Callers waiting",
            "Callers inside connect() now. Good: near 0; a connection is handed out in microseconds. Bad: a number "
            "that stays; they wait for one to come back, or for the database to accept one.",
            f"sum({pool('pending_checkouts')})",
            unit=units.Short,
            warning=1,
            critical=10,
        ),
        stat(
            "Longest wait now",
            "How long the caller who has waited longest has done so. Good: near 0. Bad: close to pool_timeout (30 s "
            "if nobody set it): that caller is about to get an error.",
            f"max({pool('longest_pending_seconds')})",
            unit=units.Seconds,
            warning=1,
            critical=10,
        ),
        stat(
            "Wait, 99 %",
            "99 of 100 checkouts got their connection within this time. Good: milliseconds. Bad: more than a request "
            "may take in all. Nothing is shown while nobody checks out.",
            f"{quantile(0.99, 'checkout_wait_seconds')} >= 0",
            unit=units.Seconds,
            warning=0.1,
            critical=1,
        ),
        stat(
            "Turned away",
            "Callers a second who got `QueuePool limit … reached, connection timed out` instead of a connection. "
            "Good: 0. Bad: anything else; those requests failed.",
            f"sum({rate(pool('checkout_timeouts_total'))})",
            unit=units.CountsPerSecond,
            critical=1e-9,
        ),
        stat(
            "Failed to connect",
            "Attempts a second to open a connection that failed. Good: 0. Bad: anything else; the database is down, "
            "refuses, or has no connection left.",
            f"sum({rate(pool('connect_errors_total'))})",
            unit=units.CountsPerSecond,
            critical=1e-9,
        ),
    ]


def problems() -> list[Builder[Panel]]:
    """Return the panels that show which pool fails, and how."""
    return [
        table(
            "Alerts that fire",
            "Each alert of the rules that fires for the chosen targets; its name leads to the runbook. Good: empty. "
            "Bad: a critical one; somebody is turned away now. Alerts about a whole service or a database have no "
            "instance: those are among the red marks in the graphs.",
            Query(
                f"max by (alertname, severity, job, pool, database, instance) ({ALERTS_OF_TARGETS})",
                "",
            ),
            keys=("severity", "alertname", "job", "pool", "database", "instance"),
            columns={},
            sort_by=("severity", "asc"),  # critical, info, warning
            links={"alertname": ("Runbook", f"{RUNBOOKS}/${{__value.raw}}.md")},
            height=6,
        ),
        table(
            "Pools that hurt",
            "Every pool with what can be wrong with it, the worst wait first; a click on a name opens the pool. Good: "
            "green. Bad: red in Fullest and Waiting is starvation, in Held a slow or leaking holder, in Self-deadlock "
            "code that checks out twice, in Pings failed a server that cuts connections, in Overflow a pool that is "
            "too small.",
            Query(f"{quantile(0.99, 'checkout_wait_seconds', BY)} >= 0", "Wait 99 %"),
            Query(worst(fullness(of_chosen_workers=False)), "Fullest"),
            Query(by_pool(pool("pending_checkouts")), "Waiting"),
            Query(worst(pool("longest_pending_seconds")), "Longest wait"),
            Query(worst(pool("longest_held_seconds")), "Longest held"),
            Query(by_pool(pool("self_deadlocked")), "Self-deadlock"),
            Query(by_pool(rate(pool("checkout_timeouts_total"))), "Turned away"),
            Query(by_pool(rate(pool("connect_errors_total"))), "Connect errors"),
            Query(by_pool(rate(pool("ping_failures_total"))), "Pings failed"),
            Query(by_pool(rate(pool("overflow_opened_total"))), "Overflow opened"),
            Query(by_pool(rate(pool("leaked_checkouts_total"))), "Leaked"),
            keys=("job", "pool"),
            columns={
                "Wait 99 %": Column(units.Seconds, 0.1, 1),
                "Fullest": Column(units.PercentUnit, 0.8, 0.95),
                "Waiting": Column(units.Short, 1, 10),
                "Longest wait": Column(units.Seconds, 1, 10),
                "Longest held": Column(units.Seconds, 10, 60),
                "Self-deadlock": Column(units.Short, critical=1),
                "Turned away": Column(units.CountsPerSecond, critical=1e-9),
                "Connect errors": Column(units.CountsPerSecond, critical=1e-9),
                "Pings failed": Column(units.CountsPerSecond, warning=1e-9),
                "Overflow opened": Column(units.CountsPerSecond, warning=0.1),
                "Leaked": Column(units.CountsPerSecond, critical=1e-9),
            },
            links={"pool": TO_POOL},
            sort_by=("Wait 99 %", "desc"),
        ),
        table(
            "Who holds the most",
            "The places in the applications (module:function:line) that hold the most connections now, and the "
            "longest; a click on the pool opens it. Good: what the traffic of that place needs. Bad: most of a pool "
            "that is full, or minutes: that is who has it.",
            Query(f"topk({SITES}, sum by ({BY}, site) ({pool('held_connections')}))", "Held"),
            Query(
                f"topk({SITES}, max by ({BY}, site) ({pool('site_longest_held_seconds')}))", "Longest held"
            ),
            keys=("job", "pool", "site"),
            columns={"Held": Column(), "Longest held": Column(units.Seconds, 10, 60)},
            links={"pool": TO_POOL},
            sort_by=("Held", "desc"),
        ),
        timeseries(
            "Callers turned away, by pool",
            "Checkouts a second that ended with pool_timeout. Good: a line at 0. Bad: a step up: from then on "
            "requests failed, and the pool it belongs to is the one to open.",
            Query(by_pool(rate(pool("checkout_timeouts_total"))), NAME),
            unit=units.CountsPerSecond,
            span=6,
        ),
        timeseries(
            "Checkouts that failed otherwise, by reason",
            "connect: the connection could not be made. cancelled: the caller gave up, such as a request whose client "
            "went away. other: such as a listener that raised. Good: 0. Bad: connect at all; cancelled that rises "
            "together with the wait.",
            Query(f"sum by (reason) ({rate(pool('checkout_errors_total'))})", "{{reason}}"),
            unit=units.CountsPerSecond,
            span=6,
        ),
        timeseries(
            "Errors, by layer",
            "Of the wait for a connection (pool), of connecting (connect), of the pre-ping (ping) and of statements "
            "(statement). Good: 0, and a few fatal statements that the code expects. Bad: retryable that rises, which "
            "is the server, the network or the load; fatal that rises, which is a release.",
            Query(f"sum by (layer, disposition) ({rate(pool('errors_total'))})", "{{layer}} {{disposition}}"),
            unit=units.CountsPerSecond,
            span=6,
        ),
        timeseries(
            "Dead, invalidated and leaked connections",
            "Good: 0. Bad: failed pings and hard invalidations say that the server, or something between, ends "
            "connections that are still wanted; leaks that code forgets to return them.",
            Query(f"sum({rate(pool('ping_failures_total'))})", "pings failed"),
            Query(f"sum by (kind) ({rate(pool('invalidations_total'))})", "invalidated {{kind}}"),
            Query(f"sum({rate(pool('leaked_checkouts_total'))})", "leaked"),
            unit=units.CountsPerSecond,
            span=6,
        ),
    ]


def performance() -> list[Builder[Panel]]:
    """Return the panels on how fast and how full the pools are."""
    return [
        timeseries(
            "Wait for a connection, all chosen pools",
            "The whole of connect(): queue, connecting and pre-ping. Good: the lines lie near each other, in "
            "milliseconds. Bad: 99 % leaves the others, which is a queue; all rise, which is a slow database.",
            Query(quantile(0.5, "checkout_wait_seconds"), "50 %"),
            Query(quantile(0.9, "checkout_wait_seconds"), "90 %"),
            Query(quantile(0.99, "checkout_wait_seconds"), "99 %"),
            unit=units.Seconds,
        ),
        timeseries(
            "Wait for a connection, 99 % by pool",
            "99 of 100 checkouts took at most this long. Good: milliseconds. Bad: one line far above the others is "
            "the pool to open; all of them together are the database or the network.",
            Query(quantile(0.99, "checkout_wait_seconds", BY), NAME),
            unit=units.Seconds,
        ),
        timeseries(
            "Fullest process, by pool",
            "Share of its connections that the fullest process of each pool has in use. Good: peaks under 80 %. Bad: "
            "a line that lies at 100 %; callers of that process wait. Pools without a limit have no line.",
            Query(worst(fullness(of_chosen_workers=False)), NAME),
            unit=units.PercentUnit,
        ),
        timeseries(
            "In use, by pool",
            "Connections that are checked out, in all processes together. Good: follows the traffic. Bad: rises while "
            "the checkouts do not; each is held longer, or is never returned.",
            Query(by_pool(pool("connections", IN_USE)), NAME),
            unit=units.Short,
        ),
        timeseries(
            "Callers waiting, by pool",
            "Callers inside connect(), in all processes together. Good: 0 with short peaks. Bad: a level that stays "
            "or grows; more work comes in than connections come back.",
            Query(by_pool(pool("pending_checkouts")), NAME),
            unit=units.Short,
        ),
        timeseries(
            "Checkouts, by pool",
            "Connections handed out a second. Good: follows the requests. Bad: falls while callers wait; much more "
            "than requests come in, which is a connection taken for each statement.",
            Query(by_pool(rate(pool("checkouts_total"))), NAME),
            unit=units.CountsPerSecond,
        ),
    ]


def maintenance() -> list[Builder[Panel]]:
    """Return the panels for routine checks: capacity, and the exporter itself."""
    live, gone = (exporter("exporter_workers", f'state="{state}"') for state in ("live", "gone"))
    return [
        timeseries(
            "Capacity, by pool",
            "What all processes together may open: pool_size and max_overflow of each. Good: the database can "
            "take the sum of all that use it, see the Database dashboard. Bad: it grows with each deployment.",
            Query(by_pool(pool("capacity")), NAME),
            unit=units.Short,
            span=6,
        ),
        timeseries(
            "Workers",
            "Worker processes that share a directory. Good: live is what is deployed, gone stays where it is. Bad: "
            "live falls; gone rises by a worker that died and that nobody replaced.",
            Query(f"sum({live})", "live"),
            Query(f"sum({gone})", "gone"),
            unit=units.Short,
            span=6,
        ),
        timeseries(
            "Time to collect",
            "How long the exporter took to collect a scrape, the slowest of each service. Good: milliseconds. Bad: "
            "near the scrape timeout; the next is missing.",
            Query(f"max by (job) ({exporter('exporter_scrape_duration_seconds')})", "{{job}}"),
            unit=units.Seconds,
            span=6,
        ),
        timeseries(
            "What the exporter could not see",
            "Good: all at 0. Bad: files in the segments' directory that cannot be read, are of another version or are "
            "damaged; connections that found no room in the table; pools that could not be read or recorded.",
            Query(f"sum by (reason) ({exporter('exporter_segment_errors')})", "segment {{reason}}"),
            Query(f"sum({pool('untracked_connections')})", "connections untracked"),
            Query(f"sum({rate(exporter('exporter_recording_faults_total'))})", "recording faults/s"),
            Query(f"sum({rate(exporter('exporter_scrape_errors_total'))})", "pools not read/s"),
            unit=units.Short,
            span=6,
        ),
        stat(
            "Configuration is the file's",
            "Whether every sidecar works with the configuration that is in its files. Good: Yes. Bad: No; a reload "
            "failed, and one goes on with what it had.",
            f"min({exporter('exporter_config_last_reload_successful')})",
            unit=units.BoolYesNo,
            span=4,
            warning=1,
            is_good_high=True,
        ),
        stat(
            "Configuration read",
            "When the configuration at work was read, in the sidecar that did so longest ago. Good: since the last "
            "change. Bad: before it.",
            f"min({exporter('exporter_config_last_reload_success_timestamp_seconds')}) * 1000",
            unit=units.DateTimeFromNow,
            span=4,
        ),
        stat(
            "Segments shared",
            "Whether each application that was given a directory for a sidecar can write there. Good: Yes. Bad: No; "
            "the sidecar does not see one of its pools. Applications scraped by themselves say it; sidecars cannot.",
            f"min({exporter('exporter_segment_shared')})",
            unit=units.BoolYesNo,
            span=4,
            warning=1,
            is_good_high=True,
        ),
        table(
            "Versions",
            "Which versions are at work, and in how many targets. Good: one line. Bad: an old one after a "
            "rollout; a hot path that is interpreted where it could be compiled.",
            Query(
                f"count by (version, python, sqlalchemy, hot_path) ({exporter('exporter_build_info')})",
                "Targets",
            ),
            keys=("version", "python", "sqlalchemy", "hot_path"),
            columns={"Targets": Column()},
            span=12,
            height=4,
        ),
        table(
            "Findings of the audit",
            "Common mistakes in how pools are configured or used, and in how many targets each is found. Good: empty. "
            "Bad: any: `sqlalchemy-pool-exporter audit` says why it is one, and what to do.",
            Query(f"count by (job, pool, rule) ({pool('finding')})", "Targets"),
            keys=("job", "pool", "rule"),
            columns={"Targets": Column()},
            links={"pool": TO_POOL},
            height=6,
        ),
    ]


def board() -> Dashboard:
    """Return the dashboard."""
    return dashboard(
        UID,
        "SQLAlchemy pools / Overview",
        "Connection pools of all services: which one hurts, and how.",
        variables=[*TARGET_VARIABLES, POOL],
        rows={
            "Health": health(),
            "Problems": problems(),
            "Performance": performance(),
            "Maintenance": maintenance(),
        },
    )
