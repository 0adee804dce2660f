# SPDX-License-Identifier: Apache-2.0
"""The server of ``serve()`` under clients that are slow, many or wrong."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Self

import pytest
from prometheus_client import CollectorRegistry, Gauge, Info

from sqlalchemy_pool_exporter import Server, serve
from sqlalchemy_pool_exporter.recording import http_server
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

# Serves with few descriptors, and opens and closes files all the time, as an application opens connections. Ends at the
# end of its input, and reports.
APPLICATION = """
import json, os, resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from sqlalchemy import create_engine
from sqlalchemy_pool_exporter import instrument, serve
engine = create_engine("sqlite://")
instrument(engine, name="orders")
server = serve(0, "127.0.0.1")
print(server.port, flush=True)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
said = {"threads": 0, "connects": 0, "failures": 0}
while not ended.wait(0.005):
    try:
        # 200 of 256: what the interpreter itself has open, and what the endpoint may take, is the rest.
        for descriptor in [os.open(os.devnull, os.O_RDONLY) for _ in range(200)]:
            os.close(descriptor)
        said["connects"] += 1
    except OSError:
        said["failures"] += 1
    said["threads"] = max(said["threads"], threading.active_count())
print(json.dumps(said))
"""


@pytest.fixture
def endpoint() -> Iterator[Server]:
    """A running server of an empty registry."""
    with serve(0, "127.0.0.1", registry=CollectorRegistry()) as server:
        yield server


def ask(port: int) -> int:
    """Return the status of a scrape."""
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def raw(server: Server, request: bytes) -> bytes:
    """Return all that the server answers."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


class Attack:
    """Hundreds of clients. Each sends a byte from time to time, or nothing, and connects again when it is cut off."""

    def __init__(self, port: int, clients: int) -> None:
        self._port = port
        self._clients = [self._client() for _ in range(clients)]
        self.cut_off = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _client(self) -> socket.socket:
        client = socket.socket()
        client.settimeout(0.0)
        client.connect_ex(("127.0.0.1", self._port))
        return client

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            for at, client in enumerate(self._clients):
                try:
                    client.send(b"G")
                except BlockingIOError:
                    pass
                except OSError:
                    self.cut_off += 1
                    client.close()
                    self._clients[at] = self._client()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        for client in self._clients:
            client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of descriptors")
def test_attack_takes_neither_descriptors_nor_threads() -> None:
    """Beside 400 dribbling clients the application opens all it needs, and a scraper is answered."""
    with subprocess.Popen(
        [sys.executable, "-c", APPLICATION], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as application:
        assert application.stdout is not None
        port = int(application.stdout.readline())
        with Attack(port, 400) as attack:
            assert eventually(lambda: attack.cut_off > 50)
            assert [ask(port) for _ in range(3)] == [200] * 3
        said = json.loads(application.communicate(timeout=SECONDS)[0])
    assert said["failures"] == 0, said
    assert said["connects"] > 0
    assert said["threads"] <= 3 + http_server.ANSWERS, said


def test_cap_of_connections(endpoint: Server) -> None:
    """More clients than the limit wait outside, and the oldest without a request makes room."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port)))
            for _ in range(http_server.CONNECTIONS + 1)
        ]
        clients[0].settimeout(SECONDS)
        assert clients[0].recv(1) == b""
        assert ask(endpoint.port) == 200
        assert clients[1].recv(1) == b""
        clients[-1].settimeout(0.0)
        with pytest.raises(BlockingIOError):
            clients[-1].recv(1)


def test_deadline_of_a_dribbled_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that arrives byte by byte is cut off at the deadline of the whole, however often a byte arrives."""
    monkeypatch.setattr(http_server, "SECONDS", 0.3)
    with (
        serve(0, "127.0.0.1", registry=CollectorRegistry()) as server,
        socket.create_connection(("127.0.0.1", server.port)) as client,
    ):
        client.settimeout(0.01)

        def is_cut_off() -> bool:
            try:
                client.send(b"G")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        assert eventually(is_cut_off)


def test_answers_that_nobody_reads_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that do not read large answers do not keep a scraper out."""
    registry = CollectorRegistry()
    Info("large", "Larger than the buffers of a socket.", registry=registry).info({"text": "x" * 8_000_000})
    with serve(0, "127.0.0.1", registry=registry) as server, contextlib.ExitStack() as stack:
        for _ in range(http_server.CONNECTIONS):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert client.recv(1)
        assert ask(server.port) == 200


def test_slow_collector_holds_up_nobody(endpoint: Server) -> None:
    """While another collector of the registry is slow, a further scrape is answered, and the thread does not wait."""
    registry = CollectorRegistry()
    go_on, began = threading.Event(), threading.Event()
    calls: list[int] = []

    def value() -> float:
        calls.append(1)
        if len(calls) == 1:
            began.set()
            assert go_on.wait(SECONDS)
        return 1.0

    Gauge("slow", "Slow once.", registry=registry).set_function(value)
    with serve(0, "127.0.0.1", registry=registry) as server:
        first: list[int] = []
        thread = threading.Thread(target=lambda: first.append(ask(server.port)))
        thread.start()
        assert began.wait(SECONDS)
        assert ask(server.port) == 200
        assert not first
        go_on.set()
        thread.join()
        assert first == [200]


def test_collector_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """If another collector of the registry raises, the answer is 500, and the log says why."""

    def fail() -> float:
        raise ValueError("no value")

    registry = CollectorRegistry()
    Gauge("failing", "Fails.", registry=registry).set_function(fail)
    with serve(0, "127.0.0.1", registry=registry) as server:
        assert ask(server.port) == 500
    assert "no value" in caplog.text


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\n\n", b"200"),
        (b"GET http://host:1/metrics?name[]=x HTTP/1.1\r\n\r\n", b"200"),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde", b"405"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"400"),
        # Just as much as the server reads: with more that it had not read, its end would be a reset.
        (b"GET /" + b"x" * (65536 - 5), b"431"),
    ],
)
def test_requests(endpoint: Server, request_: bytes, status: bytes) -> None:
    """Right requests are answered, wrong ones refused; no answer names the software."""
    answer = raw(endpoint, request_)
    assert answer.split(b" ", 2)[1] == status
    assert b"server:" not in answer.lower()
    assert b"python" not in answer.lower()


def test_no_descriptor_left(endpoint: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the application has no descriptor left, the server waits and serves when there is one again."""
    monkeypatch.setattr(http_server, "_PAUSE_SECONDS", 0.05)
    accept = socket.socket.accept
    failures: list[int] = []

    def failing(listener: socket.socket) -> Any:
        if len(failures) < 3:
            failures.append(1)
            raise OSError(24, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", failing)
    assert ask(endpoint.port) == 200
    assert len(failures) == 3
