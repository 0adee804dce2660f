# SPDX-License-Identifier: Apache-2.0
"""What both endpoints answer at the paths of the board."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from .query import Query
from .view import board

if TYPE_CHECKING:
    from .moment import Moment

API: Final = "/api/v1/pools"

# What is shown is of this moment, and may say more than a cache should keep.
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Answer(NamedTuple):
    """A successful answer to GET."""

    headers: dict[str, str]
    body: bytes


def answer(path: str, query: str, moment: Moment) -> Answer:
    """Return the answer; it may take as long as a scrape.

    Args:
        path: one of ``PATHS``.
        query: the query string.
        moment: what was read of all processes.

    Raises:
        QueryError: a parameter is wrong.
    """
    return _BY_PATH[path](query, moment)


def _json(query: str, moment: Moment) -> Answer:
    body = json.dumps(board(moment, Query.parsed(query, Query())), allow_nan=False).encode()
    return Answer({"Content-Type": "application/json; charset=utf-8", **_HEADERS}, body)


_BY_PATH: Final = {API: _json}
PATHS: Final = tuple(_BY_PATH)
