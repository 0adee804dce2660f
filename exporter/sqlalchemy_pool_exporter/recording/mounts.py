# SPDX-License-Identifier: Apache-2.0
"""WSGI, ASGI and aiohttp handlers that serve the metrics in the application's own server."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import REGISTRY

from sqlalchemy_pool_exporter.board.moment import Moments
from sqlalchemy_pool_exporter.negotiation import Wanted

from .answers import PLAIN, READY, Answer, answer, answer_ready, wanted_by
from .instrumented import ready_fleet_of, show_directory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiohttp.web import Request, Response
    from prometheus_client import CollectorRegistry

_THREADS: Final = 4


def wsgi_app(
    registry: CollectorRegistry = REGISTRY, *, directory: str | os.PathLike[str] | None = None
) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves the metrics at any path where it is mounted.

    At a path that ends with ``/-/ready`` it says whether pools are stuck, as ``serve()`` does there.

    Args:
        registry: what to serve.
        directory: the directory that the processes of the application share: whichever is asked, it shows all of them.
            The default is ``SQLALCHEMY_POOL_EXPORTER_DIR``; if that is not set, each process shows its own pools.
    """
    show_directory(registry, directory)
    moments = Moments(lambda: ready_fleet_of(registry))

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Browsers ask for this icon when the application is mounted at the root, and that is no scrape.
        if environ.get("PATH_INFO") == "/favicon.ico":
            return _send(environ, start_response, Answer(HTTPStatus.OK, PLAIN, b""))
        if environ.get("PATH_INFO", "").endswith(READY):
            ready = answer_ready(moments, environ["REQUEST_METHOD"], environ.get("QUERY_STRING", ""))
            return _send(environ, start_response, ready)
        accept, accept_encoding = (environ.get(f"HTTP_{name}", "") for name in ("ACCEPT", "ACCEPT_ENCODING"))
        wanted = wanted_by(accept, accept_encoding, environ.get("QUERY_STRING", ""))
        return _send(environ, start_response, answer(registry, environ["REQUEST_METHOD"], wanted))

    return application


def asgi_app(
    registry: CollectorRegistry = REGISTRY, *, directory: str | os.PathLike[str] | None = None
) -> Callable[..., Any]:
    """Return an ASGI application that serves the metrics at any path where it is mounted, and readiness below that.

    The arguments are those of ``wsgi_app()``. FastAPI and Starlette redirect ``/metrics`` to ``/metrics/`` where it is
    mounted by ``app.mount("/metrics", …)``. ``app.add_route("/metrics", asgi_app())`` answers at once.
    """
    show_directory(registry, directory)
    return _ASGIApp(registry)


class _ASGIApp:
    """An ASGI application; an object, because Starlette takes a function for an endpoint of its own kind."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._moments = Moments(lambda: ready_fleet_of(registry))

    async def __call__(
        self, scope: dict[str, Any], _receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            message = f"metrics are served over HTTP, not over {scope['type']!r}"
            raise NotImplementedError(message)
        method = scope.get("method", "GET")
        status, answered, body = await self._answer(scope, method)
        answered = {**answered, "Content-Length": str(len(body))}
        await send(
            {
                "type": "http.response.start",
                "status": status.value,
                "headers": [(name.encode(), value.encode()) for name, value in answered.items()],
            }
        )
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})

    async def _answer(self, scope: dict[str, Any], method: str) -> Answer:
        query = scope.get("query_string", b"").decode("latin-1")
        if scope.get("path", "").endswith(READY):
            return await _in_thread(answer_ready, self._moments, method, query)
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        accept, accept_encoding = (
            ",".join(value for name, value in headers if name == wanted)
            for wanted in (b"accept", b"accept-encoding")
        )
        wanted = wanted_by(accept, accept_encoding, query)
        return await _in_thread(answer, self._registry, method, wanted)


def aiohttp_handler(
    registry: CollectorRegistry = REGISTRY, *, directory: str | os.PathLike[str] | None = None
) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that serves the metrics, for a route of an ``aiohttp.web`` application.

    For a route whose path ends with ``/-/ready`` it says whether pools are stuck, as ``serve()`` does there.

    The arguments are those of ``wsgi_app()``.
    """
    from aiohttp import web  # noqa: PLC0415 - only aiohttp's users have it

    show_directory(registry, directory)
    moments = Moments(lambda: ready_fleet_of(registry))

    async def metrics(request: Request) -> Response:
        if request.path.endswith(READY):
            found = await _in_thread(answer_ready, moments, request.method, request.query_string)
            return web.Response(status=found.status, body=found.body, headers=found.headers)
        accept, accept_encoding = (
            ",".join(request.headers.getall(name, ())) for name in ("Accept", "Accept-Encoding")
        )
        wanted = Wanted.of(accept, accept_encoding, request.query.getall("name[]", ()))
        status, headers, body = await _in_thread(answer, registry, request.method, wanted)
        return web.Response(status=status, body=body, headers=headers)

    return metrics


def _send(environ: dict[str, Any], start_response: Callable[..., Any], answer: Answer) -> Iterable[bytes]:
    status, headers, body = answer
    length = ("Content-Length", str(len(body)))
    start_response(f"{status.value} {status.phrase}", [*headers.items(), length])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class _Threads:
    """The threads that make answers beside an event loop. Mutable state: those of this process."""

    def __init__(self) -> None:
        self._process: int | None = None
        self._executor: ThreadPoolExecutor | None = None

    def executor(self) -> ThreadPoolExecutor:
        """Return the executor of this process; a forked child has none of its parent's threads."""
        if self._executor is None or self._process != os.getpid():
            self._process = os.getpid()
            self._executor = ThreadPoolExecutor(_THREADS, "sqlalchemy-pool-exporter answer")
        return self._executor


_threads = _Threads()


async def _in_thread(make: Callable[..., Answer], *arguments: Any) -> Answer:
    """Make an answer in a thread: collectors of the registry can be slow, and the event loop must not wait.

    Not in the loop's default executor, whose threads may all be waiting for a connection when a pool is exhausted.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # another kind of event loop, such as trio's
        return make(*arguments)
    return await loop.run_in_executor(_threads.executor(), make, *arguments)
