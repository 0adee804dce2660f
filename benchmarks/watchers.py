# SPDX-License-Identifier: Apache-2.0
"""The ways to watch a pool that are compared: nothing, empty listeners, this project and its alternatives."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
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
    """A row of a table; *attach* instruments an engine for the duration of a block.

    A watcher that instruments engines instead of pools sets *through_engine*: its connections are checked out with
    ``engine.raw_connection()``, and so are those of the bare engine that it is compared with. An *interpreted* one
    runs the interpreted build, whichever is installed.
    """

    name: str
    attach: Callable[[Engine], AbstractContextManager[None]]
    through_engine: bool = False
    interpreted: bool = False


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
def this_project(engine: Engine, *, sites: bool | float | None = None) -> Iterator[None]:
    handle = instrument(engine, name="benchmark", registry=CollectorRegistry(), sites=sites)
    yield
    handle.close()


@contextmanager
def _this_project_to_opentelemetry(engine: Engine) -> Iterator[None]:
    metrics = need("opentelemetry.sdk.metrics", "opentelemetry-sdk")
    export = need("opentelemetry.sdk.metrics.export", "opentelemetry-sdk")
    provider = metrics.MeterProvider([export.InMemoryMetricReader()])
    handle = instrument(engine, name="benchmark", registry=CollectorRegistry(), meter_provider=provider)
    yield
    handle.close()
    provider.shutdown()


@contextmanager
def _three_prometheus_calls(engine: Engine) -> Iterator[None]:
    # What a developer writes first without a library: connections in use, checkouts and hold time.
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
    # `?plugin=collectd` in the URL calls this function.
    plugin.start_plugin(
        engine,
        hostname="benchmark",
        progname="benchmark",
        collectd_host="127.0.0.1",
        collectd_port=sink.getsockname()[1],
    )
    yield
    # The plugin's thread cannot be stopped and keeps sending, so the socket must stay open.
    sink.detach()


@contextmanager
def _opentelemetry(engine: Engine) -> Iterator[None]:
    metrics = need("opentelemetry.sdk.metrics", "opentelemetry-sdk")
    export = need("opentelemetry.sdk.metrics.export", "opentelemetry-sdk")
    package = need("opentelemetry.instrumentation.sqlalchemy", "opentelemetry-instrumentation-sqlalchemy")
    provider = metrics.MeterProvider([export.InMemoryMetricReader()])
    instrumentor = package.SQLAlchemyInstrumentor()
    # Skip its version check, which excludes SQLAlchemy 2.1: the events work there as they do in 2.0.
    instrumentor.instrument(engine=engine, meter_provider=provider, skip_dep_check=True)
    yield
    instrumentor.uninstrument()
    provider.shutdown()


LISTENERS = Watcher("two empty listeners", two_empty_listeners)

WATCHERS = (
    Watcher("nothing", nothing),
    LISTENERS,
    Watcher("sqlalchemy-pool-exporter", this_project),
    # By default a pool of which half is not in use, as here, records no site.
    Watcher("the same with the site of each checkout", partial(this_project, sites=True)),
    Watcher("the same without sites", partial(this_project, sites=False)),
    Watcher("the same with OpenTelemetry", _this_project_to_opentelemetry),
    Watcher("the same interpreted", this_project, interpreted=True),
    Watcher("three prometheus_client calls", _three_prometheus_calls),
    Watcher("sqlalchemy-collectd", _collectd, through_engine=True),
    Watcher("opentelemetry-instrumentation-sqlalchemy", _opentelemetry, through_engine=True),
)
