# SPDX-License-Identifier: Apache-2.0
"""What both endpoints answer at the paths of the board."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from . import static
from .page import Link, page
from .pieces import DEFAULTS
from .query import Query
from .view import board

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .moment import Moment

PAGE: Final = "/"
API: Final = "/api/v1/pools"
# Of these an answer is made from a moment; the files never change.
PATHS: Final = (PAGE, API)
FILES: Final = {f"/{static.FOLDER}/{name}": name for name in static.TYPES}

# What is shown is of this moment, and may say more than a cache should keep.
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
# The page loads nothing but its own files, and has no script or style in itself.
_PAGE_HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
        "img-src 'self'; script-src 'self'; style-src 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    **_HEADERS,
}
_FILE_HEADERS: Final = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "X-Content-Type-Options": "nosniff",
}


class Answer(NamedTuple):
    """A successful answer to GET."""

    headers: dict[str, str]
    body: bytes


def answer(path: str, query: str, moment: Moment, links: Sequence[Link] = ()) -> Answer:
    """Return the answer; it may take as long as a scrape.

    Args:
        path: one of ``PATHS``.
        query: the query string.
        moment: what was read of all processes.
        links: other paths of the endpoint, which the page shows.

    Raises:
        QueryError: a parameter is wrong.
    """
    if path == API:
        found = board(moment, Query.parsed(query, Query()))
        headers = {"Content-Type": "application/json; charset=utf-8", **_HEADERS}
        return Answer(headers, json.dumps(found, allow_nan=False).encode())
    asked = Query.parsed(query, DEFAULTS)
    all_links = (*links, Link(API.removeprefix("/"), "JSON", "this page for programs"))
    return Answer(_PAGE_HEADERS, page(board(moment, asked), asked, all_links).encode())


def file(path: str) -> Answer:
    """Return the answer to one of ``FILES``."""
    name = FILES[path]
    return Answer({"Content-Type": static.TYPES[name], **_FILE_HEADERS}, static.content(name))
