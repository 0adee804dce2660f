# SPDX-License-Identifier: Apache-2.0
"""No credential appears in a name, a message or an exposition."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import URL, create_engine, exc
from sqlalchemy.orm import Session
from sqlalchemy.pool import (
    QueuePool,
)

from sqlalchemy_pool_exporter import TargetError, instrument, serve
from tests.support.database import Database, Link
from tests.support.samples import Exposition
from tests.support.server_threads import server_threads

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("little_to_collect")

SECRET = "s3cr3t"  # noqa: S105 - a fake, which the tests search for
URLS = [
    f"postgresql+psycopg://{SECRET}:{SECRET}@db.example/orders",
    f"postgresql+psycopg://user:{SECRET}@db.example:5432/orders?password={SECRET}&sslkey={SECRET}",
    f"postgresql+psycopg://user:pass@{SECRET}@db.example/orders",
    f"postgresql+psycopg:///?host=db.example&user=user&password={SECRET}",
    f"sqlite:///file:orders.db?key={SECRET}&uri=true",
    URL.create("sqlite", database=f"file:orders.db?key={SECRET}&uri=true"),
    URL.create("sqlite", database=f"orders.db;password={SECRET}"),
    URL.create("sqlite", database=f"host=db.example password={SECRET} dbname=orders"),
    URL.create("sqlite", database=f"postgresql://user:{SECRET}@db.example/orders"),
    URL.create("sqlite", database=f"postgresql://user:{SECRET}@db.example"),
    URL.create("sqlite", database=f"sub/dir/orders.db#{SECRET}"),
    URL.create("postgresql+psycopg", host=f"db.example?password={SECRET}", database="orders"),
    URL.create("sqlite", query={"odbc_connect": f"DRIVER=x;UID=user;PWD={SECRET}"}),
]


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
def test_no_credentials_in_names(url: str | URL, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever a URL has its password, no label, log line, repr or error shows it."""
    registry = CollectorRegistry()
    caplog.set_level(logging.DEBUG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about query options that the driver does not know
            engines = [create_engine(url, poolclass=QueuePool) for _ in range(2)]
    except (exc.NoSuchModuleError, ModuleNotFoundError):
        pytest.skip("no driver")
    told = []
    for engine in engines:
        handle = instrument(engine, registry=registry)
        told += [handle.name, repr(handle), repr(engine.pool), repr(list(vars(engine.pool).values()))]
    with pytest.raises(TargetError) as info:
        instrument(engines[0], name=b"postgresql://user:" + SECRET.encode())  # type: ignore[arg-type]
    told += [str(info.value), Exposition(registry).text, caplog.text]
    assert [text for text in told if SECRET in text] == []


def test_no_credentials_in_errors() -> None:
    """The error for a wrong target names only its type."""
    engine = Database().engine()
    for target in (
        f"postgresql://user:{SECRET}@db/orders",
        URL.create("postgresql", password=SECRET),
        {"password": SECRET},
        Session(engine),
        type("Creator", (), {"__repr__": lambda _: SECRET})(),
    ):
        with pytest.raises(TargetError) as info:
            instrument(target)  # type: ignore[arg-type]
        assert SECRET not in str(info.value)


def test_no_credentials_of_creators() -> None:
    """If a creator's repr and closure contain the password, the default name is still only the class of the pool."""

    class Creator:
        def __init__(self, password: str) -> None:
            self.password = password

        def __repr__(self) -> str:
            return f"Creator({self.password!r})"

        def __call__(self) -> Link:
            raise ConnectionRefusedError(f"password {self.password!r} refused")

    registry = CollectorRegistry()
    make: Any = Creator(SECRET)
    pool = QueuePool(make)
    handle = instrument(pool, registry=registry)
    with pytest.raises(ConnectionRefusedError):
        pool.connect()
    assert handle.name.startswith("QueuePool")
    assert SECRET not in Exposition(registry).text


def test_a_name_that_is_no_text_cannot_break_the_scrape(tmp_path: Path) -> None:
    """A database whose file name is not UTF-8 gets a pool name that can be encoded as UTF-8."""
    registry = CollectorRegistry()
    engine = create_engine(URL.create("sqlite", database=os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.db")))
    handle = instrument(engine, registry=registry)
    assert Exposition(registry).value("checkouts_total", handle.name) == 0


def test_the_endpoint_says_nothing_of_the_application() -> None:
    """A server's repr names only its address and port, and closing the server leaves no thread."""
    before = server_threads()
    with serve(port=0, host="127.0.0.1", registry=CollectorRegistry()) as server:
        assert repr(server) == f"<Server http://127.0.0.1:{server.port}/metrics>"
    assert server_threads() <= before
