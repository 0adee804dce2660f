# SPDX-License-Identifier: Apache-2.0
"""The sidecar's aiohttp application: metrics, the board, health and reload."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aiohttp import web

from sqlalchemy_pool_exporter import exposition
from sqlalchemy_pool_exporter.board import answers as board
from sqlalchemy_pool_exporter.board import readiness
from sqlalchemy_pool_exporter.board.moment import Moments
from sqlalchemy_pool_exporter.board.page import Link
from sqlalchemy_pool_exporter.board.query import QueryError
from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.negotiation import Wanted
from sqlalchemy_pool_exporter.sidecar.config import Web

from . import auth as webauth
from .connection import Body
from .daemon_thread import run_in_daemon_thread
from .server import Listener, listen

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from .config import WebConfig

_DEFAULTS = Web()
# Different responses (format, filter, encoding) that may wait for one collection; a scraper asks for one.
_MAX_ANSWERS = 32

_Reload = Callable[[], Awaitable[object]]
_Result = TypeVar("_Result")


class Collectable(Protocol):
    """The part of ``prometheus_client.CollectorRegistry`` that a scrape needs."""

    def collect(self) -> Iterable[Metric]:
        """Return the current families. Called in a thread, and only by one at a time."""
        ...


async def start(
    app: web.Application, settings: Web = _DEFAULTS, *, web_config: WebConfig | None = None
) -> Listener:
    """Serve ``app`` with ``settings`` and return the listener, whose ``close()`` stops it.

    ``web_config`` adds TLS, basic auth and rate limit. An application can be started once.

    Raises:
        EndpointError: the address cannot be bound.
    """
    if web_config is not None:
        webauth.guard(app, web_config)
    return await listen(app, settings, web_config)


def application(
    registry: Collectable,
    settings: Web = _DEFAULTS,
    *,
    reload: _Reload | None = None,
    moments: Moments | None = None,
) -> web.Application:
    """Return the application that serves ``registry``; the caller may add routes before the start.

    Args:
        registry: what to serve.
        settings: of the endpoint.
        reload: awaited by ``/-/reload`` if the settings enable it; if it raises ConfigError, its message is the
            response.
        moments: reads what the board shows, in a thread, and never while ``registry`` is collected.
    """
    pages = _Pages(registry, settings, reload, moments)
    app = web.Application()
    app.router.add_get(settings.telemetry_path, pages.metrics)
    for path in board.PATHS:
        if path != settings.telemetry_path:
            app.router.add_get(path, pages.board)
    for path in board.FILES:
        if path != settings.telemetry_path:
            app.router.add_get(path, pages.file)
    app.router.add_get("/-/healthy", pages.healthy)
    app.router.add_get("/-/ready", pages.ready)
    app.router.add_post("/-/reload", pages.reload)
    app.router.add_put("/-/reload", pages.reload)
    return app


class _OverloadError(Exception):
    """Too many different scrapes wait for one collection."""


class Exposition:
    """Collects families and writes their exposition, in threads: one collection and one writing at a time.

    A scrape that arrives during a collection waits for the next one and shares it with all scrapes that wait. So a
    scrape never shows values from before its request, and a hundred scrapes at once cost two collections.

    Mutable state: ``_next``, the collection that has not begun, and how many calls of functions have not ended. Both
    belong to the event loop's thread.
    """

    def __init__(self, registry: Collectable) -> None:
        self._registry = registry
        self._collecting, self._writing = asyncio.Lock(), asyncio.Lock()
        self._next: _Collection | None = None
        self._calls = 0

    async def answer(self, wanted: Wanted) -> bytes:
        """Return the exposition. If the caller is cancelled, the collection continues for the others that share it."""
        if self._next is None:
            self._next = _Collection(asyncio.create_task(self._collect()))
        collection = self._next
        if wanted not in collection.answers:
            if len(collection.answers) >= _MAX_ANSWERS:
                raise _OverloadError
            answer = asyncio.create_task(self._write(collection.families, wanted))
            answer.add_done_callback(_retrieve)
            collection.answers[wanted] = answer
        return await asyncio.shield(collection.answers[wanted])

    async def between_collections(self, function: Callable[[], _Result]) -> _Result:
        """Call a function in a thread while nothing is collected: it may use what a collection uses.

        If the caller is cancelled, the function still ends before the next collection begins.
        """
        if self._calls >= _MAX_ANSWERS:
            raise _OverloadError
        call = asyncio.create_task(self._call(function))
        call.add_done_callback(_retrieve)
        return await asyncio.shield(call)

    async def _call(self, function: Callable[[], _Result]) -> _Result:
        self._calls += 1
        try:
            async with self._collecting:
                return await run_in_daemon_thread(function)
        finally:
            self._calls -= 1

    async def _collect(self) -> list[Metric]:
        async with self._collecting:
            self._next = None  # later scrapes must not share this collection
            return await run_in_daemon_thread(lambda: list(self._registry.collect()))

    async def _write(self, families: asyncio.Future[list[Metric]], wanted: Wanted) -> bytes:
        collected = await asyncio.shield(families)
        async with self._writing:
            return await run_in_daemon_thread(lambda: exposition.write(collected, wanted))


class _Collection:
    def __init__(self, families: asyncio.Task[list[Metric]]) -> None:
        self.families = families
        self.answers: dict[Wanted, asyncio.Task[bytes]] = {}
        families.add_done_callback(_retrieve)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Retrieve the task's error: if every scrape that waited was cancelled, asyncio would log it as never retrieved."""
    if not task.cancelled():
        task.exception()


