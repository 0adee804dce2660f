# SPDX-License-Identifier: Apache-2.0
"""What is put on a pool to watch it: nothing, this project, and what others do."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy import Engine, event

from sqlalchemy_pool_exporter import instrument

from .need import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class Watcher:
    """A row: *attach* puts the instrumentation on an engine and takes it off at the end.

    What instruments engines, not pools, is driven through ``engine.raw_connection()`` and is compared with a bare
    engine driven the same way.
    """

    name: str
    attach: Callable[[Engine], AbstractContextManager[None]]
    through_engine: bool = False


@contextmanager
def nothing(_engine: Engine) -> Iterator[None]:
    yield


@contextmanager
def two_empty_listeners(engine: Engine) -> Iterator[None]:
    def checkout(_connection: object, _record: object, _proxy: object) -> None: ...

    def checkin(_connection: object, _record: object) -> None: ...

    event.listen(engine.pool, "checkout", checkout)
    event.listen(engine.pool, "checkin", checkin)
    yield


@contextmanager
def this_project(engine: Engine) -> Iterator[None]:
    handle = instrument(engine, name="benchmark", registry=CollectorRegistry())
    yield
    handle.close()


@contextmanager
def _three_prometheus_calls(engine: Engine) -> Iterator[None]:
    # What is written first by hand: how many are out, how many were handed out, for how long.
    registry = CollectorRegistry()
    out = Gauge("in_use", "Connections in use.", ["pool"], registry=registry).labels("benchmark")
    taken = Counter("checkouts", "Connections handed out.", ["pool"], registry=registry).labels("benchmark")
    held = Histogram("hold_seconds", "Time held.", ["pool"], registry=registry).labels("benchmark")

    def checkout(_connection: object, record: Any, _proxy: object) -> None:
        out.inc()
        taken.inc()
        record.info["held_since"] = perf_counter()

    def checkin(_connection: object, record: Any) -> None:
        out.dec()
        held.observe(perf_counter() - record.info.pop("held_since"))

    event.listen(engine.pool, "checkout", checkout)
    event.listen(engine.pool, "checkin", checkin)
    yield


@contextmanager
def _collectd(engine: Engine) -> Iterator[None]:
    plugin = need("sqlalchemy_collectd.client.plugin", "sqlalchemy-collectd")
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("127.0.0.1", 0))
    # This is what `?plugin=collectd` in the URL comes down to.
    plugin.start_plugin(
        engine,
        hostname="benchmark",
        progname="benchmark",
        collectd_host="127.0.0.1",
        collectd_port=sink.getsockname()[1],
    )
    yield
    # Its thread cannot be stopped and goes on sending, so that the sink must outlive the benchmark.
    sink.detach()


@contextmanager
def _opentelemetry(engine: Engine) -> Iterator[None]:
    metrics = need("opentelemetry.sdk.metrics", "opentelemetry-sdk")
    export = need("opentelemetry.sdk.metrics.export", "opentelemetry-sdk")
    package = need("opentelemetry.instrumentation.sqlalchemy", "opentelemetry-instrumentation-sqlalchemy")
    provider = metrics.MeterProvider([export.InMemoryMetricReader()])
    instrumentor = package.SQLAlchemyInstrumentor()
    # Its version check excludes SQLAlchemy 2.1, with which these events work as they do with 2.0.
    instrumentor.instrument(engine=engine, meter_provider=provider, skip_dep_check=True)
    yield
    instrumentor.uninstrument()
    provider.shutdown()


LISTENERS = Watcher("two empty listeners", two_empty_listeners)

# OpenTelemetry is last because it also wraps create_engine(): no other case may make its engines after it.
WATCHERS = (
    Watcher("nothing", nothing),
    LISTENERS,
    Watcher("sqlalchemy-pool-exporter", this_project),
    Watcher("three prometheus_client calls", _three_prometheus_calls),
    Watcher("sqlalchemy-collectd", _collectd, through_engine=True),
    Watcher("opentelemetry-instrumentation-sqlalchemy", _opentelemetry, through_engine=True),
)
