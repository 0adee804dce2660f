# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/holders.md: what labels they give to checkouts, by a request to each framework.

Celery's is in test_sites_in_frameworks.
"""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument
from tests.support.examples import example
from tests.support.holding import holding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry

httpx: Any = pytest.importorskip("httpx")  # collected with the oldest dependencies, too

pytestmark = [pytest.mark.newest, pytest.mark.usefixtures("leave_nothing", "room_for_labels")]


@pytest.fixture
def label_now(registry: CollectorRegistry, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Return the label of a checkout that is made now."""
    engine = create_engine("sqlite://", poolclass=QueuePool, connect_args={"check_same_thread": False})
    instrument(engine, name="orders", registry=registry, directory=tmp_path)

    def checked_out() -> str:
        with engine.connect():
            return holding(tmp_path)[0].label

    yield checked_out
    engine.dispose()


def run(code: str, name: str = "labelled_shop") -> Any:
    """Run an example as a module."""
    module = ModuleType(name)
    exec(code, module.__dict__)  # noqa: S102 - the documentation is ours
    return module


def test_label(label_now: Callable[[], str]) -> None:
    """The context manager labels what is inside."""
    code = example("Labels").replace("...", "labels.append(label_now())")
    labels: list[str] = []
    exec(code, {"labels": labels, "label_now": label_now})  # noqa: S102 - as above
    assert labels == ["nightly report"]
    assert label_now() == ""


def test_fastapi(label_now: Callable[[], str]) -> None:
    """A request is labelled with its route."""
    app = run(example("FastAPI and Starlette")).app
    app.get("/orders/{number}")(lambda number: f"{number} {label_now()}")

    async def ask() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://orders") as client:
            return str((await client.get("/orders/5")).json())

    assert asyncio.run(ask()) == "5 GET /orders/{number}"


def test_flask(label_now: Callable[[], str]) -> None:
    """A request is labelled with its rule."""
    app = run(example("Flask")).app
    app.get("/orders/<int:number>")(lambda number: f"{number} {label_now()}")
    assert app.test_client().get("/orders/5").text == "5 GET /orders/<int:number>"
    assert label_now() == ""


def test_aiohttp(label_now: Callable[[], str]) -> None:
    """A request is labelled with its resource, and one that has none says so."""
    app = run(example("aiohttp")).app

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.match_info['number']} {label_now()}")

    app.router.add_get("/orders/{number}", answer)

    async def ask() -> tuple[str, int]:
        async with TestClient(TestServer(app)) as client:
            return await (await client.get("/orders/5")).text(), (await client.get("/nowhere")).status

    assert asyncio.run(ask()) == ("5 GET /orders/{number}", 404)


def test_django(label_now: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is labelled with its route, from a view of either kind."""
    pytest.importorskip("django")
    import django  # noqa: PLC0415 - see above
    from django.conf import settings  # noqa: PLC0415
    from django.http import HttpResponse  # noqa: PLC0415
    from django.test import AsyncClient, Client  # noqa: PLC0415
    from django.urls import path  # noqa: PLC0415

    module = run(example("Django"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.urlpatterns = [
        path("orders/<int:number>/", lambda _, number: HttpResponse(f"{number} {label_now()}"))
    ]
    settings.configure(
        ROOT_URLCONF=module.__name__, MIDDLEWARE=[f"{module.__name__}.label_routes"], ALLOWED_HOSTS=["*"]
    )
    django.setup()
    expected = b"5 GET /orders/<int:number>/"
    assert Client().get("/orders/5/").content == expected
    assert asyncio.run(AsyncClient().get("/orders/5/")).content == expected
    assert label_now() == ""
