# SPDX-License-Identifier: Apache-2.0
"""The advice for one pool, from known traffic."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sqlalchemy_pool_exporter.advise import words
from sqlalchemy_pool_exporter.advise.advice import Advice, Objective, advise
from sqlalchemy_pool_exporter.advise.histogram import EMPTY
from sqlalchemy_pool_exporter.advise.observation import Server
from sqlalchemy_pool_exporter.advise.replay import Pool, replay, traffic
from tests.support.queues import of_durations
from tests.support.traffic import observed

OBJECTIVE = Objective()


def advised(objective: Objective = OBJECTIVE, server: Server | None = None, **facts: Any) -> Advice:
    return advise(observed(**facts), objective, server)


def server(**facts: Any) -> Server:
    given: dict[str, Any] = {
        "name": "orders",
        "pools": frozenset(["orders"]),
        "max_connections": 100.0,
        "reserved": 3.0,
        "connections": 20.0,
        "is_behind_pooler": False,
        "idle_limit_seconds": None,
    }
    return Server(**given | facts)


def said(advice: Advice) -> str:
    return "\n".join(
        [
            *words.traffic(advice),
            *words.size(advice, OBJECTIVE),
            *words.timeout(advice),
            *words.recycling(advice),
        ]
    )


def test_size() -> None:
    """The size keeps the objective, one less does not, and the overflow keeps it at the burst."""
    advice = advised()
    assert advice.pool_size is not None
    assert advice.capacity is not None
    holds = observed().holds
    assert replay(traffic(50, holds), Pool(advice.pool_size)).quantile(0.99) <= 0.05
    assert replay(traffic(50, holds), Pool(advice.pool_size - 1)).quantile(0.99) > 0.05
    assert replay(traffic(75, holds), Pool(advice.capacity)).quantile(0.99) <= 0.05
    assert 1.0 == pytest.approx(advice.load)
    assert not advice.is_lower_bound


def test_callers_of_one_process() -> None:
    """Each process has a pool of its own, so it is sized by its share of the callers, or the busiest one's."""
    one, four = advised(), advised(instances=4.0, checkouts=20000.0, size=5.0)
    assert one.pool_size == four.pool_size
    by_chance = advised(instances=4.0, checkouts=20000.0, busiest=51.0)
    assert by_chance.observed.rate_of_one == four.observed.rate_of_one == 50.0
    busy = advised(instances=4.0, checkouts=20000.0, busiest=150.0)
    assert 3.0 == pytest.approx(busy.load)
    assert (busy.pool_size or 0) > (four.pool_size or 0)


def test_connecting_takes_longer_than_callers_may_wait() -> None:
    """Overflow does not count then: the size grows until hardly a caller opens a connection."""
    quick, slow = advised(), advised(connects=of_durations([0.3] * 10))
    assert slow.predicted_seconds is not None
    assert slow.predicted_seconds <= 0.05
    assert slow.connect_is_slow
    assert (slow.pool_size or 0) > (quick.pool_size or 0)


def test_no_traffic() -> None:
    """Without traffic nothing is advised but what does not depend on it."""
    advice = advised(checkouts=0.0, holds=of_durations([]), recycle_seconds=60.0)
    assert (None, None, 1800.0) == (
        advice.pool_size,
        advice.pool_timeout_seconds,
        advice.pool_recycle_seconds,
    )
    assert "nothing to size it by" in said(advice)


def test_without_hold_times() -> None:
    """Where that metric was dropped it is said, and not that there is no traffic."""
    advice = advised(has_holds=False, holds=EMPTY)
    assert advice.pool_size is None
    assert "50/s callers, but hold_seconds is not in what was read" in said(advice)


def test_saturated() -> None:
    """The arrivals of a saturated pool are its throughput, and the size is the least that is needed."""
    full = advised(size=1.0, max_overflow=0.0, seconds=100.0, holds=of_durations([0.0199] * 5000))
    assert full.is_lower_bound
    assert "SATURATED" in said(full)
    given_up = advised(timeouts=100.0)
    assert given_up.is_lower_bound
    assert 51.0 == given_up.observed.rate


