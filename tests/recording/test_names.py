# SPDX-License-Identifier: Apache-2.0
"""The name of a pool: as given, the default, and unique."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import TargetError, instrument
from tests.support.memory import LEFT_OPEN, creator

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

pytestmark = [LEFT_OPEN, pytest.mark.usefixtures("leave_nothing")]


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


def test_clash_of_names(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """A second pool of the same name gets a suffix and a warning; after close() a name can be used again."""
    pools = [QueuePool(creator) for _ in range(3)]
    with caplog.at_level(logging.INFO):
        handles = [instrument(pool, name="orders", registry=registry) for pool in pools]
    assert [handle.name for handle in handles] == ["orders", "orders-2", "orders-3"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "'orders-2'" in caplog.text
    for handle in handles:
        handle.close()
    assert instrument(pools[0], name="orders", registry=registry).name == "orders"
