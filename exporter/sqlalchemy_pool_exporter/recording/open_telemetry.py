# SPDX-License-Identifier: Apache-2.0
"""Pools as metrics of OpenTelemetry, by the semantic conventions for database connection pools.

State and counters are observable instruments of the API: they are read from the blocks when the SDK collects, so they
cost a checkout nothing. The API has no instrument that takes a ready histogram, and the Python SDK has no metric
producer. So the histograms are added to what the SDK hands to each of its readers; a synchronous histogram would cost
each checkout several microseconds.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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
from sqlalchemy_pool_exporter.metrics import BUCKETS
from sqlalchemy_pool_exporter.segment import sums
from sqlalchemy_pool_exporter.segment.own_errors import is_own
from sqlalchemy_pool_exporter.segment.snapshot import Histogram, counters

from .instrumented import INSTRUMENTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

    from sqlalchemy_pool_exporter.segment.identity import Identity
    from sqlalchemy_pool_exporter.segment.snapshot import Snapshot
    from sqlalchemy_pool_exporter.segment.worker import WorkerPool

    from .own_pools import OwnPools

_logger = logging.getLogger("sqlalchemy_pool_exporter")

# One collection asks each instrument in turn; all of them answer from one read, which a reader of the SDK begins.
_READ_SECONDS: Final = 0.05

Values = Iterator[tuple[float, dict[str, str]]]  # with the attributes beside the name of the pool


class Pool(NamedTuple):
    """What is known of the pools of one name in this process."""

    label: str
    counts: dict[str, Any]  # by the key of the metric
    snapshots: list[Snapshot]  # of live pools

    @property
    def current(self) -> list[Snapshot]:
        """Those that no other pool has replaced."""
        return [*sums.current(self.snapshots)] if self.snapshots else []

    def state(self) -> dict[str, Any]:
        """Return connections and waiting callers."""
        return sums.state(self.snapshots, now=time.monotonic(), wall=time.time()) if self.snapshots else {}


def _count(pool: Pool) -> Values:
    connections = pool.state().get("connections")
    if connections:
        yield connections["in_use"], {STATE: "used"}
        yield connections["idle"], {STATE: "idle"}


def _idle_max(pool: Pool) -> Values:
    size = sums.limits(pool.snapshots).get("size") if pool.snapshots else None
    if isinstance(size, float):
        yield size, {}


def _idle_min(pool: Pool) -> Values:
    if pool.snapshots:
        yield 0.0, {}  # SQLAlchemy opens connections when they are asked for


def _max(pool: Pool) -> Values:
    capacity = sums.capacity(pool.snapshots) if pool.snapshots else math.nan
    if not math.isnan(capacity):
        yield capacity, {}


def _pending(pool: Pool) -> Values:
    if pool.snapshots:
        yield pool.state()["pending_checkouts"], {}


def _timeouts(pool: Pool) -> Values:
    yield pool.counts["checkout_timeouts_total"], {}


_COUNTER: Final = "create_observable_counter"
_UP_DOWN: Final = "create_observable_up_down_counter"
# Kind, and what yields the values.
_OBSERVED: Final = {
    "count": (_UP_DOWN, _count),
    "idle.max": (_UP_DOWN, _idle_max),
    "idle.min": (_UP_DOWN, _idle_min),
    "max": (_UP_DOWN, _max),
    "pending_requests": (_UP_DOWN, _pending),
    "timeouts": (_COUNTER, _timeouts),
}


_NEVER: Final[tuple[float, list[Pool]]] = (-math.inf, [])


class Export:
    """The pools that one meter provider gets.

    Mutable state: which pools, by where they are recorded; the last read; and the readers that get histograms.
    """

    def __init__(self, provider: MeterProvider) -> None:
        self._sources: dict[OwnPools, set[Identity]] = {}
        self._lock = threading.Lock()
        self._last = _NEVER
        self._readers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._provider = weakref.ref(provider)
        meter = provider.get_meter(SCOPE, package_version(), SCHEMA_URL)
        for name, (kind, values) in _OBSERVED.items():
            create = getattr(meter, kind)
            unit, description = NUMBERS[name]
            create(
                f"{PREFIX}{name}",
                [self._callback(values)],
                unit=unit,
                description=description,
            )
        self.attach()

    def add(self, own: OwnPools, identity: Identity) -> None:
        """Export the pools of this identity in this process."""
        with self._lock:
            self._sources.setdefault(own, set()).add(identity)

    def begin(self) -> None:
        """Read anew, because a reader begins to collect."""
        with self._lock:
            self._last = _NEVER

    def read(self) -> list[Pool]:
        """Return the pools now, or as they were a moment ago."""
        with self._lock:
            moment, pools = self._last
            if time.monotonic() - moment > _READ_SECONDS:
                pools = [*self._read()]
                self._last = (time.monotonic(), pools)
            return pools

    def _read(self) -> Iterator[Pool]:
        INSTRUMENTED.fold()
        for own, identities in self._sources.items():
            by_label: dict[str, list[WorkerPool]] = {}
            for pool in own.every():
                if pool.identity in identities:
                    by_label.setdefault(own.label(pool.identity), []).append(pool)
            for label, pools in by_label.items():
                counts = sums.total([pool.snapshot.counts for pool in pools])
                live = [pool.snapshot for pool in pools if pool.snapshot.is_active]
                yield Pool(label, dict(counters(counts, has_overflow=True)), live)

    def _callback(
        self, values: Callable[[Pool], Values]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation  # noqa: PLC0415 - only applications that use it have it

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            self.attach()
            return [
                Observation(_number(value), {POOL_NAME: pool.label, **attributes})
                for pool in self.read()
                for value, attributes in values(pool)
            ]

        return observe

    # -- histograms

    def attach(self) -> None:
        """Add the histograms to what each reader of the SDK gets. Does nothing for readers that have them."""
        for reader in _readers(self._sdk):
            if reader not in self._readers:
                self._readers.add(reader)
                _Reader(self, reader).attach()

    def serves(self, provider: MeterProvider) -> bool:
        """Return whether this is for a provider: for itself, or for the API's, which stands for it."""
        return self._sdk is _real(provider)

    @property
    def _sdk(self) -> Any:
        return _real(self._provider())

    @property
    def resource(self) -> Any:
        """What the SDK says of this process."""
        return self._sdk._sdk_config.resource  # noqa: SLF001 - has no public name