@pytest.mark.parametrize(
    ("facts", "kind", "text"),
    [
        (
            {"classes": frozenset(["NullPool"]), "size": None, "max_overflow": None},
            "unpooled",
            "it is a NullPool",
        ),
        (
            {"classes": frozenset(["StaticPool"]), "size": None, "max_overflow": None},
            "single",
            "it has no size",
        ),
        ({"max_overflow": None}, "unlimited", "max_overflow=-1 has no limit"),
        ({"size": None, "max_overflow": None}, "unlimited", "pool_size=0 has no limit"),
        ({"overflow_closes": 1000.0}, "queue", "thrown away"),
        ({"checkouts": 20.0, "holds": of_durations([0.02] * 20)}, "queue", "only 20 checkouts"),
        ({"longest_held_seconds": 4000.0}, "queue", "a connection is held for 1 h 6 min"),
    ],
)
def test_other_pools(facts: dict[str, Any], kind: str, text: str) -> None:
    """Pools of other kinds get advice that fits them, in words."""
    advice = advised(**facts)
    assert kind == advice.observed.kind
    assert (advice.pool_size is None) == (kind == "single")
    assert text in said(advice)


def test_slow_ping() -> None:
    """If the pre-ping takes longer than callers may wait, no size is advised, and it is said why."""
    advice = advised(pre_ping=True, pings=of_durations([0.08] * 100))
    assert advice.pool_size is None
    assert "pre-ping alone takes 80 ms" in said(advice)


@pytest.mark.parametrize(
    ("has", "facts", "wanted"),
    [
        (None, None, math.inf),  # nothing is known, and nothing is wrong
        (900.0, None, 900.0),
        (60.0, None, 1800.0),
        (None, {"idle_limit_seconds": 600.0}, 300.0),
        (3600.0, {"idle_limit_seconds": 600.0}, 300.0),
        (400.0, {"idle_limit_seconds": 600.0}, 400.0),
        (None, {"idle_limit_seconds": 28800.0}, 1800.0),
        (None, {"idle_limit_seconds": 30.0}, 24.0),
        (20.0, {"idle_limit_seconds": 30.0}, 20.0),
        (None, {}, math.inf),
    ],
)
def test_recycle(has: float | None, facts: dict[str, Any] | None, wanted: float) -> None:
    """``pool_recycle`` is below the server's idle limit, and at least five minutes if the limit is not shorter."""
    advice = advised(recycle_seconds=has, server=None if facts is None else server(**facts))
    assert wanted == advice.pool_recycle_seconds


def test_recycle_with_mysql() -> None:
    """MySQL always closes idle sessions, so recycling that is off is advised there, unless pre-ping is on."""
    mysql = frozenset(["mysql"])
    assert 1800.0 == advised(dialects=mysql).pool_recycle_seconds
    assert math.inf == advised(dialects=mysql, pre_ping=True).pool_recycle_seconds


@pytest.mark.parametrize(
    ("has", "hold", "wait", "wanted"),
    [
        (30.0, 0.02, 0.05, 1.0),
        (0.5, 0.02, 0.05, 0.5),  # it is shorter, and stays
        (0.05, 0.02, 0.05, 1.0),
        (30.0, 0.9, 0.05, 2.0),
        (30.0, 0.02, 0.5, 5.0),
        (30.0, 40.0, 0.5, 30.0),
        (30.0, 0.02, 60.0, 120.0),  # it would end waits that the objective allows
    ],
)
def test_timeout(has: float, hold: float, wait: float, wanted: float) -> None:
    """``pool_timeout`` is longer than a useful wait and than usual hold times, and 30 s at most for short ones."""
    holds = of_durations([hold] * 1000)
    advice = advised(Objective(wait_seconds=wait), timeout_seconds=has, holds=holds, checkouts=1000.0)
    assert wanted == advice.pool_timeout_seconds
