# SPDX-License-Identifier: Apache-2.0
"""What is shared: one connection that several callers have, one pool that several engines have."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.pool import QueuePool, StaticPool

from sqlalchemy_pool_exporter import instrument
from tests.support.database import Database
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


class Sharing:
    """Two engines over one pool, one of which is disposed of; the pools tell what is right."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.database = Database()
        self.first = self.database.engine(pool_size=2, max_overflow=3, pool_timeout=1)
        # Not create_engine(pool=...): its listeners in the pool keep that engine alive.
        self.second = Engine(self.first.pool, self.first.dialect, self.first.url)
        self.name = ""

    def value(self, key: str, **labels: str) -> float:
        return RegistrySamples(self.registry).value(key, self.name, **labels)

    def state(self) -> dict[str, float]:
        return {
            "instances": self.value("instances"),
            "capacity": self.value("capacity"),
            "size": self.value("size"),
            "in_use": self.value("connections", state="in_use"),
            "idle": self.value("connections", state="idle"),
            "overflow": self.value("overflow_connections"),
        }

    def of_pools(self, *pools: Any, out_before: int = 0) -> dict[str, float]:
        """Return what these pools say; they do not count what was out before they were disposed of."""
        return {
            "instances": len(pools),
            "capacity": 5 * len(pools),
            "size": sum(pool.size() for pool in pools),
            "in_use": sum(pool.checkedout() for pool in pools) + out_before,
            "idle": sum(pool.checkedin() for pool in pools),
            "overflow": sum(max(0, pool.overflow()) for pool in pools),
        }


@pytest.mark.parametrize("named", ["first", "second", "both", "pool"])
def test_two_engines_over_one_pool_of_which_one_is_disposed(registry: CollectorRegistry, named: str) -> None:
    """Both pools count from then on, each connection against the size of its own; then only the one that is left."""
    two = Sharing(registry)
    targets: dict[str, list[Any]] = {
        "first": [two.first],
        "second": [two.second],
        "both": [two.first, two.second],
        "pool": [two.first.pool],
    }
    names = {instrument(target, registry=registry, name="orders").name for target in targets[named]}
    (two.name,) = names
    two.first.connect().close()
    two.second.dispose()
    assert two.first.pool is not two.second.pool
    if named in {"first", "both"}:
        # That the other engine still has the pool is known at once.
        assert two.state() == two.of_pools(two.first.pool, two.second.pool)
    out = [two.first.connect() for _ in range(4)]
    assert two.state() == two.of_pools(two.first.pool, two.second.pool)
    assert two.value("overflow_connections") == 2
    out += [two.second.connect() for _ in range(3)]
    assert two.state() == two.of_pools(two.first.pool, two.second.pool)
    assert two.value("overflow_connections") == 3
    assert two.value("overflow_opened_total") == 3
    for connection in out:
        connection.close()
    assert two.state() == two.of_pools(two.first.pool, two.second.pool)
    assert two.value("empty_slots") == 0
    for engine in (two.first, two.second):
        engine.dispose()
    gc.collect()
    assert two.state() == two.of_pools(two.first.pool, two.second.pool)
    del two.second, connection, out, engine, targets
    gc.collect()
    assert two.state() == two.of_pools(two.first.pool)
    assert two.value("checkouts_total") == 8
    assert two.value("exporter_recording_faults_total") == 0


def test_a_shared_pool_with_connections_out(registry: CollectorRegistry) -> None:
    """What was out of the shared pool when it was disposed of stays in use, and is no overflow, as for the pool."""
    two = Sharing(registry)
    two.name = instrument(two.second, registry=registry).name
    out = [two.first.connect() for _ in range(3)]
    two.second.dispose()
    assert two.state() == two.of_pools(two.second.pool, out_before=3)
    out += [two.first.connect() for _ in range(2)]
    assert two.state() == two.of_pools(two.first.pool, two.second.pool, out_before=3)
    out += [two.first.connect() for _ in range(2)]
    assert two.value("overflow_connections") == two.first.pool.overflow() == 2  # type: ignore[attr-defined]
    assert two.state() == two.of_pools(two.first.pool, two.second.pool, out_before=3)


