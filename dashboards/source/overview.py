# SPDX-License-Identifier: Apache-2.0
"""The Overview dashboard: which pools of all services have problems, and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import units

from . import recorded
from .alerts import RUNBOOKS
from .exporter_health import maintenance
from .frame import POOL, TARGET_VARIABLES, dashboard
from .panels import AGE, BLUE, CALLERS, EVENTS, ORANGE, RED, Query, stat, timeseries
from .promql import (
    IN_USE,
    alerts_of_targets,
    buckets,
    fullness,
    pool,
    rate,
    stuck,
    targets_up,
    top,
)
from .recorded import OVER, folded, rates, rates_of, variables
from .tables import Column, table

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

UID = "sqlalchemy-pool-overview"
# Group by job as well: pools of several services may have the same name.
BY = "job, pool"
NAME = "{{job}} {{pool}}"
_WAITS = recorded.of_pools("checkout_wait_seconds_bucket:rate")
WAIT = (rates(_WAITS), buckets("checkout_wait_seconds"))
WAIT_NOW = (_WAITS, buckets("checkout_wait_seconds"))
TO_POOL = (
    "Look at this pool",
    "/d/sqlalchemy-pool-pool?var-job=${__data.fields.job}&var-pool=${__data.fields.pool}&${datasource:queryparam}&${cluster:queryparam}&${namespace:queryparam}&${instance:queryparam}&${__url_time_range}",
)


FULLEST = (recorded.of_pools("in_use:max"), fullness(of_chosen_workers=False))
STUCK = (recorded.of_pools("stuck:max"), stuck(of_chosen_workers=False))


def by_pool(expr: str) -> str:
    """Return the sum over each pool's processes."""
    return f"sum by ({BY}) ({expr})"


def sum_of(name: str, *matchers: str, by: str = BY) -> str:
    """Return the sum of a state over each pool's processes, recorded or not."""
    return folded("sum", by, recorded.of_pools(f"{name}:sum", *matchers), pool(name, *matchers))


def worst_of(name: str, *, by: str = BY) -> str:
    """Return the largest value of a state among each pool's processes, recorded or not."""
    return folded("max", by, recorded.of_pools(f"{name}:max"), pool(name))


def of_pools(expr: str) -> Query:
    """Return a query of the pools with the largest values, one series for each pool."""
    return Query(top(expr), NAME)


