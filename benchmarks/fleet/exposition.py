# SPDX-License-Identifier: Apache-2.0
"""What one target of the fleet shows: the sidecar's own exposition of real segments, which then counts on by itself."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.scrape import POOLS, write_segments
from sqlalchemy_pool_exporter import exposition
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.metrics import (
    BUCKETS,
    DATABASE_METRICS,
    POOL_METRICS,
    PREFIX,
    PROBED_POOL_METRICS,
)
from sqlalchemy_pool_exporter.segment.directory import Reader

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy_pool_exporter.metrics import Metric

_CUMULATIVE = ("_total", "_bucket", "_count", "_sum")
# What counts on in a healthy pool. In trouble all does, and every alert fires.
_HEALTHY = {
    f"{PREFIX}{key}"
    for key in (
        "checkouts_total",
        "checkins_total",
        "connects_total",
        "checkouts_by_site_total",
        "hold_seconds_by_site",
    )
} | {f"{PREFIX}{key}" for key in ("checkout_wait_seconds", "connect_seconds", "ping_seconds", "hold_seconds")}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a target has, and what of it the sidecar is told to show.

    ``database`` is whether its sidecar probes a database, of which all its pools are.
    """

    workers: int = 4
    sites: int = 5
    worker_label: bool = True
    buckets: tuple[float, ...] = BUCKETS
    drop: frozenset[str] = frozenset()
    database: bool = False


class Exposition:
    """The lines of a target, with values that depend on the time alone, so that none of them is kept."""

    def __init__(self, shape: Shape) -> None:
        lines = [*_collected(shape), *_of_sites(shape), *(_of_database() if shape.database else ())]
        shown = [(name, value) for name, value in lines if not _is_dropped(name, shape.drop)]
        self.series = len(shown)
        self._template = "".join(f"{name.replace('%', '%%')} %s\n" for name, _ in shown)
        # A value, and what it grows by in a second: in a healthy target, and in one with trouble.
        self._values = [(value, _healthy_growth(name), _growth(name)) for name, value in shown]
        self._stamps = [
            at for at, (name, _) in enumerate(shown) if name.partition("{")[0].endswith("timestamp_seconds")
        ]

    def text(self, seconds: float, pace: float, *, is_in_trouble: bool) -> bytes:
        """Return the exposition after so many seconds of a target that counts at a pace of its own."""
        values = [
            value + (ill if is_in_trouble else healthy) * pace * seconds
            for value, healthy, ill in self._values
        ]
        for at in self._stamps:
            values[at] = time.time()
        return (self._template % tuple(values)).encode()


def _healthy_growth(name: str) -> float:
    """Return the rate of a counter in a healthy target, in which no wait is longer than a millisecond."""
    bare = name.partition("{")[0]
    if bare not in _HEALTHY and not any(bare.removesuffix(end) in _HEALTHY for end in _CUMULATIVE[1:]):
        return 0.0
    return 0.001 if bare.endswith("_sum") else 1.0


def _growth(name: str) -> float:
    """Return a rate at which the buckets of a histogram stay cumulative; 0 of what does not count."""
    if not name.partition("{")[0].endswith(_CUMULATIVE):
        return 0.0
    if 'le="' not in name:
        return 1.0
    bound = name.split('le="')[1].split('"', maxsplit=1)[0]
    return 1.0 if bound == "+Inf" else min(1.0, 0.3 + float(bound) ** 0.3 * 0.7)


def _collected(shape: Shape) -> Iterator[tuple[str, float]]:
    """Yield the lines that the sidecar writes for the processes of a directory."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        count_on = write_segments(directory, live=shape.workers, dead=0, stack=stack)
        count_on()
        collector = FleetCollector(
            Reader(directory),
            worker_label=shape.worker_label,
            counters_per_worker=False,
            buckets=shape.buckets,
        )
        for line in exposition.text(collector.collect()).decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                yield name, float(value)


def _of_sites(shape: Shape) -> Iterator[tuple[str, float]]:
    """Yield the metrics by site, which the sidecar has of pools that are busy, with labels as long as real ones."""
    for metric in POOL_METRICS:
        if metric.labels != ("site",):
            continue
        workers = range(shape.workers) if metric.kind == "gauge" and shape.worker_label else (None,)
        for pool in range(POOLS):
            for site in range(shape.sites):
                place = f"shop.orders.views:OrderList.get_queryset:{100 + site}"
                for worker in workers:
                    label = "" if worker is None else f',worker="{worker:03d}"'
                    for suffix in metric.suffixes:
                        yield f'{metric.name}{suffix}{{pool="pool {pool}",site="{place}"{label}}}', 1.0


def _of_database() -> Iterator[tuple[str, float]]:
    """Yield what the probe of a database adds."""
    for metric in DATABASE_METRICS:
        yield from _labelled(metric, 'database="orders"')
    for pool in range(POOLS):
        yield f'{PREFIX}database_pool_info{{database="orders",pool="pool {pool}"}}', 1.0
        for metric in PROBED_POOL_METRICS:
            yield from _labelled(metric, f'pool="pool {pool}"')


def _labelled(metric: Metric, owner: str) -> Iterator[tuple[str, float]]:
    if metric.key == "database_pool_info":
        return
    values = metric.values or ("one",) * bool(metric.labels)
    for value in values or ("",):
        own = f',{metric.labels[0]}="{value}"' if metric.labels else ""
        yield f"{metric.name}{{{owner}{own}}}", 100.0


def _is_dropped(name: str, drop: Collection[str]) -> bool:
    bare = name.partition("{")[0]
    return any(bare == one or bare.removesuffix(suffix) == one for one in drop for suffix in _CUMULATIVE[1:])
