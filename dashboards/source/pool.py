# SPDX-License-Identifier: Apache-2.0
"""The Pool dashboard: who holds the connections, where a checkout's time goes, and why connections close."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import units

from . import recorded
from .frame import POOL, TARGET_VARIABLES, WORKER, dashboard
from .holders import holders
from .panels import AGE, BLUE, CALLERS, EVENTS, GREEN, ORANGE, Query, heatmap, stat, timeseries
from .promql import (
    FEW,
    IN_USE,
    WORKERS,
    buckets,
    exporter,
    fullness,
    largest,
    limit,
    pool,
    rate,
    state,
    stuck,
    targets_up,
)
from .recorded import OVER, folded, rates, rates_of
from .selections import NAME, of_processes, seconds_of, total
from .upkeep import maintenance

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

UID = "sqlalchemy-pool-pool"
IDLE = 'state="idle"'
HELD = state("connections", IN_USE)


def of_histogram_now(name: str) -> tuple[str, str]:
    """Return the same for an instant query, which no mean over the steps of a graph smooths."""
    return recorded.of_pools(f"{name}_bucket:rate"), buckets(name)


def of_histogram(name: str) -> tuple[tuple[str, ...], str]:
    """Return the increase per second of a histogram's buckets, as it is recorded and as the targets show it."""
    return rates(recorded.of_pools(f"{name}_bucket:rate")), buckets(name)


def percentiles(name: str, prefix: str = "", shares: tuple[float, ...] = (0.5, 0.9, 0.99)) -> list[Query]:
    """Return a query for each percentile of a histogram."""
    return [Query(recorded.quantile(q, *of_histogram(name)), f"{prefix}{q:.0%}") for q in shares]


def sum_of(name: str, *matchers: str) -> str:
    """Return the sum of a state over all processes, recorded or not."""
    return folded("sum", "", recorded.of_pools(f"{name}:sum", *matchers), state(name, *matchers))


def spent(histogram: str) -> str:
    """Return the seconds spent in a phase per second, as they are recorded and as the targets show them."""
    return folded(
        "sum", "", rates(recorded.of_pools(f"{histogram}_sum:rate")), rate(pool(f"{histogram}_sum"))
    )