def health() -> list[Builder[Panel]]:
    """Return the panels for a first look."""
    return [
        stat(
            "Targets up",
            "Targets that Prometheus can scrape, of those that showed pools within the last hour. Good: 100 %. Bad: "
            "less: what the others do is not on this page.",
            targets_up(),
            unit=units.PercentUnit,
            warning=1,
            critical=0.5,
            is_good_high=True,
            empty="No target: scrape one",
        ),
        stat(
            "Pools",
            "Pools that are seen, a name in several processes once. Neither good nor bad; fewer than yesterday: a "
            "service is down, or its pool is not instrumented any more.",
            f"count(count by ({BY}) ({pool('info')}))",
            unit=units.Short,
        ),
        stat(
            "Processes",
            "Processes that have a pool and live, the workers behind a sidecar each for itself. Neither good nor bad; "
            "fewer than are deployed: look at Workers below.",
            f"count(count by (job, instance, worker) ({pool('instances')}))",
            unit=units.Short,
        ),
        stat(
            "Fullest process",
            "The largest share of its connections that one process has in use, size and overflow together. Good: "
            "under 80 %. Bad: 100 %; the next caller in that process waits, however idle its neighbours are.",
            folded("max", "", *FULLEST),
            unit=units.PercentUnit,
            warning=0.8,
            critical=0.95,
            empty="No limit is seen",
        ),
        stat(
            "Callers waiting",
            "Callers inside connect() now. Good: near 0, whatever the traffic. Bad: a number that stays: connections "
            "come back more slowly than they are asked for.",
            sum_of("pending_checkouts", by=""),
            unit=units.Short,
            warning=1,
            critical=10,
        ),
        stat(
            "Longest wait now",
            "How long the caller who has waited longest has done so. Good: near 0. Bad: close to pool_timeout (30 s "
            "if nobody set it): that caller is about to get an error.",
            worst_of("longest_pending_seconds", by=""),
            unit=units.Seconds,
            warning=1,
            critical=10,
        ),
        stat(
            "Stuck for",
            "How long a process that is full has got no connection back, the worst of all. Good: 0, or under a second "
            "in a busy pool. Bad: minutes: its holders do not come on; Pools that hurt says in which pool.",
            folded("max", "", *STUCK),
            unit=AGE,
            warning=10,
            critical=120,
            empty="No limit is seen",
        ),
        stat(
            "Self-deadlocked",
            "Pools whose holders all wait for another connection of the same pool. Good: 0. Bad: any other; none of "
            "them can go on before a checkout times out.",
            sum_of("self_deadlocked", by=""),
            unit=units.Short,
            critical=1,
        ),
        stat(
            "Wait, 99 %",
            "99 of 100 checkouts got their connection within this time. Good: milliseconds. Bad: more than a request "
            f"may take in all. {OVER}",
            f"{recorded.quantile(0.99, *WAIT_NOW)} >= 0",
            unit=units.Seconds,
            warning=0.1,
            critical=1,
            empty="No checkout is seen",
        ),
        stat(
            "Turned away",
            "Callers a second who got `QueuePool limit … reached, connection timed out` instead of a connection. "
            "Good: 0. Bad: anything else; those requests failed.",
            f"sum({rate(pool('checkout_timeouts_total'))})",
            unit=CALLERS,
            critical=1e-9,
        ),
        stat(
            "Failed to connect",
            "Attempts a second to open a connection that failed. Good: 0. Bad: anything else; the database is down, "
            "refuses, or has no connection left.",
            f"sum({rate(pool('connect_errors_total'))})",
            unit=EVENTS,
            critical=1e-9,
        ),
        stat(
            "Findings of the audit",
            "Common mistakes in how pools are configured or used, each once. Good: 0. Bad: any; the table below says "
            "which, and of which pool.",
            f"count(max by ({BY}, rule) ({pool('finding')})) or 0 * count({pool('self_deadlocked')})",
            unit=units.Short,
            warning=1,
        ),
    ]


def _alerts() -> str:
    """Return the alerts that fire, with a number for their severity, because names would sort info above warning."""
    labels = "alertname, pool, database, job, instance"
    ranks = {"critical": 3, "warning": 2, "info": 1}
    return " or ".join(
        f"max by ({labels}) ({alerts_of_targets(name)}) * {rank}" for name, rank in ranks.items()
    )


