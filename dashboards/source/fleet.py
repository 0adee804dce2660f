# SPDX-License-Identifier: Apache-2.0
"""The Fleet dashboard: what hundreds of targets do together, from recorded series alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import units

from .frame import CLUSTER, JOB, NAMESPACE, dashboard, variable
from .panels import AGE, CALLERS, EVENTS, Query, stat, timeseries
from .promql import FEW, FLEET, top
from .tables import Column, table

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

UID = "sqlalchemy-pool-fleet"
OF_FLEET = f'{FLEET}, job=~"$job"'
BY = "cluster, namespace, job, pool"
NAME = "{{cluster}} {{namespace}} {{job}} {{pool}}"
_LIVE = 'state="live"'
RULES = "No data: load the rules"
_VARIABLES = "${datasource:queryparam}&${cluster:queryparam}&${namespace:queryparam}&${__url_time_range}"
TO_OVERVIEW = (
    "Look at its targets",
    f"/d/sqlalchemy-pool-overview?var-job=${{__data.fields.job}}&var-pool=${{__data.fields.pool}}&{_VARIABLES}",
)


def of_targets(name: str, *matchers: str) -> str:
    """Select a recorded series of the chosen services."""
    return f"fleet:sqlalchemy_pool_{name}{{{', '.join((OF_FLEET, *matchers))}}}"


def of_pools(name: str) -> str:
    """Select a recorded series of the chosen pools."""
    return f'fleet_pool:sqlalchemy_pool_{name}{{{OF_FLEET}, pool=~"$pool"}}'


def quantile(q: float, histogram: str, by: str = "") -> str:
    """Return a quantile of a recorded histogram."""
    labels = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({q:g}, sum by ({labels}) ({of_pools(f'{histogram}_bucket:rate')}))"


def _by_pool(expr: str, fold: str = "sum") -> str:
    return f"{fold} by ({BY}) ({expr})"


def _largest(expr: str, fold: str = "sum") -> Query:
    return Query(top(_by_pool(expr, fold)), NAME)


def health() -> list[Builder[Panel]]:
    """Return the panels for a first look."""
    up, count = of_targets("targets_up:ratio"), of_targets("targets:count")
    return [
        stat(
            "Targets up",
            "Targets that Prometheus can scrape, of those that showed pools lately. Good: 100 %. Bad: less: what the "
            "others do is not on this page.",
            f"sum({up} * {count}) / sum({count})",
            unit=units.PercentUnit,
            warning=1,
            critical=0.5,
            is_good_high=True,
            empty=RULES,
        ),
        stat(
            "Targets",
            "Targets that showed pools lately. Neither good nor bad; fewer than are deployed: some are not scraped.",
            f"sum({count})",
            unit=units.Short,
            empty=RULES,
        ),
        stat(
            "Live workers",
            "Worker processes that live. Neither good nor bad; fewer than are deployed: look at Overview.",
            f"sum({of_targets('exporter_workers:sum', _LIVE)})",
            unit=units.Short,
            empty=RULES,
        ),
        stat(
            "Fullest process",
            "The largest share of its connections that one process has in use. Good: under 80 %. Bad: 100 %; the next "
            "caller of that process waits.",
            f"max({of_pools('in_use:max')})",
            unit=units.PercentUnit,
            warning=0.8,
            critical=0.95,
            empty=RULES,
        ),
        stat(
            "Callers waiting",
            "Callers inside connect() now. Good: few, for its size. Bad: a number that stays.",
            f"sum({of_pools('pending_checkouts:sum')})",
            unit=units.Short,
            warning=10,
            critical=100,
            empty=RULES,
        ),
        stat(
            "Longest wait now",
            "How long the caller who has waited longest has done so. Good: near 0. Bad: close to pool_timeout.",
            f"max({of_pools('longest_pending_seconds:max')})",
            unit=units.Seconds,
            warning=1,
            critical=10,
            empty=RULES,
        ),
        stat(
            "Longest held now",
            "How long the oldest checkout has not been returned. Good: as long as your longest request. Bad: minutes.",
            f"max({of_pools('longest_held_seconds:max')})",
            unit=AGE,
            warning=10,
            critical=60,
            empty=RULES,
        ),
        stat(
            "Self-deadlocked",
            "Pools whose holders all wait for another connection of the same pool. Good: 0. Bad: any other.",
            f"sum({of_pools('self_deadlocked:sum')})",
            unit=units.Short,
            critical=1,
            empty=RULES,
        ),
        stat(
            "Wait, 99 %",
            "99 of 100 checkouts got their connection within this time. Good: milliseconds. Bad: more than a request "
            "may take in all.",
            f"{quantile(0.99, 'checkout_wait_seconds')} >= 0",
            unit=units.Seconds,
            warning=0.1,
            critical=1,
            empty=RULES,
        ),
        stat(
            "Turned away",
            "Callers a second who got an error from pool_timeout. Good: 0. Bad: anything else.",
            f"sum({of_pools('checkout_timeouts:rate')})",
            unit=CALLERS,
            critical=1e-9,
            empty=RULES,
        ),
        stat(
            "Failed to connect",
            "Attempts a second to open a connection that failed. Good: 0. Bad: anything else.",
            f"sum({of_pools('connect_errors:rate')})",
            unit=EVENTS,
            critical=1e-9,
            empty=RULES,
        ),
        stat(
            "Leaked",
            "Connections a second that nobody returned. Good: 0. Bad: anything else; Pool says where in the code.",
            f"sum({of_pools('leaked_checkouts:rate')})",
            unit=EVENTS,
            critical=1e-9,
            empty=RULES,
        ),
    ]


def problems() -> list[Builder[Panel]]:
    """Return the panels that show which pool of which service fails, and how."""
    return [
        table(
            "Pools that hurt",
            "Every pool of every service with what can be wrong with it, the one with the longest wait first, then the "
            "fullest. A click on a name opens its targets in Overview. Good: green. Bad: red.",
            Query(_by_pool(of_pools("longest_pending_seconds:max"), "max"), "Waits for"),
            Query(_by_pool(of_pools("in_use:max"), "max"), "Full"),
            Query(_by_pool(of_pools("pending_checkouts:sum")), "Waiting"),
            Query(_by_pool(of_pools("longest_held_seconds:max"), "max"), "Held for"),
            Query(_by_pool(of_pools("checkout_timeouts:rate")), "Turned away"),
            Query(_by_pool(of_pools("self_deadlocked:sum")), "Deadlock"),
            Query(f"{quantile(0.99, 'checkout_wait_seconds', BY)} >= 0", "Wait 99 %"),
            Query(_by_pool(of_pools("connect_errors:rate")), "No connect"),
            Query(_by_pool(of_pools("ping_failures:rate")), "Dead pings"),
            Query(_by_pool(of_pools("overflow_opened:rate")), "Overflow"),
            keys=("pool",),
            last_keys=("job", "namespace", "cluster"),
            columns={
                "Waits for": Column(units.Seconds, 1, 10, width=85),
                "Full": Column(units.PercentUnit, 0.8, 0.95, width=70),
                "Waiting": Column(units.Short, 1, 10, width=75),
                "Held for": Column(AGE, 10, 60),
                "Turned away": Column(CALLERS, critical=1e-9, width=105),
                "Deadlock": Column(units.Short, critical=1, width=85),
                "Wait 99 %": Column(units.Seconds, 0.1, 1),
                "No connect": Column(EVENTS, critical=1e-9, width=105),
                "Dead pings": Column(EVENTS, warning=1e-9, width=105),
                "Overflow": Column(EVENTS, warning=0.1, width=105),
            },
            links={"pool": TO_OVERVIEW},
            sort_by=("Waits for", "Full"),
        ),
        timeseries(
            "Longest wait, by pool",
            f"Of the caller who has waited longest. Good: near 0. Bad: a line that climbs to pool_timeout. {FEW}",
            _largest(of_pools("longest_pending_seconds:max"), "max"),
            unit=units.Seconds,
        ),
        timeseries(
            "Callers turned away, by pool",
            f"Checkouts a second that ended with pool_timeout. Good: a line at 0. Bad: a step up. {FEW}",
            _largest(of_pools("checkout_timeouts:rate")),
            unit=CALLERS,
            is_bad=True,
        ),
        timeseries(
            "Failed to connect, by pool",
            f"Attempts a second that failed. Good: 0. Bad: many services at once: their database. {FEW}",
            _largest(of_pools("connect_errors:rate")),
            unit=EVENTS,
            is_bad=True,
        ),
    ]


def performance() -> list[Builder[Panel]]:
    """Return the panels on how fast and how full the pools are."""
    return [
        timeseries(
            "Wait for a connection, all chosen pools",
            "The whole of connect(). Good: the lines lie near each other, in milliseconds. Bad: 99 % leaves them.",
            *(Query(quantile(q, "checkout_wait_seconds"), f"{q:.0%}") for q in (0.5, 0.9, 0.99)),
            unit=units.Seconds,
        ),
        timeseries(
            "Wait for a connection, 99 % by pool",
            f"99 of 100 checkouts took at most this long. Good: milliseconds. Bad: one line far above the rest. {FEW}",
            Query(top(quantile(0.99, "checkout_wait_seconds", BY)), NAME),
            unit=units.Seconds,
        ),
        timeseries(
            "Time held, 99 % by pool",
            f"From checkout to return. Good: a little more than the queries take. Bad: a step at a release. {FEW}",
            Query(top(quantile(0.99, "hold_seconds", BY)), NAME),
            unit=units.Seconds,
        ),
        timeseries(
            "Fullest process, by pool",
            f"Share of its connections in use. Good: peaks under 80 %. Bad: a line that lies at 100 %. {FEW}",
            _largest(of_pools("in_use:max"), "max"),
            unit=units.PercentUnit,
        ),
        timeseries(
            "Open connections, by pool",
            f"In use and idle, in all processes together. Good: follows the traffic. Bad: rises without it. {FEW}",
            _largest(of_pools("connections:sum")),
            unit=units.Short,
        ),
        timeseries(
            "Checkouts, by pool",
            f"Connections handed out a second. Good: follows the requests. Bad: falls while callers wait. {FEW}",
            _largest(of_pools("checkouts:rate")),
            unit=EVENTS,
        ),
        timeseries(
            "Capacity, by pool",
            f"What all processes may open. Good: the databases can take it. Bad: it grows at each deployment. {FEW}",
            _largest(of_pools("capacity:sum")),
            unit=units.Short,
            span=24,
        ),
    ]


def board() -> Dashboard:
    """Return the dashboard."""
    pool = variable("pool", f"label_values(fleet_pool:sqlalchemy_pool_connections:sum{{{OF_FLEET}}}, pool)")
    return dashboard(
        UID,
        "SQLAlchemy pools / Fleet",
        "All services of a large fleet, from recorded series. It needs the rules.",
        variables=[CLUSTER, NAMESPACE, JOB, pool],
        rows={"Health": health(), "Problems": problems(), "Performance": performance()},
    )
