# SPDX-License-Identifier: Apache-2.0
"""Runs the commands ``top`` and ``audit``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.board.query import Query
from sqlalchemy_pool_exporter.errors import BoardError

from . import audit
from .client import Credentials
from .output import write, write_json
from .source import DirectorySource, EndpointSource
from .table import text
from .where import is_url

if TYPE_CHECKING:
    from argparse import Namespace

    from sqlalchemy_pool_exporter.board.schema import Board

    from .source import Source

# Between two reads that rates are computed from; an endpoint reads at most once in a second.
_RATE_SECONDS: Final = 1.1
_ONCE: Final = Query(pools=1000, workers=0, held=1000)
_JSON: Final = Query()


def run(options: Namespace) -> None:
    """Show the board of a directory or an endpoint.

    Raises:
        BoardError: it cannot be read, the options name none, or there is no terminal for the screen.
        ModuleNotFoundError: the screen is asked for, and Textual is not installed.
    """
    source = source_of(options, url=options.url, directory=options.directory)
    chosen = {"text": options.filter, "names": frozenset(options.pool)}
    if options.json:
        write_json(source.read(_JSON._replace(**chosen)))
    elif options.once:
        write(text(_with_rates(source, _ONCE._replace(**chosen)), source.name))
    else:
        from .screen import QUERY, Top  # noqa: PLC0415 - only the screen needs Textual

        # Textual reads the one and writes the other. Without a terminal it would wait for ever and show nothing.
        if not all(stream is not None and stream.isatty() for stream in (sys.__stdin__, sys.__stderr__)):
            raise BoardError("there is no terminal: --once prints a table, and --json the same as JSON")
        Top(source, interval=options.interval, query=QUERY._replace(**chosen)).run()


def _with_rates(source: Source, query: Query) -> Board:
    """Return a board; ask twice if rates are not known yet."""
    board = source.read(query)
    if any(pool["rates"] is None and pool["workers_left_out"] for pool in board["pools"]):
        time.sleep(_RATE_SECONDS)
        board = source.read(query)
    return board


def run_audit(options: Namespace) -> int:
    """Print what the audit finds, and return the exit status.

    Raises:
        BoardError: it could not look.
    """
    where = options.where
    url = where if where is not None and is_url(where) else None
    source = source_of(options, url=url, directory=where)
    return audit.run(source, as_json=options.json, ignored=options.ignore)


def source_of(options: Namespace, *, url: str | None, directory: str | None) -> Source:
    """Return the endpoint, or else the directory, or else that of the environment.

    Raises:
        BoardError: there is none, or it cannot be used.
    """
    if url is not None:
        return EndpointSource(url, credentials_of(options))
    directory = directory or os.environ.get(environment.DIRECTORY)
    if not directory:
        how = "--url or --directory" if options.command == "top" else "a directory or a URL"
        raise BoardError(f"give {how}, or set {environment.DIRECTORY}")
    return DirectorySource(Path(directory))


def credentials_of(options: Namespace) -> Credentials:
    """Return what the options, their files and the environment say.

    Raises:
        BoardError: a file cannot be read.
    """
    return Credentials(
        options.user or "",
        _secret(options.password_file, environment.PASSWORD),
        _secret(options.token_file, environment.TOKEN),
        options.ca_file,
        options.cert_file,
        options.key_file,
    )


def _secret(file: Path | None, variable: str) -> str:
    if file is None:
        return os.environ.get(variable, "")
    try:
        return file.read_text("utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BoardError(f"cannot read {str(file)!r}: {error}") from error
