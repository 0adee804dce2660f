# SPDX-License-Identifier: Apache-2.0
"""Where the terminal's board comes from: a directory of segments, or an endpoint."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast
from urllib.parse import SplitResult, unquote, urlencode, urlsplit

from sqlalchemy_pool_exporter.board.answers import API
from sqlalchemy_pool_exporter.board.moment import Moments
from sqlalchemy_pool_exporter.board.schema import VERSION
from sqlalchemy_pool_exporter.board.view import board
from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.segment.directory import Reader

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy_pool_exporter.board.query import Query
    from sqlalchemy_pool_exporter.board.schema import Board

TIMEOUT_SECONDS: Final = 30.0
# An endpoint answers with much less to what the terminal asks for.
_MOST_BYTES: Final = 64 * 1024 * 1024
# What people copy from their configuration of Prometheus or their browser.
_SUFFIXES: Final = (API, "/metrics", "/")


class Source(Protocol):
    """Where a board comes from."""

    name: str

    def read(self, query: Query) -> Board:
        """Return what is asked for now.

        Raises:
            BoardError: it cannot be read.
        """


class DirectorySource:
    """A directory that applications share, on this machine."""

    def __init__(self, directory: Path) -> None:
        """Read nothing yet.

        Raises:
            BoardError: it is no directory.
        """
        if not directory.is_dir():
            raise BoardError(f"{str(directory)!r} is no directory")
        self.name = str(directory)
        self._moments = Moments(Reader(directory).read)
        # What cannot be read is among the conditions; a line of the log would disturb the screen.
        logging.getLogger("sqlalchemy_pool_exporter").addHandler(logging.NullHandler())

    def read(self, query: Query) -> Board:
        """Return what is asked for now."""
        return board(self._moments.get(), query)


class Credentials(NamedTuple):
    """What an endpoint asks of its clients. Secrets come from the environment or from files, never from options."""

    user: str = ""
    password: str = ""
    token: str = ""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """Return the header that authenticates, if any does."""
        if self.token:
            return {"Authorization": f"Bearer {self.token}"}
        if self.user:
            both = f"{self.user}:{self.password}".encode()
            return {"Authorization": f"Basic {base64.b64encode(both).decode()}"}
        return {}

    def context(self) -> ssl.SSLContext:
        """Return what TLS needs.

        Raises:
            BoardError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ValueError) as error:
            files = [str(file) for file in (self.ca_file, self.cert_file, self.key_file) if file is not None]
            raise BoardError(f"cannot use {' or '.join(files) or 'the certificates'}: {error}") from error
        return context


class EndpointSource:
    """An endpoint: a sidecar, or an application that calls ``serve()``. It follows no redirect with a password."""

    def __init__(self, url: str, credentials: Credentials = Credentials()) -> None:  # noqa: B008 - it is immutable
        """Ask nothing yet.

        Args:
            url: of the page or the metrics, such as ``http://localhost:10079``.
            credentials: for the endpoint; a name and password in the URL come before.

        Raises:
            BoardError: it is no such URL, or a file of the credentials cannot be used.
        """
        self._split = split = _split(url)
        path = split.path
        for suffix in _SUFFIXES:
            path = path.removesuffix(suffix)
        self._path = path + API
        if split.username is not None:
            credentials = credentials._replace(
                user=unquote(split.username), password=unquote(split.password or ""), token=""
            )
        self._headers = {"Accept": "application/json", **credentials.headers()}
        self._context = credentials.context() if split.scheme == "https" else None
        self.name = f"{split.scheme}://{split.netloc.rpartition('@')[2]}{path}"

    def read(self, query: Query) -> Board:
        """Return what is asked for now.

        Raises:
            BoardError: the endpoint does not answer with a board.
        """
        given = [("q", query.text)] if query.text else []
        given += [("pool", name) for name in sorted(query.names)]
        given += [(name, str(getattr(query, name))) for name in ("pools", "workers", "held")]
        try:
            status, body = self._get(f"{self._path}?{urlencode(given)}")
        except (OSError, http.client.HTTPException) as error:
            raise BoardError(f"no answer from {self.name}: {error or type(error).__name__}") from error
        if status != HTTPStatus.OK:
            raise BoardError(f"{self.name} answers {status} {_explained(status)}")
        return self._parsed(body)

    def _get(self, target: str) -> tuple[int, bytes]:
        host, port = self._split.hostname or "", self._split.port
        connection = (
            http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
            if self._context is None
            else http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=self._context)
        )
        try:
            connection.request("GET", target, headers=self._headers)
            response = connection.getresponse()
            return response.status, response.read(_MOST_BYTES)
        finally:
            connection.close()

    def _parsed(self, body: bytes) -> Board:
        try:
            found: Any = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or type(found.get("version")) is not int:
            raise BoardError(f"{self.name} answers with something else than a board")
        if found["version"] != VERSION:
            what = f"{self.name} answers with version {found['version']} of the board, and this program reads {VERSION}"
            raise BoardError(what)
        return cast("Board", found)


def _split(url: str) -> SplitResult:
    try:
        split = urlsplit(url if "://" in url else f"http://{url}")
        is_usable = split.scheme in {"http", "https"} and bool(split.hostname)
        _ = split.port  # raises ValueError
    except ValueError:
        is_usable = False
    if not is_usable:
        raise BoardError("the URL is none of HTTP, such as http://localhost:10079")
    return split


def _explained(status: int) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return "Unauthorized: give a user with its password, or a token"
    if status == HTTPStatus.NOT_FOUND:
        return "Not Found: is it an exporter of this version?"
    return http.client.responses.get(status, "")
