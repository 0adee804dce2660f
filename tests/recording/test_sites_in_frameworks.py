# SPDX-License-Identifier: Apache-2.0
"""Site, holder and label of checkouts in the frameworks that applications use, by real requests and tasks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_pool_exporter import asgi_labels, instrument, wsgi_labels
from tests.examples.test_servers import Server
from tests.support.examples import example
from tests.support.holding import Holding, holding
from tests.support.samples import RegistrySamples
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from sqlalchemy import Engine

    from tests.support.pg import Server as DatabaseServer

# An environment with the oldest dependencies may be without them, and collects this file all the same.
httpx: Any = pytest.importorskip("httpx")
fastapi_app: Any = pytest.importorskip("tests.support.fastapi_app")
flask_app: Any = pytest.importorskip("tests.support.flask_app")

pytestmark = pytest.mark.usefixtures("leave_nothing", "room_for_labels")

POOL = "orders"


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Note what is checked out; the test finds it in ``look.seen``."""

    def note() -> None:
        seen.append(holding(tmp_path))

    seen: list[list[Holding]] = []
    note.seen = seen  # type: ignore[attr-defined]
    yield note
    assert holding(tmp_path) == [], "all connections are returned"


def seen_by(look: Any) -> list[Holding]:
    """Return what was checked out: one connection at a time."""
    return [one for (one,) in look.seen]


def checkouts(registry: CollectorRegistry, metric: str = "checkouts_by_site_total") -> set[str]:
    """Return the sites that have checkouts, or that another metric counts, without lines."""
    return {
        dict(labels)["site"].rpartition(":")[0] or "other"
        for (name, labels), value in RegistrySamples(registry).samples.items()
        if name == f"sqlalchemy_pool_{metric}" and value
    }


# -- FastAPI


@pytest.fixture
def fastapi(look: Callable[[], None], registry: CollectorRegistry, tmp_path: Path) -> Iterator[Any]:
    """Make the FastAPI application; its database has an order."""
    app = fastapi_app.make()
    app.add_middleware(asgi_labels)
    path = tmp_path / "orders.db"
    app.state.look = look
    app.state.engine = create_engine(f"sqlite:///{path}")
    fastapi_app.Base.metadata.create_all(app.state.engine)
    with Session(app.state.engine) as session:
        session.add(fastapi_app.Order(id=1))
        session.commit()
    app.state.engine.dispose()
    app.state.async_engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    for engine in (app.state.engine, app.state.async_engine):
        instrument(engine, name=POOL, registry=registry, directory=tmp_path, sites=True)
    yield app
    app.state.engine.dispose()


def request(app: Any, path: str) -> None:
    """Make one request, in an event loop of its own."""

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://orders") as client:
            (await client.get(path)).raise_for_status()
        await app.state.async_engine.dispose()

    asyncio.run(run())


@pytest.mark.parametrize("path", fastapi_app.SITES)
def test_fastapi(fastapi: Any, look: Any, registry: CollectorRegistry, path: str) -> None:
    """Through dependencies, sessions, threads, streams and background tasks: the application's function and route."""
    function, is_in_thread = fastapi_app.SITES[path]
    site = f"tests.support.fastapi_app:{function}"
    request(fastapi, f"/v1/orders/{path}")
    (seen,) = seen_by(look)
    route = path.replace("1", "{number}")
    assert (site, f"GET /v1/orders/{route}") == (seen.site, seen.label)
    assert (seen.holder == "AnyIO worker thread") is is_in_thread
    assert site in checkouts(registry)


@pytest.mark.parametrize(("path", "function"), [("two", "through_two"), ("async-two", "through_async_two")])
def test_nested_in_fastapi(fastapi: Any, registry: CollectorRegistry, path: str, function: str) -> None:
    """A request that holds the connection of a dependency nests, also if its functions run in several threads."""
    request(fastapi, f"/v1/orders/{path}")
    nested = checkouts(registry, "nested_checkouts_total")
    assert nested == {f"tests.support.fastapi_app:{function}"}


def test_what_no_function_of_the_application_does(fastapi: Any, registry: CollectorRegistry) -> None:
    """An attribute that is loaded while FastAPI makes the response has the site of the library that reads it."""
    request(fastapi, "/v1/orders/serialized")
    endpoint, library = sorted(checkouts(registry), reverse=True)
    assert endpoint == "tests.support.fastapi_app:serialized_later"
    assert library.startswith("pydantic.")


# -- Flask


@pytest.mark.parametrize("path", flask_app.SITES)
def test_flask(look: Any, registry: CollectorRegistry, tmp_path: Path, path: str) -> None:
    """Through Flask-SQLAlchemy and streams: the application's function and route."""
    app = flask_app.make(f"sqlite:///{tmp_path}/orders.db")
    app.extensions["look"] = look
    app.wsgi_app = wsgi_labels(app.wsgi_app)  # type: ignore[method-assign,unused-ignore]
    with app.app_context():
        engine = flask_app.db.engine
    instrument(engine, name=POOL, registry=registry, directory=tmp_path, sites=True)
    assert app.test_client().get(f"/orders/{path}").status_code == 200
    site = f"tests.support.flask_app:{flask_app.SITES[path]}"
    route = flask_app.ROUTES.get(path, path)
    assert seen_by(look) == [Holding(site, "MainThread", f"GET /orders/{route}")]
    assert checkouts(registry) == {site}
    engine.dispose()


