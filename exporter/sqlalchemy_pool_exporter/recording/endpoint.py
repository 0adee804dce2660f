# SPDX-License-Identifier: Apache-2.0
"""``serve()``: an endpoint in a thread. Of the processes that share a directory one serves, and the others stand by."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
import time
import weakref
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self

from prometheus_client import REGISTRY

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.address import APPLICATION_PORT, MAX_PORT, Address
from sqlalchemy_pool_exporter.board import answers as board
from sqlalchemy_pool_exporter.board.moment import Moments
from sqlalchemy_pool_exporter.board.page import Link
from sqlalchemy_pool_exporter.board.query import QueryError
from sqlalchemy_pool_exporter.errors import EndpointError
from sqlalchemy_pool_exporter.pausing import pausing
from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.own_errors import is_own

from .answers import PLAIN, READY, Answer, answer, answer_ready, wanted_by
from .at_fork import close_in_children
from .http_server import HTTPServer, Request
from .instrumented import fleet_of, ready_fleet_of, show_directory
from .port_lock import LockError, PortLock

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client import CollectorRegistry

_logger = logging.getLogger("sqlalchemy_pool_exporter")

_LINKS: Final = (
    Link("metrics", "Metrics", "for Prometheus"),
    Link("-/ready", "Readiness", "503 if a pool is stuck"),
)
STAND_BY_SECONDS: Final = 1.0  # between two looks at whether the process that serves is gone
# A process that dies may free its lock before its port.
_BIND_SECONDS: Final = 0.5
_BIND_POLL_SECONDS: Final = 0.02


class Server:
    """A running endpoint, in its own thread; or one that stands by for another process of the application.

    Mutable state: the HTTP server, which a process that stands by does not have yet, and the thread. uWSGI's process
    has no thread before it has workers; each of them starts one of its own.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, directory: Path | None = None
    ) -> None:
        # The resolver would take the port modulo 65536. People also pass a string from the environment.
        if not isinstance(port, int) or not 0 <= port <= MAX_PORT:
            message = f"cannot listen on {host!r}, port {port!r}: a port is a number from 0 to {MAX_PORT}"
            raise EndpointError(message)
        self._asked, self._registry = f"{host!r}, port {port!r}", registry
        self._moments = Moments(lambda: fleet_of(registry))
        self._ready = Moments(lambda: ready_fleet_of(registry))
        self._family: int
        self._address: Any
        self._lock: PortLock | None = None
        self._http: HTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        try:
            self._family, _, _, _, self._address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            if directory is not None and port:
                self._lock = PortLock(directory, str(self._address[0]), port)
            if fork.forks_workers_in_c():
                fork.call_in_worker(self._start_in_worker)
                return
            self._start(directory)
            self._start_thread()
        except BaseException as error:
            # Also after a time limit of the application, which can strike when the thread has begun.
            self.close()
            # gaierror: the resolver's, with a class of its own. RuntimeError: the interpreter is shutting down, or the
            # system has no thread left.
            if not (
                isinstance(error, socket.gaierror)
                or (isinstance(error, OSError | RuntimeError) and is_own(error))
            ):
                raise
            where, why = ("serve", error) if isinstance(error, RuntimeError) else ("listen", error.strerror)
            remedy = _remedy(error, directory) if isinstance(error, OSError) else ""
            message = f"cannot {where} on {self._asked}: {why or error}{remedy}"
            raise EndpointError(message) from error

    @property
    def host(self) -> str:
        """The address that it listens on, or will listen on."""
        return str(self._address[0])

    @property
    def port(self) -> int:
        """The port that it listens on, or will listen on; if 0 was asked for, the one that was chosen."""
        return int(self._address[1])

    @property
    def url(self) -> str:
        """The URL of the metrics, for clients on this machine. While it stands by, another process answers there."""
        return f"http://{Address(self.host, self.port).local}/metrics"

    @property
    def is_standby(self) -> bool:
        """Whether another process of the application serves at this address, and this one waits to take over."""
        return self._http is None and self._is_alive

    def close(self) -> None:
        """Stop listening or standing by, and wait for the thread to end. Does nothing the second time."""
        self._closing.set()
        if self._http is not None:
            self._http.stop()
        # While the interpreter shuts down, the thread never runs again: a finalizer that waits for it would hang.
        if self._thread is not None and self._thread.is_alive() and not sys.is_finalizing():
            self._thread.join()
        self._close_sockets()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " standing by" if self.is_standby else "" if self._is_alive else self._at_rest
        return f"<{type(self).__name__} {self.url}{state}>"

    @property
    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def _at_rest(self) -> str:
        return (
            " waits for uWSGI's workers" if self._thread is None and not self._closing.is_set() else " closed"
        )

    # -- in the thread

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name="sqlalchemy-pool-exporter", daemon=True)
        self._thread.start()
        _servers.add(self)

    def _start_in_worker(self) -> None:
        """Stand by in a worker of uWSGI, until the address is free. A failure costs the endpoint, not the worker."""
        if self._thread is not None or self._closing.is_set():
            return
        if self._lock is not None:
            close_in_children(self._lock)
        try:
            self._start_thread()
        except RuntimeError as error:
            _logger.warning("cannot serve on %s: %s", self._asked, error)

    def _run(self) -> None:
        if self._http is None:
            self._stand_by()
        if self._http is not None and not self._closing.is_set():
            self._http.run()

    def _stand_by(self) -> None:
        has_complained = False
        while not self._closing.wait(STAND_BY_SECONDS):
            try:
                if self._listen_if_free():
                    _logger.info("%s is free; this process serves there now", self.url)
                    return
            except OSError as error:
                if not has_complained:
                    has_complained = True
                    remedy = _remedy(error, self._lock.path.parent if self._lock is not None else None)
                    _logger.warning("cannot serve on %s yet: %s%s", self.url, error, remedy)

    # -- sockets

    def _start(self, directory: Path | None) -> None:
        try:
            if self._listen_if_free():
                return
        except LockError as error:
            # The application never depends on the directory, so a process that is started again does not fail here.
            _logger.warning("%s is taken, and which program has it cannot be told: %s", self.url, error)
            return
        if any(other.url == self.url for other in _servers if other._is_alive):  # noqa: SLF001 - of this class
            message = f"cannot listen on {self._asked}: this process serves there already"
            raise EndpointError(message)
        _logger.info("another process that shares %s serves %s; this one stands by", directory, self.url)

    def _listen_if_free(self) -> bool:
        """Listen, unless another process holds the lock of the address.

        Raises:
            LockError: the port is taken, and the lock cannot be used.
            OSError: the port is taken by a program that does not share the lock, or cannot be listened on.
        """
        lock = self._lock
        try:
            if lock is not None and not lock.take():
                return False
        except LockError as error:
            try:
                listener = self._bound()
            except OSError:
                raise error from None
        else:
            listener = self._bound()
        self._http = HTTPServer(listener, self._answer, housekeeping=_nothing if lock is None else lock.renew)
        return True

    def _bound(self) -> socket.socket:
        tries = round(_BIND_SECONDS / _BIND_POLL_SECONDS) if self._lock is not None else 0
        while True:
            listener = socket.socket(self._family, socket.SOCK_STREAM)
            try:
                if os.name == "posix":  # elsewhere this option would let two programs share the port
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(self._address)
                listener.listen()
            except OSError as error:
                listener.close()
                if error.errno != errno.EADDRINUSE or not tries:
                    raise
                tries -= 1
                time.sleep(_BIND_POLL_SECONDS)
            else:
                self._address = listener.getsockname()
                return listener

    def _close_sockets(self) -> None:
        for one in (self._http, self._lock):
            if one is not None:
                one.close()

    # -- answers

    def _answer(self, request: Request) -> Answer:
        if request.path == READY:
            return answer_ready(self._ready, request.method, request.query)
        if request.path == "/metrics" or request.method not in {"GET", "HEAD"}:
            accept, accept_encoding = (
                request.headers.get(name, "") for name in ("accept", "accept-encoding")
            )
            return answer(self._registry, request.method, wanted_by(accept, accept_encoding, request.query))
        if request.path in board.PATHS:
            return self._board_answer(request)
        if request.path in board.FILES:
            return Answer(HTTPStatus.OK, *board.file(request.path))
        return Answer(HTTPStatus.NOT_FOUND, PLAIN, b"not found: the metrics are at /metrics\n")

    def _board_answer(self, request: Request) -> Answer:
        try:
            with pausing():
                moment = self._moments.get()
                return Answer(HTTPStatus.OK, *board.answer(request.path, request.query, moment, _LINKS))
        except QueryError as error:
            return Answer(HTTPStatus.BAD_REQUEST, PLAIN, f"400: {error}\n".encode())


