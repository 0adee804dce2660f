# SPDX-License-Identifier: Apache-2.0
"""The report of an error that comes from the server or the network: where it struck, once a minute for each kind."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, exc, text

from sqlalchemy_pool_exporter import instrument, label
from sqlalchemy_pool_exporter.recording import exhaustion, failure_reports
from sqlalchemy_pool_exporter.recording.error_codes import KINDS
from tests.support.database import Database
from tests.support.paths import ROOT
from tests.support.report_log import ReportLog
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from sqlalchemy.engine import Engine

    from tests.support.pg import Server


@pytest.fixture
def log(application_name: str) -> Iterator[ReportLog]:
    """The reports of the pool of a test, which has a name that no other one has."""
    handler = ReportLog(application_name)
    logger = logging.getLogger("sqlalchemy_pool_exporter")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


def fails_to_connect(engine: Engine) -> None:
    with pytest.raises(ConnectionRefusedError):
        engine.connect()


def test_a_connect(registry: CollectorRegistry, log: ReportLog) -> None:
    """An attempt to connect that fails is reported with its place, its thread, its label and the process."""
    database = Database()
    database.connect_fails = ConnectionRefusedError("no")
    engine = database.engine()
    with instrument(engine, name=log.pool, registry=registry), label("GET /pay"):
        fails_to_connect(engine)
        (report,) = log.reports()
    site = report.pop("site")
    assert site.startswith(f"{__name__}:fails_to_connect:")
    assert {
        "pool": log.pool,
        "pid": os.getpid(),
        "layer": "connect",
        "kind": "connect_failed",
        "disposition": "retryable",
        "sqlstate": None,
        "holder": threading.current_thread().name,
        "label": "GET /pay",
        "suppressed": 0,
    } == report
    assert json.loads(json.dumps(report)) == report
    (record,) = log.records
    assert logging.WARNING == record.levelno
    who = f"{site} ({threading.current_thread().name}, GET /pay)"
    assert (
        f"pool {log.pool!r} (pid {os.getpid()}): an attempt to connect at {who} failed: connect_failed: "
        "there is no connection to the server"
    ) == record.getMessage()


def test_an_installed_application(registry: CollectorRegistry, log: ReportLog) -> None:
    """Of an application that is installed like a library the report names its innermost frame, as a checkout's site."""
    database = Database()
    engine = database.engine()
    handle = instrument(engine, name=log.pool, registry=registry)
    database.connect_fails = ConnectionRefusedError(111, "refused")
    source = "def pay(engine):\n    try:\n        engine.connect()\n    except ConnectionRefusedError:\n        pass\n"
    shop: dict[str, Any] = {"__name__": "shop"}
    exec(compile(source, "/srv/site-packages/shop.py", "exec"), shop)  # noqa: S102 - as an application
    thread = threading.Thread(target=shop["pay"], args=(engine,))
    thread.start()
    thread.join()
    (report,) = log.reports()
    assert report["site"] == "shop:pay:3"
    handle.close()


def test_once_a_minute(registry: CollectorRegistry, log: ReportLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a minute errors of one kind are counted, and the next report says how many there were."""
    database = Database()
    database.connect_fails = ConnectionRefusedError("no")
    engine = database.engine()
    with instrument(engine, name=log.pool, registry=registry):
        for _ in range(4):
            fails_to_connect(engine)
        log.reports()
        monkeypatch.setattr(exhaustion, "SECONDS", 0.0)

        def fails_until_reported() -> bool:
            # While the first one is being logged there is no second one.
            fails_to_connect(engine)
            return len(log.records) > 1

        assert eventually(fails_until_reported)
        first, second = log.reports(2)[:2]
    assert 0 == first["suppressed"]
    assert second["suppressed"] >= 3
    assert log.records[1].getMessage().endswith(f". {second['suppressed']} more since the last report")


def test_errors_of_the_application(registry: CollectorRegistry, log: ReportLog) -> None:
    """A statement that is wrong is the application's matter: nothing is reported."""
    engine = Database().engine()
    with instrument(engine, name=log.pool, registry=registry):
        with engine.connect() as connection, pytest.raises(exc.OperationalError):
            connection.execute(text("SELECT * FROM nothing"))
        database = Database()
        database.connect_fails = ConnectionRefusedError("no")
        other = database.engine()
        log.pools.add("other server")
        with instrument(other, name="other server", registry=registry):
            fails_to_connect(other)
            (report,) = log.reports()
    assert "connect" == report["layer"]


def test_a_server(server: Server, application_name: str, registry: CollectorRegistry, log: ReportLog) -> None:
    """A statement that finds its session ended is reported with the SQLSTATE; a pre-ping that does is not."""
    url = server.url("postgresql+psycopg", application_name=application_name)
    log.pools = {"ping True", "ping False"}
    for pre_ping in (True, False):
        engine = create_engine(url, pool_pre_ping=pre_ping)
        with instrument(engine, name=f"ping {pre_ping}", registry=registry):
            engine.connect().close()
            assert 1 == server.terminate(application_name)
            with engine.connect() as connection:
                if not pre_ping:
                    with pytest.raises(exc.OperationalError):
                        connection.execute(text("SELECT 1"))
        engine.dispose()
    (report,) = log.reports()
    assert ("ping False", "statement") == (report["pool"], report["layer"])
    assert report["kind"] in {"admin_shutdown", "connection_lost"}
    assert report["site"].startswith(f"{__name__}:test_a_server:")


def test_read_only(
    server: Server, application_name: str, registry: CollectorRegistry, log: ReportLog
) -> None:
    """A write that a server refuses is reported as what a failover does."""
    engine = create_engine(server.url("postgresql+psycopg", application_name=application_name))
    with instrument(engine, name=log.pool, registry=registry), engine.connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(exc.InternalError):
            connection.execute(text("CREATE TABLE written ()"))
    (report,) = log.reports()
    assert ("read_only", "25006") == (report["kind"], report["sqlstate"])
    assert "read_only (SQLSTATE 25006): the server takes no writes" in log.records[0].getMessage()
    engine.dispose()


def test_documentation_is_complete() -> None:
    """Each kind that is reported is a kind, and docs/errors.md names it where it describes the report."""
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    section = page.split("## The report of an error of the server\n")[1].split("\n## ")[0]
    assert failure_reports.MEANINGS.keys() <= KINDS.keys()
    assert [] == [kind for kind in failure_reports.MEANINGS if f"`{kind}`" not in section]
