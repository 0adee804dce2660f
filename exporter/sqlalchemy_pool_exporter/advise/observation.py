# SPDX-License-Identifier: Apache-2.0
"""What is known of the traffic of one pool, and of the database server behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from sqlalchemy_pool_exporter.metrics import BUCKETS

from .histogram import Histogram, of_cumulative

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .table import Table

# A process has more callers than the mean of all if its count is beyond what chance gives to one of some hundred.
_BY_CHANCE: Final = 3.0
# From this share of its connections in use, on average, a pool cannot serve more.
_SATURATED: Final = 0.95
# A share of callers that wait for so long that they give up, from which on the pool is too small for what is asked.
_GIVEN_UP: Final = 0.01

Kind = Literal["queue", "unlimited", "unpooled", "single"]
_SINGLE: Final = frozenset(("StaticPool", "SingletonThreadPool", "AssertionPool"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The pools of one name over a time. Numbers are of all processes together where nothing else is said."""

    pool: str
    classes: frozenset[str]
    dialects: frozenset[str]
    seconds: float  # how long it was watched
    at: float  # Unix time of the end
    instances: float  # pools of the name, one in each process in general
    most_instances: float  # the most at one time
    checkouts: float
    timeouts: float
    cancelled: float
    busiest: float | None  # checkouts a second of the busiest pool of the name, where they are told apart
    has_holds: bool  # whether hold times are among what was read
    holds: Histogram
    waits: Histogram
    connects: Histogram
    pings: Histogram
    overflow_closes: float  # connections that were opened beyond pool_size and closed
    size: float | None  # of one pool
    max_overflow: float | None  # of one pool; None if it has no limit
    timeout_seconds: float | None
    recycle_seconds: float | None
    pre_ping: bool
    open_now: float
    longest_held_seconds: float

    @property
    def kind(self) -> Kind:
        """What limits its connections."""
        if "NullPool" in self.classes and self.size is None:
            return "unpooled"
        if self.size is None:
            return "single" if self.classes & _SINGLE else "unlimited"
        return "unlimited" if self.max_overflow is None else "queue"

    @property
    def capacity(self) -> float | None:
        """The connections that one pool can open; None without a limit."""
        if self.size is None or self.max_overflow is None:
            return None
        return self.size + self.max_overflow

    @property
    def rate(self) -> float:
        """Callers a second: those that got a connection and those that gave up."""
        return (self.checkouts + self.timeouts + self.cancelled) / self.seconds

    @property
    def rate_of_one(self) -> float:
        """The same of one pool: of the busiest one if it has more than chance gives it, else the mean."""
        mean = self.rate / self.instances
        if self.busiest is None or self.busiest <= mean + _BY_CHANCE * math.sqrt(mean / self.seconds):
            return mean
        return self.busiest

    @property
    def in_use(self) -> float:
        """The mean number of connections in use, by Little's law."""
        return self.holds.total / self.seconds

    @property
    def utilisation(self) -> float | None:
        """The share of all connections that all pools can open; None without a limit."""
        return self.in_use / (self.capacity * self.instances) if self.capacity else None

    @property
    def is_saturated(self) -> bool:
        """Whether the arrivals may be no more than what the pool can serve."""
        given_up = self.timeouts / (self.checkouts + self.timeouts) if self.timeouts else 0.0
        return (self.utilisation or 0.0) >= _SATURATED or given_up >= _GIVEN_UP


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A database server, as probes tell of it."""

    name: str
    pools: frozenset[str]
    max_connections: float
    reserved: float
    connections: float | None  # of all its clients, now
    is_behind_pooler: bool
    idle_limit_seconds: float | None  # after which it closes idle sessions; None if it is off or not known
    is_probed: bool = True  # otherwise it is as an option says


def observations(grown: Table, now: Table, *, seconds: float, at: float) -> Iterator[Observation]:
    """Yield what is known of each live pool.

    Args:
        grown: by how much the counters grew in that time.
        now: the state; also the counters over a longer time, for what is rare.
        seconds: how long that was.
        at: Unix time of its end.
    """
    for pool, instances in sorted(now.sum_by("instances", "pool").items()):
        if instances > 0.0:
            yield _observation(pool, instances, grown, now, seconds, at)


def _observation(  # noqa: PLR0913, PLR0917 - as many facts
    pool: str, instances: float, grown: Table, now: Table, seconds: float, at: float
) -> Observation:
    def of_one(name: str) -> float | None:
        total = now.total(name, pool=pool)
        return None if total is None or _is_lacking(name, pool, now) else total / instances

    def counted(name: str, **labels: str) -> float:
        return grown.total(name, pool=pool, **labels) or 0.0

    infos = [sample.labels for sample in now.samples("info", pool=pool)]
    return Observation(
        pool=pool,
        classes=frozenset(info.get("pool_class", "") for info in infos),
        dialects=frozenset(info.get("dialect", "") for info in infos),
        seconds=seconds,
        at=at,
        instances=instances,
        most_instances=max(instances, now.most("most_instances", pool=pool) or 0.0),
        checkouts=counted("checkouts_total"),
        timeouts=counted("checkout_timeouts_total"),
        cancelled=counted("checkout_errors_total", reason="cancelled"),
        busiest=_busiest(pool, grown, now, seconds),
        has_holds=any(grown.samples("hold_seconds_bucket", pool=pool)),
        holds=_histogram("hold_seconds", pool, grown),
        waits=_histogram("checkout_wait_seconds", pool, grown),
        connects=_histogram("connect_seconds", pool, grown if counted("connect_seconds_count") else now),
        pings=_histogram("ping_seconds", pool, grown),
        overflow_closes=counted("closes_total", reason="overflow"),
        size=of_one("size"),
        max_overflow=of_one("max_overflow"),
        timeout_seconds=now.least("timeout_seconds", pool=pool),
        recycle_seconds=now.least("recycle_seconds", pool=pool),
        pre_ping=bool(now.least("pre_ping", pool=pool)),
        open_now=now.total("connections", pool=pool) or 0.0,
        longest_held_seconds=now.most("longest_held_seconds", pool=pool) or 0.0,
    )


def _is_lacking(name: str, pool: str, now: Table) -> bool:
    """Return whether some pool of the name has no such limit, so that there is none for all of them."""
    has = now.sum_by(name, "worker", pool=pool)
    is_told = bool(now.total(f"without_{name}", pool=pool))  # by Prometheus
    return is_told or any(worker not in has for worker in now.sum_by("instances", "worker", pool=pool))


def _histogram(name: str, pool: str, grown: Table) -> Histogram:
    buckets = {float(le): count for le, count in grown.sum_by(f"{name}_bucket", "le", pool=pool).items()}
    if not buckets:
        buckets = dict.fromkeys((*BUCKETS, math.inf), 0.0)
    return of_cumulative(buckets, grown.total(f"{name}_sum", pool=pool) or 0.0)


def _busiest(pool: str, grown: Table, now: Table, seconds: float) -> float | None:
    """Return the checkouts a second of the busiest pool of the name; None if they are not told apart."""
    told = now.most("busiest", pool=pool)  # by Prometheus
    if told is not None:
        return told
    instances = now.sum_by("instances", "worker", pool=pool)
    checkouts = grown.sum_by("checkouts_total", "worker", pool=pool)
    rates = [
        count / seconds / instances[worker] for worker, count in checkouts.items() if worker in instances
    ]
    return max(rates, default=None)


def servers(now: Table) -> Iterator[Server]:
    """Yield the servers that probes tell of now."""
    names = {
        sample.labels["database"]: sample.labels["server"] for sample in now.samples("database_server_info")
    }
    databases: dict[str, set[str]] = {}
    for database in sorted(now.sum_by("database_max_connections", "database")):
        databases.setdefault(names.get(database, database), set()).add(database)
    for group in databases.values():
        yield _server(group, now)


def _server(databases: set[str], now: Table) -> Server:
    """Return one server, which several databases may be on."""

    def most(name: str) -> float | None:
        return max(
            (value for one in databases if (value := now.most(name, database=one)) is not None), default=None
        )

    totals = [total for one in databases if (total := now.total("database_connections", database=one))]
    limits = [
        limit
        for one in databases
        if (limit := now.least("database_idle_session_timeout_seconds", database=one))
    ]
    return Server(
        name=", ".join(sorted(databases)),
        pools=frozenset(
            sample.labels["pool"]
            for sample in now.samples("database_pool_info")
            if sample.labels["database"] in databases
        ),
        max_connections=most("database_max_connections") or 0.0,
        reserved=most("database_reserved_connections") or 0.0,
        connections=max(totals, default=None),
        is_behind_pooler=bool(most("database_behind_pooler")),
        idle_limit_seconds=min(limits, default=None),
    )