def problems() -> list[Builder[Panel]]:
    """Return the panels that show which pool fails, and how."""
    return [
        table(
            "Alerts that fire",
            "Each alert of the rules that fires for the chosen targets, the most severe first; its name leads to the "
            "runbook. Good: empty. Bad: a critical one; somebody is turned away now. Alerts about a whole service or a "
            "database have no instance: those are among the red marks in the graphs. Without the rules it is always "
            "empty.",
            Query(_alerts(), "Severity"),
            keys=("alertname", "pool", "database"),
            last_keys=("job", "instance"),
            columns={
                "Severity": Column(
                    mappings={3: ("critical", RED), 2: ("warning", ORANGE), 1: ("info", BLUE)}
                ),
            },
            sort_by=("Severity",),
            links={"alertname": ("Runbook", f"{RUNBOOKS}/${{__value.raw}}.md"), "pool": TO_POOL},
            height=6,
        ),
        table(
            "Pools that hurt",
            "Every pool with what can be wrong with it, the one that is stuck worst first: by the longest wait and "
            "how full it is. A click on a name opens the pool. Good: green. Bad: red in Waits for and Full is "
            "starvation, in Stuck or Held for a holder that does not come on, in Deadlock code that checks out twice, "
            "in Dead pings a server that cuts connections, in Overflow a pool that is too small. "
            f"{OVER}",
            Query(worst_of("longest_pending_seconds"), "Waits for"),
            Query(folded("max", BY, *FULLEST), "Full"),
            Query(sum_of("pending_checkouts"), "Waiting"),
            Query(folded("max", BY, *STUCK), "Stuck for"),
            Query(worst_of("longest_held_seconds"), "Held for"),
            Query(by_pool(rate(pool("checkout_timeouts_total"))), "Turned away"),
            Query(sum_of("self_deadlocked"), "Deadlock"),
            Query(f"{recorded.quantile(0.99, *WAIT_NOW, BY)} >= 0", "Wait 99 %"),
            Query(by_pool(rate(pool("connect_errors_total"))), "No connect"),
            Query(by_pool(rate(pool("ping_failures_total"))), "Dead pings"),
            Query(by_pool(rate(pool("overflow_opened_total"))), "Overflow"),
            Query(by_pool(rate(pool("leaked_checkouts_total"))), "Leaked"),
            keys=("pool",),
            last_keys=("job",),
            columns={
                "Waits for": Column(units.Seconds, 1, 10, width=85),
                "Full": Column(units.PercentUnit, 0.8, 0.95, width=70),
                "Waiting": Column(units.Short, 1, 10, width=75),
                "Stuck for": Column(AGE, 10, 120),
                "Held for": Column(AGE, 10, 60),
                "Turned away": Column(CALLERS, critical=1e-9, width=105),
                "Deadlock": Column(units.Short, critical=1, width=85),
                "Wait 99 %": Column(units.Seconds, 0.1, 1),
                "No connect": Column(EVENTS, critical=1e-9, width=105),
                "Dead pings": Column(EVENTS, warning=1e-9, width=105),
                "Overflow": Column(EVENTS, warning=0.1, width=105),
                "Leaked": Column(EVENTS, critical=1e-9, width=105),
            },
            links={"pool": TO_POOL},
            sort_by=("Waits for", "Full"),
        ),
        table(
            "Who holds the most",
            "The places in the applications (module:function:line) that hold the most connections now, and the "
            "longest; a click on the pool opens it. Good: what the traffic of that place needs. Bad: most of a pool "
            "that is full, or minutes: that is who has it.",
            Query(
                top(
                    folded(
                        "sum",
                        f"{BY}, site",
                        recorded.of_sites("held_connections:sum"),
                        pool("held_connections"),
                    )
                ),
                "Held",
            ),
            Query(
                top(
                    folded(
                        "max",
                        f"{BY}, site",
                        recorded.of_sites("site_longest_held_seconds:max"),
                        pool("site_longest_held_seconds"),
                    )
                ),
                "Held for",
            ),
            keys=("site", "pool"),
            last_keys=("job",),
            columns={"Held": Column(width=70), "Held for": Column(AGE, 10, 60)},
            links={"pool": TO_POOL},
            sort_by=("Held", "Held for"),
        ),
        timeseries(
            "Callers turned away, by pool",
            "Checkouts a second that ended with pool_timeout. Good: a line at 0. Bad: a step up: from then on "
            f"requests failed, and the pool it belongs to is the one to open. {OVER}",
            of_pools(rates_of("checkout_timeouts", BY)),
            unit=CALLERS,
            span=6,
            is_bad=True,
        ),
        timeseries(
            "Failed otherwise, by reason",
            "connect: the connection could not be made. cancelled: the caller gave up, such as a request whose client "
            "went away. other: such as a listener that raised. Good: 0. Bad: connect at all; cancelled that rises "
            f"together with the wait. {OVER}",
            Query(rates_of("checkout_errors", "reason"), "{{reason}}"),
            unit=EVENTS,
            span=6,
            is_bad=True,
        ),
        timeseries(
            "Errors, by layer",
            "Of the wait for a connection (pool), of connecting (connect), of the pre-ping (ping) and of statements "
            "(statement). Good: 0, and a few fatal statements that the code expects. Bad: retryable that rises, which "
            f"is the server, the network or the load; fatal that rises, which is a release. {OVER}",
            Query(rates_of("errors", "layer, disposition"), "{{layer}} {{disposition}}"),
            unit=EVENTS,
            span=6,
            is_bad=True,
        ),
        timeseries(
            "Dead, invalidated and leaked",
            "Good: 0. Bad: failed pings and hard invalidations say that the server, or something between, ends "
            f"connections that are still wanted; leaks that code forgets to return them. {OVER}",
            Query(rates_of("ping_failures"), "pings failed"),
            Query(rates_of("invalidations", "kind"), "invalidated {{kind}}"),
            Query(rates_of("leaked_checkouts"), "leaked"),
            unit=EVENTS,
            span=6,
            is_bad=True,
        ),
    ]