class _Reader:
    """One reader of the SDK, which gets the histograms with all else.

    Mutable state: what it got last, if it wants differences.
    """

    def __init__(self, export: Export, reader: Any) -> None:
        self._export, self._reader = export, reader
        self._collect: Callable[..., Any] = reader._collect  # noqa: SLF001 - as above
        self._last: dict[tuple[str, str], tuple[Histogram, int]] = {}
        self._has_complained = False
        self._began = time.time_ns()

    def attach(self) -> None:
        """Take the place of what the reader collects by."""
        self._reader._collect = self.collect  # noqa: SLF001

    def collect(self, *arguments: Any, **options: Any) -> Any:
        """Return what the SDK has collected, and the histograms."""
        self._export.begin()
        data = self._collect(*arguments, **options)
        try:
            return self._with_histograms(data)
        except Exception as error:
            if not is_own(error):
                raise
            if not self._has_complained:
                self._has_complained = True
                _logger.exception(
                    "the histograms of pools cannot be handed to %s", type(self._reader).__name__
                )
            return data

    def _with_histograms(self, data: Any) -> Any:
        from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415 - there is a reader, so there is an SDK
            AggregationTemporality,
            HistogramDataPoint,
            Metric,
            MetricsData,
            ResourceMetrics,
            ScopeMetrics,
        )
        from opentelemetry.sdk.metrics.export import Histogram as HistogramPoints  # noqa: PLC0415
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

        temporality = self._temporality()
        is_delta = temporality is AggregationTemporality.DELTA
        now, pools = time.time_ns(), self._export.read()
        metrics = []
        for name, description, key in HISTOGRAMS:
            points = []
            for pool in pools:
                found, since = self._since(pool, key, now, is_delta=is_delta)
                points.append(
                    HistogramDataPoint(
                        attributes={POOL_NAME: pool.label},
                        start_time_unix_nano=since,
                        time_unix_nano=now,
                        count=round(found.count),
                        sum=found.sum,
                        bucket_counts=[round(count) for count in found.buckets],
                        explicit_bounds=list(BUCKETS),
                        min=None,  # type: ignore[arg-type]  # not known; optional in the protocol
                        max=None,  # type: ignore[arg-type]
                    )
                )
            if points:
                data_points = HistogramPoints(points, temporality)
                metrics.append(Metric(f"{PREFIX}{name}", description, "s", data_points))
        if not metrics:
            return data
        resources = [] if data is None else [*data.resource_metrics]
        scope = InstrumentationScope(SCOPE, package_version(), SCHEMA_URL)
        mine = ScopeMetrics(scope, metrics, SCHEMA_URL)
        if not resources:
            return MetricsData([ResourceMetrics(self._export.resource, [mine], "")])
        first = resources[0]
        scopes = [
            ScopeMetrics(one.scope, [*one.metrics, *metrics], one.schema_url) if one.scope == scope else one
            for one in first.scope_metrics
        ]
        if not any(one.scope == scope for one in scopes):
            scopes.append(mine)
        return MetricsData([ResourceMetrics(first.resource, scopes, first.schema_url), *resources[1:]])

    def _since(self, pool: Pool, key: str, now: int, *, is_delta: bool) -> tuple[Histogram, int]:
        """Return a histogram, and since when it counts."""
        found: Histogram = pool.counts[key]
        if not is_delta:
            return found, self._began
        before, since = self._last.get((pool.label, key), (None, self._began))
        self._last[pool.label, key] = (found, now)
        if before is None or found.count < before.count:  # a forked child begins anew
            return found, since
        buckets = tuple(map(float.__sub__, found.buckets, before.buckets))
        return Histogram(buckets, found.sum - before.sum), since

    def _temporality(self) -> Any:
        from opentelemetry.sdk.metrics import Histogram as Instrument  # noqa: PLC0415 - as above
        from opentelemetry.sdk.metrics.export import AggregationTemporality  # noqa: PLC0415

        by_kind = self._reader._instrument_class_temporality  # noqa: SLF001
        kinds = (temporality for kind, temporality in by_kind.items() if issubclass(kind, Instrument))
        return next(kinds, AggregationTemporality.CUMULATIVE)


def _real(provider: Any) -> Any:
    """Return the SDK's provider. The API's stands for it until the application has set one."""
    return getattr(provider, "_real_meter_provider", None) or provider


def _readers(provider: Any) -> list[Any]:
    """Return the readers of a provider of the SDK; none of another one."""
    readers: Any = getattr(provider, "_metric_readers", None)
    if readers is None:  # an older one
        readers = getattr(getattr(provider, "_sdk_config", None), "metric_readers", ())
    return [
        one
        for one in readers
        if callable(getattr(one, "_collect", None)) and hasattr(one, "_instrument_class_temporality")
    ]


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


_exports: weakref.WeakKeyDictionary[MeterProvider, Export] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def export(provider: MeterProvider, own: OwnPools, identity: Identity) -> None:
    """Let a meter provider have the pools of an identity, as far as this process has them."""
    with _lock:
        found = next((one for one in _exports.values() if one.serves(provider)), None)
        # One for both the API's provider and the SDK's: of two instruments of one name the SDK keeps the first.
        _exports[provider] = found or Export(provider)
        _exports[provider].add(own, identity)
