# SPDX-License-Identifier: Apache-2.0
"""Each web recipe in a real server, on a real PostgreSQL: a page uses the pool, and /metrics shows it at once."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter import asgi_app
from tests.examples.test_servers import Server
from tests.support.recipes import NAME, checkouts, database_url, get, scrape
from tests.support.samples import key
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.pg import Server as DatabaseServer

pytestmark = pytest.mark.newest

UVICORN = "uvicorn --port 0 --lifespan on examples.web."
# The command, the driver, and what the application needs.
RECIPES = {
    "fastapi_app": (f"{UVICORN}fastapi_app:app", "asyncpg", "fastapi"),
    "starlette_app": (f"{UVICORN}starlette_app:app", "asyncpg", "starlette"),
    "litestar_app": (f"{UVICORN}litestar_app:app", "asyncpg", "litestar"),
    "flask_app": ("flask --app examples.web.flask_app run --port 0", "psycopg", "flask"),
    "flask_sqlalchemy_app": (
        "flask --app examples.web.flask_sqlalchemy_app run --port 0",
        "psycopg",
        "flask_sqlalchemy",
    ),
    "quart_app": ("hypercorn --bind 127.0.0.1:0 examples.web.quart_app:app", "asyncpg", "quart"),
    "django_site": ("gunicorn --bind 127.0.0.1:0 examples.web.django_site:application", "psycopg", "django"),
}


def test_a_mount_redirects_and_a_route_does_not() -> None:
    """Starlette answers a mount's own path with 307, and a route with the metrics, as docs/recipes/web.md says."""
    starlette: Any = pytest.importorskip("starlette.applications")
    httpx: Any = pytest.importorskip("httpx")
    app = starlette.Starlette()
    app.mount("/mounted", asgi_app())
    app.add_route("/metrics", asgi_app())

    async def ask() -> list[tuple[int, str]]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://orders") as client:
            answers = [await client.get(path) for path in ("/mounted", "/metrics")]
        return [(one.status_code, one.headers.get("location", "")) for one in answers]

    assert [(307, "http://orders/mounted/"), (200, "")] == asyncio.run(ask())


def connections(url: str) -> tuple[float, float]:
    """Return how many of the pool's connections are in use, and how many are idle."""
    samples = scrape(url)
    return (
        samples[key("connections", pool=NAME, state="in_use")],
        samples[key("connections", pool=NAME, state="idle")],
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_web(recipe: str, server: DatabaseServer) -> None:
    """Three pages check out three times; /metrics answers 200 itself; the server knows the application by its name."""
    command, driver, needed = RECIPES[recipe]
    pytest.importorskip(needed)
    module, *arguments = command.split()
    assert eventually(lambda: server.count(NAME) == 0)  # the recipe before has gone
    with Server("-m", module, *arguments, DATABASE_URL=database_url(server, driver)) as served:
        url = served.url()
        before = checkouts(scrape(url))
        for _ in range(3):
            status, body = get(url)
            assert (200, "1,2,3") == (status, re.sub(r"[^\d,]", "", body))
        samples = scrape(url)
        assert (0.0, 3.0) == (before, checkouts(samples))
        assert 15.0 == samples[key("capacity", pool=NAME)]
        # FastAPI closes a request's session after it has answered, so the next request may need a second connection.
        assert eventually(lambda: connections(url) == (0, server.count(NAME)))
    assert "Traceback" not in served.said
    assert eventually(lambda: server.count(NAME) == 0)
