# SPDX-License-Identifier: Apache-2.0
"""The cost of ``instrument()``: it grows neither with the objects of the process nor with its pools."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool

from sqlalchemy_pool_exporter import instrument
from tests.support.fakes import connect
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from prometheus_client import CollectorRegistry
    from sqlalchemy.engine import Engine

POOLS = (QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The calls that look at every object of the process."""
    calls: list[object] = []
    original = gc.get_referrers

    def get_referrers(*objects: object) -> list[Any]:
        calls.append(objects)
        return original(*objects)

    monkeypatch.setattr(gc, "get_referrers", get_referrers)
    return calls


@pytest.fixture(params=POOLS)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine that had a connection out, and has none now."""
    engine = create_engine("sqlite://", poolclass=request.param)
    engine.connect().close()
    yield engine
    engine.dispose()


def test_a_connection_costs_no_more_beside_many_others(registry: CollectorRegistry) -> None:
    """To open a connection runs as many lines of the recording beside 200 open ones as beside 100, in any pool."""

    def lines_of(act: Callable[[], object]) -> int:
        count = 0

        def trace(frame: FrameType, _what: str, _argument: object) -> Any:
            nonlocal count
            if "sqlalchemy_pool_exporter" not in frame.f_code.co_filename:
                return None
            count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            act()
        finally:
            sys.settrace(before)
        return count

    for size in (1, 300):
        pool = QueuePool(connect, pool_size=size, max_overflow=300)
        instrument(pool, registry=registry)
        out = [pool.connect() for _ in range(100)]
        few = lines_of(lambda: out.append(pool.connect()))  # noqa: B023
        out += [pool.connect() for _ in range(100)]
        assert few == lines_of(lambda: out.append(pool.connect()))  # noqa: B023
        assert RegistrySamples(registry).value("overflow_opened_total", "QueuePool") == max(0, 202 - size)
        instrument(pool, registry=registry).close()


def test_nothing_out_needs_no_look_at_every_object(
    engine: Engine, scans: list[object], registry: CollectorRegistry
) -> None:
    """To instrument an engine with nothing out needs no look at every object; its connections are shown."""
    name = instrument(engine, registry=registry).name
    assert scans == []
    idle = 0 if isinstance(engine.pool, NullPool) else 1
    assert RegistrySamples(registry).value("connections", name, state="idle") == idle


def test_a_connection_that_is_out_is_found(engine: Engine, registry: CollectorRegistry) -> None:
    """A connection that is out when its engine is instrumented is in use, and idle or closed once it is returned."""
    with engine.connect():
        name = instrument(engine, registry=registry).name
        assert RegistrySamples(registry).value("connections", name, state="in_use") == 1
    idle = 0 if isinstance(engine.pool, NullPool) else 1
    assert RegistrySamples(registry).value("connections", name, state="in_use") == 0
    assert RegistrySamples(registry).value("connections", name, state="idle") == idle


@pytest.mark.parametrize("returned", [0, 1])
def test_a_connection_that_its_pool_forgot_is_found(returned: int, registry: CollectorRegistry) -> None:
    """A pool that was disposed of while a connection was out does not count it; it is in use all the same."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    forgotten = engine.connect()
    engine.pool.dispose()
    for _ in range(returned):
        engine.connect().close()
    name = instrument(engine, registry=registry).name
    assert RegistrySamples(registry).value("connections", name, state="in_use") == 1
    assert RegistrySamples(registry).value("connections", name, state="idle") == returned
    forgotten.close()
    assert RegistrySamples(registry).value("connections", name, state="in_use") == 0
    engine.dispose()


def test_the_cost_does_not_grow_with_the_number_of_pools(registry: CollectorRegistry) -> None:
    """Instrumenting the 1,001st pool takes as many calls and lines as the second."""

    def steps(number: int) -> int:
        engine = create_engine("sqlite://", creator=connect)
        passed = 0

        def count(_frame: FrameType, what: str, _argument: object) -> Any:
            nonlocal passed
            passed += what in {"call", "line"}
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            kept.append((engine, instrument(engine, name=f"p{number}", registry=registry)))
        finally:
            sys.settrace(before)
        return passed

    kept: list[Any] = []
    few = min(steps(number) for number in range(1, 5))
    for number in range(5, 1000):
        engine = create_engine("sqlite://", creator=connect)
        kept.append((engine, instrument(engine, name=f"p{number}", registry=registry)))
    assert min(steps(number) for number in range(1000, 1004)) <= few
