# SPDX-License-Identifier: Apache-2.0
"""The ways to count a pool that are compared: each attaches to an engine and says what it counts."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, Gauge

from sqlalchemy_pool_exporter import instrument

from .need import need

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

POOL: Final = "orders"


class Counted(NamedTuple):
    """What a watcher says: connections in use and idle now, and its other numbers by name.

    One that *covers_children* says it of all processes at once; else the numbers of the processes are to be added, as
    Prometheus, collectd and an OpenTelemetry collector do.
    """

    state: Callable[[], tuple[int, int]]
    totals: Callable[[], dict[str, int]]
    covers_children: bool = False


def exporter(engine: Engine, directory: str) -> Counted:
    """Attach this project, with the directory that processes share."""
    registry = CollectorRegistry()
    instrument(engine, name=POOL, registry=registry, directory=directory)

    def value(name: str, **labels: str) -> int:
        total = 0.0
        for family in registry.collect():
            for sample in family.samples:
                given = sample.labels
                if sample.name == f"sqlalchemy_pool_{name}" and labels.items() <= given.items():
                    total += sample.value
        return int(total)

    return Counted(
        lambda: (value("connections", state="in_use"), value("connections", state="idle")),
        lambda: {
            "checkouts": value("checkouts_total"),
            "opened": value("connects_total"),
            "closed": value("closes_total"),
            "timeouts": value("checkout_timeouts_total"),
            "waiting": value("pending_checkouts"),
        },
        covers_children=True,
    )


def collectd(engine: Engine, _directory: str) -> Counted:
    """Attach sqlalchemy-collectd, and read what its thread sends."""
    plugin = need("sqlalchemy_collectd.client.plugin", "sqlalchemy-collectd")
    collector = need("sqlalchemy_collectd.client.collector", "sqlalchemy-collectd")
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("127.0.0.1", 0))
    plugin.start_plugin(
        engine, hostname=POOL, progname=POOL, collectd_host="127.0.0.1", collectd_port=sink.getsockname()[1]
    )
    sink.detach()  # the thread of the plugin sends to it until the process ends
    target: Any = collector.CollectionTarget.collection_for_name(POOL)
    return Counted(
        lambda: (target.num_checkedout, target.num_checkedin),
        lambda: {
            "checkouts": target.total_checkouts,
            "opened": target.total_connects,
            "closed": target.total_disconnects,
        },
    )


def opentelemetry(engine: Engine, _directory: str) -> Counted:
    """Attach OpenTelemetry's instrumentation, and read ``db.client.connections.usage``."""
    metrics = need("opentelemetry.sdk.metrics", "opentelemetry-sdk")
    export = need("opentelemetry.sdk.metrics.export", "opentelemetry-sdk")
    package = need("opentelemetry.instrumentation.sqlalchemy", "opentelemetry-instrumentation-sqlalchemy")
    reader = export.InMemoryMetricReader()
    # Skip its version check, which excludes SQLAlchemy 2.1: the events work there as they do in 2.0.
    package.SQLAlchemyInstrumentor().instrument(
        engine=engine, meter_provider=metrics.MeterProvider([reader]), skip_dep_check=True
    )

    def state() -> tuple[int, int]:
        found = {"used": 0, "idle": 0}
        data = reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == "db.client.connections.usage":
                        for point in metric.data.data_points:
                            found[point.attributes["state"]] += point.value
        return found["used"], found["idle"]

    return Counted(state, dict)


def gauges(engine: Engine, _directory: str) -> Counted:
    """Attach two gauges of prometheus_client that ask the engine for its pool each time."""
    registry = CollectorRegistry()
    out = Gauge("checked_out", "Connections in use.", registry=registry)
    out.set_function(lambda: engine.pool.checkedout())  # type: ignore[attr-defined] # noqa: PLW0108 - see above
    back = Gauge("checked_in", "Connections in the pool.", registry=registry)
    back.set_function(lambda: engine.pool.checkedin())  # type: ignore[attr-defined] # noqa: PLW0108 - see above

    def value(name: str) -> int:
        return int(registry.get_sample_value(name) or 0)

    return Counted(lambda: (value("checked_out"), value("checked_in")), dict)


WATCHERS: Final[dict[str, Callable[[Engine, str], Counted]]] = {
    "sqlalchemy-pool-exporter": exporter,
    "sqlalchemy-collectd": collectd,
    "OpenTelemetry": opentelemetry,
    "gauges": gauges,
}
