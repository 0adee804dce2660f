# SPDX-License-Identifier: Apache-2.0
"""From all segments of a directory to metric families: what the sidecar's registry asks at each scrape."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from prometheus_client.registry import Collector

from .catalogue import EXPORTER_METRICS, POOL_METRICS, SIDECAR_METRICS
from .collector import add_build_info, add_value, family
from .segment import FIRST_COUNTER, HAS_OVERFLOW, OVERFLOW_OPENED, Copy, Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric as Family

    from .catalogue import Metric
    from .fleet import Fleet, Reader
    from .segment import Value

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

    def describe(self) -> Iterator[Family]:
        """Yield every family without samples."""
        yield from self._families().values()

    def collect(self) -> Iterator[Family]:
        """Read the directory and yield fresh families."""
        began = time.perf_counter()
        fleet = self._reader.read(per_worker=self._counters_per_worker)
        families = self._families()
        for pool, infos in fleet.infos.items():
            for info in infos:
                families["info"].add_metric([pool], info)
        self._add_states(families, fleet)
        self._add_counters(families, fleet)
        live = len(fleet.live)
        workers = {"live": float(live), "gone": float(len(fleet.workers) - live)}
        add_value(families["exporter_workers"], [], workers)
        add_value(
            families["exporter_segment_errors"], [], {kind: float(n) for kind, n in fleet.errors.items()}
        )
        add_build_info(families["exporter_build_info"])
        add_value(families["exporter_scrape_duration_seconds"], [], time.perf_counter() - began)
        yield from families.values()

    def _families(self) -> dict[str, Any]:
        return {
            metric.key: family(metric, worker=metric.is_about_pool and self._is_per_worker(metric))
            for metric in (*POOL_METRICS, *EXPORTER_METRICS, *SIDECAR_METRICS)
        }

    def _is_per_worker(self, metric: Metric) -> bool:
        if metric.kind == "gauge":
            # The capacity of one worker is its size and max_overflow; this one is the ceiling of them all.
            return self._worker_label and metric.key != "capacity"
        return self._counters_per_worker and metric.kind != "info"

    def _add_states(self, families: dict[str, Any], fleet: Fleet) -> None:
        now, wall = self._monotonic(), self._wall()
        by_pool: dict[str, list[tuple[str, Reading]]] = {}
        for worker in fleet.live:
            for block in worker.blocks:
                if block.is_active:
                    reading = Reading(block.copied, now=now, wall=wall)
                    by_pool.setdefault(block.pool, []).append((worker.number, reading))
        for pool, readings in by_pool.items():
            values: list[dict[str, Any]] = [
                dict((*reading.configuration(), *reading.state())) for _, reading in readings
            ]
            capacities = [of_one.pop("capacity", None) for of_one in values]
            if None not in capacities:
                add_value(families["capacity"], [pool], sum(capacities))
            shown = [([pool, number], of_one) for (number, _), of_one in zip(readings, values, strict=True)]
            for labels, of_one in shown if self._worker_label else [([pool], _together(values))]:
                for key, value in of_one.items():
                    add_value(families[key], labels, value)

    def _add_counters(self, families: dict[str, Any], fleet: Fleet) -> None:
        faults: dict[str, Any] = Counter()
        for labels, counts in fleet.counts.items():
            fields = [0.0] * FIRST_COUNTER + counts
            fields[HAS_OVERFLOW] = float(labels[0] in fleet.with_overflow or fields[OVERFLOW_OPENED] > 0.0)
            values = dict(Reading(Copy(fields, [], []), now=0.0, wall=0.0).counters())
            faults[labels[0]] += values.pop(_FAULTS)
            for key, value in values.items():
                add_value(families[key], list(labels), value)
        for pool, count in faults.items():
            add_value(families[_FAULTS], [pool], count)


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
