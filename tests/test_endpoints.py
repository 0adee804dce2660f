# SPDX-License-Identifier: Apache-2.0
"""All endpoints, in the application and in the sidecar, answer the same request in the same way."""

from __future__ import annotations

import asyncio
import gzip
import inspect
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote
from wsgiref.util import setup_testing_defaults

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest as their_text
from prometheus_client.openmetrics.exposition import generate_latest as their_openmetrics

from sqlalchemy_pool_exporter import aiohttp_handler, asgi_app, serve, wsgi_app
from tests.support.scrapers import PROMETHEUS_2_42, PROMETHEUS_3, PROMETHEUS_TEXT_1, PROMETHEUS_TEXT_FIRST
from tests.support.wait import SECONDS
from tests.support.wire import serving

if TYPE_CHECKING:
    from collections.abc import Callable

ACCEPT = [
    None,
    "",
    "*/*",
    "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
    PROMETHEUS_2_42,
    PROMETHEUS_3,
    PROMETHEUS_TEXT_FIRST,
    PROMETHEUS_TEXT_1,
    "APPLICATION/OpenMetrics-Text; Version=1.0.0",
    "application/openmetrics-text;version=2.0.0,*/*;q=0.1",
    "application/openmetrics-text;q=0.1, text/plain;q=0.9",
    "text/plain;q=0, application/openmetrics-text;q=0.001",
    "image/png",
]
ENCODINGS = [None, "gzip", "gzip;q=0", "identity, gzip;q=0.5", "*", "deflate, gzip;q=1.0, *;q=0.5"]


class Request(NamedTuple):
    """A request for each endpoint."""

    accept: str | None = None
    accept_encoding: str | None = None
    names: tuple[str, ...] = ()
    method: str = "GET"

    @property
    def query(self) -> str:
        return "&".join(f"{quote('name[]')}={quote(name)}" for name in self.names)

    @property
    def headers(self) -> dict[str, str]:
        both = {"Accept": self.accept, "Accept-Encoding": self.accept_encoding}
        return {name: value for name, value in both.items() if value is not None}


class Answer(NamedTuple):
    """An endpoint's response, without the headers that the web server adds."""

    status: int
    content_type: str | None
    encoding: str | None
    vary: str | None
    length: str | None
    body: bytes


def answer(status: int, headers: dict[str, str], body: bytes) -> Answer:
    found = {name.lower(): value for name, value in headers.items()}
    return Answer(
        status,
        found.get("content-type"),
        found.get("content-encoding"),
        found.get("vary"),
        found.get("content-length"),
        body,
    )


def over_http(port: int, requests: list[Request]) -> list[Answer]:
    answers = []
    for request in requests:
        connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        connection.putrequest(request.method, f"/metrics?{request.query}", skip_accept_encoding=True)
        for name, value in request.headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        answers.append(answer(response.status, dict(response.getheaders()), response.read()))
        connection.close()
    return answers


def by_server(registry: CollectorRegistry, requests: list[Request]) -> list[Answer]:
    with serve(0, "127.0.0.1", registry=registry) as server:
        return over_http(server.port, requests)


def by_wsgi(registry: CollectorRegistry, requests: list[Request]) -> list[Answer]:
    answers = []
    for request in requests:
        environ: dict[str, Any] = {"QUERY_STRING": request.query, "REQUEST_METHOD": request.method}
        setup_testing_defaults(environ)
        for name, value in request.headers.items():
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        started: list[Any] = []
        body = b"".join(wsgi_app(registry)(environ, lambda *given, to=started: to.extend(given)))
        status, headers = started
        answers.append(answer(int(status.split()[0]), dict(headers), body))
    return answers


def by_asgi(registry: CollectorRegistry, requests: list[Request]) -> list[Answer]:
    answers = []
    for request in requests:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any], to: list[dict[str, Any]] = sent) -> None:
            to.append(message)

        scope = {
            "type": "http",
            "method": request.method,
            "path": "/metrics",
            "query_string": request.query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in request.headers.items()],
        }
        asyncio.run(asgi_app(registry)(scope, receive, send))
        start, *parts = sent
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        answers.append(answer(start["status"], headers, b"".join(part["body"] for part in parts)))
    return answers


def by_aiohttp(registry: CollectorRegistry, requests: list[Request]) -> list[Answer]:
    async def scenario() -> list[Answer]:
        application = web.Application()
        application.router.add_route("*", "/metrics", aiohttp_handler(registry))
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            return await asyncio.to_thread(over_http, runner.addresses[0][1], requests)
        finally:
            await runner.cleanup()

    return asyncio.run(scenario())


