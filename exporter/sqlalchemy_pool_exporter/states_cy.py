# SPDX-License-Identifier: Apache-2.0
"""What live pools show of their limits and their state, for every collector of this project."""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from .metrics import STATES
from .segment import event_loop, sites, sums
from .segment.block import ACTIVE, FIRST_COUNTER, LOOP_DUE, LOOP_PEAK_AT, OTHER_SITES
from .segment.entries import CHECKOUTS
from .segment.state_cy import DEADLOCKED, KEYS

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.builder_cy import Builder
    from cython.cimports.sqlalchemy_pool_exporter.segment.state_cy import age, row
else:
    from .segment.state_cy import age, row

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .builder_cy import Builder, Owner
    from .segment.identity import Identity
    from .segment.snapshot import Snapshot, Value
    from .segment.worker import Worker

# The metric of the last two numbers of a row (see ``state_cy``), and the values of its label.
CONNECTIONS: Final = ("connections", STATES)
_AT_OTHER_SITES: Final = OTHER_SITES - FIRST_COUNTER + CHECKOUTS


def add_states(  # noqa: PLR0913 - as many facts
    scrape: Builder,
    workers: Iterable[Worker],
    labels: Mapping[Identity, str],
    *,
    worker_label: bool,
    now: float,
    wall: float,
) -> None:
    """Add the capacity, the limits and the state of the pools of live workers.

    Args:
        scrape: the builder.
        workers: those that run.
        labels: of their pools.
        worker_label: of each worker by itself; otherwise of all together.
        now: seconds of ``time.monotonic()``.
        wall: seconds since the epoch at the same moment.
    """
    by_pool: dict[str, dict[str, list[Snapshot]]] = {}
    some: list[Snapshot] | None
    for worker in workers:
        number = worker.number
        for pool in worker.pools:
            snapshot = pool.snapshot
            if snapshot.fields[ACTIVE]:
                label = labels[pool.identity]
                by_worker = by_pool.get(label)
                if by_worker is None:
                    by_worker = by_pool[label] = {}
                some = by_worker.get(number)
                if some is None:
                    by_worker[number] = [snapshot]
                else:
                    some.append(snapshot)
    for label, by_worker in by_pool.items():
        every = [snapshot for snapshots in by_worker.values() for snapshot in snapshots]
        add_capacity(scrape, (label,), every)
        if worker_label:
            for number, snapshots in by_worker.items():
                add_state(scrape, (label, number), snapshots, now, wall)
        else:
            add_state(scrape, (label,), every, now, wall)


def add_capacity(scrape: Builder, owner: Owner, snapshots: Sequence[Snapshot]) -> None:
    """Add what is always summed: the number of connections that all pools of a name together can open."""
    capacity = sums.capacity(snapshots)
    if not math.isnan(capacity):
        scrape.add(owner, [("capacity", capacity)])


def add_state(
    scrape: Builder, owner: Owner, snapshots: Sequence[Snapshot], now: cython.double, wall: cython.double
) -> None:
    """Add the limits and the state of live pools of one name."""
    has_sites: cython.bint = False
    for snapshot in snapshots:
        if snapshot.sites or snapshot.counts[_AT_OTHER_SITES]:
            has_sites = True
    numbers = None
    if len(snapshots) == 1:  # nearly always, where each worker is shown
        snapshot = snapshots[0]
        numbers = row(snapshot.fields, snapshot.waiters, snapshot.connections, now, wall)
        if numbers[DEADLOCKED]:
            numbers = None  # a full pool, whose connections are looked at one by one
        else:
            numbers[0] = 1.0
    if numbers is None:
        numbers = sums.numbers(snapshots, now=now, wall=wall)
    scrape.add_numbers(owner, KEYS, numbers, CONNECTIONS)
    if not has_sites:
        return
    at_sites = sites.held_at(snapshots)
    if at_sites is not None:
        held: Value = {site: number for site, (number, _) in at_sites.items()}
        longest: Value = {site: age(since, now) for site, (_, since) in at_sites.items()}
        scrape.add(owner, [("held_connections", held), ("site_longest_held_seconds", longest)])


def add_lags(scrape: Builder, workers: Iterable[Worker], now: float) -> None:
    """Add how late the event loops of live workers are, of those that have such."""
    lags: dict[str, float] = {}
    for worker in workers:
        snapshots: list[Snapshot] = []
        for pool in worker.pools:
            snapshot = pool.snapshot
            fields = snapshot.fields
            if fields[ACTIVE] and any(fields[LOOP_DUE : LOOP_PEAK_AT + 1]):
                snapshots.append(snapshot)
        if snapshots:
            lag = event_loop.lag(snapshots, now)
            if lag is not None:
                lags[worker.number] = lag
    if lags:
        scrape.add((), [("event_loop_lag_seconds", lags)])