def health() -> list[Builder[Panel]]:
    """Return the panels for a first look."""
    return [
        stat(
            "Targets up",
            "Chosen targets that Prometheus can scrape, of those that showed pools within the last hour. Good: 100 %. "
            "Bad: less: what the others do is not on this page.",
            targets_up(),
            unit=units.PercentUnit,
            warning=1,
            critical=0.5,
            is_good_high=True,
            empty="No target: scrape one",
        ),
        stat(
            "In use",
            "Connections checked out now, in all chosen processes. Neither good nor bad; it follows the traffic.",
            f"sum({HELD})",
            unit=units.Short,
        ),
        stat(
            "Fullest process",
            "The largest share of its connections that one process has in use. Good: under 80 %. Bad: 100 %; the next "
            "caller of that process waits.",
            folded("max", "", recorded.of_pools("in_use:max"), fullness(of_chosen_workers=True)),
            unit=units.PercentUnit,
            warning=0.8,
            critical=0.95,
            empty="No limit is seen",
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
            unit=AGE,
            warning=10,
            critical=60,
        ),
        stat(
            "Stuck for",
            "How long a process that is full has got no connection back, the worst of all; 0 while none is full. Good: "
            "0, or under a second in a busy pool. Bad: minutes: it is stuck, not busy; see Who holds it.",
            folded("max", "", recorded.of_pools("stuck:max"), stuck(of_chosen_workers=True)),
            unit=AGE,
            warning=10,
            critical=120,
            empty="No limit is seen",
        ),
        stat(
            "Wait, 99 %",
            "99 of 100 checkouts got their connection within this time. Good: milliseconds. Bad: more than a request "
            f"may take in all. {OVER}",
            f"{recorded.quantile(0.99, *of_histogram_now('checkout_wait_seconds'))} >= 0",
            unit=units.Seconds,
            warning=0.1,
            critical=1,
            empty="No checkout is seen",
        ),
        stat(
            "Turned away",
            "Callers a second who got an error from pool_timeout. Good: 0. Bad: anything else.",
            total("checkout_timeouts_total"),
            unit=CALLERS,
            critical=1e-9,
        ),
        stat(
            "Failed to connect",
            "Attempts a second to open a connection that failed. Good: 0. Bad: anything else; the database is down, "
            "refuses, or has no connection left.",
            total("connect_errors_total"),
            unit=EVENTS,
            critical=1e-9,
        ),
        stat(
            "Findings of the audit",
            "Common mistakes in how the pools are configured or used, each once. Good: 0. Bad: any; the table Findings "
            "says which, and `sqlalchemy-pool-exporter audit` why, and what to do.",
            f"count(max by (job, pool, rule) ({pool('finding')})) or 0 * count({pool('self_deadlocked')})",
            unit=units.Short,
            warning=1,
        ),
        stat(
            "Exhaustion reports",
            "Reports a second of who had the connections, in the log of the application: at most one a minute of each "
            "pool and process. Good: 0. Bad: any other; the log says who, since when, and the likely cause.",
            total("exhaustion_reports_total"),
            unit=EVENTS,
            critical=1e-9,
        ),
        timeseries(
            "Connections and callers waiting",
            "All processes together: connections in use and idle, the callers that wait on top of them, and what the "
            "pools may open (dashed). Good: some are idle, nobody waits. Bad: in use reaches the dashed line and "
            "callers pile up above it. A gap is time in which nothing was scraped.",
            Query(sum_of("connections", IN_USE), "in use", color=BLUE),
            Query(sum_of("connections", IDLE), "idle", color=GREEN),
            Query(sum_of("pending_checkouts"), "waiting", color=ORANGE),
            Query(f"sum({pool('capacity')})", "capacity", limit=True),
            unit=units.Short,
            span=12,
            stacked=True,
        ),
        timeseries(
            "Stuck for, by process",
            "How long a process that is full has got no connection back; 0 while it is not full or returns. Good: 0, "
            f"or under a second, which is busy. Bad: it climbs, which is stuck: look at what the holders do. {FEW}",
            Query(
                recorded.largest_processes(
                    "instance_pool_worker:sqlalchemy_pool_stuck:seconds", stuck(of_chosen_workers=True)
                ),
                NAME,
            ),
            unit=AGE,
            span=12,
            is_bad=True,
        ),
    ]


def problems() -> list[Builder[Panel]]:
    """Return the panels on starvation, failures and leaks."""
    return [
        timeseries(
            "In use against capacity, by process",
            "Connections in use, and what one process may have (dashed). Good: below it. Bad: on it: that process "
            f"starves, even if its neighbours are idle. {FEW}",
            of_processes(HELD),
            Query(
                folded(
                    "max",
                    "",
                    recorded.of_pools("process_capacity:max"),
                    limit(of_chosen_workers=True),
                ),
                "capacity of one process",
                limit=True,
            ),
            unit=units.Short,
            span=12,
        ),
        timeseries(
            "Event loop lag, by process",
            "How late the event loop of each process is, now or within the last minute. Good: under 0.1 s. Bad: a line "
            f"that climbs: that loop is blocked, and nothing in it returns a connection. {FEW}",
            Query(
                largest("job, instance, worker", exporter("event_loop_lag_seconds", WORKERS)),
                "{{instance}} {{worker}}",
            ),
            unit=units.Seconds,
            span=12,
            is_bad=True,
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
            unit=AGE,
        ),
        timeseries(
            "Checkouts that failed",
            "By pool_timeout (turned away), and otherwise by reason: connect, cancelled by the caller, or other. "
            f"Good: 0. Bad: anything else, each is a failed request. {OVER}",
            Query(rates_of("checkout_timeouts"), "turned away"),
            Query(rates_of("checkout_errors", "reason"), "{{reason}}"),
            unit=CALLERS,
            span=6,
            is_bad=True,
        ),
        timeseries(
            "Errors, by layer",
            "Waits for a connection that timed out (pool), connections that could not be made (connect), pre-pings "
            "that failed (ping), and statements (statement). Good: 0, and a few fatal statements that the code "
            "expects. Bad: retryable that rises points at the server, the network or the load; fatal at a release. "
            f"{OVER}",
            Query(rates_of("errors", "layer, disposition"), "{{layer}} {{disposition}}"),
            unit=EVENTS,
            span=6,
            is_bad=True,
        ),
        timeseries(
            "Dead connections",
            "Pings that failed, connections invalidated after an error (hard) or to be replaced (soft), and attempts "
            "to connect that failed. Good: 0. Bad: pings fail after quiet times: something cuts idle connections. "
            "Hard invalidations without failed pings: turn pool_pre_ping on. All at once: the database restarted. "
            f"{OVER}",
            Query(rates_of("ping_failures"), "pings failed"),
            Query(rates_of("invalidations", "kind"), "invalidated {{kind}}"),
            Query(rates_of("connect_errors"), "connecting failed"),
            unit=EVENTS,
            span=6,
            is_bad=True,
        ),
        timeseries(
            "Leaked and detached",
            "Leaked: nobody returned the connection and the garbage collector found it. Detached: taken out of the "
            "pool for good, by detach(). Not disposed of: engines that ended with connections open. Good: 0. Bad: "
            "leaked at all; each held a slot until it was found.",
            Query(total("leaked_checkouts_total"), "leaked"),
            Query(total("detaches_total"), "detached"),
            Query(f"sum by (when) ({rate(pool('undisposed_total'))})", "not disposed of, {{when}}"),
            unit=EVENTS,
            span=6,
            is_bad=True,
        ),
    ]


