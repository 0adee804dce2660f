# SPDX-License-Identifier: Apache-2.0
"""One connection that several callers have at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.pool import QueuePool, StaticPool

from sqlalchemy_pool_exporter import instrument
from tests.support.fakes import FakeConnection, connect
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


def test_overlapping_sessions_of_a_static_pool(registry: CollectorRegistry) -> None:
    """Overlapping checkouts of the one connection count once: checkouts are checkins plus what is in use."""
    pool = StaticPool(connect)
    name = instrument(pool, registry=registry).name

    def counts() -> tuple[float, float, float]:
        exposition = RegistrySamples(registry)
        return (
            exposition.value("checkouts_total", name),
            exposition.value("checkins_total", name),
            exposition.value("connections", name, state="in_use"),
        )

    first, second = pool.connect(), pool.connect()
    assert counts() == (1, 0, 1)
    first.close()
    assert counts() == (1, 1, 0)
    third = pool.connect()
    assert counts() == (2, 1, 1)
    second.close()
    third.close()
    assert counts() == (2, 2, 0)
    pool.connect().close()
    assert counts() == (3, 3, 0)
    exposition = RegistrySamples(registry)
    assert exposition.value("checkout_wait_seconds_count", name) == 3
    assert exposition.value("leaked_checkouts_total", name) == 0
    assert exposition.value("exporter_recording_faults_total", name) == 0


def test_a_creator_that_returns_one_connection_for_several_records(registry: CollectorRegistry) -> None:
    """Each close is ascribed to the record that closes, whatever other records have the same connection."""
    only = FakeConnection()
    pool = QueuePool(lambda: only, pool_size=1, max_overflow=2)  # type: ignore[arg-type]
    name = instrument(pool, registry=registry).name

    def state() -> tuple[float, float, float]:
        exposition = RegistrySamples(registry)
        return (
            exposition.value("connections", name, state="in_use"),
            exposition.value("connections", name, state="idle"),
            exposition.value("closes_total", name, reason="overflow"),
        )

    first, second, third = pool.connect(), pool.connect(), pool.connect()
    assert state() == (3, 0, 0)
    second.close()
    assert state() == (2, 1, 0)
    first.close()
    assert state() == (1, 1, 1)
    third.invalidate()
    third.close()
    assert state() == (0, 1, 1)
    assert RegistrySamples(registry).value("closes_total", name, reason="error") == 1
    last = pool.connect()
    assert state() == (1, 0, 1)
    last.close()
    pool.dispose()
    assert state() == (0, 0, 1)
    exposition = RegistrySamples(registry)
    assert exposition.value("closes_total", name, reason="dispose") == 1
    assert exposition.value("exporter_recording_faults_total", name) == 0
