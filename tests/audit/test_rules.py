# SPDX-License-Identifier: Apache-2.0
"""Each rule of the audit finds its mistake, and nothing where there is none or where a fact is not known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter.audit.rules import RULES, audit
from sqlalchemy_pool_exporter.held_connections import ServerLimits
from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.entries import UNNAMED_THREAD
from tests.support.paths import ROOT
from tests.support.probed_sessions import Probed
from tests.support.segments import NOW, QUEUE, Process, processes
from tools import generate_audit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NULL = {**QUEUE, "pool_class": "NullPool"}
MYSQL = {**QUEUE, "dialect": "mysql", "driver": "pymysql"}
OFF = math.nan
AFTER_START = -1000.0  # holder: the task number 1,000


class Application:
    """Simulated processes, and the server that their pools connect to."""

    def __init__(self, path: Path, make: Callable[..., Process]) -> None:
        self.path, self._make = path, make
        self.servers: list[Probed] = []

    def process(self, pool: str = "orders", **options: Any) -> Process:
        """Start a process with a pool as SQLAlchemy's defaults make it, except for the fields that are given."""
        fields = {
            key: options.pop(key) for key in list(options) if key not in {"info", "size", "max_overflow"}
        }
        process = self._make(pool, **{"size": 5.0, "max_overflow": 10.0, **options})
        limits = {"timeout": 30.0, "recycle": OFF, "pre_ping": 0.0, "made_at": NOW - 3600.0, "is_async": -1.0}
        for key, value in (limits | fields).items():
            process.block[getattr(layout, key.upper())] = value
        return process

    def null_pool(self, connects: float, **fields: Any) -> Process:
        """Start a process with a NullPool that has opened so many connections in an hour."""
        process = self.process(info=NULL, size=OFF, max_overflow=OFF, timeout=OFF, has_overflow=0.0, **fields)
        process.block[layout.CONNECT] = connects
        return process

    def server(
        self,
        connections: int = 97,
        idle: float | None = None,
        *,
        pooler: bool = False,
        pools: tuple[str, ...] = ("orders",),
        identity: str = "server",
    ) -> None:
        """Let a probe see a server."""
        limits = ServerLimits(connections, idle, pooler)
        self.servers.append(Probed({}, pools, database=identity + pools[0], identity=identity, limits=limits))

    def found(self) -> dict[str, set[str]]:
        """Return the rules that find something, by pool."""
        found: dict[str, set[str]] = {}
        for one in audit(Reader(self.path).read(), self.servers, now=NOW, wall=2 * NOW):
            assert one.text
            found.setdefault(one.pool, set()).add(one.rule.name)
        return found

    def rules(self) -> set[str]:
        """Return those of the pool ``orders``."""
        return self.found().get("orders", set())

    def text(self, rule: str) -> str:
        """Return what a rule says of the only pool."""
        found = audit(Reader(self.path).read(), self.servers, now=NOW, wall=2 * NOW)
        (text,) = [one.text for one in found if one.rule.name == rule]
        return text


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    with processes(tmp_path) as make:
        yield Application(tmp_path, make)


def test_sqlalchemys_defaults(application: Application) -> None:
    """An engine with SQLAlchemy's defaults has no finding before a server that ends no idle sessions."""
    application.process()
    application.server()
    assert application.found() == {}


def test_no_process(application: Application) -> None:
    """Of pools that no live process has, nothing is found."""
    application.process(recycle=10.0).kill()
    assert application.found() == {}


# -- dead connections


def test_no_liveness_check(application: Application) -> None:
    """Neither pre-ping nor recycle, and the server ends idle sessions."""
    application.process()
    application.server(idle=600.0)
    assert application.rules() == {"no_liveness_check"}
    assert application.text("no_liveness_check").endswith("sessions that are idle for 600 s")


@pytest.mark.parametrize("fields", [{"pre_ping": 1.0}, {"recycle": 500.0}])
def test_a_liveness_check(application: Application, fields: dict[str, Any]) -> None:
    """Pre-ping or a recycle below the server's limit is enough."""
    application.process(**fields)
    application.server(idle=600.0)
    assert application.rules() == set()


