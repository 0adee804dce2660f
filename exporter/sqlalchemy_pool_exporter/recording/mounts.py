# SPDX-License-Identifier: Apache-2.0
"""WSGI, ASGI and aiohttp handlers that serve the metrics in the application's own server."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import REGISTRY

from sqlalchemy_pool_exporter.negotiation import Wanted

from .answers import PLAIN, Answer, answer, wanted_by
from .instrumented import show_directory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiohttp.web import Request, Response
    from prometheus_client import CollectorRegistry

_THREADS: Final = 4


def wsgi_app(
    registry: CollectorRegistry = REGISTRY, *, directory: str | os.PathLike[str] | None = None
) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves the metrics at any path where it is mounted.

    Args:
        registry: what to serve.
        directory: the directory that the processes of the application share: whichever is asked, it shows all of them.
            The default is ``SQLALCHEMY_POOL_EXPORTER_DIR``; if that is not set, each process shows its own pools.
    """
    show_directory(registry, directory)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Browsers ask for this icon when the application is mounted at the root, and that is no scrape.
        if environ.get("PATH_INFO") == "/favicon.ico":
            return _send(environ, start_response, Answer(HTTPStatus.OK, PLAIN, b""))
        accept, accept_encoding = (environ.get(f"HTTP_{name}", "") for name in ("ACCEPT", "ACCEPT_ENCODING"))
        wanted = wanted_by(accept, accept_encoding, environ.get("QUERY_STRING", ""))
        return _send(environ, start_response, answer(registry, environ["REQUEST_METHOD"], wanted))

    return application


def asgi_app(
    registry: CollectorRegistry = REGISTRY, *, directory: str | os.PathLike[str] | None = None
) -> Callable[..., Any]:
    """Return an ASGI application that serves the metrics at any path where it is mounted.

    Starlette and FastAPI also take it as a route, ``app.add_route("/metrics", asgi_app())``; their mounts redirect from
    ``/metrics`` to ``/metrics/``. The arguments are those of ``wsgi_app()``.
    """
    show_directory(registry, directory)
    return _ASGIApp(registry)


class _ASGIApp:
    """An ASGI application. It is no function, because Starlette takes a function for a view of its own kind."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def __call__(
        self, scope: dict[str, Any], _receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            message = f"metrics are served over HTTP, not over {scope['type']!r}"
            raise NotImplementedError(message)
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        accept, accept_encoding = (
            ",".join(value for name, value in headers if name == wanted)
            for wanted in (b"accept", b"accept-encoding")
        )
        method = scope.get("method", "GET")
        wanted = wanted_by(accept, accept_encoding, scope.get("query_string", b"").decode("latin-1"))
        status, answered, body = await _in_thread(self._registry, method, wanted)
        answered = {**answered, "Content-Length": str(len(body))}
        await send(
            {
                "type": "http.response.start",
                "status": status.value,
                "headers": [(name.encode(), value.encode()) for name, value in answered.items()],
            }
        )
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


def aiohttp_handler(
    registry: CollectorRegistry = REGISTRY, *, directory: str | os.PathLike[str] | None = None
) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that serves the metrics, for a route of an ``aiohttp.web`` application.

    The arguments are those of ``wsgi_app()``.
    """
    from aiohttp import web  # noqa: PLC0415 - only aiohttp's users have it

    show_directory(registry, directory)

    async def metrics(request: Request) -> Response:
        accept, accept_encoding = (
            ",".join(request.headers.getall(name, ())) for name in ("Accept", "Accept-Encoding")
        )
        wanted = Wanted.of(accept, accept_encoding, request.query.getall("name[]", ()))
        status, headers, body = await _in_thread(registry, request.method, wanted)
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


async def _in_thread(registry: CollectorRegistry, method: str, wanted: Wanted) -> Answer:
    """Make an answer in a thread: collectors of the registry can be slow, and the event loop must not wait.

    Not in the loop's default executor, whose threads may all be waiting for a connection when a pool is exhausted.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # another kind of event loop, such as trio's
        return answer(registry, method, wanted)
    return await loop.run_in_executor(_threads.executor(), answer, registry, method, wanted)
