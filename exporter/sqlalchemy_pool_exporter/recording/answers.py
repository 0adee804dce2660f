# SPDX-License-Identifier: Apache-2.0
"""The answers of the application's endpoints: a registry's metrics in the format that a request asks for.

They answer a request as the sidecar does: both choose and write the format with the same code.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qs

from sqlalchemy_pool_exporter import exposition
from sqlalchemy_pool_exporter.negotiation import Wanted
from sqlalchemy_pool_exporter.pausing import pausing

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PLAIN: Final = {"Content-Type": "text/plain; charset=utf-8"}
_ALLOW: Final = {"Allow": "OPTIONS,GET,HEAD", **PLAIN}


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
    if method == "OPTIONS":
        return Answer(HTTPStatus.OK, _ALLOW, b"")
    return Answer(HTTPStatus.METHOD_NOT_ALLOWED, _ALLOW, b"405: use GET, HEAD or OPTIONS\n")


def wanted_by(accept: str, accept_encoding: str, query: str) -> Wanted:
    """Return what a request with these headers and this query string asks for."""
    return Wanted.of(accept, accept_encoding, parse_qs(query).get("name[]", []))