def by_sidecar(registry: CollectorRegistry, requests: list[Request]) -> list[Answer]:
    async def scenario() -> list[Answer]:
        async with serving(registry) as endpoint:
            return await asyncio.to_thread(over_http, endpoint.port, requests)

    return asyncio.run(scenario())


APPLICATION = {
    "serve": by_server,
    "wsgi_app": by_wsgi,
    "asgi_app": by_asgi,
    "aiohttp_handler": by_aiohttp,
}
ALL = {**APPLICATION, "sidecar": by_sidecar}


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry with what writers can treat differently: exemplars, creation times, escaped labels, odd names."""
    registry = CollectorRegistry()
    Counter("seen", "With an exemplar.", registry=registry).inc(3, {"trace": "1"})
    Gauge("level", 'A "help"\n\\.', ["place"], registry=registry).labels('a\n"b"').set(1e9)
    Gauge("job:level:sum", "Of a rule.", registry=registry).set(-1)
    Histogram("wait_seconds", "Waited.", unit="seconds", registry=registry).observe(0.3)
    return registry


def test_formats_and_encodings(registry: CollectorRegistry) -> None:
    """For each combination of Accept and Accept-Encoding, all endpoints send the same headers and the same bytes."""
    requests = [Request(accept, encoding) for accept in ACCEPT for encoding in ENCODINGS]
    expected, *others = (by(registry, requests) for by in ALL.values())
    assert [one.status for one in expected] == [200] * len(requests)
    assert len({(one.content_type, one.encoding) for one in expected}) == 8
    for other in others:
        assert expected == other


@pytest.mark.parametrize("by", ALL.values(), ids=ALL)
def test_families_of_others(by: Callable[..., list[Answer]], registry: CollectorRegistry) -> None:
    """Metrics of other libraries are written exactly as prometheus_client writes them, compressed or not."""
    accept = "application/openmetrics-text;version=1.0.0"
    requests = [Request(), Request(accept), Request(None, "gzip"), Request(accept, "gzip")]
    text, openmetrics, *packed = (one.body for one in by(registry, requests))
    assert [their_text(registry), their_openmetrics(registry)] == [text, openmetrics]
    assert [gzip.decompress(body) for body in packed] == [text, openmetrics]


def test_utf8_names() -> None:
    """UTF-8 names are quoted for clients that accept ``escaping=allow-utf-8``; other clients get underscores."""
    registry = CollectorRegistry()
    try:
        Gauge("my.level", "Odd.", registry=registry).set(1)
    except ValueError:
        pytest.skip("this prometheus_client has no such names")
    if "escaping" not in inspect.signature(their_text).parameters:
        pytest.skip("this prometheus_client does not escape names")
    requests = [Request(accept) for accept in (None, PROMETHEUS_TEXT_1, PROMETHEUS_3, PROMETHEUS_2_42)]
    for by in ALL.values():
        bodies = [one.body for one in by(registry, requests)]
        assert [b'{"my.level"} 1.0' in body for body in bodies] == [False, True, True, False]
        assert [b"\nmy_level 1.0" in body for body in bodies] == [True, False, False, True]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("seen",), {"seen_total", "seen_created"}),
        (("seen_total",), {"seen_total"}),
        (("level", "job:level:sum"), {"level", "job:level:sum"}),
        (("wait_seconds_count",), {"wait_seconds_count"}),
        (("none",), set()),
    ],
)
def test_name_filter(names: tuple[str, ...], expected: set[str], registry: CollectorRegistry) -> None:
    """``name[]`` selects families and samples in the same way at every endpoint."""
    answers = [by(registry, [Request(names=names), Request(names=("", *names))]) for by in ALL.values()]
    lines = [line for line in answers[0][0].body.decode().splitlines() if not line.startswith("#")]
    assert {line.split("{")[0].split(" ")[0] for line in lines} == expected
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0] == answers[0][1]


@pytest.mark.parametrize("by", ALL.values(), ids=ALL)
def test_head(by: Callable[..., list[Answer]], registry: CollectorRegistry) -> None:
    """HEAD returns the headers of GET, including Content-Length, and no body."""
    for encoding in (None, "gzip"):
        get, head = by(registry, [Request(None, encoding), Request(None, encoding, method="HEAD")])
        assert get._replace(body=b"") == head
        assert head.length == str(len(get.body))


def test_other_methods(registry: CollectorRegistry) -> None:
    """The application's endpoints answer OPTIONS with 200; every endpoint answers POST and DELETE with 405."""
    requests = [Request(method=method) for method in ("OPTIONS", "POST", "DELETE")]
    expected, *others = (by(registry, requests) for by in APPLICATION.values())
    assert [one.status for one in expected] == [200, 405, 405]
    for other in others:
        assert expected == other
    assert [one.status for one in by_sidecar(registry, requests)][1:] == [405, 405]
