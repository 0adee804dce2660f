# SPDX-License-Identifier: Apache-2.0
"""Whether the pools of all processes fit into ``max_connections``, from the samples of a sidecar that probes."""

from __future__ import annotations

import math

import pytest

from sqlalchemy_pool_exporter.advise.advice import Objective
from sqlalchemy_pool_exporter.advise.main import report_of
from sqlalchemy_pool_exporter.advise.observation import observations, servers
from sqlalchemy_pool_exporter.advise.report import Report, as_json, text
from sqlalchemy_pool_exporter.advise.source import Watched
from sqlalchemy_pool_exporter.errors import BoardError
from tests.support.traffic import table

# 20 processes with 50 callers a second each, who hold a connection for 20 ms.
GROWN = """
sqlalchemy_pool_checkouts_total{pool="orders"} 100000
sqlalchemy_pool_hold_seconds_bucket{pool="orders",le="0.01"} 0
sqlalchemy_pool_hold_seconds_bucket{pool="orders",le="0.025"} 100000
sqlalchemy_pool_hold_seconds_bucket{pool="orders",le="+Inf"} 100000
sqlalchemy_pool_hold_seconds_sum{pool="orders"} 2000
"""
POOLS = """
sqlalchemy_pool_info{pool="orders",pool_class="QueuePool",dialect="postgresql",driver="psycopg"} 1
sqlalchemy_pool_instances{pool="orders"} 20
sqlalchemy_pool_size{pool="orders"} 100
sqlalchemy_pool_max_overflow{pool="orders"} 200
sqlalchemy_pool_connections{pool="orders",state="in_use"} 20
sqlalchemy_pool_connections{pool="orders",state="idle"} 60
"""
QUIET = """
sqlalchemy_pool_info{pool="quiet",pool_class="QueuePool",dialect="postgresql",driver="psycopg"} 1
sqlalchemy_pool_instances{pool="quiet"} 1
sqlalchemy_pool_size{pool="quiet"} 5
"""
SERVER = """
sqlalchemy_pool_database_pool_info{database="a",pool="orders"} 1
sqlalchemy_pool_database_pool_info{database="b",pool="quiet"} 1
sqlalchemy_pool_database_max_connections{database="a"} MOST
sqlalchemy_pool_database_max_connections{database="b"} MOST
sqlalchemy_pool_database_reserved_connections{database="a"} 5
sqlalchemy_pool_database_server_info{database="a",server="one"} 1
sqlalchemy_pool_database_server_info{database="b",server="one"} 1
sqlalchemy_pool_database_connections{database="a",state="idle"} 70
sqlalchemy_pool_database_connections{database="a",state="active"} 20
sqlalchemy_pool_database_behind_pooler{database="a"} 0
"""


def report(
    samples: str, *, grown: str = GROWN, names: list[str] | None = None, max_connections: int | None = None
) -> Report:
    now = table(samples)
    found = list(observations(table(grown), now, seconds=100.0, at=0.0))
    watched = Watched(found, list(servers(now)), "a test")
    return report_of(watched, Objective(), names=names or [], reserve=0.1, max_connections=max_connections)


def test_fits() -> None:
    """What is reserved, a reserve and other clients are taken off, and all processes count."""
    found = report(POOLS + SERVER.replace("MOST", "200"))
    (fit,), (advice,) = found.fits, found.advices
    # (200 - 5) * 0.9 - 10 others
    assert (10.0, 165) == (fit.others, fit.usable)
    assert 300.0 == fit.now
    assert 20.0 * (advice.capacity or 0) == fit.advised
    assert fit.fits
    assert "so it fits" in text(found)
    assert [] == found.unknown


def test_without_overflow() -> None:
    """If it fits without overflow, that is said."""
    found = report(POOLS + SERVER.replace("MOST", "65"))
    (fit,), (advice,) = found.fits, found.advices
    assert (44, 2, 1) == (fit.usable, advice.pool_size, advice.max_overflow)
    assert not fit.fits
    assert "with max_overflow=0 it does (40)" in text(found)


def test_does_not_fit() -> None:
    """If it does not, it is said how many connections there are for each process, and how long callers wait then."""
    longer = GROWN.replace('"0.025"', '"0.05"').replace("2000", "3400")
    found = report(POOLS + SERVER.replace("MOST", "65"), grown=longer)
    (fit,) = found.fits
    (room,) = fit.rooms
    assert (44, 2) == (fit.usable, room.connections)
    assert 0.05 < room.predicted_seconds < 1.0
    assert "there is room for 2 connections in each orders, with which 99 % wait at most" in text(found)
    found = report(POOLS + SERVER.replace("MOST", "40"), grown=longer)
    (room,) = found.fits[0].rooms
    assert math.isinf(room.predicted_seconds)
    assert "which cannot keep up with its callers" in text(found)
    (server,) = as_json(found)["servers"]
    assert (False, None) == (server["fits"], server["room"][0]["predicted_wait_seconds"])


def test_two_databases_of_one_server() -> None:
    """Pools of two databases of one server share its connections; one without limit and traffic is named."""
    found = report(POOLS + QUIET + SERVER.replace("MOST", "200"))
    (fit,) = found.fits
    assert ("orders", "quiet") == fit.pools
    assert math.isinf(fit.now)
    assert ("quiet",) == fit.unlimited
    assert "any number of connections" in text(found)
    # The other pool counts also if only one is asked for.
    (fit,) = report(POOLS + QUIET + SERVER.replace("MOST", "200"), names=["orders"]).fits
    assert ("orders", "quiet") == fit.pools


def test_server_is_unknown() -> None:
    """Without a probe that is said, unless an option says what the server has."""
    found = report(POOLS)
    assert ["orders"] == found.unknown
    assert "whether the connections fit is not known" in text(found)
    found = report(POOLS, max_connections=200)
    assert [] == found.unknown
    (fit,) = found.fits
    assert 177 == fit.usable
    assert "3 reserved (PostgreSQL's default)" in text(found)


def test_behind_a_pooler() -> None:
    """Behind a connection pooler the server's limit says nothing."""
    behind = SERVER.replace("MOST", "200").replace('pooler{database="a"} 0', 'pooler{database="a"} 1')
    found = report(POOLS + behind)
    assert [None] == [one["fits"] for one in as_json(found)["servers"]]
    assert "behind a connection pooler" in text(found)


def test_unknown_pool() -> None:
    """A pool that does not exist is an error that names those that do."""
    with pytest.raises(BoardError, match="no live pool is called 'order'; there are orders"):
        report(POOLS, names=["order"])
    with pytest.raises(BoardError, match=r"there are .*\ufffdders"):
        report(POOLS.replace('"orders"', '"or\x1bders"'), names=["order"])