def test_nothing_is_kept(application: Application) -> None:
    """NullPool keeps no connection that a server could end."""
    application.null_pool(10.0)
    application.server(idle=600.0)
    assert application.rules() == set()


def test_a_server_that_is_not_known(application: Application) -> None:
    """Without a probe, or with one that sees another server, it is not known whether idle sessions are ended."""
    application.process()
    assert application.rules() == set()
    application.server(idle=600.0, pools=("billing",))
    assert application.rules() == set()


def test_mysql_always_ends_idle_sessions(application: Application) -> None:
    """MySQL's wait_timeout cannot be off, so no probe is needed; any recycle is trusted: the limit is not known."""
    application.process("orders", info=MYSQL)
    application.process("billing", info=MYSQL, recycle=40_000.0)
    application.process("users", info=MYSQL, pre_ping=1.0)
    assert application.found() == {"orders": {"no_liveness_check"}}


@pytest.mark.parametrize(("recycle", "is_found"), [(600.0, True), (3600.0, True), (599.0, False)])
def test_recycle_above_the_idle_limit(application: Application, recycle: float, is_found: bool) -> None:
    """A connection must be replaced before the server ends it."""
    application.process(recycle=recycle)
    application.server(idle=600.0)
    assert application.rules() == ({"recycle_above_idle_limit"} if is_found else set())


def test_recycle_above_the_idle_limit_with_pings(application: Application) -> None:
    """With pre-ping, a connection that the server ended is replaced at its checkout."""
    application.process(recycle=3600.0, pre_ping=1.0)
    application.server(idle=600.0)
    assert application.rules() == set()


@pytest.mark.parametrize(("recycle", "is_found"), [(0.0, True), (299.0, True), (300.0, False), (OFF, False)])
def test_recycle_short(application: Application, recycle: float, is_found: bool) -> None:
    """Connections that are replaced every few minutes."""
    application.process(recycle=recycle)
    assert application.rules() == ({"recycle_short"} if is_found else set())


def test_recycle_that_has_to_be_short(application: Application) -> None:
    """Before a server that ends sessions after two minutes, a recycle of 100 s is right."""
    application.process(recycle=100.0)
    application.server(idle=120.0)
    assert application.rules() == set()


def test_recycle_of_a_null_pool(application: Application) -> None:
    """A pool that keeps nothing recycles nothing."""
    application.null_pool(10.0, recycle=60.0)
    assert application.rules() == set()


# -- numbers of connections


def test_too_many_connections(application: Application) -> None:
    """Six processes with 15 connections each, and a server with 97 for ordinary roles."""
    for _ in range(6):
        application.process()
    application.server(97)
    assert application.rules() == {"too_many_connections"}
    text = "this pool can open 90 connections in all processes, and the server has 97 for them: more than 90%"
    assert application.text("too_many_connections") == text


def test_enough_connections(application: Application) -> None:
    """A tenth is left for deployments and people; a process that is gone does not count."""
    for _ in range(6):
        application.process()
    application.process().kill()
    application.server(100)
    assert application.rules() == set()


def test_several_databases_of_one_server(application: Application) -> None:
    """The pools of all databases of a server count together, and each pool has the finding; those of another do not."""
    for pool in ("orders", "billing", "users"):
        for _ in range(3):
            application.process(pool)
    application.server(97, pools=("orders",))
    application.server(97, pools=("users",), identity="other")
    assert application.found() == {}
    application.server(97, pools=("billing",))
    assert application.found() == {"orders": {"too_many_connections"}, "billing": {"too_many_connections"}}


def test_connections_of_a_pooler(application: Application) -> None:
    """Behind a pooler, the server's limit says nothing of the pools."""
    for _ in range(10):
        application.process()
    application.server(97, pooler=True)
    assert application.rules() == set()
    application.servers.clear()
    application.server(97)
    assert application.rules() == {"too_many_connections"}


