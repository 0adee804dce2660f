# SPDX-License-Identifier: Apache-2.0
"""``instrument_all()``: every engine of a process, however it is made, and none that is excluded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, engine_from_config
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.ext.asyncio import async_engine_from_config, create_async_engine
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from sqlalchemy_pool_exporter import TargetError, instrument, instrument_all
from sqlalchemy_pool_exporter.recording.exclusions import Exclusions
from tests.support.logs import messages_of_this_test
from tests.support.programs import PROLOGUE, run
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlalchemy_pool_exporter import Instrumentation

ORIGINAL = URL.__dict__["_instantiate_plugins"]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    assert URL.__dict__["_instantiate_plugins"] is ORIGINAL


@pytest.fixture
def every(registry: CollectorRegistry) -> Iterator[Instrumentation]:
    with instrument_all(registry=registry) as done:
        yield done


def is_recorded(engine: Engine | AsyncEngine) -> bool:
    return "connect" in vars(engine.pool)


# -- which engines


@pytest.mark.parametrize(
    "make",
    [
        lambda: create_engine("sqlite://"),
        lambda: create_engine("sqlite://", poolclass=QueuePool, pool_size=3, max_overflow=1, echo=False),
        lambda: create_engine(
            make_url("sqlite://"), poolclass=NullPool, logging_name="e", query_cache_size=7
        ),
        lambda: create_engine("sqlite://", creator=object, hide_parameters=True, execution_options={"a": 1}),
        lambda: engine_from_config({"sqlalchemy.url": "sqlite://", "sqlalchemy.echo": "false"}),
        lambda: create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool),
        lambda: async_engine_from_config({"sqlalchemy.url": "sqlite+aiosqlite://"}),
    ],
)
def test_new_engines(every: Instrumentation, make: Callable[[], Engine | AsyncEngine]) -> None:
    """An engine is instrumented when it is made, whatever makes it and with whatever arguments."""
    engine = make()
    assert is_recorded(engine)
    every.uninstrument()
    assert not is_recorded(engine)
    assert not is_recorded(make())


def test_engines_that_exist(registry: CollectorRegistry) -> None:
    """Engines that exist already are found, and restored at the end; a copy of an engine has the pool of its engine."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_logging_name="found")
    copy = engine.execution_options(isolation_level="AUTOCOMMIT")
    loop = create_async_engine("sqlite+aiosqlite://")
    with instrument_all(registry=registry), copy.connect():
        assert is_recorded(engine)
        assert is_recorded(loop)
        assert RegistrySamples(registry).value("connections", "found", state="in_use") == 1
    engine.dispose()
    assert not is_recorded(engine)
    assert not is_recorded(loop)


def test_options(registry: CollectorRegistry) -> None:
    """The options of ``instrument()`` are those of each engine; ``seen`` is called for each."""
    calls: list[None] = []
    with instrument_all(registry=registry, request_deadline=1.0, seen=lambda: calls.append(None)):
        before = len(calls)
        engine = create_engine("sqlite://", poolclass=QueuePool, pool_logging_name="late")
        assert len(calls) == before + 1
        assert is_recorded(engine)
        assert RegistrySamples(registry).value("finding", "late", rule="timeout_beyond_deadline") == 1


@pytest.mark.parametrize(
    ("arguments", "raised"),
    [
        ({"sites": 2}, TargetError),
        ({"leak_after": "soon"}, TargetError),
        ({"registry": object()}, TargetError),
        ({"exclude": 5}, TargetError),
        ({"exclude": [""]}, TargetError),
        ({"exclude": ["class:"]}, TargetError),
        ({"name": "orders"}, TypeError),
    ],
)
def test_arguments_that_mean_nothing(arguments: dict[str, Any], raised: type[Exception]) -> None:
    """They raise, before anything is instrumented: an engine that is made later cannot tell."""
    with pytest.raises(raised):
        instrument_all(**arguments)


def test_twice(every: Instrumentation, registry: CollectorRegistry) -> None:
    """A second call is the first one; after its end there is a new one."""
    assert instrument_all(registry=CollectorRegistry()) is every
    every.uninstrument()
    every.uninstrument()
    with instrument_all(registry=registry) as other:
        assert other is not every
        assert is_recorded(create_engine("sqlite://"))
        every.uninstrument()  # of the first, which has ended
        assert is_recorded(create_engine("sqlite://"))


