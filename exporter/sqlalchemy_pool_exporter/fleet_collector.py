# SPDX-License-Identifier: Apache-2.0
"""Turns all segments of a directory into metric families, at each scrape; both processes use it."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.registry import Collector

from sqlalchemy_pool_exporter.about import package_version
from sqlalchemy_pool_exporter.audit.rules import audit
from sqlalchemy_pool_exporter.builder_cy import Builder
from sqlalchemy_pool_exporter.families import (
    FAULTS_TOTAL,
    add_counters,
    add_findings,
    add_sites,
)
from sqlalchemy_pool_exporter.metrics import (
    BUCKETS,
    EXPORTER_METRICS,
    FLEET_METRICS,
    POOL_METRICS,
    PROCESS_METRICS,
    WORKER_STATES,
)
from sqlalchemy_pool_exporter.segment.block import FAULTS, FIRST_COUNTER, OVERFLOW_OPENED
from sqlalchemy_pool_exporter.segment.facts import Versions
from sqlalchemy_pool_exporter.segment.sites import ShownSites
from sqlalchemy_pool_exporter.states_cy import add_lags, add_states

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sqlalchemy_pool_exporter.builder_cy import Kept
    from sqlalchemy_pool_exporter.exposition import Family
    from sqlalchemy_pool_exporter.held_connections import ProbedServer
    from sqlalchemy_pool_exporter.segment.directory import Fleet
    from sqlalchemy_pool_exporter.segment.identity import Identity
    from sqlalchemy_pool_exporter.segment.ledger import View
    from sqlalchemy_pool_exporter.segment.snapshot import Value

_METRICS: Final = (*POOL_METRICS, *EXPORTER_METRICS, *PROCESS_METRICS, *FLEET_METRICS)
OWNER: Final = ("pool", "worker")


class Reads(Protocol):
    """Reads one directory, or several."""

    def read(self, *, per_worker: bool = ..., beside: Collection[Identity] = ...) -> Fleet:
        """Return the workers and sums now; ``beside``: pools that something else shows in the same scrape."""


class FleetCollector(Collector):
    """Collects the pools of every worker process that shares a directory.

    Args:
        reader: reads the segments of the directory.
        worker_label: show the state of each worker; otherwise the sum of the live workers.
        counters_per_worker: show counters and histograms of each worker; otherwise the sum of all workers.
        monotonic: the clock of the segments, in seconds.
        wall: Unix time, in seconds.
        servers: returns what the last probes of databases said.
        buckets: upper bounds of the histograms' buckets that are shown.
    """

    def __init__(  # noqa: PLR0913 - keyword-only options
        self,
        reader: Reads,
        *,
        worker_label: bool,
        counters_per_worker: bool,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        servers: Callable[[], Sequence[ProbedServer]] = tuple,
        buckets: Collection[float] = BUCKETS,
    ) -> None:
        self._reader = reader
        self._worker_label = worker_label
        self._counters_per_worker = counters_per_worker
        self._monotonic, self._wall, self._servers = monotonic, wall, servers
        self._buckets = buckets
        self._kept: Kept | None = None
        self._sites = ShownSites(monotonic=monotonic)
        # Of the last scrape.
        self.labels_by_name: Mapping[str, Sequence[str]] = {}
        self.fleet: Fleet | None = None

    def collect(self) -> Iterator[Family]:
        """Read the directory and yield fresh families."""
        began = time.perf_counter()
        scrape = Builder(_METRICS, owner=OWNER, known=self._kept, buckets=self._buckets)
        self.add_to(scrape)
        scrape.add((), [("exporter_scrape_duration_seconds", time.perf_counter() - began)])
        self._kept = scrape.kept
        yield from scrape.families()

    def add_to(
        self, scrape: Builder, *, without: Collection[str] = (), beside: Collection[Identity] = ()
    ) -> View:
        """Read the directory and add what it says.

        Args:
            scrape: the builder.
            without: names of pools that are left out.
            beside: pools that something else shows in the same scrape.

        Returns:
            What was added.
        """
        fleet = self._reader.read(per_worker=self._counters_per_worker, beside=beside)
        self.labels_by_name, self.fleet = fleet.view.labels_by_name, fleet
        if without:
            fleet = without_names(fleet, without)
        for pool, infos in fleet.infos.items():
            for info in infos:
                scrape.add_info((pool,), "info", info)
        live, running = fleet.live, fleet.running
        now, wall = self._monotonic(), self._wall()
        add_states(scrape, live, fleet.labels, worker_label=self._worker_label, now=now, wall=wall)
        self._add_counters(scrape, fleet)
        add_lags(scrape, running, now)
        add_findings(scrape, audit(fleet, self._servers(), now=now, wall=wall))
        counts = (len(live), len(running) - len(live), len(fleet.workers) - len(running))
        workers = dict(zip(WORKER_STATES, map(float, counts), strict=True))
        errors: Value = {str(kind): float(count) for kind, count in fleet.errors.items()}
        scrape.add((), [("exporter_workers", workers), ("exporter_segment_errors", errors)])
        for versions in _versions(fleet):
            scrape.add_info((), "exporter_build_info", {"version": package_version(), **versions})
        for worker in running:
            if worker.facts.process is not None:
                labels = {"worker": worker.number, **worker.facts.process._asdict()}
                scrape.add_info((), "exporter_worker_info", labels)
        return fleet.view

    def _add_counters(self, scrape: Builder, fleet: Fleet) -> None:
        faults: defaultdict[str, float] = defaultdict(float)
        for labels, counts in fleet.counts.items():
            has_overflow = labels[0] in fleet.with_overflow or counts[OVERFLOW_OPENED - FIRST_COUNTER] > 0.0
            # Always one series for each pool, never one for each worker.
            faults[labels[0]] += counts[FAULTS - FIRST_COUNTER]
            exemplars = fleet.view.exemplars.get(labels, ())
            add_counters(
                scrape, labels, counts, has_overflow=has_overflow, exemplars=exemplars, with_faults=False
            )
        for labels, by_site in self._sites.of(fleet.view.sites).items():
            add_sites(scrape, labels, by_site)
        for pool, count in faults.items():
            scrape.add((pool,), [(FAULTS_TOTAL, count)])


def without_names(fleet: Fleet, names: Collection[str]) -> Fleet:
    """Return a fleet without the pools that have one of these names."""
    view = fleet.view
    labels = {identity: label for identity, label in view.labels.items() if identity.name not in names}
    shown = set(labels.values())
    return replace(
        fleet,
        workers=tuple(
            replace(worker, pools=tuple(pool for pool in worker.pools if pool.name not in names))
            for worker in fleet.workers
        ),
        view=replace(
            view,
            labels=labels,
            counts={series: counts for series, counts in view.counts.items() if series[0] in shown},
            sites={series: sites for series, sites in view.sites.items() if series[0] in shown},
            infos={label: infos for label, infos in view.infos.items() if label in shown},
        ),
    )


def _versions(fleet: Fleet) -> list[dict[str, str]]:
    """Return the versions that the live processes run on, each set once; empty texts if unknown."""
    found = sorted({worker.facts.versions for worker in fleet.running if worker.facts.versions is not None})
    return [versions._asdict() for versions in found or [Versions("", "", "")]]
