# SPDX-License-Identifier: Apache-2.0
"""From blocks to metric families: the collector that a registry calls at each scrape."""

from __future__ import annotations

import platform
import time
import weakref
from typing import TYPE_CHECKING

import sqlalchemy
from prometheus_client.registry import Collector

from sqlalchemy_pool_exporter import families
from sqlalchemy_pool_exporter.about import package_version
from sqlalchemy_pool_exporter.families import Builder
from sqlalchemy_pool_exporter.metrics import APPLICATION_METRICS, EXPORTER_METRICS, POOL_METRICS
from sqlalchemy_pool_exporter.segment import fork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

    from sqlalchemy_pool_exporter.exposition import Family
    from sqlalchemy_pool_exporter.families import Owner, OwnerSeries

    from .recorder import Recorder

_METRICS = (*POOL_METRICS, *EXPORTER_METRICS, *APPLICATION_METRICS)


class PoolCollector(Collector):
    """Collects the pools that are shown in one registry.

    The mutable state is those pools. ``instrument()`` and ``Handle.close()`` call ``add()`` and ``remove()`` under one
    lock.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = weakref.ref(registry)
        self._recorders: weakref.WeakValueDictionary[str, Recorder] = weakref.WeakValueDictionary()
        self._errors = 0
        self._series: dict[Owner, OwnerSeries] = {}

    def add(self, recorder: Recorder) -> None:
        """Show a pool, from the next scrape on."""
        registry = self._registry()
        # Check each time: an application that wants no default collectors may have unregistered all collectors.
        if registry is not None and self not in registry._collector_to_names:  # noqa: SLF001 - there is no other way to ask
            registry.register(self)
        self._recorders[recorder.name] = recorder

    def remove(self, recorder: Recorder) -> None:
        """Stop showing a pool.

        The collector stays registered, because a finalizer can call this while the registry's lock is held.
        """
        if self._recorders.get(recorder.name) is recorder:
            del self._recorders[recorder.name]

    def describe(self) -> Iterator[Family]:
        """Yield every family without samples; the registry reserves their names for this collector."""
        yield from map(families.empty, _METRICS)

    def collect(self) -> Iterator[Family]:
        """Yield fresh families of all pools; a pool that cannot be read is left out and counted."""
        began = time.perf_counter()
        fork.notice()
        recorders = {
            recorder.name: recorder
            # Copied in one step: another thread can add a pool.
            for reference in self._recorders.valuerefs()
            if (recorder := reference())
        }
        if not recorders:
            return
        builder = Builder(_METRICS, owner=("pool",), known=self._series)
        for name, recorder in recorders.items():
            try:
                values = list(recorder.values())
            except Exception:  # noqa: BLE001 - one odd pool never fails the scrape
                self._errors += 1
                continue
            is_shared = recorder.store.shares(recorder.block)
            if is_shared is not None:
                builder.add((name,), [("exporter_segment_shared", float(is_shared))])
            builder.add_info((name,), "info", recorder.info)
            builder.add((name,), values)
        builder.add_info((), "exporter_build_info", versions())
        builder.add((), [("exporter_scrape_errors_total", float(self._errors))])
        builder.add((), [("exporter_scrape_duration_seconds", time.perf_counter() - began)])
        self._series = builder.series
        yield from builder.families()


def versions() -> dict[str, str]:
    """Return the labels of the metric ``exporter_build_info``."""
    return {
        "version": package_version(),
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
    }
