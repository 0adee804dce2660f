# SPDX-License-Identifier: Apache-2.0
"""Turns all segments of a directory into metric families, at each scrape; both processes use it."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from prometheus_client.registry import Collector

from sqlalchemy_pool_exporter.about import package_version
from sqlalchemy_pool_exporter.families import Builder
from sqlalchemy_pool_exporter.metrics import EXPORTER_METRICS, FLEET_METRICS, POOL_METRICS, WORKER_STATES
from sqlalchemy_pool_exporter.segment import sums
from sqlalchemy_pool_exporter.segment.block import FIRST_COUNTER, OVERFLOW_OPENED
from sqlalchemy_pool_exporter.segment.facts import Versions
from sqlalchemy_pool_exporter.segment.snapshot import counters

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from sqlalchemy_pool_exporter.exposition import Family
    from sqlalchemy_pool_exporter.families import Owner, OwnerSeries
    from sqlalchemy_pool_exporter.segment.directory import Fleet
    from sqlalchemy_pool_exporter.segment.snapshot import Snapshot, Value

_METRICS: Final = (*POOL_METRICS, *EXPORTER_METRICS, *FLEET_METRICS)
OWNER: Final = ("pool", "worker")

# Always one series for each pool, never one for each worker.
_FAULTS = "exporter_recording_faults_total"


class Reads(Protocol):
    """Reads one directory, or several."""

    def read(self, *, per_worker: bool = ...) -> Fleet:
        """Return the workers and sums now."""


class FleetCollector(Collector):
    """Collects the pools of every worker process that shares a directory.

    Args:
        reader: reads the segments of the directory.
        worker_label: show the state of each worker; otherwise the sum of the live workers.
        counters_per_worker: show counters and histograms of each worker; otherwise the sum of all workers.
        monotonic: the clock of the segments, in seconds.
        wall: Unix time, in seconds.
    """

    def __init__(
        self,
        reader: Reads,
        *,
        worker_label: bool,
        counters_per_worker: bool,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._reader = reader
        self._worker_label = worker_label
        self._counters_per_worker = counters_per_worker
        self._monotonic, self._wall = monotonic, wall
        self._series: dict[Owner, OwnerSeries] = {}

    def collect(self) -> Iterator[Family]:
        """Read the directory and yield fresh families."""
        began = time.perf_counter()
        scrape = Builder(_METRICS, owner=OWNER, known=self._series)
        self.add_to(scrape)
        scrape.add((), [("exporter_scrape_duration_seconds", time.perf_counter() - began)])
        self._series = scrape.series
        yield from scrape.families()

    def add_to(self, scrape: Builder, *, without: Collection[str] = ()) -> set[str]:
        """Read the directory and add what it says, except of the pools with these names; return the other names."""
        fleet = self._reader.read(per_worker=self._counters_per_worker)
        if without:
            fleet = _without(fleet, without)
        for pool, infos in fleet.infos.items():
            for info in infos:
                scrape.add_info((pool,), "info", info)
        self._add_states(scrape, fleet)
        self._add_counters(scrape, fleet)
        live, running = len(fleet.live), len(fleet.running)
        counts = (live, running - live, len(fleet.workers) - running)
        workers = dict(zip(WORKER_STATES, map(float, counts), strict=True))
        errors: Value = {kind: float(count) for kind, count in fleet.errors.items()}
        scrape.add((), [("exporter_workers", workers), ("exporter_segment_errors", errors)])
        for versions in _versions(fleet):
            scrape.add_info((), "exporter_build_info", {"version": package_version(), **versions})
        for worker in fleet.running:
            if worker.facts.process is not None:
                labels = {"worker": worker.number, **worker.facts.process._asdict()}
                scrape.add_info((), "exporter_worker_info", labels)
        return set(fleet.infos)

    def _add_states(self, scrape: Builder, fleet: Fleet) -> None:
        now, wall = self._monotonic(), self._wall()
        by_pool: dict[str, list[tuple[str, Snapshot]]] = {}
        for worker in fleet.live:
            for pool in worker.pools:
                if pool.snapshot.is_active:
                    by_pool.setdefault(pool.name, []).append((worker.number, pool.snapshot))
        for name, by_worker in by_pool.items():
            snapshots = [snapshot for _, snapshot in by_worker]
            # Always summed: the number of connections that all workers together can open.
            capacity = sums.capacity(snapshots)
            if not math.isnan(capacity):
                scrape.add((name,), [("capacity", capacity)])
            if self._worker_label:
                for number, snapshot in by_worker:
                    scrape.add((name, number), snapshot.limits())
                    scrape.add((name, number), snapshot.state(now=now, wall=wall))
            else:
                scrape.add((name,), sums.state(snapshots, now=now, wall=wall).items())

    def _add_counters(self, scrape: Builder, fleet: Fleet) -> None:
        faults: Counter[str] = Counter()
        for labels, counts in fleet.counts.items():
            has_overflow = labels[0] in fleet.with_overflow or counts[OVERFLOW_OPENED - FIRST_COUNTER] > 0.0
            values: dict[str, Any] = dict(counters(counts, has_overflow=has_overflow))
            faults[labels[0]] += values.pop(_FAULTS)
            scrape.add(labels, values.items())
        for pool, count in faults.items():
            scrape.add((pool,), [(_FAULTS, float(count))])


def _without(fleet: Fleet, names: Collection[str]) -> Fleet:
    return replace(
        fleet,
        workers=tuple(
            replace(worker, pools=tuple(pool for pool in worker.pools if pool.name not in names))
            for worker in fleet.workers
        ),
        counts={labels: counts for labels, counts in fleet.counts.items() if labels[0] not in names},
        infos={pool: infos for pool, infos in fleet.infos.items() if pool not in names},
    )


def _versions(fleet: Fleet) -> list[dict[str, str]]:
    """Return the versions of Python and SQLAlchemy of the live processes, each pair once; empty texts if unknown."""
    found = sorted({worker.facts.versions for worker in fleet.running if worker.facts.versions is not None})
    return [versions._asdict() for versions in found or [Versions("", "")]]