def performance() -> list[Builder[Panel]]:
    """Return the panels on how fast and how full the pools are."""
    return [
        timeseries(
            "Wait for a connection, all chosen pools",
            "The whole of connect(): queue, connecting and pre-ping. Good: the lines lie near each other, in "
            f"milliseconds. Bad: 99 % leaves the others, which is a queue; all rise, which is a slow database. {OVER}",
            Query(recorded.quantile(0.5, *WAIT), "50 %"),
            Query(recorded.quantile(0.9, *WAIT), "90 %"),
            Query(recorded.quantile(0.99, *WAIT), "99 %"),
            unit=units.Seconds,
        ),
        timeseries(
            "Wait for a connection, 99 % by pool",
            "99 of 100 checkouts took at most this long. Good: milliseconds. Bad: one line far above the others is "
            f"the pool to open; all of them together are the database or the network. {OVER}",
            of_pools(recorded.quantile(0.99, *WAIT, BY)),
            unit=units.Seconds,
            min_interval="30s",  # of a fleet's pools, this is the query that takes longest
        ),
        timeseries(
            "Fullest process, by pool",
            "Share of its connections that the fullest process of each pool has in use. Good: peaks under 80 %. Bad: "
            "a line that lies at 100 %; callers of that process wait. Pools without a limit have no line.",
            of_pools(folded("max", BY, *FULLEST)),
            unit=units.PercentUnit,
        ),
        timeseries(
            "In use, by pool",
            "Connections that are checked out, in all processes together. Good: follows the traffic. Bad: rises while "
            "the checkouts do not; each is held longer, or is never returned.",
            of_pools(sum_of("connections", IN_USE)),
            unit=units.Short,
        ),
        timeseries(
            "Callers waiting, by pool",
            "Callers inside connect(), in all processes together. Good: 0 with short peaks. Bad: a level that stays "
            "or grows; more work comes in than connections come back.",
            of_pools(sum_of("pending_checkouts")),
            unit=units.Short,
        ),
        timeseries(
            "Checkouts, by pool",
            "Connections handed out a second. Good: follows the requests. Bad: falls while callers wait; much more "
            f"than requests come in, which is a connection taken for each statement. {OVER}",
            of_pools(rates_of("checkouts", BY)),
            unit=EVENTS,
        ),
    ]


def board() -> Dashboard:
    """Return the dashboard."""
    return dashboard(
        UID,
        "SQLAlchemy pools / Overview",
        "Connection pools of all services: which one hurts, and how.",
        variables=[*TARGET_VARIABLES, *variables("instance"), POOL],
        rows={
            "Health": health(),
            "Problems": problems(),
            "Performance": performance(),
            "Maintenance": maintenance(TO_POOL),
        },
    )
