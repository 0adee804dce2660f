# SPDX-License-Identifier: Apache-2.0
"""The name of a pool: as given or the default; pools of one name are one."""

from __future__ import annotations

import contextlib
import gc
import logging
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool, QueuePool

from sqlalchemy_pool_exporter import TargetError, instrument
from tests.support.database import Database
from tests.support.memory import creator
from tests.support.samples import Exposition

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

pytestmark = pytest.mark.usefixtures("leave_nothing")


@pytest.mark.parametrize("name", ["", 7])
def test_wrong_name(name: Any) -> None:
    """``instrument()`` refuses a name that is empty or not a string."""
    with pytest.raises(TargetError, match="name"):
        instrument(QueuePool(creator), name=name)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg://scott:tiger@db.example:6432/orders", "orders@db.example"),
        ("postgresql+psycopg:///orders?host=/run/postgresql&password=tiger", "orders"),
        ("postgresql+psycopg://scott:tiger@db.example", "postgresql@db.example"),
        ("sqlite:////var/lib/app/app.db", "app.db"),
        ("sqlite://", "sqlite"),
    ],
)
def test_default_name(url: str, expected: str, registry: CollectorRegistry) -> None:
    """The default name has the database and the host, and no credentials."""
    engine = create_engine(url)
    handle = instrument(engine, registry=registry)
    assert handle.name == expected
    text_ = generate_latest(registry).decode() + repr(handle)
    assert "tiger" not in text_
    assert "scott" not in text_
    handle.close()


def test_logging_name_is_the_default(registry: CollectorRegistry) -> None:
    """The default name is the pool's logging name, if it has one."""
    engine = create_engine("sqlite://", pool_logging_name="billing")
    assert instrument(engine, registry=registry).name == "billing"


def test_pools_of_one_name_are_one(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """Pools of one given name are one set of series, whatever their limits; the log says so once, without a warning."""
    pools = [QueuePool(creator, pool_size=size, max_overflow=1) for size in (2, 3, 4)]
    with caplog.at_level(logging.INFO):
        handles = [instrument(pool, name="orders", registry=registry) for pool in pools]
    assert [handle.name for handle in handles] == ["orders"] * 3
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "'orders'" in caplog.text
    for pool in pools:
        pool.connect().close()
    exposition = Exposition(registry)
    assert exposition.value("checkouts_total", "orders") == 3
    assert exposition.value("instances", "orders") == 3
    assert exposition.value("capacity", "orders") == 2 + 3 + 4 + 3
    assert exposition.value("size", "orders") == 9
    assert exposition.value("connections", "orders", state="idle") == 3
    handles[0].close()
    exposition = Exposition(registry)
    assert exposition.value("checkouts_total", "orders") == 3
    assert exposition.value("capacity", "orders") == 3 + 4 + 2
    for handle in handles[1:]:
        handle.close()
    assert Exposition(registry).get("checkouts_total", "orders") is None


def test_overflow_and_ages_of_one_name(registry: CollectorRegistry) -> None:
    """The overflow of pools of one name is each one's own: an idle pool's size does not hide another's overflow."""
    idle, busy = (QueuePool(creator, pool_size=2, max_overflow=2) for _ in range(2))
    for pool in (idle, busy):
        instrument(pool, name="orders", registry=registry)
    held = [busy.connect() for _ in range(3)]
    exposition = Exposition(registry)
    assert exposition.value("overflow_connections", "orders") == 1
    assert exposition.value("connections", "orders", state="in_use") == 3
    assert exposition.value("longest_held_seconds", "orders") > 0
    for connection in held:
        connection.close()


@pytest.mark.parametrize("is_reversed", [False, True])
def test_default_names_tell_what_differs(registry: CollectorRegistry, *, is_reversed: bool) -> None:
    """Pools of one default name get a suffix from what differs, in any order of creation, and none once alone."""
    url = "postgresql+psycopg://scott:tiger@db/orders"
    limits: list[dict[str, Any]] = [
        {"pool_size": 5},
        {"pool_size": 2, "max_overflow": 0},
        {"poolclass": NullPool},
    ]
    expected = ["orders@db-QueuePool-5+10", "orders@db-QueuePool-2+0", "orders@db-NullPool"]
    if is_reversed:
        limits.reverse()
        expected.reverse()
    engines = [create_engine(url, **options) for options in limits]
    handles = [instrument(engine, registry=registry) for engine in engines]
    assert [handle.name for handle in handles] == expected
    exposition = Exposition(registry)
    assert [exposition.value("instances", name) for name in expected] == [1, 1, 1]
    for handle in handles[1:]:
        handle.close()
    assert handles[0].name == "orders@db"
    assert Exposition(registry).value("instances", "orders@db") == 1


def test_dispose_keeps_the_name(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """Disposing of an engine, or making it anew, keeps the name and the counts, and logs nothing."""
    for number in range(1, 4):
        engine = create_engine("sqlite://", poolclass=QueuePool, pool_logging_name="orders")
        handle = instrument(engine, registry=registry)
        engine.connect().close()
        engine.dispose()
        engine.connect().close()
        assert handle.name == "orders"
        engine.dispose()
        del engine
        gc.collect()
        assert Exposition(registry).value("checkouts_total", "orders") == 2 * number
    assert not caplog.records


@pytest.mark.parametrize("reach", ["pooled", "unpooled", "held"])
def test_an_engine_dropped_without_dispose(registry: CollectorRegistry, reach: str) -> None:
    """The connections of an engine that is dropped without ``dispose()`` are counted as closed, with a reason."""
    database = Database()
    for _ in range(10):
        engine = database.engine(
            **({"poolclass": NullPool} if reach == "unpooled" else {"pool_size": 2, "max_overflow": 2})
        )
        instrument(engine, name="orders", registry=registry)
        held = [engine.connect() for _ in range(4)]
        if reach != "held":
            for connection in held:
                connection.close()
        del engine, held
    with contextlib.suppress(NameError):
        del connection
    gc.collect()
    counted = Exposition(registry).counters("orders")
    closes = {
        name.removeprefix("closes."): count for name, count in counted.items() if name.startswith("closes.")
    }
    assert counted["connects"] == 40
    assert (
        closes
        == {
            "pooled": {"overflow": 20, "gc": 20},
            "unpooled": {"unpooled": 40},
            "held": {"overflow": 20, "gc": 20},
        }[reach]
    )
    assert counted.get("leaked_checkouts", 0) == (40 if reach == "held" else 0)
    assert not database.open