def test_pools_without_a_limit(application: Application) -> None:
    """A pool without a limit, as of migrations, does not hide that the others are too many; alone it is no finding."""
    application.process(max_overflow=OFF)
    application.server(97)
    assert application.rules() == set()
    for _ in range(6):
        application.process()
    assert application.rules() == {"too_many_connections"}
    assert "this pool can open 90 connections or more in" in application.text("too_many_connections")


def test_null_pool_connects(application: Application) -> None:
    """Two processes that open three connections a second each."""
    for _ in range(2):
        application.null_pool(3 * 3600.0)
    application.server()
    assert application.rules() == {"null_pool_connects"}
    assert application.text("null_pool_connects") == "NullPool opens 6 connections a second"


@pytest.mark.parametrize("pooler", [True, None])
def test_null_pool_before_a_pooler(application: Application, pooler: bool | None) -> None:
    """NullPool is right before a pooler; and without a probe there may be one."""
    application.null_pool(10 * 3600.0)
    if pooler is not None:
        application.server(pooler=pooler)
    assert application.rules() == set()


def test_null_pool_that_connects_seldom(application: Application) -> None:
    """A few connections a second are no harm, and the first minute of a process says nothing."""
    application.null_pool(3600.0)
    application.null_pool(1000.0, made_at=NOW - 30.0)
    application.server()
    assert application.rules() == set()


def test_a_queue_pool_may_connect(application: Application) -> None:
    """The rule is about NullPool alone."""
    application.process().block[layout.CONNECT] = 10 * 3600.0
    application.server()
    assert application.rules() == set()


# -- use


@pytest.mark.parametrize(
    ("timeout", "deadline", "is_found"),
    [(30.0, 10.0, True), (30.0, 30.0, True), (5.0, 30.0, False), (30.0, 0.0, False), (OFF, 10.0, False)],
)
def test_timeout_beyond_deadline(
    application: Application, timeout: float, deadline: float, is_found: bool
) -> None:
    """A wait for a connection must end before the request's deadline, if the application tells that."""
    application.process(timeout=timeout, request_deadline=deadline)
    assert application.rules() == ({"timeout_beyond_deadline"} if is_found else set())


def test_sync_engine_in_loop(application: Application) -> None:
    """A task checked out of a synchronous engine, after the application has started."""
    process = application.process()
    process.hold(NOW - 1.0, holder=AFTER_START)
    process.hold(NOW - 1.0, 1, holder=3.0)
    assert application.rules() == {"sync_engine_in_loop"}


@pytest.mark.parametrize(
    ("is_async", "holder"),
    [
        (1.0, AFTER_START),
        (0.0, AFTER_START),
        (-1.0, 7.0),
        (-1.0, -3.0),
        (-1.0, 0.0),
        (-1.0, UNNAMED_THREAD - 1000.0),
    ],
)
def test_not_a_sync_engine_in_loop(application: Application, is_async: float, holder: float) -> None:
    """An asyncio engine, one of which it is not known, a thread, and one of the tasks that start the application."""
    application.process(is_async=is_async).hold(NOW - 1.0, holder=holder)
    assert application.rules() == set()


@pytest.mark.parametrize(
    ("is_async", "callers", "is_found"), [(-1.0, 16.0, True), (-1.0, 15.0, False), (1.0, 400.0, False)]
)
def test_pool_below_threads(
    application: Application, is_async: float, callers: float, is_found: bool
) -> None:
    """More threads than connections asked at one moment; tasks of asyncio are no threads."""
    application.process(is_async=is_async).block[layout.WAITERS_USED] = callers
    assert application.rules() == ({"pool_below_threads"} if is_found else set())


def test_a_pool_without_a_limit_is_not_below_threads(application: Application) -> None:
    """A pool without a limit has room for all."""
    application.process(max_overflow=OFF).block[layout.WAITERS_USED] = 100.0
    assert application.rules() == set()


def test_documentation_is_current() -> None:
    """docs/audit.md has the rules of the table."""
    assert generate_audit.page() == (ROOT / "docs" / "audit.md").read_text("utf-8")


def test_the_table() -> None:
    """Each rule has a name of its own, a severity, and sentences for why and what to do."""
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.severity in {"warning", "info"}
        assert all(text.endswith(".") for text in (rule.summary, rule.why, rule.remedy))
