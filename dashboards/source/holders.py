# SPDX-License-Identifier: Apache-2.0
"""The row "Who holds it" of the Pool dashboard: which sites have the connections, and what the server says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import units

from . import recorded
from .panels import AGE, EVENTS, Query, stat, timeseries
from .promql import FEW, IN_USE, PROCESS, WORKERS, exporter, largest, pool, rate, state, top
from .recorded import OVER, folded, rates
from .tables import Column, table

if TYPE_CHECKING:
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

SITE = "{{site}}"


def of_sites(expr: str) -> Query:
    """Return a query of the sites with the largest values, one series for each site."""
    return Query(top(expr), SITE)


def rate_now(labels: str, counter: str) -> str:
    """Return the increase per second of a counter by labels, recorded or not, for an instant query."""
    return folded("sum", labels, _recorded(counter), rate(pool(counter)))


def rate_by_site(counter: str) -> str:
    """Return the increase per second of a counter by site, recorded or not, for a graph."""
    return folded("sum", "site", rates(_recorded(counter)), rate(pool(counter)))


def _recorded(counter: str) -> str:
    return recorded.of_sites(f"{counter.removesuffix('_total')}:rate")


def held_by(labels: str) -> str:
    """Return the connections in use by labels, recorded or not."""
    return folded("sum", labels, recorded.of_sites("held_connections:sum"), state("held_connections"))


def longest_by(labels: str) -> str:
    """Return the age of the oldest checkout by labels, recorded or not."""
    return folded(
        "max",
        labels,
        recorded.of_sites("site_longest_held_seconds:max"),
        state("site_longest_held_seconds"),
    )


def seconds() -> str:
    """Return for how long each site held connections, per second: how many it has on average."""
    return rate_by_site("hold_seconds_by_site_sum")


def mean() -> str:
    """Return the mean time that each site held a connection; nothing where none came back."""
    return f"{seconds()} / {rate_by_site('hold_seconds_by_site_count')} >= 0"


def in_server(server_state: str) -> str:
    """Return the connections that are held with a state of the server."""
    matcher = f'server_state="{server_state}"'
    return f"sum({pool('held_connections_by_server_state', matcher)})"


def holders() -> list[Builder[Panel]]:
    """Return the panels on who holds the connections."""
    return [*_now(), *_over_time()]


def _now() -> list[Builder[Panel]]:
    labels = "job, pool, site"
    held, longest = held_by(labels), longest_by(labels)
    of_held = rate_now(labels, "hold_seconds_by_site_sum")

    return [
        stat(
            "Largest site's share",
            "Of the connections that are in use, the share that one site has. Neither good nor bad; near 100 % while "
            "callers wait: that place in the code is where to look.",
            f"max(sum by (site) ({state('held_connections')})) / scalar(sum({state('connections', IN_USE)}) > 0)",
            unit=units.PercentUnit,
            empty="Nothing is in use",
        ),
        stat(
            "Self-deadlocked",
            "Pools in which every holder waits for another connection of the same pool. Good: 0. Bad: any other; none "
            "of them can go on before a checkout times out: see Nested checkouts.",
            f"sum({state('self_deadlocked')})",
            unit=units.Short,
            critical=1,
        ),
        stat(
            "Event loop lag",
            "How late the event loop of an asyncio application is, in the process that is latest. Good: under 0.1 s. "
            "Bad: seconds: a call that is not asynchronous blocks it, and no task returns its connection meanwhile.",
            f"max({exporter('event_loop_lag_seconds', WORKERS)})",
            unit=units.Seconds,
            warning=0.5,
            critical=1,
            empty="No event loop runs",
        ),
        stat(
            "Behind a lock",
            "Held connections whose sessions wait for a lock of another session, at the last probe of the database. "
            "Good: 0. Bad: a number that stays; `sqlalchemy-pool-exporter top` says who has the lock.",
            in_server("waiting_for_lock"),
            unit=units.Short,
            warning=1,
            empty="No probed database",
        ),
        stat(
            "Held, idle in transaction",
            "Held connections whose sessions were in a transaction and did nothing, at the last probe of the database. "
            "Good: few, for moments. Bad: a number that stays: the code does something else while it holds them.",
            in_server("idle_in_transaction"),
            unit=units.Short,
            warning=1,
            empty="No probed database",
        ),
        stat(
            "Suspected leaks",
            "Connections that are held for longer than leak_after. Good: 0. Bad: any other; the log of the application "
            "names each.",
            f"sum({state('leak_suspects')})",
            unit=units.Short,
            warning=1,
            empty="leak_after is off",
        ),
        table(
            "Who holds the connections now",
            "The places in the application that check connections out (module:function:line), the one that holds most "
            "first. Needed is how many connections it has on average. Good: what is held is what is needed. Bad: held "
            "far above needed, or out for minutes: it does not give back. Which process and task: the board of the "
            f"exporter, or `sqlalchemy-pool-exporter top`. {OVER}",
            Query(held, "Held"),
            Query(longest, "Held for"),
            Query(of_held, "Needed"),
            Query(f"{of_held} / {rate_now(labels, 'hold_seconds_by_site_count')} >= 0", "Held, mean"),
            Query(rate_now(labels, "checkouts_by_site_total"), "Checkouts"),
            Query(rate_now(labels, "nested_checkouts_total"), "Nested"),
            Query(rate_now(labels, "leaked_checkouts_by_site_total"), "Leaked"),
            keys=("site", "pool"),
            last_keys=("job",),
            columns={
                "Held": Column(),
                "Held for": Column(AGE, 10, 60),
                "Needed": Column(),
                "Held, mean": Column(units.Seconds, width=105),
                "Checkouts": Column(EVENTS),
                "Nested": Column(EVENTS, warning=1e-9),
                "Leaked": Column(EVENTS, critical=1e-9),
            },
            sort_by=("Held", "Held for"),
        ),
    ]


def _over_time() -> list[Builder[Panel]]:
    return [
        timeseries(
            "Held connections, by site",
            "Connections in use, by the place in the application that checked them out. Good: a mixture that follows "
            f"the traffic. Bad: one colour that grows until the pool is full: it is that site's. {FEW}",
            of_sites(held_by("site")),
            unit=units.Short,
            span=12,
            stacked=True,
        ),
        timeseries(
            "Longest held, by site",
            "Age of the oldest checkout that each site has not returned. Good: as your longest request. Bad: a line "
            f"that climbs without end: that site lost a connection, or waits for something else. {FEW}",
            of_sites(longest_by("site")),
            unit=AGE,
            span=12,
        ),
        timeseries(
            "What held connections do in the server",
            "Connections in use, by what their sessions did at the last probe of the database; nothing is shown for a "
            "pool of no probed database. Good: mostly unknown, since they were checked out after the probe. Bad: a "
            "level of active (slow queries), waiting_for_lock (another session blocks them), idle_in_transaction or "
            "idle (the application does something else while it holds them).",
            Query(
                f"sum by (server_state) ({pool('held_connections_by_server_state')})",
                "{{server_state}}",
            ),
            unit=units.Short,
            span=12,
            stacked=True,
        ),
        timeseries(
            "Connections needed, by site",
            "Mean number of connections that each site has, from how long those that came back were held. Good: as "
            "before the last release. Bad: a site that needs far more than it did: it holds longer, or is called more; "
            f"the next two tell which. {FEW} {OVER}",
            of_sites(seconds()),
            unit=units.Short,
            span=12,
            stacked=True,
        ),
        timeseries(
            "Time held, mean by site",
            "From checkout to return. Good: a little more than the queries of that place take. Bad: a step up, without "
            f"a slower database: that code does something else while it holds a connection. {FEW} {OVER}",
            of_sites(mean()),
            unit=units.Seconds,
        ),
        timeseries(
            "Checkouts, by site",
            "Connections handed out a second. Good: follows the requests. Bad: a site that multiplies, which is a "
            f"connection taken in a loop. {FEW} {OVER}",
            of_sites(rate_by_site("checkouts_by_site_total")),
            unit=EVENTS,
        ),
        timeseries(
            "Nested checkouts, by site",
            "Checkouts a second by a thread or task that held a connection of the same pool already. Good: 0. Bad: "
            f"any: as many at once as the pool has connections wait for each other. {FEW} {OVER}",
            of_sites(rate_by_site("nested_checkouts_total")),
            is_bad=True,
            unit=EVENTS,
        ),
        timeseries(
            "Pools that wait for themselves, by process",
            "Pools in which every holder waits for another connection of the same pool. Good: 0. Bad: 1 in a process: "
            f"that one serves nobody until a checkout times out, and then begins anew. {FEW}",
            Query(largest(PROCESS, state("self_deadlocked")), "{{instance}} {{pool}} {{worker}}"),
            span=12,
            is_bad=True,
            unit=units.Short,
        ),
        timeseries(
            "Leaks, by site",
            "Leaked: nobody returned the connection and the garbage collector found it. Suspected: held for longer "
            "than leak_after, also those that came back. Good: 0. Bad: any; the site is where it was checked out. "
            f"{OVER}",
            Query(top(rate_by_site("leaked_checkouts_by_site_total")), f"leaked {SITE}"),
            Query(top(rate_by_site("suspected_leaks_total")), f"suspected {SITE}"),
            span=12,
            is_bad=True,
            unit=EVENTS,
        ),
    ]
