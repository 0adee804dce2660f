# SPDX-License-Identifier: Apache-2.0
"""What the rules of the audit know of a pool: each fact has one place here.

A fact that is not known is None, an empty set or NaN, and then a rule that needs it finds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.pausing import pause
from sqlalchemy_pool_exporter.segment import sums
from sqlalchemy_pool_exporter.segment.block import (
    CONNECT,
    FIRST_COUNTER,
    HAS_OVERFLOW,
    HOLDER,
    IS_ASYNC,
    MADE_AT,
    PRE_PING,
    RECYCLE,
    REQUEST_DEADLINE,
    ROW,
    SUM,
    TIMEOUT,
    WAITERS_USED,
)
from sqlalchemy_pool_exporter.segment.entries import task_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy_pool_exporter.held_connections import ProbedServer, ServerLimits
    from sqlalchemy_pool_exporter.segment.directory import Fleet
    from sqlalchemy_pool_exporter.segment.snapshot import Snapshot

# A rate of connects is an average since a pool was made; that of a pool that is younger says nothing.
_OLD_ENOUGH_SECONDS: Final = 60.0
# Pools that went within this time count as made and dropped again and again.
_RECENT_SECONDS: Final = 600.0
# The first tasks of a process start the application, which may block its loop without harm.
_FIRST_REQUEST_TASK: Final = 50


@dataclass(slots=True)
class Server:
    """A database server that pools of these processes connect to."""

    limits: ServerLimits
    # How many connections those of each name can open, over all processes; pools without a limit are left out.
    pools: dict[str, float] = field(default_factory=dict)
    has_unlimited: bool = False  # whether a pool has no limit, such as a NullPool

    @property
    def capacity(self) -> float:
        """How many connections all pools that have a limit can open together."""
        return math.fsum(self.pools.values())


@dataclass
class PoolFacts:
    """What is known of the pools of one name. Not slotted, for ``cached_property``."""

    pool: str  # the label
    now: float  # seconds of time.monotonic()
    snapshots: list[Snapshot] = field(default_factory=list)  # of all live pools
    classes: set[str] = field(default_factory=set)
    dialects: set[str] = field(default_factory=set)
    processes: int = 0
    most_brief: int = 0  # engines that one process has made and dropped after a few checkouts, of late
    server: Server | None = None  # None if no probe told of it now

    @cached_property
    def current(self) -> Sequence[Snapshot]:
        """Those that no other pool has replaced."""
        return sums.current(self.snapshots)

    @property
    def recycles(self) -> list[float]:
        """``pool_recycle`` of each pool that keeps connections, in seconds; NaN where it is off."""
        return [one.fields[RECYCLE] for one in self.current if one.fields[HAS_OVERFLOW]]

    @property
    def recycles_without_ping(self) -> list[float]:
        """The same, of the pools that do not test a connection when it is checked out."""
        return [
            one.fields[RECYCLE]
            for one in self.current
            if one.fields[HAS_OVERFLOW] and not one.fields[PRE_PING]
        ]

    @property
    def timeouts_beyond_deadline(self) -> list[tuple[float, float]]:
        """``pool_timeout`` and the deadline of a request, of each pool whose timeout is not shorter."""
        pairs = ((one.fields[TIMEOUT], one.fields[REQUEST_DEADLINE]) for one in self.current)
        return [(timeout, deadline) for timeout, deadline in pairs if deadline and timeout >= deadline]

    @property
    def connects_per_second(self) -> float:
        """How many connections the pools open, on average since they were made."""
        rate = 0.0
        for snapshot in self.current:
            made = snapshot.fields[MADE_AT]
            age = self.now - made
            if made and age >= _OLD_ENOUGH_SECONDS:
                rate += sum(snapshot.counts[CONNECT - FIRST_COUNTER : CONNECT + SUM - FIRST_COUNTER]) / age
        return rate

    @property
    def threads_beyond_capacity(self) -> list[tuple[float, float]]:
        """How many threads asked for a connection at one moment, and for how many there is room, where those are fewer.

        A thread is in ``connect()`` once at a time, and a slot for a caller is taken only while all others are in use.
        """
        pairs = (
            (one.fields[WAITERS_USED], one.capacity) for one in self.current if one.fields[IS_ASYNC] < 0.0
        )
        return [(threads, capacity) for threads, capacity in pairs if threads > capacity]

    @property
    def was_used_in_a_loop(self) -> bool:
        """Whether a synchronous engine was last used by a task that an event loop ran, once the application ran."""
        return any(
            task_number(holder) >= _FIRST_REQUEST_TASK
            for snapshot in self.current
            if snapshot.fields[IS_ASYNC] < 0.0
            for holder in snapshot.connections[HOLDER::ROW]
        )


def facts_of(
    fleet: Fleet, servers: Iterable[ProbedServer], *, now: float, wall: float
) -> Iterator[PoolFacts]:
    """Yield what is known of each pool that a live process has or had.

    Args:
        fleet: what the segments say.
        servers: what the last probes said.
        now: seconds of ``time.monotonic()``.
        wall: seconds since the epoch at the same moment.
    """
    found: dict[str, PoolFacts] = {}
    names: dict[str, str] = {}
    for worker in fleet.live:
        pause()
        of_worker: set[str] = set()
        for pool in worker.pools:
            label = fleet.labels.get(pool.identity)
            if label is None:
                continue
            names[label] = pool.name
            facts = found.setdefault(label, PoolFacts(label, now))
            if pool.snapshot.is_active:
                facts.snapshots.append(pool.snapshot)
                facts.classes.add(pool.info.get("pool_class", ""))
                facts.dialects.add(pool.info.get("dialect", ""))
                of_worker.add(label)
            elif pool.ended is not None and wall - pool.ended <= _RECENT_SECONDS:
                facts.most_brief = max(facts.most_brief, pool.brief)
        for label in of_worker:
            found[label].processes += 1
    _find_servers(found, names, servers)
    for facts in found.values():
        pause()
        yield facts


def _find_servers(
    found: dict[str, PoolFacts], names: dict[str, str], servers: Iterable[ProbedServer]
) -> None:
    by_pool = {pool: server for server in servers for pool in server.pools}
    known: dict[str, Server] = {}
    for label, facts in found.items():
        # The label first, as for held connections: pools of one default name can connect to different servers.
        probed = by_pool.get(label) or by_pool.get(names[label])
        if probed is None or probed.limits is None or not facts.snapshots:
            continue
        facts.server = known.setdefault(probed.identity, Server(probed.limits))
        limits = [snapshot.capacity for snapshot in facts.current]
        facts.server.pools[label] = math.fsum(limit for limit in limits if not math.isnan(limit))
        facts.server.has_unlimited |= any(map(math.isnan, limits))