class _Pages:
    def __init__(
        self,
        registry: Collectable,
        settings: Web,
        reload: _Reload | None,
        moments: Moments | None,
    ) -> None:
        self._exposition = Exposition(registry)
        self._moments = moments or Moments(lambda: "no processes are read here")
        self._writing_board = asyncio.Lock()
        self._settings, self._reload = settings, reload
        self._links = _links(settings.telemetry_path)

    async def metrics(self, request: web.Request) -> web.Response:
        wanted = Wanted.of(
            ",".join(request.headers.getall("Accept", ())),
            ",".join(request.headers.getall("Accept-Encoding", ())),
            request.query.getall("name[]", ()),
        )
        seconds = scrape_timeout(
            request.headers.get("X-Prometheus-Scrape-Timeout-Seconds", ""), self._settings
        )
        body = await _within(seconds, self._exposition.answer(wanted))
        return web.Response(body=Body(body), headers=wanted.headers)

    async def board(self, request: web.Request) -> web.Response:
        seconds = self._settings.scrape_timeout_seconds
        moment = await _within(seconds, self._exposition.between_collections(self._moments.get))
        try:
            async with self._writing_board:
                headers, body = await run_in_daemon_thread(
                    lambda: board.answer(request.path, request.query_string, moment, self._links)
                )
        except QueryError as error:
            raise web.HTTPBadRequest(text=f"400: {error}\n") from None
        return web.Response(body=Body(body), headers=headers)

    async def file(self, request: web.Request) -> web.Response:
        headers, body = board.file(request.path)
        return web.Response(body=body, headers=headers)

    async def healthy(self, _request: web.Request) -> web.Response:
        return web.Response(text="healthy\n")

    async def ready(self, request: web.Request) -> web.Response:
        """Answer for the pools that are asked for; without any for the exporter, which a stuck pool must not hide."""
        try:
            asked = readiness.question(request.query_string)
        except QueryError as error:
            found = readiness.refused(error)
        else:
            if not asked.pools:
                return web.Response(text="ready\n")
            seconds = self._settings.scrape_timeout_seconds
            moment = await _within(seconds, self._exposition.between_collections(self._moments.get))
            found = readiness.readiness(asked, moment.fleet, moment.now)
        return web.Response(status=found.status, text=found.text, headers={"Cache-Control": "no-store"})

    async def reload(self, _request: web.Request) -> web.Response:
        if self._reload is None or not self._settings.enable_lifecycle:
            raise web.HTTPForbidden(text="403: reloading over HTTP is off, see web.enable_lifecycle\n")
        try:
            await self._reload()
        except ConfigError as error:  # lists paths and lines, never values
            raise web.HTTPInternalServerError(
                text=f"not reloaded, the old configuration stays: {error}\n"
            ) from error
        return web.Response(text="reloaded\n")


async def _within(seconds: float, awaited: Awaitable[_Result]) -> _Result:
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            return await awaited
    except TimeoutError:
        if not clock.expired():  # the collector raised it
            raise
        what = f"503: the metrics were not collected within {seconds:g} seconds\n"
        raise web.HTTPServiceUnavailable(text=what) from None
    except _OverloadError:
        raise web.HTTPServiceUnavailable(text="503: too many different scrapes at once\n") from None


def scrape_timeout(header: str, settings: Web) -> float:
    """Return the seconds that a scrape may take: the timeout of Prometheus' ``header``, limited by the settings."""
    try:
        sent = float(header)
    except ValueError:
        sent = 0.0
    if not (math.isfinite(sent) and sent > 0):
        return settings.scrape_timeout_seconds
    # At least half of a short timeout remains, whatever the offset.
    remaining = max(sent - settings.scrape_timeout_offset_seconds, sent / 2)
    return min(remaining, settings.scrape_timeout_seconds)


def _links(telemetry_path: str) -> Sequence[Link]:
    return (
        Link(telemetry_path.removeprefix("/"), "Metrics", "for Prometheus"),
        Link("-/healthy", "Health", "answers as long as the exporter runs"),
        Link("-/ready", "Readiness", "answers once the exporter can be scraped"),
    )