def performance() -> list[Builder[Panel]]:
    """Return the panels on where the time goes."""
    attempts = folded(
        "sum",
        "",
        rates(recorded.of_pools("checkout_wait_seconds_bucket:rate", 'le="+Inf"')),
        rate(pool("checkout_wait_seconds_count")),
    )
    wait, connecting, pinging = map(spent, ("checkout_wait_seconds", "connect_seconds", "ping_seconds"))
    return [
        heatmap(
            "Wait for a connection",
            "How many checkouts a second took how long, failures too. Good: one dark band at the bottom. Bad: a "
            f"second band above it; at pool_timeout it is made of callers who got nothing. {OVER}",
            folded("sum", "le", *of_histogram("checkout_wait_seconds")),
            unit=units.Seconds,
        ),
        timeseries(
            "Wait for a connection, percentiles",
            "The whole of connect(). Good: the lines lie near each other, in milliseconds. Bad: 99 % leaves the "
            f"others, which is a queue. {OVER}",
            *percentiles("checkout_wait_seconds"),
            unit=units.Seconds,
            span=12,
        ),
        timeseries(
            "Where a checkout's time goes",
            "The mean wait in its parts: in the queue, connecting, and the pre-ping. Good: hardly anything, of which "
            "the ping is most. Bad: queue: the pool is too small or connections are held too long. connect: it "
            f"connects at each checkout, or the database accepts slowly. ping: the network is slow. {OVER}",
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
            "connection while it does something else. Those that never come back are not in it; see Longest held. "
            f"{OVER}",
            *percentiles("hold_seconds"),
            unit=units.Seconds,
            span=12,
        ),
        timeseries(
            "Time to connect and to ping",
            "Time to open a connection, failures too, and of a pre-ping. Good: as the network is: a ping under a "
            f"millisecond next door, a connection some ten of them. Bad: connecting near its timeout. {OVER}",
            *percentiles("connect_seconds", "connect ", (0.5, 0.99)),
            *percentiles("ping_seconds", "ping ", (0.5, 0.99)),
            unit=units.Seconds,
        ),
        timeseries(
            "Checkouts and returns",
            "Connections handed out and given back a second. Good: the same line twice. Bad: returns stay below: "
            "connections are lost, detached, or ever more of them are out.",
            Query(total("checkouts_total"), "handed out"),
            Query(total("checkins_total"), "returned"),
            unit=EVENTS,
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


def board() -> Dashboard:
    """Return the dashboard."""
    return dashboard(
        UID,
        "SQLAlchemy pools / Pool",
        "One connection pool in depth. Choose one; the numbers of several are added up.",
        # The last two, because they follow the others.
        variables=[*TARGET_VARIABLES, POOL, WORKER, *recorded.variables("instance", "worker")],
        rows={
            "Health": health(),
            "Who holds it": holders(),
            "Problems": problems(),
            "Performance": performance(),
            "Maintenance": maintenance(),
        },
    )
