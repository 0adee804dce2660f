# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of ``serve()``: it never takes many descriptors or threads of the application.

One thread accepts connections, reads requests and writes answers, with sockets that do not block. A client that sends
or reads slowly costs a descriptor until its deadline, and no thread. Only a complete request gets a thread, which makes
the answer. At the limit of connections a new one replaces the one that has waited longest for the rest of its request.
So a scraper, which sends its request at once, is answered while hundreds of slow clients connect.
"""

from __future__ import annotations

import contextlib
import logging
import re
import selectors
import socket
import threading
import time
from email.utils import formatdate
from http import HTTPStatus
from http.client import HTTPException, parse_headers
from io import BytesIO
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from sqlalchemy_pool_exporter.segment.descriptors import FIRST, apart

from .answers import PLAIN, Answer
from .at_fork import close_in_children

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_logger = logging.getLogger("sqlalchemy_pool_exporter")

CONNECTIONS: Final = 16  # open at once
ANSWERS: Final = 4  # made at once, each in a thread
SECONDS: Final = 10.0  # from the accept to the end of the request, and as long again to read the answer
_REQUEST_BYTES: Final = 65536
# A connection is safe from being replaced for so long. Hundreds of clients that connect again at once then cost the
# application little, and a new client waits in the kernel's queue for a few seconds at most.
_SAFE_SECONDS: Final = 0.05
_BACKLOG: Final = 1024  # the queue costs the application no descriptor
_PAUSE_SECONDS: Final = (
    1.0  # after accept() failed, for example because the application has no descriptor left
)
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_TARGET: Final = re.compile(r"(?:https?://[^/?#]*)?([^?#]*)(?:\?([^#]*))?.*", re.ASCII)

# poll() has no state in the kernel that a forked child would share with its parent, as epoll() has.
_Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Request(NamedTuple):
    """A request."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]  # by their names in lower case; several of one name are joined by commas


class _BadRequestError(Exception):
    """A request that is not HTTP."""


class _Connection:
    """A connection, which carries one request. Its state is what is still to be read or written."""

    __slots__ = ("accepted", "deadline", "received", "request", "socket", "unsent")

    def __init__(self, connection: socket.socket, now: float) -> None:
        self.socket = connection
        self.accepted = now
        self.deadline: float | None = now + SECONDS  # None while its answer is made
        self.received = bytearray()
        self.request: Request | None = None  # None until it is complete
        self.unsent: memoryview | None = None  # None until there is an answer


