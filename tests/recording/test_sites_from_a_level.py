# SPDX-License-Identifier: Apache-2.0
"""By default a site is found while at least half of a pool's capacity is in use; else a checkout counts as other."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import random
import sqlite3
from contextlib import ExitStack
from itertools import starmap
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool, SingletonThreadPool, StaticPool

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.environment import LEAK_AFTER, SITES
from sqlalchemy_pool_exporter.errors import TargetError
from tests.support.samples import Exposition, RegistrySamples
from tests.support.wait import eventually
from tests.support.witness import assert_sites_add_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from sqlalchemy.engine import Engine

    from sqlalchemy_pool_exporter import Handle

pytestmark = pytest.mark.usefixtures("leave_nothing")

POOL = "orders"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (SITES, LEAK_AFTER):
        monkeypatch.delenv(variable, raising=False)


class Link(sqlite3.Connection):
    """A SQLite connection that closes itself, without a ResourceWarning, when it is dropped."""

    def __init__(self) -> None:
        super().__init__(":memory:", check_same_thread=False)

    def __del__(self) -> None:
        self.close()


@pytest.fixture
def an_engine(registry: CollectorRegistry) -> Iterator[Callable[..., Engine]]:
    """Make instrumented engines of a size and an overflow; each is disposed of."""
    with ExitStack() as stack:

        def make(size: int = 4, overflow: int = 6, *, poolclass: Any = QueuePool, **options: Any) -> Engine:
            limits: dict[str, Any] = {}
            if issubclass(poolclass, QueuePool):
                limits = {"pool_size": size, "max_overflow": overflow, "pool_timeout": 0.01}
            engine = create_engine(
                "sqlite://",
                poolclass=poolclass,
                creator=Link,
                **limits,
            )
            stack.callback(engine.dispose)
            instrument(engine, name=POOL, registry=registry, **options)
            return engine

        yield make


def by_site(registry: CollectorRegistry, name: str = "checkouts_by_site_total") -> dict[str, float]:
    """Return the values of a metric that are not 0, by the function of the site."""
    found: dict[str, float] = {}
    for (metric, labels), value in RegistrySamples(registry).samples.items():
        if metric == f"sqlalchemy_pool_{name}" and value:
            site = dict(labels)["site"].rpartition(":")[0].rpartition(".")[2].rpartition(":")[2] or "other"
            found[site] = found.get(site, 0.0) + value
    return found


def hold(engine: Engine, number: int) -> list[Any]:
    """Check out connections; return them."""
    return list(starmap(engine.connect, [()] * number))  # a comprehension is a function on Python 3.11


def close(held: list[Any]) -> None:
    """Return connections."""
    while held:
        held.pop().close()


@pytest.mark.parametrize(
    ("limits", "share", "others"),
    [
        ((4, 6), None, 4),  # the fifth of ten makes a half
        ((5, 10), None, 6),  # the defaults of SQLAlchemy: half is 7.5, rounded down
        ((1, 0), None, 0),
        ((2, 0), None, 0),
        ((3, 0), None, 0),
        ((4, -1), None, 1),  # no limit of the overflow: half of the size
        ((0, 0), None, 0),  # no limit at all
        ((4, 6), 0.75, 6),
        ((5, 5), 0.3, 2),
        ((4, 6), 0.99, 8),
        ((4, 6), 0.01, 0),
        ((4, 6), True, 0),
    ],
)
def test_a_site_is_found_from_a_level_on(
    an_engine: Callable[..., Engine],
    registry: CollectorRegistry,
    limits: tuple[int, int],
    share: Any,
    others: int,
) -> None:
    """Checkouts below the level are other; the one that reaches it has its site, as have those above it."""
    engine = an_engine(*limits, sites=share)
    number = 10 if limits[0] in {0, 4} else sum(limits)
    for _ in range(2):
        held = hold(engine, number)
        in_use = {"other": float(others), "hold": float(number - others)}
        assert by_site(registry, "held_connections") == {
            site: count for site, count in in_use.items() if count
        }
        assert_sites_add_up(Exposition(registry), POOL)
        close(held)
        assert by_site(registry, "held_connections") == {}
    assert by_site(registry) == {site: 2 * count for site, count in in_use.items() if count}


def test_a_level_is_left_again(an_engine: Callable[..., Engine], registry: CollectorRegistry) -> None:
    """What counts is how many are in use at the checkout, and not how many have been."""
    engine = an_engine()
    held = hold(engine, 10)
    close(held)
    for _ in range(3):
        close(hold(engine, 1))
    assert by_site(registry) == {"other": 7.0, "hold": 6.0}


@pytest.mark.parametrize("poolclass", [NullPool, SingletonThreadPool, StaticPool])
def test_pools_without_a_level(
    an_engine: Callable[..., Engine], registry: CollectorRegistry, poolclass: Any
) -> None:
    """In a pool that is never full, each checkout has its site."""
    engine = an_engine(poolclass=poolclass)
    close(hold(engine, 1))
    assert by_site(registry) == {"hold": 1.0}


@pytest.mark.parametrize("lifo", [False, True])
def test_an_asyncio_engine(registry: CollectorRegistry, lifo: bool) -> None:
    """The queue of an asyncio engine is another one; the level is the same."""

    async def run() -> None:
        engine = create_async_engine(
            "sqlite+aiosqlite://",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=2,
            max_overflow=4,
            pool_use_lifo=lifo,
        )
        instrument(engine, name=POOL, registry=registry)
        for _ in range(2):
            held = []
            for _ in range(5):
                held.append(await engine.connect())  # noqa: PERF401 - as above
            assert by_site(registry, "held_connections") == {"other": 2.0, "run": 3.0}
            for one in held:
                await one.close()
        await engine.dispose()
        async with engine.connect():
            assert by_site(registry, "held_connections") == {"other": 1.0}
        await engine.dispose()

    asyncio.run(run())
    assert by_site(registry) == {"other": 5.0, "run": 6.0}
    assert_sites_add_up(Exposition(registry), POOL)


def test_after_dispose(an_engine: Callable[..., Engine], registry: CollectorRegistry) -> None:
    """The pool that takes the place has the same level; connections of the old one are none of its."""
    engine = an_engine()
    old = hold(engine, 9)
    engine.dispose()
    new = hold(engine, 10)
    assert by_site(registry) == {"other": 8.0, "hold": 11.0}
    close(old)
    close(new)
    engine.dispose()
    close(hold(engine, 1))
    assert by_site(registry) == {"other": 9.0, "hold": 11.0}
    assert_sites_add_up(Exposition(registry), POOL)


def test_a_pool_that_is_emptied_and_goes_on(
    an_engine: Callable[..., Engine], registry: CollectorRegistry
) -> None:
    """Connections that were out when their pool was emptied come back to it, and it counts too few in use from then on.

    So it lets more be opened than its limits allow, and the level rises with them. All sums stay true.
    """
    engine = an_engine()
    pool = engine.pool
    held = list(starmap(pool.connect, [()] * 10))
    pool.dispose()
    close(held)
    held = list(starmap(pool.connect, [()] * 20))
    assert by_site(registry, "held_connections").keys() == {
        "other",
        "test_a_pool_that_is_emptied_and_goes_on",
    }
    assert_sites_add_up(Exposition(registry), POOL)
    close(held)
    assert_sites_add_up(Exposition(registry), POOL)
    pool.dispose()


def test_a_limit_that_the_application_changes(
    an_engine: Callable[..., Engine], registry: CollectorRegistry
) -> None:
    """The level is that of the limits when the pool was instrumented; the sums stay true."""
    engine = an_engine()
    pool: Any = engine.pool
    pool._max_overflow = 16
    held = hold(engine, 20)
    assert by_site(registry, "held_connections") == {"other": 4.0, "hold": 16.0}
    assert_sites_add_up(Exposition(registry), POOL)
    close(held)


def test_the_sums_are_the_totals(an_engine: Callable[..., Engine], registry: CollectorRegistry) -> None:
    """However the level is crossed, the sums over the sites are the totals, and no counter goes back."""
    engine, random_ = an_engine(), random.Random(7)  # noqa: S311 - the same walk each time
    held: list[Any] = []
    before: dict[str, float] = {}
    for _ in range(400):
        if len(held) < 10 and random_.random() < 0.5 + 0.04 * (5 - len(held)):
            held += hold(engine, 1)
        elif held:
            what = random_.random()
            one = held.pop(random_.randrange(len(held)))
            if what < 0.1:
                one.invalidate()
            elif what < 0.2:
                one.detach()
            if what > 0.95:
                del one  # leaked
                gc.collect()
            else:
                one.close()
        samples = Exposition(registry)
        assert_sites_add_up(samples, POOL)
        now = {
            f"{name}{sorted(labels)}": value
            for (name, labels), value in samples.samples.items()
            if name.endswith(("_total", "_count")) and "site" in dict(labels)
        }
        assert all(now[key] >= value for key, value in before.items())
        before = now
    assert samples.value("exporter_recording_faults_total", POOL) == 0.0
    assert by_site(registry).keys() == {"other", "hold"}
    close(held)


def test_holders_are_known_below_the_level(
    an_engine: Callable[..., Engine], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Who holds a connection is recorded at each checkout: a self-deadlock is seen, and its report names the site.

    The caller of a checkout that times out has its site always.
    """
    engine = an_engine(1, 2, sites=0.99)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(engine.connect())
        with pytest.raises(sqlalchemy_errors.TimeoutError):
            engine.connect()
    assert by_site(registry, "nested_checkouts_total") == {"test_holders_are_known_below_the_level": 3.0}
    assert eventually(lambda: any("exhausted" in one.message for one in caplog.records))
    (report,) = [vars(one)["pool_exhaustion"] for one in caplog.records if hasattr(one, "pool_exhaustion")]
    assert report["site"].startswith(f"{__name__}:test_holders_are_known_below_the_level:")
    assert [group["connections"] for group in report["held"]] == [2, 1]
    assert {group["holder"] for group in report["held"]} == {"MainThread"}
    assert [group["site"] for group in report["held"]].count("other") == 1
    assert report["cause"] == "self_deadlock"


