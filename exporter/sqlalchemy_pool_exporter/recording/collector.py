# SPDX-License-Identifier: Apache-2.0
"""From blocks to metric families: what a registry asks at each scrape."""

from __future__ import annotations

import platform
import time
import weakref
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import sqlalchemy
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from sqlalchemy_pool_exporter.about import package_version
from sqlalchemy_pool_exporter.metrics import (
    APPLICATION_METRICS,
    BUCKETS,
    EXPORTER_METRICS,
    POOL_METRICS,
    Metric,
)
from sqlalchemy_pool_exporter.segment.block import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family

    from sqlalchemy_pool_exporter.segment.block import Value

    from .recorder import Recorder

_METRICS = (*POOL_METRICS, *EXPORTER_METRICS, *APPLICATION_METRICS)
BOUNDS = [*(repr(bound) for bound in BUCKETS), "+Inf"]


class PoolCollector(Collector):
    """Collects the pools that are shown in one registry.

    The mutable state is those pools; ``add()`` and ``remove()`` are called under one lock, by ``instrument()`` and by
    ``Handle.close()``.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = weakref.ref(registry)
        self._recorders: dict[str, weakref.ref[Recorder]] = {}
        self._errors = 0

    def add(self, recorder: Recorder) -> None:
        """Show a pool, from the next scrape on."""
        registry = self._registry()
        # Asked each time: an application that wants no default collectors unregisters all that it finds.
        if registry is not None and self not in registry._collector_to_names:
            registry.register(self)
        self._keep_alive(without=None)
        self._recorders[recorder.name] = weakref.ref(recorder)

    def remove(self, recorder: Recorder) -> None:
        """Show a pool no more, nor those that were collected.

        The collector stays registered: a finalizer can get here while the registry's lock is held.
        """
        self._keep_alive(without=recorder)

    def _keep_alive(self, *, without: Recorder | None) -> None:
        self._recorders = {
            name: reference
            for name, reference in list(self._recorders.items())
            if reference() not in {None, without}
        }

    def describe(self) -> Iterator[Family]:
        """Yield every family without samples, by which the registry knows whose names they are."""
        for metric in _METRICS:
            yield family(metric)

    def collect(self) -> Iterator[Family]:
        """Yield fresh families of all pools; a pool that cannot be read is left out and counted."""
        began = time.perf_counter()
        recorders = {
            name: recorder for name, reference in list(self._recorders.items()) if (recorder := reference())
        }
        if not recorders:
            return
        families: dict[str, Any] = {metric.key: family(metric) for metric in _METRICS}
        for name, recorder in recorders.items():
            try:
                values = dict(recorder.read().values())
            except Exception:  # noqa: BLE001 - one odd pool never fails the scrape
                self._errors += 1
                continue
            if recorder.segments.is_shared is not None:
                add_value(families["exporter_segment_shared"], [name], float(recorder.segments.is_shared))
            families["info"].add_metric([name], recorder.info)
            for key, value in values.items():
                add_value(families[key], [name], value)
        add_value(families["exporter_build_info"], [*versions().values()], 1.0)
        add_value(families["exporter_scrape_errors_total"], [], float(self._errors))
        add_value(families["exporter_scrape_duration_seconds"], [], time.perf_counter() - began)
        yield from families.values()


def family(metric: Metric) -> Family:
    """Return an empty family of a metric."""
    labels = [*(["pool"] if metric.is_about_pool else []), *metric.labels]
    if metric.kind == "info":
        return InfoMetricFamily(metric.name.removesuffix("_info"), metric.help, labels=["pool"])
    if metric.kind == "counter":
        return CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=labels)
    if metric.kind == "histogram":
        return HistogramMetricFamily(metric.name, metric.help, labels=labels, unit=metric.unit)
    return GaugeMetricFamily(metric.name, metric.help, labels=labels, unit=metric.unit)


def add_value(family: Any, labels: list[str], value: Value) -> None:
    """Add what a reading says to a family: one sample, one for each label value, or a histogram."""
    if isinstance(value, Histogram):
        family.add_metric(labels, list(zip(BOUNDS, accumulate(value.buckets), strict=True)), value.sum)
    elif isinstance(value, dict):
        for label, number in value.items():
            family.add_metric([*labels, label], number)
    else:
        family.add_metric(labels, value)


@cache  # of what is installed, and to ask takes longer than the rest of a scrape
def versions() -> dict[str, str]:
    """Return the versions at work."""
    return {
        "version": package_version(),
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
    }