# -- SQLModel


@pytest.mark.newest  # it cannot be imported with SQLAlchemy 2.0.0
def test_sqlmodel(look: Any, registry: CollectorRegistry, tmp_path: Path) -> None:
    """SQLModel's own session is no site."""
    sqlmodel = pytest.importorskip("sqlmodel")
    engine = create_engine(f"sqlite:///{tmp_path}/orders.db")
    instrument(engine, name=POOL, registry=registry, directory=tmp_path, sites=True)
    find_by_sqlmodel(sqlmodel, engine, look)
    (seen,) = seen_by(look)
    assert seen.site == f"{__name__}:find_by_sqlmodel"
    engine.dispose()


def find_by_sqlmodel(sqlmodel: Any, engine: Engine, look: Callable[[], None]) -> None:
    with sqlmodel.Session(engine) as session:
        session.exec(sqlmodel.select(1)).all()
        look()


# -- Celery

CELERY = """
from pathlib import Path
import os

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from sqlalchemy_pool_exporter import instrument
from tests.support.holding import holding

engine = create_engine("sqlite://")
instrument(engine, name="orders", sites=True)

@app.task(name="orders.pay")
def pay():
    with Session(engine) as session:
        session.execute(text("select 1"))
        return holding(Path(os.environ["SQLALCHEMY_POOL_EXPORTER_DIR"]))
"""


@pytest.mark.newest
@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.soak)])
def test_celery(server: DatabaseServer, tmp_path: Path, pool: str) -> None:
    """In a real worker, the site is in the task, whose name is the label as the documentation says."""
    (tmp_path / "shop.py").write_text(example("Celery") + CELERY)
    shared = tmp_path / "pools"
    shared.mkdir()
    database = server.url("postgresql+psycopg", application_name=f"celery-{pool}")
    environment = {
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(shared),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "CELERY_BROKER_URL": f"sqla+{database}",
        "CELERY_RESULT_BACKEND": f"db+{database}",
    }
    worker = f"-m celery --app shop worker --pool {pool} --concurrency 1 --loglevel INFO --without-gossip"
    client = "import celery, json; result = celery.Celery().signature('orders.pay').delay()"
    client += "; print(json.dumps(result.get(timeout=60, interval=0.05)))"
    with Server(*worker.split(), **environment) as served:
        served.wait_for(r" ready\.")
        command, environment = [sys.executable, "-c", client], {**os.environ, **environment}
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    ((site, holder, text),) = json.loads(said)
    assert (site, text) == ("shop:pay", "orders.pay")
    assert holder.startswith("MainThread" if pool == "prefork" else "ThreadPoolExecutor")


# -- an application that is installed

SHOP = """
import os
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from shop_library import transactional
from sqlalchemy_pool_exporter import instrument
from tests.support.holding import holding

engine = create_engine("sqlite://")
instrument(engine, name="orders", sites=True)
app = FastAPI()

def get_session():
    with Session(engine) as session:
        yield session

@transactional
def pay(session):
    session.execute(text("select 1"))

def select(session):
    transactional(session.execute)(text("select 1"))

@app.get("/async")
async def answer_in_loop() -> list[str]:
    with engine.connect():
        return [one.site for one in holding(Path(os.environ["SQLALCHEMY_POOL_EXPORTER_DIR"]))]

@app.get("/{what}")
def answer(what: str, session: Annotated[Session, Depends(get_session)]) -> list[str]:
    (pay if what == "pay" else select)(session)
    return [one.site for one in holding(Path(os.environ["SQLALCHEMY_POOL_EXPORTER_DIR"]))]
"""
SHOP_LIBRARY = """
from functools import wraps

def transactional(function):
    @wraps(function)
    def call(*args, **options):
        return function(*args, **options)
    return call
"""


@pytest.mark.newest
@pytest.mark.parametrize(
    ("named", "sites"),
    [
        # Without a name, the innermost installed code that is no framework counts.
        ("", ["shop:pay", "shop_library:transactional.<locals>.call", "shop:answer_in_loop"]),
        ("shop", ["shop:pay", "shop:select", "shop:answer_in_loop"]),
    ],
)
def test_an_installed_application(tmp_path: Path, named: str, sites: list[str]) -> None:
    """Behind a real server, an application in site-packages that named its modules has its own functions as sites."""
    installed, shared = tmp_path / "site-packages", tmp_path / "pools"
    installed.mkdir()
    shared.mkdir()
    (installed / "shop.py").write_text(SHOP)
    (installed / "shop_library.py").write_text(SHOP_LIBRARY)
    environment = {
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(shared),
        "SQLALCHEMY_POOL_EXPORTER_APPLICATION": named,
        "PYTHONPATH": os.pathsep.join([str(installed), *sys.path]),
    }
    command = str(Path(sys.executable).with_name("uvicorn"))  # a script, which is no application either
    with Server(command, "--port", "0", "shop:app", **environment) as served:
        url = served.url()
        found = []
        for path in ("pay", "select", "async"):
            found.append(httpx.get(f"{url}/{path}").json())
            # FastAPI closes the session of a request after it has answered.
            assert eventually(lambda: not holding(shared))
    assert found == [[site] for site in sites]
