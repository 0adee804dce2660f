# SPDX-License-Identifier: Apache-2.0
"""The engine plugin, by SQLAlchemy's own mechanism: in the URL, or as an argument of ``create_engine()``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import TargetError, instrument, instrument_all, uninstrument
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from pathlib import Path


def test_an_argument(registry: CollectorRegistry) -> None:
    """``plugins=["pool_exporter"]`` instruments; options have the plugin's name before theirs."""
    engine = create_engine(
        "sqlite://",
        poolclass=QueuePool,
        plugins=["pool_exporter"],
        pool_exporter_name="orders",
        pool_exporter_registry=registry,
    )
    with engine.connect():
        assert RegistrySamples(registry).value("connections", "orders", state="in_use") == 1
    engine.dispose()
    uninstrument(engine)
    assert "connect" not in vars(engine.pool)


def test_a_url(tmp_path: Path, registry: CollectorRegistry) -> None:
    """The same in a URL, of which the driver sees nothing; other plugins and options stay."""
    path, directory = tmp_path / "db", tmp_path / "pools"
    directory.mkdir()
    query = (
        "plugin=pool_exporter&pool_exporter_name=orders&pool_exporter_sites=on&pool_exporter_leak_after=30"
        f"&pool_exporter_leak_stack=yes&pool_exporter_loop_lag=off&pool_exporter_application=orders,shop&timeout=7"
        f"&pool_exporter_directory={directory}&pool_exporter_request_deadline=2.5"
        "&pool_exporter_group_readable=off"
    )
    engine = create_engine(f"sqlite:///{path}?{query}", pool_exporter_registry=registry)
    assert dict(engine.url.query) == {"timeout": "7"}
    with engine.connect():
        assert RegistrySamples(registry).value("connections", "orders", worker="000", state="in_use") == 1
    engine.dispose()
    uninstrument(engine)


def test_an_async_engine(registry: CollectorRegistry) -> None:
    """An asyncio engine takes it in the same ways."""
    engine = create_async_engine("sqlite+aiosqlite://?plugin=pool_exporter", pool_exporter_registry=registry)
    assert "connect" in vars(engine.pool)
    uninstrument(engine)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "pool_exporter_names=orders",
            "the URL has no option 'pool_exporter_names'; it has pool_exporter_name,",
        ),
        ("pool_exporter_sites=half", "the URL has pool_exporter_sites='half', which means nothing"),
        ("pool_exporter_sites=2", "sites must be True, False or a share"),
        ("pool_exporter_leak_after=nan", "the URL has pool_exporter_leak_after='nan', which means nothing"),
        ("pool_exporter_loop_lag=2", "the URL has pool_exporter_loop_lag='2', which means nothing"),
        ("pool_exporter_name=a&pool_exporter_name=b", "the URL has pool_exporter_name more than once"),
    ],
)
def test_urls_that_mean_nothing(query: str, message: str) -> None:
    """An option that does not exist or means nothing is refused in words, without the URL."""
    with pytest.raises(TargetError, match=re.escape(message)):
        create_engine(f"sqlite://?plugin=pool_exporter&{query}")


@pytest.mark.parametrize("options", [{"pool_exporter_nme": "orders"}, {"pool_exporter_name": 5}])
def test_arguments_that_mean_nothing(options: dict[str, Any]) -> None:
    """So is an argument."""
    with pytest.raises(TargetError):
        create_engine("sqlite://", plugins=["pool_exporter"], **options)


def test_beside_the_other_ways(registry: CollectorRegistry) -> None:
    """The plugin's name counts if all engines are instrumented, too."""
    with instrument_all(registry=CollectorRegistry()):
        engine = create_engine(
            "sqlite://?plugin=pool_exporter&pool_exporter_name=orders", pool_exporter_registry=registry
        )
        assert instrument(engine).name == "orders"
    uninstrument(engine)
