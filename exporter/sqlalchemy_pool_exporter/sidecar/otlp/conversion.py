# SPDX-License-Identifier: Apache-2.0
"""Metric families → metrics of OpenTelemetry's SDK, by their own names and by those of the semantic conventions."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramPoints
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from sqlalchemy_pool_exporter.about import package_version
from sqlalchemy_pool_exporter.conventions import (
    HISTOGRAMS,
    NUMBERS,
    POOL_NAME,
    PREFIX,
    SCHEMA_URL,
    SCOPE,
    STATE,
)
from sqlalchemy_pool_exporter.metrics import PREFIX as OWN_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.sdk.resources import Resource
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.samples import Exemplar as Found
    from prometheus_client.samples import Sample

_UNITS: Final = {"seconds": "s", "bytes": "By", "ratio": "1"}
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE
_STATES: Final = {"in_use": "used", "idle": "idle"}

Labels = tuple[tuple[str, str], ...]


class Times(NamedTuple):
    """Since when the counts go, and now, in nanoseconds since the epoch."""

    began: int
    now: int


def converted(
    families: Iterable[Family], resource: Resource, times: Times, *, own_metrics: bool = True
) -> MetricsData:
    """Return families as one batch.

    Args:
        families: of a scrape.
        resource: what pushes them.
        times: of the batch.
        own_metrics: by their own names, too; otherwise only by those of the semantic conventions.
    """
    every = list(families)
    metrics = [*_conventions({family.name: family for family in every}, times)]
    if own_metrics:
        metrics += chain.from_iterable(_own(family, times) for family in every)
    scope = InstrumentationScope(SCOPE, package_version(), SCHEMA_URL)
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, metrics, SCHEMA_URL)], SCHEMA_URL)])


# -- by their own names


def _own(family: Family, times: Times) -> Iterator[Metric]:
    """Yield the metrics of a family.

    A receiver appends what the type and the unit tell, so a name comes without; Prometheus' ends as it began.
    """
    unit = _UNITS.get(family.unit, "")
    if family.type == "histogram":
        points = [_histogram_point(dict(labels), some, times) for labels, some in _series(family).items()]
        if points:
            yield Metric(family.name, family.documentation, unit, HistogramPoints(points, _CUMULATIVE))
        return
    by_name: dict[str, list[NumberDataPoint]] = defaultdict(list)
    for sample in family.samples:
        if not math.isnan(sample.value):
            by_name[sample.name].append(_point(sample.labels, sample.value, times))
    for name, numbers in by_name.items():
        data: Any = Gauge(numbers)
        if family.type in ("counter", "summary"):
            data = Sum(numbers, _CUMULATIVE, is_monotonic=True)
        is_count = name.endswith("_count") and family.type == "summary"
        shown = name.removesuffix("_total") if family.type == "counter" else name
        yield Metric(shown, family.documentation, "" if is_count else unit, data)


def _series(family: Family) -> dict[Labels, list[Sample]]:
    """Return the samples of a histogram by the labels of the series."""
    found: dict[Labels, list[Sample]] = defaultdict(list)
    for sample in family.samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        found[labels].append(sample)
    return found


# -- by the semantic conventions


def _conventions(families: Mapping[str, Family], times: Times) -> Iterator[Metric]:
    for name, points in _numbers(families, times).items():
        unit, description = NUMBERS[name]
        data = Sum(points, _CUMULATIVE, is_monotonic=name == "timeouts")
        if points:
            yield Metric(f"{PREFIX}{name}", description, unit, data)
    for name, description, key in HISTOGRAMS:
        by_pool: dict[str, list[Sample]] = defaultdict(list)
        family = families.get(f"{OWN_PREFIX}{key}")
        for sample in () if family is None else family.samples:
            by_pool[sample.labels["pool"]].append(sample)
        histograms = [_histogram_point({POOL_NAME: pool}, some, times) for pool, some in by_pool.items()]
        if histograms:
            yield Metric(f"{PREFIX}{name}", description, "s", HistogramPoints(histograms, _CUMULATIVE))


def _numbers(families: Mapping[str, Family], times: Times) -> dict[str, list[NumberDataPoint]]:
    """Return the points of each metric, summed over the workers."""

    def points(key: str, **labels: str) -> list[NumberDataPoint]:
        sums: dict[str, float] = defaultdict(float)
        family = families.get(f"{OWN_PREFIX}{key}")
        for sample in () if family is None else family.samples:
            if labels.items() <= sample.labels.items():
                sums[sample.labels["pool"]] += sample.value
        attributes = {STATE: _STATES[labels["state"]]} if labels else {}
        return [_point({POOL_NAME: pool, **attributes}, value, times) for pool, value in sums.items()]

    counts = [point for state in _STATES for point in points("connections", state=state)]
    pools = {str(point.attributes[POOL_NAME]) for point in counts if point.attributes is not None}
    return {
        "count": counts,
        "idle.max": points("size"),
        # SQLAlchemy opens connections when they are asked for.
        "idle.min": [_point({POOL_NAME: pool}, 0.0, times) for pool in sorted(pools)],
        "max": points("capacity"),
        "pending_requests": points("pending_checkouts"),
        "timeouts": points("checkout_timeouts"),
    }


# -- points


def _point(labels: Mapping[str, str], value: float, times: Times) -> NumberDataPoint:
    number = int(value) if value.is_integer() else value
    return NumberDataPoint(dict(labels), times.began, times.now, number)


def _histogram_point(
    attributes: Mapping[str, str], samples: Iterable[Sample], times: Times
) -> HistogramDataPoint:
    """Return the sum of the histograms in some samples."""
    below: dict[float, float] = defaultdict(float)
    total = 0.0
    exemplars: list[Exemplar] = []
    for sample in samples:
        if sample.name.endswith("_bucket"):
            below[float(sample.labels["le"])] += sample.value
            if sample.exemplar is not None:
                exemplars.append(_exemplar(sample.exemplar))
        elif sample.name.endswith("_sum"):
            total += sample.value
    bounds = sorted(below)
    counts = [round(after - before) for before, after in pairwise((0.0, *(below[bound] for bound in bounds)))]
    return HistogramDataPoint(
        attributes=dict(attributes),
        start_time_unix_nano=times.began,
        time_unix_nano=times.now,
        count=sum(counts),
        sum=total,
        bucket_counts=counts,
        explicit_bounds=[bound for bound in bounds if math.isfinite(bound)],
        min=None,  # type: ignore[arg-type]  # not known; optional in the protocol
        max=None,  # type: ignore[arg-type]
        exemplars=exemplars,
    )


def _exemplar(found: Found) -> Exemplar:
    moment = round(1e9 * float(found.timestamp or 0.0))
    span, trace = (int(found.labels[name], 16) for name in ("span_id", "trace_id"))
    return Exemplar({}, found.value, moment, span, trace)