def test_what_the_application_asks_for_comes_before(
    every: Instrumentation, registry: CollectorRegistry
) -> None:
    """``instrument()`` of the application gives its own name, before and after the engine was found."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_logging_name="early")
    with engine.connect():
        pass
    with instrument(engine, name="orders", registry=registry) as handle:
        assert handle.name == "orders"
        with engine.connect():
            assert RegistrySamples(registry).value("connections", "orders", state="in_use") == 1
        assert RegistrySamples(registry).get("instances", "early") is None
        engine.dispose()
        every.see(engine)
        assert handle.name == "orders"
        every.uninstrument()
        assert is_recorded(engine)
    assert not is_recorded(engine)


def test_others_that_wrap_the_same(every: Instrumentation, registry: CollectorRegistry) -> None:
    """If something else has wrapped the method meanwhile it stays wrapped, and nothing more is instrumented."""
    calls: list[URL] = []
    before = URL.__dict__["_instantiate_plugins"]

    def wrapper(url: URL, kwargs: Any) -> Any:
        calls.append(url)
        return before(url, kwargs)

    URL._instantiate_plugins = wrapper  # type: ignore[assignment,method-assign]
    try:
        assert is_recorded(create_engine("sqlite://"))
        every.uninstrument()
        assert not is_recorded(create_engine("sqlite://"))
        assert len(calls) == 2
        seen: list[None] = []
        with instrument_all(registry=registry, seen=lambda: seen.append(None)):
            seen.clear()
            assert is_recorded(create_engine("sqlite://"))
            assert len(seen) == 1
        assert URL.__dict__["_instantiate_plugins"] is wrapper
    finally:
        URL._instantiate_plugins = ORIGINAL  # type: ignore[method-assign]


def test_a_failure_is_logged(
    every: Instrumentation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that cannot be instrumented works, and no credential is in the log."""

    def fail(_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("sqlalchemy_pool_exporter.recording.handle.Hooks.attach", fail)
    with caplog.at_level(logging.ERROR):
        engine = create_engine("sqlite://", creator=lambda: None, poolclass=QueuePool)
    assert not is_recorded(engine)
    assert messages_of_this_test(caplog.records) == ["an engine of sqlite is not instrumented"]


# -- exclusions


@pytest.mark.parametrize(
    ("pattern", "is_excluded"),
    [
        ("sqlite:*", True),
        ("sqlite:///*", False),
        ("postgresql*", False),
        ("*", True),
        ("class:QueuePool", True),
        ("class:Queue*", True),
        ("class:Pool", True),
        ("class:NullPool", False),
        (f"module:{__name__}", True),
        ("module:tests.*", True),
        ("module:orders", False),
        ("module:sqlalchemy*", False),
    ],
)
def test_exclusions(registry: CollectorRegistry, pattern: str, is_excluded: bool) -> None:
    """An engine is left alone if a pattern matches its URL, the class of its pool, or the module that makes it."""
    with instrument_all(registry=registry, exclude=["nothing", pattern]):
        engine = create_engine("sqlite://", poolclass=QueuePool)
        loop = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        assert is_recorded(engine) is not is_excluded
        if pattern.startswith("module:"):
            assert is_recorded(loop) is not is_excluded


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        (
            "postgresql+psycopg2://ada:s3cret@db:5432/orders?sslmode=require",
            "postgresql+psycopg2://db:5432/orders",
        ),
        ("postgresql+psycopg2://ada:s3cret@replica/orders", "*://replica/*"),
        ("sqlite:///orders.db", "sqlite:///orders.db"),
    ],
)
def test_urls(url: str, pattern: str) -> None:
    """A pattern is compared with the URL without user, password and query."""
    engine = create_engine(url, module=Driver) if url.startswith("p") else create_engine(url)
    assert Exclusions([pattern]).cover(engine, None)
    assert not Exclusions(["*ada*", "*s3cret*", "*sslmode*"]).cover(engine, None)


class Driver:
    """A driver that never connects."""

    paramstyle = "pyformat"
    __version__ = "2.9"


# -- processes


def test_forked_children() -> None:
    """A forked child instruments its own engines and shows them, as its parent does."""
    done = run(
        """
        from sqlalchemy import create_engine
        from sqlalchemy_pool_exporter import instrument_all

        instrument_all(registry=registry)
        parents = create_engine("sqlite://", poolclass=QueuePool, logging_name="e", pool_logging_name="parents")
        pid = os.fork()
        if pid == 0:
            child = create_engine("sqlite://", poolclass=QueuePool, pool_logging_name="child")
            with child.connect(), parents.connect():
                print({sample.labels["pool"]: sample.value for family in registry.collect()
                       for sample in family.samples if sample.name == "sqlalchemy_pool_connections"
                       and sample.labels["state"] == "in_use"}, flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        """,
        prologue=PROLOGUE,
    )
    assert done.stderr == ""
    assert eval(done.stdout) == {"child": 1.0, "parents": 1.0}  # noqa: S307 - what the program above printed


@pytest.mark.parametrize("is_frozen", [False, True])
def test_what_the_heap_hides(is_frozen: bool) -> None:
    """Objects whose class or attributes raise do no harm; what ``gc.freeze()`` hides is not found."""
    done = run(
        """
        from sqlalchemy import create_engine
        from sqlalchemy_pool_exporter import instrument_all

        class Proxy:
            @property
            def __class__(self):
                raise RuntimeError("working outside of request context")

        proxies = [Proxy()]
        engine = create_engine("sqlite://")
        if sys.argv[1] == "True":
            gc.freeze()
        instrument_all(registry=registry)
        print("connect" in vars(engine.pool))
        """,
        str(is_frozen),
        prologue=PROLOGUE,
    )
    assert (done.stdout, done.stderr) == (f"{not is_frozen}\n", "")