class HTTPServer:
    """Serves until it is closed.

    Only the thread of ``run()`` changes the connections; answers come from other threads through ``_done``.

    Args:
        listener: a bound socket; the server closes it.
        answer: makes the answer to a request, in a thread.
        housekeeping: called at every turn of the thread, at least every ten seconds.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[Request], Answer],
        *,
        housekeeping: Callable[[], object] = lambda: None,
    ) -> None:
        self._listener = listener = _apart(listener)
        self._answer, self._housekeeping = answer, housekeeping
        listener.listen(_BACKLOG)
        listener.settimeout(0.0)
        self._waker, self._wake_up = map(_apart, socket.socketpair())
        self._waker.settimeout(0.0)
        self._wake_up.settimeout(0.0)
        self._selector = _Selector()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._connections: dict[
            int, _Connection
        ] = {}  # by the number of the descriptor, in the order of acceptance
        self._waiting: list[_Connection] = []  # for a thread that makes their answer
        self._answering = 0
        self._done: list[tuple[_Connection, bytes]] = []
        self._accepts_from = 0.0
        self._stopped = False
        close_in_children(self)

    def run(self) -> None:
        """Serve until ``stop()``, and close every socket."""
        try:
            while not self._stopped:
                self._turn()
        except (OSError, ValueError):
            if (
                not self._stopped
            ):  # closed meanwhile: a time limit struck while the application waited for this thread
                raise
        finally:
            # Frees the port even if a forked child still has the socket; a child itself must not do this.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self.close()

    def stop(self) -> None:
        """Let ``run()`` return."""
        self._stopped = True
        self._wake()

    def close(self) -> None:
        """Close every socket."""
        for connection in list(self._connections.values()):
            connection.socket.close()
        for one in (self._listener, self._waker, self._wake_up):
            one.close()

    def _wake(self) -> None:
        # It raises if the server was closed meanwhile, or if enough bytes to wake it are waiting.
        with contextlib.suppress(OSError):
            self._wake_up.send(b"\0")

    def _turn(self) -> None:
        self._housekeeping()
        self._listen_if(self._can_accept(time.monotonic()))
        events = self._selector.select(self._seconds_to_wait())
        now = time.monotonic()
        is_new = False
        # What clients sent is read before a new connection can replace one of theirs.
        for key, _ in events:
            if key.fileobj is self._listener:
                is_new = True
            elif key.fileobj is self._waker:
                with contextlib.suppress(BlockingIOError):
                    self._waker.recv(4096)
            elif (connection := self._connections.get(key.fd)) is not None:
                self._proceed(connection, now)
        self._send_answers(now)
        self._close_overdue(now)
        self._start_answers(now)
        if is_new:
            self._accept(now)

    # -- connections

    def _listen_if(self, wanted: bool) -> None:  # noqa: FBT001 - the name says what it means
        is_listening = self._listener in self._selector.get_map()
        if wanted and not is_listening:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif is_listening and not wanted:
            self._selector.unregister(self._listener)

    def _can_accept(self, now: float) -> bool:
        if now < self._accepts_from:
            return False
        return len(self._connections) < CONNECTIONS or self._replaceable(now) is not None

    def _replaceable(self, now: float) -> _Connection | None:
        """Return the connection that a new one may replace: first one without a request, then one that reads slowly."""
        old = [one for one in self._connections.values() if one.accepted + _SAFE_SECONDS <= now]
        incomplete = next((one for one in old if one.request is None and one.unsent is None), None)
        return incomplete or next((one for one in old if one.unsent is not None), None)

    def _seconds_to_wait(self) -> float:
        """Return how long nothing can happen without an event."""
        times = [one.deadline for one in self._connections.values() if one.deadline is not None]
        if self._listener not in self._selector.get_map():
            # Until a connection becomes replaceable, or accept() is tried again.
            times += [one.accepted + _SAFE_SECONDS for one in self._connections.values()]
            times.append(self._accepts_from)
        now = time.monotonic()
        return max(0.001, min([SECONDS, *(at - now for at in times if at > now)]))

    def _accept(self, now: float) -> None:
        if len(self._connections) >= CONNECTIONS:
            replaced = self._replaceable(now)
            if replaced is None:
                return
            self._close(replaced)
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client has gone
        except OSError:
            self._accepts_from = now + _PAUSE_SECONDS
            return
        client.settimeout(0.0)
        self._connections[client.fileno()] = _Connection(client, now)
        self._selector.register(client, selectors.EVENT_READ)

    def _close(self, connection: _Connection) -> None:
        self._connections.pop(connection.socket.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()

    def _close_overdue(self, now: float) -> None:
        for one in list(self._connections.values()):
            if one.deadline is not None and one.deadline <= now:
                self._close(one)

    def _proceed(self, connection: _Connection, now: float) -> None:
        try:
            if connection.unsent is None:
                self._receive(connection, now)
            else:
                self._send(connection, connection.unsent)
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)

    # -- requests and answers

    def _receive(self, connection: _Connection, now: float) -> None:
        data = connection.socket.recv(_REQUEST_BYTES)
        if not data:
            self._close(connection)
            return
        received = connection.received
        received += data
        end = _END_OF_HEAD.search(received, max(0, len(received) - len(data) - 3))
        if end is None and len(received) < _REQUEST_BYTES:
            return
        self._selector.unregister(connection.socket)
        if end is None:
            self._refuse(connection, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, now)
            return
        try:
            connection.request = _parsed(bytes(received[: end.end()]))
        except _BadRequestError:
            self._refuse(connection, HTTPStatus.BAD_REQUEST, now)
        else:
            received.clear()
            self._waiting.append(connection)

    def _start_answers(self, now: float) -> None:
        while self._waiting and self._answering < ANSWERS:
            connection = self._waiting.pop(0)
            if connection.request is None or connection.socket.fileno() < 0:  # its deadline passed
                continue
            thread = threading.Thread(
                target=self._make_answer,
                args=(connection, connection.request),
                name="sqlalchemy-pool-exporter answer",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError:  # the system has no thread left
                self._refuse(connection, HTTPStatus.SERVICE_UNAVAILABLE, now)
            else:
                self._answering += 1
                connection.deadline = None

    def _refuse(self, connection: _Connection, status: HTTPStatus, now: float) -> None:
        self._begin_to_send(connection, _written(_error(status)), now)

    def _make_answer(self, connection: _Connection, request: Request) -> None:
        try:
            answer = self._answer(request)
        except Exception:
            _logger.exception("the metrics could not be collected")
            answer = _error(HTTPStatus.INTERNAL_SERVER_ERROR)
        self._done.append((connection, _written(answer, is_head=request.method == "HEAD")))
        self._wake()

    def _send_answers(self, now: float) -> None:
        while self._done:
            connection, written = self._done.pop(0)
            self._answering -= 1
            self._begin_to_send(connection, written, now)

    def _begin_to_send(self, connection: _Connection, written: bytes, now: float) -> None:
        connection.deadline = now + SECONDS
        connection.unsent = memoryview(written)
        self._selector.register(connection.socket, selectors.EVENT_WRITE)
        self._proceed(connection, now)

    def _send(self, connection: _Connection, unsent: memoryview) -> None:
        connection.unsent = unsent[connection.socket.send(unsent) :]
        if not connection.unsent:
            connection.socket.shutdown(socket.SHUT_WR)
            # If a body that nothing read is left when a socket is closed, the client gets a reset and no answer.
            with contextlib.suppress(BlockingIOError):
                connection.socket.recv(_REQUEST_BYTES)
            self._close(connection)


def _apart(one: socket.socket) -> socket.socket:
    return one if one.fileno() >= FIRST else socket.socket(fileno=apart(one.detach()))


def _parsed(head: bytes) -> Request:
    line, _, rest = head.partition(b"\n")
    words = line.decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[0].isascii():  # noqa: PLR2004 - as RFC 9112 has it
        raise _BadRequestError
    target = _TARGET.fullmatch(words[1])
    try:
        parsed = parse_headers(BytesIO(rest))
    except HTTPException as error:
        raise _BadRequestError from error
    headers: dict[str, str] = {}
    for name, value in parsed.items():
        key = name.lower()
        headers[key] = f"{headers[key]},{value}" if key in headers else value
    path, query = (target[1], target[2]) if target is not None else (words[1], "")
    return Request(words[0], unquote(path) or "/", query or "", headers)


def _error(status: HTTPStatus) -> Answer:
    text = f"{status.value} {status.phrase}\n".encode()
    return Answer(status, PLAIN, text)


def _written(answer: Answer, *, is_head: bool = False) -> bytes:
    fields = {
        **answer.headers,
        "Content-Length": str(len(answer.body)),
        "Date": formatdate(usegmt=True),
        "Connection": "close",
    }
    head = f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    return head.encode("latin-1") + (b"" if is_head else answer.body)
