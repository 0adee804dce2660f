# SPDX-License-Identifier: Apache-2.0
"""The application notices nothing: its transcripts with a bare and with an instrumented engine are equal."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.pool import (
    AssertionPool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from sqlalchemy_pool_exporter import instrument
from tests.support.database import Database
from tests.support.pool_incidents import (
    INCIDENTS,
    POOLS,
    connect_fails,
    forgets,
    invalidates,
    listeners_raise,
    pings,
    quietly,
    resets_fail,
    returns,
    transcript,
)
from tests.support.samples import Exposition

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

    from tests.support.diary import Diary

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
@pytest.mark.parametrize("listening", [False, True], ids=["unheard", "heard"])
@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.__name__)
def test_the_application_notices_nothing(
    incident: Callable[[Engine, Diary], None], listening: bool, late: bool
) -> None:
    """Results, exceptions, events, logs and warnings of each incident equal those of a bare engine, in order."""
    bare = transcript(incident, listening=listening, late=late)
    assert bare == transcript(incident, instrumented=quietly, listening=listening, late=late)


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool, SingletonThreadPool, AssertionPool])
@pytest.mark.parametrize(
    "incident", [returns, connect_fails, invalidates, pings, resets_fail, forgets, listeners_raise]
)
def test_no_other_pool_notices_anything(
    incident: Callable[[Engine, Diary], None], poolclass: type[Pool]
) -> None:
    """The same holds for the other classes of pool."""
    bare = transcript(incident, poolclass=poolclass)
    assert bare == transcript(incident, instrumented=quietly, poolclass=poolclass)


def test_a_subclass_keeps_its_class_arguments_and_signature() -> None:
    """An instrumented pool keeps its class and signatures, and dispose() re-creates it with the same arguments."""
    made = []

    class Own(QueuePool):
        def __init__(self, *args: Any, **options: Any) -> None:
            made.append({name: value for name, value in options.items() if not name.startswith("_")})
            super().__init__(*args, **options)

        def connect(self, purpose: str = "any") -> Any:
            """Take a connection for a purpose."""
            return purpose, super().connect()

    def life(*, instrumented: bool) -> list[object]:
        made.clear()
        engine = Database().engine(poolclass=Own, pool_size=3, pool_recycle=7, pool_use_lifo=True)
        if instrumented:
            quietly(engine)
        pool: Any = engine.pool
        told = [inspect.signature(pool.connect), inspect.getdoc(pool.connect), pool.connect.__name__]
        purpose, connection = pool.connect(purpose="reports")
        connection.close()
        engine.dispose()
        dialects = [options.pop("dialect") for options in made]
        return [*told, purpose, type(pool), type(engine.pool), dialects[0] is dialects[-1], *made]

    assert life(instrumented=False) == life(instrumented=True)


@pytest.mark.parametrize("poolclass", POOLS)
def test_signatures_stay(poolclass: type[Pool]) -> None:
    """``inspect.signature()`` of a pool's public methods does not change."""
    engine = Database().engine(poolclass=poolclass)
    names = [name for name, _ in inspect.getmembers(engine.pool, callable) if not name.startswith("_")]

    def signatures() -> dict[str, object]:
        return {name: inspect.signature(getattr(engine.pool, name)) for name in names if name != "logger"}

    before = signatures()
    quietly(engine)
    assert before == signatures()


def test_a_ping_can_be_asked_for_as_before() -> None:
    """The application can still call the dialect's ping itself, by position or by keyword."""
    engine = Database().engine(pool_pre_ping=True)
    quietly(engine)
    name = "_do_ping_w_event" if hasattr(engine.dialect, "_do_ping_w_event") else "do_ping"
    ping: Any = getattr(engine.dialect, name)
    with engine.connect() as connection:
        assert ping(connection.connection.dbapi_connection) is True
        assert ping(dbapi_connection=connection.connection.dbapi_connection) is True
    assert inspect.signature(
        getattr(type(engine.dialect), name).__get__(engine.dialect)
    ) == inspect.signature(ping)


def test_a_copy_of_an_engine_still_works() -> None:
    """An engine copied by ``copy.copy()`` or ``execution_options()`` shares the pool and its metrics."""
    engine, registry = Database().engine(), CollectorRegistry()
    handle = instrument(engine, registry=registry)
    for other in (copy.copy(engine), engine.execution_options(isolation_level="AUTOCOMMIT")):
        other.connect().close()
        assert instrument(other, registry=registry) is handle
    assert Exposition(registry).value("checkouts_total", handle.name) == 2


def test_a_pool_that_returns_something_else() -> None:
    """If a pool's ``connect()`` returns an object of the user's own, the caller gets it unchanged."""

    class Wrapped:
        def __init__(self, proxied: Any) -> None:
            self.proxied = proxied

    class Own(QueuePool):
        def connect(self) -> Any:
            return Wrapped(super().connect())

    engine = Database().engine(poolclass=Own)
    quietly(engine)
    wrapped: Any = engine.pool.connect()
    assert isinstance(wrapped, Wrapped)
    wrapped.proxied.close()


@pytest.mark.parametrize(
    "options",
    [
        {"pool_timeout": None},
        {"max_overflow": -1},
        {"pool_size": 0},
        {"pool_recycle": 0.5},
        {"pool_pre_ping": "true"},  # as a string, as engine_from_config() passes it
    ],
)
def test_options_that_sqlalchemy_takes_are_taken(options: dict[str, Any]) -> None:
    """``instrument()`` accepts every option that SQLAlchemy accepts: no timeout, no limit, fractions, strings."""
    engine = Database().engine(**options)
    engine.connect().close()
    quietly(engine)
    engine.connect().close()
    engine.dispose()
    engine.connect().close()
