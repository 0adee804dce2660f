# SPDX-License-Identifier: Apache-2.0
"""What ``/-/ready`` answers: whether a pool is stuck in any process, for the readiness probes of Kubernetes.

It is known from the numbers that are recorded anyway; no connection is taken.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qs

from sqlalchemy_pool_exporter.segment.stuck import STUCK_AFTER, stillness

from .causes import where
from .query import QueryError
from .words import counted, duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_pool_exporter.segment.directory import Fleet

PATH: Final = "/-/ready"
_READY: Final = "ready\n"
_MOST_FIELDS: Final = 1000
_MOST_SECONDS: Final = 86400.0
_NAMED: Final = 5  # processes in which a pool is stuck


class Question(NamedTuple):
    """What a request asks."""

    pools: frozenset[str]  # empty: all
    stuck_after: float  # seconds


class Readiness(NamedTuple):
    """The answer, as text."""

    status: HTTPStatus
    text: str


def question(query: str) -> Question:
    """Return what a query string asks, such as ``pool=orders&stuck_after=60``.

    Raises:
        QueryError: a parameter is wrong.
    """
    try:
        given = parse_qs(query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise QueryError("too many parameters") from None
    after = given.get("stuck_after", [f"{STUCK_AFTER}"])[-1]
    try:
        seconds = float(after)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds <= _MOST_SECONDS:
        raise QueryError(f"stuck_after is a number of seconds, more than 0 and at most {_MOST_SECONDS:g}")
    return Question(frozenset(given.get("pool", ())), seconds)


def readiness(asked: Question, fleet: Fleet | None, now: float) -> Readiness:
    """Return whether the pools are stuck in no process.

    Args:
        asked: by the request.
        fleet: all processes; None if there is nothing to read.
        now: seconds of ``time.monotonic()`` when that was read.
    """
    unknown = sorted(asked.pools - _known(fleet))
    if unknown:
        names = ", ".join(map(repr, unknown))
        return Readiness(HTTPStatus.NOT_FOUND, f"404: no process has a pool {names}\n")
    stuck = [] if fleet is None else [*_stuck(asked, fleet, now)]
    if not stuck:
        return Readiness(HTTPStatus.OK, _READY)
    if others := len(stuck[_NAMED:]):
        stuck[_NAMED:] = [f"{others} more"]
    return Readiness(HTTPStatus.SERVICE_UNAVAILABLE, "".join(f"stuck: {line}\n" for line in stuck))


def refused(error: QueryError) -> Readiness:
    """Return the answer to a wrong request."""
    return Readiness(HTTPStatus.BAD_REQUEST, f"400: {error}\n")


def _known(fleet: Fleet | None) -> set[str]:
    """Return the labels of the pools that a running process has; also one that only started others."""
    if fleet is None:
        return set()
    return {
        fleet.labels[pool.identity]
        for worker in fleet.running
        for pool in worker.pools
        if pool.snapshot.is_active and pool.identity in fleet.labels
    }


def _stuck(asked: Question, fleet: Fleet, now: float) -> Iterator[str]:
    for worker in fleet.live:
        for pool in worker.pools:
            label = fleet.labels.get(pool.identity)
            if label is None or (asked.pools and label not in asked.pools):
                continue
            still = stillness(pool.snapshot, now)
            if still is not None and still.seconds >= asked.stuck_after:
                process = worker.facts.process
                place = where(worker.number, "" if process is None else process.pid)
                yield (
                    f"pool {label!r} in {place} has all {counted(still.connections, 'connection')} out and returned "
                    f"none for {duration(still.seconds)}; {counted(still.callers, 'caller')} waiting"
                )
