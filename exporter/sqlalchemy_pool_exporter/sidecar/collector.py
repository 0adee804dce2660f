# SPDX-License-Identifier: Apache-2.0
"""From all segments of a directory to metric families: what the sidecar's registry asks at each scrape."""

from __future__ import annotations

import math
import time
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.registry import Collector

from sqlalchemy_pool_exporter.exposition import Family, Series
from sqlalchemy_pool_exporter.metrics import EXPORTER_METRICS, POOL_METRICS, SIDECAR_METRICS
from sqlalchemy_pool_exporter.recording.collector import BOUNDS, family, versions
from sqlalchemy_pool_exporter.segment.block import (
    FIRST_COUNTER,
    HAS_OVERFLOW,
    OVERFLOW_OPENED,
    Copy,
    Histogram,
    Reading,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric as AnyFamily

    from sqlalchemy_pool_exporter.segment.block import Value
    from sqlalchemy_pool_exporter.segment.directory import Fleet, Reader

_METRICS: Final = {metric.key: metric for metric in (*POOL_METRICS, *EXPORTER_METRICS, *SIDECAR_METRICS)}
# What the values of the labels are, that say whose a sample is.
_OWNER: Final = ("pool", "worker")

# Of the exporter, and never for each worker.
_FAULTS = "exporter_recording_faults_total"
_LIMITS = ("size", "max_overflow", "timeout_seconds", "recycle_seconds", "pre_ping")
# Ages and instants of several workers are not added up: the longest, and the latest, is the fleet's.
_LARGEST = (
    "longest_pending_seconds",
    "longest_held_seconds",
    "oldest_connection_seconds",
    "last_checkin_timestamp_seconds",
)


class FleetCollector(Collector):
    """Collects the pools of every worker process that shares a directory.

    Args:
        reader: of their segments.
        worker_label: whether states are shown for each worker, or one for all.
        counters_per_worker: whether counters and histograms are, too.
        monotonic: the clock of the segments.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        worker_label: bool = True,
        counters_per_worker: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._reader = reader
        self._worker_label = worker_label
        self._counters_per_worker = counters_per_worker
        self._monotonic, self._wall = monotonic, wall
        self._known: _SeriesByOwner = {}

    def describe(self) -> Iterator[AnyFamily]:
        """Yield every family without samples."""
        yield from map(family, _METRICS.values())

    def collect(self) -> Iterator[AnyFamily]:
        """Read the directory and yield fresh families."""
        began = time.perf_counter()
        fleet = self._reader.read(per_worker=self._counters_per_worker)
        scrape = _Scrape(self._known)
        for pool, infos in fleet.infos.items():
            for info in infos:
                scrape.add_info("info", {"pool": pool, **info})
        self._add_states(scrape, fleet)
        self._add_counters(scrape, fleet)
        live = len(fleet.live)
        workers = {"live": float(live), "gone": float(len(fleet.workers) - live)}
        errors: Value = {kind: float(count) for kind, count in fleet.errors.items()}
        scrape.add((), [("exporter_workers", workers), ("exporter_segment_errors", errors)])
        scrape.add_info("exporter_build_info", versions())
        scrape.add((), [("exporter_scrape_duration_seconds", time.perf_counter() - began)])
        self._known = scrape.series
        yield from scrape.families.values()

    def _add_states(self, scrape: _Scrape, fleet: Fleet) -> None:
        now, wall = self._monotonic(), self._wall()
        by_pool: dict[str, list[tuple[str, Reading]]] = {}
        for worker in fleet.live:
            for block in worker.blocks:
                if block.is_active:
                    reading = Reading(block.copied, now=now, wall=wall)
                    by_pool.setdefault(block.pool, []).append((worker.number, reading))
        for pool, readings in by_pool.items():
            # The capacity of one worker is its size and max_overflow; this one is the ceiling of them all.
            capacity = math.fsum(reading.capacity for _, reading in readings)
            if not math.isnan(capacity):
                scrape.add((pool,), [("capacity", capacity)])
            if self._worker_label:
                for number, reading in readings:
                    scrape.add((pool, number), reading.limits())
                    scrape.add((pool, number), reading.state())
            else:
                values = [dict((*reading.limits(), *reading.state())) for _, reading in readings]
                scrape.add((pool,), _together(values).items())

    def _add_counters(self, scrape: _Scrape, fleet: Fleet) -> None:
        faults: Counter[str] = Counter()
        for labels, counts in fleet.counts.items():
            fields = [0.0] * FIRST_COUNTER + counts
            fields[HAS_OVERFLOW] = float(labels[0] in fleet.with_overflow or fields[OVERFLOW_OPENED] > 0.0)
            values: dict[str, Any] = dict(Reading(Copy(fields, [], []), now=0.0, wall=0.0).counters())
            faults[labels[0]] += values.pop(_FAULTS)
            scrape.add(labels, values.items())
        for pool, count in faults.items():
            scrape.add((pool,), [(_FAULTS, float(count))])


# By whose they are, and by the key of their metric; several of those that have a label of their own, or buckets.
_SeriesByOwner = dict[tuple[str, ...], dict[str, tuple[Series, ...]]]


class _Scrape:
    """The families of one scrape, and their series: those of the scrape before, where it had them."""

    def __init__(self, known: _SeriesByOwner) -> None:
        self.families = {key: _empty(key) for key in _METRICS}
        self.series: _SeriesByOwner = {}
        self._known = known

    def add(self, owner: tuple[str, ...], values: Iterable[tuple[str, Value]]) -> None:
        """Add what a reading says of a pool, of a pool in a worker, or of nobody."""
        known = self.series.get(owner)
        if known is None:
            # None but those in use are handed on, so that what is gone is forgotten.
            known = self.series[owner] = self._known.get(owner, {})
        families = self.families
        for key, value in values:
            series = known.get(key)
            if series is None:
                series = known[key] = tuple(_series_of(key, owner, value))
            shown = families[key]
            if isinstance(value, float):
                shown.series.append(series[0])
                shown.values.append(value)
            else:
                shown.series.extend(series)
                shown.values.extend(_numbers(value))

    def add_info(self, key: str, labels: dict[str, str]) -> None:
        """Add a sample that says what it says by its labels."""
        self.families[key].series.append(Series.of(_METRICS[key].name, labels))
        self.families[key].values.append(1.0)


def _empty(key: str) -> Family:
    metric = _METRICS[key]
    name = metric.name
    if metric.kind in ("counter", "info"):
        return Family(name.removesuffix("_total").removesuffix("_info"), metric.help, metric.kind)
    return Family(name, metric.help, metric.kind, metric.unit)


def _series_of(key: str, owner: tuple[str, ...], value: Value) -> Iterator[Series]:
    metric = _METRICS[key]
    labels = dict(zip(_OWNER, owner, strict=False))
    if isinstance(value, Histogram):
        for bound in BOUNDS:
            yield Series.of(f"{metric.name}_bucket", {**labels, "le": bound})
        yield Series.of(f"{metric.name}_count", labels)
        yield Series.of(f"{metric.name}_sum", labels)
    elif isinstance(value, dict):
        for own in value:
            yield Series.of(metric.name, {**labels, metric.labels[0]: own})
    else:
        yield Series.of(metric.name, labels)


def _numbers(value: dict[str, float] | Histogram) -> Iterable[float]:
    if isinstance(value, dict):
        return value.values()
    buckets = list(accumulate(value.buckets))
    return (*buckets, buckets[-1], value.sum)


def _together(values: list[dict[str, Any]]) -> dict[str, Value]:
    """Return the states of several workers as one's: summed, but for ages; limits only where all have the same."""
    together: dict[str, Value] = {}
    for key in dict.fromkeys(key for of_one in values for key in of_one):
        found = [of_one[key] for of_one in values if key in of_one]
        if key in _LIMITS:
            if len(found) == len(values) and len(set(found)) == 1:
                together[key] = found[0]
        elif key in _LARGEST:
            together[key] = max(found)
        elif isinstance(found[0], dict):
            together[key] = {label: sum(of_one[label] for of_one in found) for label in found[0]}
        else:
            together[key] = sum(found)
    return together
