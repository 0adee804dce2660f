# SPDX-License-Identifier: Apache-2.0
"""Labels that are not known at first, and the middlewares that label checkouts with routes."""

from __future__ import annotations

import asyncio
import contextvars
import io
import signal
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import asgi_labels, instrument, label, wsgi_labels
from sqlalchemy_pool_exporter.segment import texts
from tests.recording.test_hot_path import calls_of
from tests.support.holding import holding
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry
    from sqlalchemy.engine import Engine

pytestmark = pytest.mark.usefixtures("leave_nothing", "room_for_labels")


@pytest.fixture
def engine(registry: CollectorRegistry, tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=QueuePool, connect_args={"check_same_thread": False})
    instrument(engine, name="orders", registry=registry, directory=tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def label_now(engine: Engine, tmp_path: Path) -> Callable[[], str]:
    """Return the label of a checkout that is made now."""

    def checked_out() -> str:
        with engine.connect():
            return holding(tmp_path)[0].label

    return checked_out


class Route:
    """A function for ``label()``, which counts how often it is called."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text
        self.calls = 0

    def __call__(self) -> str | None:
        self.calls += 1
        return self.text


# -- labels that are found


def test_a_label_is_found_at_the_first_checkout(label_now: Callable[[], str]) -> None:
    """A function is called by the first checkout and by no other one."""
    route = Route("GET /found")
    with label(route):
        assert route.calls == 0
        assert ["GET /found"] * 3 == [label_now() for _ in range(3)]
    assert label_now() == ""
    assert route.calls == 1


def test_a_label_that_is_not_known_yet(label_now: Callable[[], str]) -> None:
    """As long as the function returns None, each checkout asks again and shows no label."""
    route = Route()
    with label(route):
        assert label_now() == ""
        route.text = "GET /late"
        assert label_now() == "GET /late"
    assert route.calls == 2


@pytest.mark.parametrize(
    "error", [LookupError("no request"), AttributeError("route"), RuntimeError("outside")]
)
def test_a_function_that_raises(
    label_now: Callable[[], str], registry: CollectorRegistry, error: Exception
) -> None:
    """A checkout shows no label, succeeds, and is counted."""

    def find() -> str:
        raise error

    with label(find):
        assert ["", ""] == [label_now(), label_now()]
    samples = RegistrySamples(registry)
    assert samples.value("checkouts_total", "orders") == 2.0
    assert samples.value("exporter_recording_faults_total", "orders") == 0.0


class TimeLimitError(Exception):
    """What a task queue raises in the middle of a task."""


def test_a_time_limit_in_the_function(engine: Engine, registry: CollectorRegistry) -> None:
    """A time limit that strikes in the function reaches the application, and the connection goes back."""

    def handler(*_: object) -> None:
        raise TimeLimitError

    def find() -> str:
        signal.raise_signal(signal.SIGUSR1)
        return "GET /never"

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with label(find), pytest.raises(TimeLimitError):
            engine.connect()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert RegistrySamples(registry).value("connections", "orders", state="in_use", worker="000") == 0.0


def test_a_function_that_checks_out(engine: Engine, label_now: Callable[[], str]) -> None:
    """A function may use the same pool."""

    def find() -> str:
        with engine.connect():
            return "GET /inside"

    with label(find):
        assert label_now() == "GET /inside"


def test_tasks_share_what_is_found(label_now: Callable[[], str]) -> None:
    """A task or thread that runs in a copy of the context finds the same label."""
    route = Route()
    with label(route):
        copy = contextvars.copy_context()
        route.text = "GET /shared"
    assert copy.run(label_now) == "GET /shared"
    assert copy.run(label_now) == "GET /shared"
    assert route.calls == 1


def test_calls(engine: Engine) -> None:
    """A checkout with a label makes as many calls as one without; the first one that finds a route, a few more."""

    def cycle() -> None:
        engine.pool.connect().close()

    scope = {"type": "http", "method": "GET", "route": Known(), "path_params": {}}

    async def app(*_: Any) -> None:
        with label(lambda: None):  # makes what a task has
            cycle()
        first.append(calls_of(cycle, runs=1))
        later.append(calls_of(cycle))

    first: list[Any] = []
    later: list[Any] = []
    cycle()
    for each in (app, asgi_labels(app), asgi_labels(app)):  # the second one also stores the text
        asyncio.run(each(scope, None, None))
    assert later[2] == later[0]
    found = first[2] - later[0]
    del found["bisect_left"]  # a wait of more than half a millisecond, which depends on the machine
    assert found.total() <= 12, found


class Known:
    """A route of a framework."""

    path = "/known"
    param_convertors: dict[str, Any] = {}  # noqa: RUF012 - as in Starlette


# -- ASGI


def asgi_label(label_now: Callable[[], str], **scope: Any) -> str:
    """Return the label of a checkout in an application to which a framework routed a request."""
    seen: list[str] = []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(label_now())

    asyncio.run(asgi_labels(app)({"type": "http", **scope}, None, None))
    assert label_now() == ""
    return seen[0]


class Endpoint:
    """A function of an application."""


@pytest.mark.parametrize(
    ("scope", "text"),
    [
        ({}, ""),
        ({"route": Known()}, "GET /known"),
        ({"route": Known(), "method": "BREW"}, "/known"),
        ({"route": Known(), "type": "websocket"}, "WEBSOCKET /known"),
        # Below a mount, whose path may have an identifier.
        ({"route": Known(), "app_root_path": "/api", "root_path": "/api/v1"}, "GET /v1/known"),
        (
            {
                "route": Known(),
                "app_root_path": "",
                "root_path": "/tenants/7",
                "path_params": {"tenant": "7"},
            },
            "GET /known",
        ),
        # Starlette before it named the route.
        ({"endpoint": test_calls}, "GET tests.recording.test_labels.test_calls"),
        ({"endpoint": object()}, ""),
        ({"fastapi": None, "route": object()}, ""),
    ],
)
def test_asgi_routes(label_now: Callable[[], str], scope: dict[str, Any], text: str) -> None:
    """The label is the method and the route, and never has what a client made up."""
    method = {} if scope.get("type") == "websocket" else {"method": "GET"}
    assert asgi_label(label_now, **{**method, **scope}) == text


@pytest.mark.newest
def test_starlette(label_now: Callable[[], str]) -> None:
    """Routes, mounts and sub-applications of Starlette and FastAPI, and no label for what has no route."""
    from fastapi import APIRouter, FastAPI  # noqa: PLC0415 - only with the newest dependencies
    from httpx import ASGITransport, AsyncClient  # noqa: PLC0415
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.responses import PlainTextResponse  # noqa: PLC0415
    from starlette.routing import Mount, Route  # noqa: PLC0415

    async def shown(*_: Any) -> Any:
        return PlainTextResponse(label_now())

    def in_fastapi() -> str:
        return label_now()

    router, inner, outer = APIRouter(prefix="/pay"), APIRouter(), FastAPI()
    router.get("/{number}")(in_fastapi)
    inner.include_router(router, prefix="/inner")
    outer.include_router(inner, prefix="/v1")
    outer.get("/direct/{number}")(in_fastapi)
    outer.exception_handler(404)(shown)
    sub = FastAPI()
    sub.get("/items/{number}")(in_fastapi)
    outer.mount("/sub", sub)
    outer.mount("/tenants/{tenant}", sub)
    routes = [Route("/plain/{number}", shown), Mount("/deeper", routes=[Route("/plain", shown)])]
    outer.mount("/starlette", Starlette(routes=routes))

    async def passed_on(request: Any, call_next: Any) -> Any:  # which runs the rest in a task of its own
        return await call_next(request)

    outer.middleware("http")(passed_on)
    outer.add_middleware(asgi_labels)

    async def ask() -> list[str]:
        async with AsyncClient(transport=ASGITransport(outer), base_url="http://orders") as client:
            return [(await client.get(path)).text.strip('"') for path in expected]

    expected = {
        "/v1/inner/pay/5": "GET /v1/inner/pay/{number}",
        "/direct/5": "GET /direct/{number}",
        "/sub/items/5": "GET /sub/items/{number}",
        "/tenants/9/items/5": "GET /items/{number}",
        "/starlette/plain/5": "GET /starlette/plain/{number}",
        "/starlette/deeper/plain": "GET /starlette/deeper/plain",
        "/nowhere/5": "",
    }
    assert list(expected.values()) == asyncio.run(ask())


def test_identifiers_take_no_room(label_now: Callable[[], str]) -> None:
    """Any number of paths of a route are one label."""
    asgi_label(label_now, route=Known())
    before = len(texts.own().labels)
    for number in range(300):
        asgi_label(label_now, route=Known(), path=f"/known/{number}")
    assert len(texts.own().labels) == before


def test_other_scopes_and_errors(label_now: Callable[[], str]) -> None:
    """The lifespan has no label; an error of the application passes, and its label ends."""
    seen: list[str] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(label_now())
        if scope["type"] != "lifespan":
            raise ZeroDivisionError

    labelled = asgi_labels(app)
    asyncio.run(labelled({"type": "lifespan", "route": Known()}, None, None))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(labelled({"type": "http", "route": Known()}, None, None))
    assert seen == ["", "/known"]
    assert label_now() == ""


# -- WSGI


class Rule:
    """A rule of Flask."""

    rule = "/known/<int:number>"


class FlaskRequest:
    """The request that Flask puts into the environment."""

    url_rule: Rule | None = None


class App:
    """A WSGI application whose body is given, and which routes like Flask."""

    def __init__(self, label_now: Callable[[], str], body: Any) -> None:
        self.label_now = label_now
        self.body = body
        self.seen: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = environ["werkzeug.request"] = FlaskRequest()
        self.seen.append(self.label_now())
        request.url_rule = Rule()
        self.seen.append(self.label_now())
        start_response("200 OK", [])
        environ["werkzeug.request"] = None
        return self.body


def respond(app: Any, **environ: Any) -> Any:
    """Return what a server gets as the body."""
    started: list[Any] = []
    body = wsgi_labels(app)({"REQUEST_METHOD": "GET", **environ}, lambda *args: started.append(args))
    assert started in ([], [("200 OK", [])])
    return body


def test_wsgi(label_now: Callable[[], str]) -> None:
    """A list goes to the server as it is, since it has a length; its label ends at once."""
    app = App(label_now, [b"body"])
    assert respond(app) is app.body
    assert app.seen == ["", "GET /known/<int:number>"]
    assert label_now() == ""


def test_wsgi_streams(label_now: Callable[[], str]) -> None:
    """While a server iterates over the body and closes it, checkouts have the label, and in between none."""

    def chunks() -> Iterator[bytes]:
        try:
            yield label_now().encode()
        finally:
            closed.append(label_now())

    closed: list[str] = []
    app = App(label_now, chunks())
    body = respond(app, REQUEST_METHOD="BREW")
    route = "/known/<int:number>"
    assert route.encode() == next(iter(body))
    assert label_now() == ""
    body.close()
    assert closed == [route]
    assert label_now() == ""
    assert list(body) == []


def test_wsgi_streams_that_check_out_late(label_now: Callable[[], str]) -> None:
    """A body that is the first to check out has the label, although Flask forgot the request by then."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = environ["werkzeug.request"] = FlaskRequest()
        request.url_rule = Rule()
        start_response("200 OK", [])
        environ["werkzeug.request"] = None
        return (label_now().encode() for _ in range(2))

    body = respond(app)
    assert list(body) == [b"GET /known/<int:number>"] * 2
    body.close()
    assert label_now() == ""


def test_wsgi_files(label_now: Callable[[], str]) -> None:
    """A file goes to the server as it is, so that the server can send it by itself."""
    file = io.BytesIO(b"file")
    app = App(label_now, file)
    assert respond(app, **{"wsgi.file_wrapper": lambda file: file}) is file  # as in uWSGI
    app.body = FileWrapper(file)
    assert respond(app, **{"wsgi.file_wrapper": FileWrapper}) is app.body
    assert label_now() == ""


def test_wsgi_errors(label_now: Callable[[], str]) -> None:
    """An error of the application passes, and its label ends; what is no request of Flask has none."""

    def app(_environ: dict[str, Any], _start_response: Any) -> Iterable[bytes]:
        assert label_now() == ""
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        respond(app)
    assert label_now() == ""


def test_a_coroutine_that_another_context_closes(label_now: Callable[[], str]) -> None:
    """A request whose coroutine is dropped ends in another context; that raises nothing."""

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        await asyncio.sleep(0)

    coroutine = asgi_labels(app)({"type": "http", "route": Known()}, None, None)
    contextvars.copy_context().run(coroutine.send, None)
    coroutine.close()
    assert label_now() == ""
