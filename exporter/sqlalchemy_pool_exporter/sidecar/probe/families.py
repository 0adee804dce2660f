# SPDX-License-Identifier: Apache-2.0
"""From the status of each probe to metric families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from sqlalchemy_pool_exporter.metrics import DATABASE_METRICS, PREFIX, ProbeFailure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric as AnyFamily

    from .probe import ProbeStatus


def families(statuses: Iterable[ProbeStatus], now: float) -> Iterator[AnyFamily]:
    """Yield the metric families of all probed databases; ``now`` is on the probes' (monotonic) clock.

    A family without samples is left out.
    """
    made: dict[str, Any] = {}
    for metric in DATABASE_METRICS:
        if metric.kind == "info":
            name = metric.name.removesuffix("_info")
            made[metric.name] = InfoMetricFamily(name, metric.help, labels=["database"])
        else:
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            made[metric.name] = family(metric.name, metric.help, labels=["database", *metric.labels])
    for status in statuses:
        for pool in status.pools:
            made[f"{PREFIX}database_pool_info"].add_metric([status.database], {"pool": pool})
        for key, label, value in _samples(status, now):
            labels = [status.database] if label is None else [status.database, label]
            made[f"{PREFIX}database_{key}"].add_metric(labels, value)
    yield from (family for family in made.values() if family.samples)


def _samples(status: ProbeStatus, now: float) -> Iterator[tuple[str, str | None, float]]:
    yield "probes_total", None, status.probes
    for reason in get_args(ProbeFailure):
        yield "probe_failures_total", reason, status.failures.get(reason, 0)
    if status.completed_at is not None:
        yield "up", None, status.server is not None
        yield "probe_age_seconds", None, max(0.0, now - status.completed_at)
    if status.duration_seconds is not None:
        yield "probe_duration_seconds", None, status.duration_seconds
    if status.succeeded_at is not None:
        yield "last_success_timestamp_seconds", None, status.succeeded_at
    server = status.server
    if server is None:
        return
    yield "max_connections", None, server.max_connections
    yield "reserved_connections", None, server.reserved_connections
    yield "behind_pooler", None, server.behind_pooler
    # "unknown" is always present, so that a query can find a role that sees too little.
    for state, sessions in {"unknown": 0, **server.connections}.items():
        yield "connections", state, sessions
    for application, sessions in (server.application_connections or {}).items():
        yield "application_connections", application, sessions
    for key in (
        "longest_idle_in_transaction_seconds",
        "idle_session_timeout_seconds",
        "idle_in_transaction_session_timeout_seconds",
    ):
        value: float | None = getattr(server, key)
        if value is not None:
            yield key, None, value
