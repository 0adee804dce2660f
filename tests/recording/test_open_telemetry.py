# SPDX-License-Identifier: Apache-2.0
"""Pools as metrics of OpenTelemetry: with the real SDK, over OTLP, and by its exporter for Prometheus."""

from __future__ import annotations

import gc
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, QueuePool

from sqlalchemy_pool_exporter import TargetError, instrument, instrument_all
from sqlalchemy_pool_exporter.conventions import SCHEMA_URL
from sqlalchemy_pool_exporter.metrics import BUCKETS
from tests.support.fakes import FakeConnection
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("opentelemetry.sdk.metrics")

from opentelemetry.sdk.metrics import Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

PREFIX = "db.client.connection."
DELTA: dict[type, AggregationTemporality] = {
    Histogram: AggregationTemporality.DELTA,
    ObservableCounter: AggregationTemporality.DELTA,
}


def a_pool(**options: Any) -> QueuePool:
    return QueuePool(FakeConnection, **{"pool_size": 2, "max_overflow": 1, "timeout": 0.0} | options)  # type: ignore[arg-type]


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    made = MeterProvider([reader], resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    yield made
    made.shutdown()


def metrics(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Return the metrics of one collection by their names."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    (resource,) = data.resource_metrics
    assert resource.resource.attributes["service.name"] == "shop"
    return {
        metric.name.removeprefix(PREFIX): metric
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name.startswith(PREFIX)
    }


def values(reader: InMemoryMetricReader, pool: str = "orders") -> dict[str, Any]:
    """Return the values of a pool; of a histogram how many it counts."""
    found = {}
    for name, metric in metrics(reader).items():
        for point in metric.data.data_points:
            attributes = dict(point.attributes)
            if attributes.pop(f"{PREFIX}pool.name") == pool:
                key = ".".join((name, *attributes.values()))
                found[key] = point.count if hasattr(point, "count") else point.value
    return found


def test_the_conventions(
    provider: MeterProvider, reader: InMemoryMetricReader, registry: CollectorRegistry
) -> None:
    """Every metric of the conventions has their name, unit and kind, and the true value."""
    pool = a_pool()
    with instrument(pool, name="orders", registry=registry, meter_provider=provider):
        held = [pool.connect() for _ in range(3)]
        with pytest.raises(PoolTimeout):
            pool.connect()
        held.pop().close()
        held.pop().close()
        assert values(reader) == {
            "count.used": 1,
            "count.idle": 2,
            "idle.max": 2,
            "idle.min": 0,
            "max": 3,
            "pending_requests": 0,
            "timeouts": 1,
            "create_time": 3,
            "wait_time": 4,
            "use_time": 2,
        }
        held.pop().close()
        found = metrics(reader)
    assert {name: metric.unit for name, metric in found.items()} == {
        **dict.fromkeys(("count", "idle.max", "idle.min", "max"), "{connection}"),
        "pending_requests": "{request}",
        "timeouts": "{timeout}",
        **dict.fromkeys(("create_time", "wait_time", "use_time"), "s"),
    }
    assert found["timeouts"].data.is_monotonic
    assert not found["count"].data.is_monotonic


def test_histograms_are_those_of_prometheus(
    provider: MeterProvider, reader: InMemoryMetricReader, registry: CollectorRegistry
) -> None:
    """Buckets and sums are those that the registry has, so nothing is counted that is not there."""
    pool = a_pool()
    with instrument(pool, name="orders", registry=registry, meter_provider=provider):
        for _ in range(5):
            pool.connect().close()
        samples = RegistrySamples(registry)
        (point,) = metrics(reader)["wait_time"].data.data_points
        assert point.explicit_bounds == list(BUCKETS)
        assert point.sum == samples.value("checkout_wait_seconds_sum", "orders")
        cumulated = 0.0
        for bound, count in zip(BUCKETS, point.bucket_counts, strict=False):
            cumulated += count
            assert cumulated == samples.value("checkout_wait_seconds_bucket", "orders", le=str(bound))
        assert point.count == 5


def test_differences(registry: CollectorRegistry) -> None:
    """A reader that wants differences gets them, and each observation once."""
    reader = InMemoryMetricReader(preferred_temporality=DELTA)
    provider = MeterProvider([reader], resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    pool = a_pool()
    with instrument(pool, name="orders", registry=registry, meter_provider=provider):
        for number in (3, 0, 2):
            for _ in range(number):
                pool.connect().close()
            found = metrics(reader)["use_time"].data
            assert found.aggregation_temporality is AggregationTemporality.DELTA
            (point,) = found.data_points
            assert (point.count, sum(point.bucket_counts)) == (number, number)
            assert point.start_time_unix_nano <= point.time_unix_nano
    provider.shutdown()


def test_several_readers(registry: CollectorRegistry) -> None:
    """Each reader gets the histograms, also beside metrics of the application."""
    readers = [InMemoryMetricReader() for _ in range(2)]
    provider = MeterProvider(readers, resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.get_meter("app").create_counter("orders").add(1)
    pool = a_pool()
    with instrument(pool, name="orders", registry=registry, meter_provider=provider):
        pool.connect().close()
        for reader in readers:
            data = reader.get_metrics_data()
            assert data is not None
            (resource,) = data.resource_metrics
            assert [one.scope.name for one in resource.scope_metrics] == ["app", "sqlalchemy_pool_exporter"]
            assert resource.scope_metrics[1].schema_url == SCHEMA_URL
            names = [metric.name for metric in resource.scope_metrics[1].metrics]
            assert len(names) == len(set(names)) == 9
    provider.shutdown()


def test_pools_come_and_go(
    provider: MeterProvider, reader: InMemoryMetricReader, registry: CollectorRegistry
) -> None:
    """Pools of one name are one series; what a pool counted stays when it is collected, and goes when it is closed."""
    pools = [a_pool(), a_pool()]
    handles = [instrument(pool, name="orders", registry=registry, meter_provider=provider) for pool in pools]
    instrument(other := a_pool(), name="other", registry=registry)
    for pool in (*pools, other):
        pool.connect().close()
    assert values(reader)["use_time"] == 2
    assert values(reader)["idle.max"] == 4
    assert values(reader, "other") == {}
    del pool, pools[0]
    gc.collect()
    assert values(reader)["use_time"] == 2
    assert values(reader)["idle.max"] == 2
    for handle in handles:
        handle.close()
    assert values(reader) == {}


def test_limits_that_there_are_not(
    provider: MeterProvider, reader: InMemoryMetricReader, registry: CollectorRegistry
) -> None:
    """A pool without a size or a limit has no such metric."""
    pool = NullPool(FakeConnection)  # type: ignore[arg-type]
    with instrument(pool, name="orders", registry=registry, meter_provider=provider):
        pool.connect().close()
        assert not {"idle.max", "max"} & values(reader).keys()
        assert values(reader)["create_time"] == 1


def test_beside_a_directory(
    provider: MeterProvider, reader: InMemoryMetricReader, registry: CollectorRegistry, tmp_path: Path
) -> None:
    """With a directory the provider has the pools of this process alone, with those that are gone."""
    pool = a_pool()
    with instrument(pool, name="orders", registry=registry, directory=tmp_path, meter_provider=provider):
        pool.connect().close()
        assert values(reader)["use_time"] == 1
        del pool
        gc.collect()
        assert values(reader)["use_time"] == 1
        assert "count.idle" not in values(reader)


def test_every_engine(provider: MeterProvider, reader: InMemoryMetricReader) -> None:
    """``instrument_all()`` takes a provider, too."""
    from sqlalchemy import create_engine  # noqa: PLC0415

    with instrument_all(registry=CollectorRegistry(), meter_provider=provider):
        engine = create_engine("sqlite://", pool_logging_name="orders")
        with engine.connect():
            pass
        engine.dispose()
        assert values(reader)["use_time"] == 1


@pytest.mark.parametrize("given", [object(), "provider", 5])
def test_no_provider(given: Any) -> None:
    """What is no provider is refused in words."""
    with pytest.raises(TargetError, match="meter_provider must be a MeterProvider, got"):
        instrument(a_pool(), meter_provider=given)


def test_a_provider_that_is_set_later(registry: CollectorRegistry, reader: InMemoryMetricReader) -> None:
    """The API's provider stands for the SDK's until the application sets that; then the pools are there."""
    metrics_api = pytest.importorskip("opentelemetry.metrics._internal")
    proxy = metrics_api._ProxyMeterProvider()
    pool = a_pool()
    with instrument(pool, name="orders", registry=registry, meter_provider=proxy):
        pool.connect().close()
        provider = MeterProvider(
            [reader], resource=Resource({"service.name": "shop"}), shutdown_on_exit=False
        )
        proxy.on_set_meter_provider(provider)
        assert values(reader)["count.idle"] == 1
        assert values(reader)["use_time"] == 1
        provider.shutdown()


def test_before_and_after_the_provider_is_set(
    registry: CollectorRegistry, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    """Pools that were given the API's provider, and those that got the SDK's later, are all there, once."""
    from opentelemetry.metrics._internal import _ProxyMeterProvider  # noqa: PLC0415 - of get_meter_provider()

    api = _ProxyMeterProvider()
    early, late = a_pool(), a_pool()
    with instrument(early, name="early", registry=registry, meter_provider=api):
        early.connect().close()
        api.on_set_meter_provider(provider)
        with instrument(late, name="late", registry=registry, meter_provider=provider):
            late.connect().close()
            metrics(reader)  # the readers of a provider that was set later are found by the first collection
            assert values(reader, "late") == values(reader, "early")
            assert len(values(reader, "late")) == 10


def test_an_sdk_of_another_make(
    registry: CollectorRegistry, reader: InMemoryMetricReader, caplog: pytest.LogCaptureFixture
) -> None:
    """If the names that histograms rely on are missing, all else is exported, and the log says so once."""
    provider = MeterProvider([reader], resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    pool = a_pool()
    with (
        instrument(pool, name="orders", registry=registry, meter_provider=provider),
        caplog.at_level(logging.ERROR),
    ):
        del reader._instrument_class_temporality
        pool.connect().close()
        for _ in range(2):
            assert values(reader)["count.idle"] == 1
            assert "use_time" not in values(reader)
    assert [record.getMessage() for record in caplog.records] == [
        "the histograms of pools cannot be handed to InMemoryMetricReader"
    ]
    provider.shutdown()


# -- exporters


def test_over_otlp(registry: CollectorRegistry, receiver: Receiver) -> None:
    """The exporter for OTLP sends what a collector reads."""
    exporter = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.metric_exporter")
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (  # noqa: PLC0415
        ExportMetricsServiceRequest,
    )
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415

    sent = exporter.OTLPMetricExporter(endpoint=f"http://127.0.0.1:{receiver.port}/v1/metrics")
    provider = MeterProvider([PeriodicExportingMetricReader(sent)], shutdown_on_exit=False)
    pool = a_pool()
    with instrument(pool, name="orders", registry=registry, meter_provider=provider):
        pool.connect().close()
        provider.force_flush()
        provider.shutdown()
    request = ExportMetricsServiceRequest.FromString(receiver.bodies[0])
    (scope,) = request.resource_metrics[0].scope_metrics
    by_name = {metric.name: metric for metric in scope.metrics}
    (point,) = by_name[f"{PREFIX}use_time"].histogram.data_points
    assert (point.count, len(point.bucket_counts), point.HasField("min")) == (1, len(BUCKETS) + 1, False)
    assert by_name[f"{PREFIX}count"].sum.data_points[0].as_int in (0, 1)


class Receiver:
    """A collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import gzip  # noqa: PLC0415

                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.bodies.append(
                    gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_by_the_exporter_for_prometheus(registry: CollectorRegistry) -> None:
    """Its metrics have other names than ours, so nothing is there twice."""
    exporter = pytest.importorskip("opentelemetry.exporter.prometheus")
    reader = exporter.PrometheusMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    from prometheus_client import REGISTRY, generate_latest  # noqa: PLC0415

    pool = a_pool()
    with instrument(pool, name="shown once", registry=registry, meter_provider=provider):
        pool.connect().close()
        text = generate_latest(REGISTRY).decode()
        assert "db_client_connection_use_time_seconds_count{" in text
        ours = generate_latest(registry).decode()
        assert "db_client" not in ours
        # An earlier test of this process may have left an endpoint in the default registry.
        lines = [line for line in text.splitlines() if 'pool="shown once"' in line]
        assert not [line for line in lines if line.startswith("sqlalchemy_pool_")]
    provider.shutdown()
