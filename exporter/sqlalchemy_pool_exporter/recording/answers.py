# SPDX-License-Identifier: Apache-2.0
"""The answers of the application's endpoints: a registry's metrics in the format that a request asks for.

They answer a request as the sidecar does: both choose and write the format with the same code.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qs

from sqlalchemy_pool_exporter import exposition
from sqlalchemy_pool_exporter.board import readiness
from sqlalchemy_pool_exporter.board.query import QueryError
from sqlalchemy_pool_exporter.negotiation import Wanted
from sqlalchemy_pool_exporter.pausing import pausing

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from sqlalchemy_pool_exporter.board.moment import Moments

PLAIN: Final = {"Content-Type": "text/plain; charset=utf-8"}
_ALLOW: Final = {"Allow": "OPTIONS,GET,HEAD", **PLAIN}
READY: Final = readiness.PATH


class Answer(NamedTuple):
    """The answer to a request. The answer to HEAD has the length of this body, but the body is not sent."""

    status: HTTPStatus
    headers: dict[str, str]
    body: bytes


def answer(registry: CollectorRegistry, method: str, wanted: Wanted) -> Answer:
    """Return the metrics for GET and HEAD, the answer to OPTIONS, or 405 for other methods."""
    if method in {"GET", "HEAD"}:
        with pausing():
            return Answer(HTTPStatus.OK, wanted.headers, exposition.write(registry.collect(), wanted))
    return other_method(method)


def other_method(method: str) -> Answer:
    """Return the answer to a method that is neither GET nor HEAD."""
    if method == "OPTIONS":
        return Answer(HTTPStatus.OK, _ALLOW, b"")
    return Answer(HTTPStatus.METHOD_NOT_ALLOWED, _ALLOW, b"405: use GET, HEAD or OPTIONS\n")


def answer_ready(moments: Moments, method: str, query: str) -> Answer:
    """Return whether the pools that a query asks for are not stuck, without a query all of them."""
    if method not in {"GET", "HEAD"}:
        return other_method(method)
    try:
        asked = readiness.question(query)
    except QueryError as error:
        found = readiness.refused(error)
    else:
        with pausing():
            moment = moments.get()
            found = readiness.readiness(asked, moment.fleet, moment.now)
    return Answer(found.status, {"Cache-Control": "no-store", **PLAIN}, found.text.encode())


def wanted_by(accept: str, accept_encoding: str, query: str) -> Wanted:
    """Return what a request with these headers and this query string asks for."""
    return Wanted.of(accept, accept_encoding, parse_qs(query).get("name[]", []))