# Mutable state: the servers of this process, those that stand by, too. The threads of a parent's are not alive here.
_servers: weakref.WeakSet[Server] = weakref.WeakSet()


def _nothing() -> None:
    return None


def _remedy(error: OSError, directory: Path | None) -> str:
    if error.errno != errno.EADDRINUSE:
        return ""
    if directory is not None:
        return f" by a program that does not share {str(directory)!r} with this one; choose another port"
    return (
        f". If another process of this application serves there, set {environment.DIRECTORY} for all of them: one "
        "serves the pools of all, the others stand by. Or mount wsgi_app() or asgi_app() in the application's own "
        "server, or choose a port for each process"
    )


def serve(
    port: int = APPLICATION_PORT,
    host: str = "0.0.0.0",  # noqa: S104 - an exporter is scraped from elsewhere
    *,
    registry: CollectorRegistry = REGISTRY,
    directory: str | os.PathLike[str] | None = None,
) -> Server:
    """Serve ``/metrics`` in a daemon thread, for an application that has no HTTP server.

    If the processes of an application share a directory, each of them may call this: one serves, the others stand by,
    and one of those takes over when it ends. In uWSGI's master the call starts nothing; the workers serve and stand by.

    Args:
        port: 0 chooses a free one, another one in each process; see ``Server.port``.
        host: name or address to listen on; by default every IPv4 address of the machine.
        registry: what to serve.
        directory: the directory that the processes share. The default is ``SQLALCHEMY_POOL_EXPORTER_DIR``; if that is
            not set, none, and only one process can serve on a port.

    Raises:
        EndpointError: another program has the port, or another process and there is no directory; it is no port number;
            or the address is not one of this machine.
    """
    chosen = show_directory(registry, directory)
    return Server(host, port, registry, chosen)