def test_dispose_without_close(registry: CollectorRegistry) -> None:
    """The connections of the old pool count as its own again when it is used again."""
    two = Sharing(registry)
    two.name = instrument(two.second, registry=registry).name
    out = [two.first.connect() for _ in range(3)]
    two.second.dispose(close=False)
    out.append(two.first.connect())
    assert two.value("overflow_connections") == two.first.pool.overflow() == 2  # type: ignore[attr-defined]
    assert two.state() == two.of_pools(two.first.pool, two.second.pool)


def test_an_engine_that_is_disposed_of_alone(registry: CollectorRegistry) -> None:
    """Connections that are out keep the old pool alive, and add no capacity."""
    one = Sharing(registry)
    del one.second
    handle = instrument(one.first, registry=registry)
    one.name = handle.name
    for disposals in range(1, 4):
        out = [one.first.connect() for _ in range(4)]
        old = weakref.ref(one.first.pool)
        one.first.dispose()
        assert one.state() == one.of_pools(one.first.pool, out_before=4)
        inner = [one.first.connect() for _ in range(3)]
        gc.collect()
        assert old() is not None
        assert one.state() == one.of_pools(one.first.pool, out_before=4)
        for connection in (*out, *inner):
            connection.close()
        del connection, out, inner
        gc.collect()
        assert old() is None
        assert one.state() == one.of_pools(one.first.pool)
        assert one.value("checkouts_total") == 7 * disposals
        assert one.value("last_checkin_timestamp_seconds") > 0
        assert len(handle._recorders) == 1


@pytest.mark.parametrize("named", ["original", "copy"])
@pytest.mark.parametrize("disposed", ["original", "copy", "copy of a copy"])
def test_a_copy_of_an_engine_that_is_disposed_of(
    registry: CollectorRegistry, named: str, disposed: str
) -> None:
    """A copy made by ``execution_options()`` shares its original's pool for good: its dispose leaves one pool."""
    original = Database().engine(pool_size=2, max_overflow=3)
    other = original.execution_options(isolation_level="AUTOCOMMIT")
    engines = {"original": original, "copy": other, "copy of a copy": other.execution_options()}
    name = instrument(engines[named], registry=registry).name
    out = original.connect()
    engines[disposed].dispose()
    exposition = RegistrySamples(registry)
    assert exposition.value("instances", name) == 1
    assert exposition.value("capacity", name) == 5
    assert exposition.value("connections", name, state="in_use") == 1
    assert instrument(original, registry=registry) is instrument(other, registry=registry)
    out.close()


def test_a_checkout_that_overlaps_the_dispose(registry: CollectorRegistry) -> None:
    """A caller whose engine looked up its pool just before it was disposed of does not make that pool live on."""
    one = Sharing(registry)
    del one.second
    one.name = instrument(one.first, registry=registry).name
    old = one.first.pool

    class Late(type(one.first)):  # type: ignore[misc]
        def raw_connection(self) -> Any:
            self.pool = old.recreate()
            return old.connect()

    one.first.__class__ = Late
    late = one.first.connect()
    assert one.value("capacity") == 5
    assert one.value("connections", state="in_use") == 1
    late.close()


def test_closing_a_handle_of_several_pools(registry: CollectorRegistry) -> None:
    """All pools are restored, also one that was replaced, and the handle is closed."""
    two = Sharing(registry)
    handle = instrument(two.second, registry=registry)
    out = two.first.connect()
    two.second.dispose()
    copied = copy.copy(two.first.pool)
    for pool in (two.first.pool, two.second.pool):
        assert "connect" in vars(pool)
    assert "connect" not in vars(copied)
    handle.close()
    assert handle.closed
    for pool in (two.first.pool, two.second.pool):
        assert not {"connect", "dispose", "recreate"} & vars(pool).keys()
    out.close()
