# SPDX-License-Identifier: Apache-2.0
"""``instrument()``: its arguments, its handle, and the registry that shows the pool."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import TargetError, instrument, straight_lines, uninstrument
from tests.support.memory import creator
from tests.support.samples import Exposition, sqlalchemy_lines

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("leave_nothing")


@pytest.mark.parametrize(
    "target",
    [None, 7, "postgresql://scott:tiger@db/orders", object(), QueuePool, create_engine, Session()],
    ids=lambda target: type(target).__name__,
)
def test_wrong_target_is_named(target: Any) -> None:
    """``instrument()`` refuses anything but an engine or a pool; the error names the type and no credentials."""
    for function in (instrument, uninstrument):
        with pytest.raises(TargetError, match="takes an Engine, an AsyncEngine or a Pool, got") as info:
            function(target)
        assert type(target).__qualname__ in str(info.value)
        assert "tiger" not in str(info.value)


def test_second_call_returns_the_same_handle(registry: CollectorRegistry) -> None:
    """For an engine, its pool, its copies and the pool after dispose(), ``instrument()`` returns the same handle."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    assert instrument(engine, name="other", registry=registry) is handle
    assert instrument(engine.pool, registry=registry) is handle
    assert instrument(engine.execution_options(isolation_level="AUTOCOMMIT"), registry=registry) is handle
    engine.dispose()
    assert instrument(engine, registry=registry) is handle
    with engine.connect():
        pass
    assert Exposition(registry).counters(handle.name)["checkouts"] == 1


def test_option_engines_share_the_pool(registry: CollectorRegistry) -> None:
    """Checkouts through ``execution_options()`` copies count for the same pool, before and after dispose()."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    copy = engine.execution_options(isolation_level="AUTOCOMMIT")
    copy.connect().close()
    copy.dispose()
    copy.connect().close()
    engine.connect().close()
    assert Exposition(registry).counters(handle.name)["checkouts"] == 3


def test_series_are_there_from_the_start(registry: CollectorRegistry) -> None:
    """Before the first checkout every counter is 0, for each of its reasons, and every histogram is empty."""
    instrument(QueuePool(creator, recycle=900, pre_ping=False), name="p", registry=registry)
    exposition = Exposition(registry)
    assert exposition.counters("p") == {}
    reasons = {
        dict(labels)["reason"]
        for name, labels in exposition.samples
        if name == "sqlalchemy_pool_closes_total"
    }
    assert len(reasons) == 10
    assert exposition.value("checkout_wait_seconds_count", "p") == 0
    assert [
        exposition.value(key, "p") for key in ("size", "max_overflow", "capacity", "timeout_seconds")
    ] == [
        5,
        10,
        15,
        30,
    ]
    assert exposition.value("recycle_seconds", "p") == 900
    assert exposition.value("pre_ping", "p") == 0


def test_default_registry() -> None:
    """By default the pools show in prometheus_client's REGISTRY until the handle is closed."""
    pool = QueuePool(creator)
    with instrument(pool, name="default-registry"):
        assert 'pool="default-registry"' in generate_latest(REGISTRY).decode()
    assert 'pool="default-registry"' not in generate_latest(REGISTRY).decode()


def test_without_the_gil_and_the_source_there_is_a_warning(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where straight lines need locks and got none, ``instrument()`` warns its caller that counts can be lost."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    monkeypatch.setattr(straight_lines, "locked", set())
    with pytest.warns(RuntimeWarning, match="counts of simultaneous checkouts can be lost") as told:
        instrument(QueuePool(creator), registry=registry)
    assert [__file__] == [warning.filename for warning in told]


@pytest.mark.parametrize("wrong", [None, "registry", object(), REGISTRY.restricted_registry([])])
def test_wrong_registry(wrong: Any) -> None:
    """The error for a registry without ``register()`` names its type, and the pool stays unchanged."""
    pool = QueuePool(creator)
    with pytest.raises(
        TargetError, match=f"registry must be a CollectorRegistry, got {type(wrong).__name__}"
    ):
        instrument(pool, registry=wrong)
    assert "connect" not in pool.__dict__


def test_a_registry_that_was_emptied(registry: CollectorRegistry) -> None:
    """After the application has unregistered every collector, the next instrumented pool is shown again."""
    first, second = QueuePool(creator), QueuePool(creator)
    instrument(first, name="first", registry=registry)
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    assert sqlalchemy_lines(registry) == []
    instrument(second, name="second", registry=registry)
    assert Exposition(registry).value("checkouts_total", "second") == 0


def test_two_registries(registry: CollectorRegistry) -> None:
    """Pools of one process can show in different registries."""
    other = CollectorRegistry()
    one, two = QueuePool(creator), QueuePool(creator)
    instrument(one, name="one", registry=registry)
    instrument(two, name="two", registry=other)
    assert 'pool="two"' not in generate_latest(registry).decode()
    assert 'pool="one"' not in generate_latest(other).decode()


def test_pool_is_collected_with_its_series(registry: CollectorRegistry, tmp_path: Path) -> None:
    """A dropped engine is garbage-collected although the application keeps the handle; its counters stay, no state."""
    engine = create_engine(f"sqlite:///{tmp_path / 'db'}", poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    engine.connect().close()
    pool = weakref.ref(engine.pool)
    del engine
    gc.collect()
    assert pool() is None
    assert handle.closed
    exposition = Exposition(registry)
    assert exposition.get("connections", handle.name, state="idle") is None
    assert exposition.value("checkouts_total", handle.name) == 1


def test_listeners_keep_their_order(registry: CollectorRegistry) -> None:
    """The application's listeners run in order, and listeners that it removes after ``instrument()`` stay removed."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    calls: list[str] = []

    def listener(label: str) -> Any:
        def called(*_: object) -> None:
            calls.append(label)

        return called

    early, late = listener("early"), listener("late")
    event.listen(engine, "invalidate", early)
    instrument(engine, registry=registry)
    event.listen(engine, "invalidate", late)
    connection = engine.connect()
    connection.invalidate()
    connection.close()
    assert calls == ["early", "late"]
    event.remove(engine, "invalidate", early)
    event.remove(engine, "invalidate", late)
    engine.dispose()
    connection = engine.connect()
    connection.invalidate()
    connection.close()
    assert calls == ["early", "late"]