# -- the argument and the environment


def level_of(handle: Handle) -> float | None:
    """Return the share that a pool has; None if no sites are recorded."""
    recorder = max(handle._recorders, key=lambda one: not one.is_replaced)
    return None if recorder.origins is None else recorder.origins.share


@pytest.mark.parametrize(
    ("options", "variables", "share"),
    [
        ({}, {}, 0.5),
        ({"sites": True}, {SITES: "off"}, 0.0),
        ({"sites": False}, {SITES: "on"}, None),
        ({"sites": 0.8}, {SITES: "0.3"}, 0.8),
        ({}, {SITES: "on"}, 0.0),
        ({}, {SITES: "1"}, 0.0),
        ({}, {SITES: "Off"}, None),
        ({}, {SITES: "0"}, None),
        ({}, {SITES: " 0.3 "}, 0.3),
        ({}, {SITES: ""}, 0.5),
        ({"leak_after": 60}, {}, 0.0),
        ({}, {LEAK_AFTER: "60"}, 0.0),
        ({"leak_after": 0}, {LEAK_AFTER: "60"}, 0.5),
        ({"leak_after": 60}, {SITES: "0.5"}, 0.5),
        ({"leak_after": 60, "sites": 0.5}, {}, 0.5),
        ({"leak_after": 60}, {SITES: "off"}, None),
    ],
)
def test_which_level(
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    variables: dict[str, str],
    share: float | None,
) -> None:
    """The argument counts, else the environment; else each checkout if leaks are looked for, else half."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    engine = create_engine("sqlite://", poolclass=QueuePool)
    with instrument(engine, name=POOL, registry=registry, **options) as handle:
        assert level_of(handle) == share
        engine.dispose()
        assert level_of(handle) == share


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.5, 50, math.nan, math.inf, "on", "0.5", [0.5]])
def test_a_share_that_is_none(registry: CollectorRegistry, value: Any) -> None:
    """A number that is no share, and what is no number, is refused; the pool is not instrumented."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    message = "sites must be True, False or a share of the pool's capacity, more than 0 and less than 1, got "
    with pytest.raises(TargetError) as raised:
        instrument(engine, registry=registry, sites=value)
    assert str(raised.value) == message + repr(value)
    assert "connect" not in vars(engine.pool)


@pytest.mark.parametrize("value", ["2", "-1", "half", "50%", "nan", "1.0", "0.0"])
def test_a_variable_that_means_nothing(
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: str,
) -> None:
    """The mistake of an operator is logged, and the default is taken."""
    monkeypatch.setenv(SITES, value)
    engine = create_engine("sqlite://", poolclass=QueuePool)
    with caplog.at_level(logging.WARNING), instrument(engine, name=POOL, registry=registry) as handle:
        assert level_of(handle) == 0.5
    assert [one.getMessage() for one in caplog.records] == [
        f"{SITES} is neither on nor off nor a share between 0 and 1: {value!r}"
    ]
