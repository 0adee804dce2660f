# SPDX-License-Identifier: Apache-2.0
"""Where the terminal's board comes from: a directory of segments, or an endpoint."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol, cast
from urllib.parse import urlencode

from sqlalchemy_pool_exporter.board.answers import API
from sqlalchemy_pool_exporter.board.moment import Moments
from sqlalchemy_pool_exporter.board.schema import VERSION
from sqlalchemy_pool_exporter.board.view import board
from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.segment.directory import Reader

from .client import Client, Credentials, explained
from .where import check_directory

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy_pool_exporter.board.query import Query
    from sqlalchemy_pool_exporter.board.schema import Board

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
            BoardError: it is no directory, or cannot be looked at.
        """
        check_directory(directory)
        self.name = str(directory)
        self._moments = Moments(Reader(directory).read)
        # What cannot be read is among the conditions; a line of the log would disturb the screen.
        logging.getLogger("sqlalchemy_pool_exporter").addHandler(logging.NullHandler())

    def read(self, query: Query) -> Board:
        """Return what is asked for now."""
        return board(self._moments.get(), query)


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
        self._client = Client(url, credentials, suffixes=_SUFFIXES)
        self.name = self._client.name

    def read(self, query: Query) -> Board:
        """Return what is asked for now.

        Raises:
            BoardError: the endpoint does not answer with a board.
        """
        given = [("q", query.text)] if query.text else []
        given += [("pool", name) for name in sorted(query.names)]
        given += [(name, str(getattr(query, name))) for name in ("pools", "workers", "held")]
        status, body = self._client.get(f"{API}?{urlencode(given)}", "application/json")
        if status != HTTPStatus.OK:
            raise BoardError(f"{self.name} answers {status} {explained(status)}")
        return self._parsed(body)

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
