# SPDX-License-Identifier: Apache-2.0
"""The replay: it agrees with the closed formulas of queueing theory, and does what SQLAlchemy's pool does."""

from __future__ import annotations

import math

import pytest

from sqlalchemy_pool_exporter.advise.replay import Pool, Traffic, replay, smallest, traffic
from tests.support.queues import exponential, mean_wait, mean_wait_of_one, of_durations, wait_quantile

# So many buckets that what is drawn from the histogram has the law itself.
FINE = [0.001 * number for number in range(1, 400)]


@pytest.mark.parametrize(("rate", "servers"), [(50, 2), (150, 5), (400, 11), (1000, 25)])
def test_erlang(rate: float, servers: int) -> None:
    """Exponential hold times give the waits of Erlang's formula: their mean and their 99th percentile."""
    hold = 0.02
    waits = replay(traffic(rate, exponential(hold, FINE), callers=60_000), Pool(servers))
    assert mean_wait(servers, rate, hold) == pytest.approx(waits.mean, rel=0.15)
    assert wait_quantile(servers, rate, hold, 0.99) == pytest.approx(
        waits.quantile(0.99), rel=0.15, abs=0.0005
    )


@pytest.mark.parametrize(
    ("durations", "spread"), [([0.02], 0.0), ([0.01] * 9 + [0.11], 1.5), ([0.01] * 99 + [1.01], 4.97494)]
)
def test_any_hold_times(durations: list[float], spread: float) -> None:
    """Other hold times give the mean wait of Pollaczek and Khinchine: a larger spread, longer waits."""
    bounds = sorted({one + side for one in durations for side in (-1e-4, 1e-4)})
    waits = replay(traffic(25, of_durations(durations, bounds), callers=60_000), Pool(1))
    assert mean_wait_of_one(25, 0.02, spread) == pytest.approx(waits.mean, rel=0.25)


def test_the_smallest_size() -> None:
    """The size is the smallest whose waits are short enough, and the same at each call."""
    for rate in (5, 150):
        callers = traffic(rate, exponential(0.02), callers=10_000)
        least = math.floor(rate * 0.02) + 1
        size = smallest(callers, 0.05, 0.99, ping=0.0, least=least)
        assert size is not None
        assert 0.05 >= replay(callers, Pool(size)).quantile(0.99)
        assert size == least or replay(callers, Pool(size - 1)).quantile(0.99) > 0.05
        assert size == smallest(
            traffic(rate, exponential(0.02), callers=10_000), 0.05, 0.99, ping=0.0, least=least
        )


def test_ping_above_the_objective() -> None:
    """No size is enough if the pre-ping takes longer than callers may wait."""
    assert smallest(traffic(10, exponential(0.02), callers=100), 0.005, 0.99, ping=0.006, least=1) is None


def scene(*callers: tuple[float, float]) -> Traffic:
    """Return callers: when each arrives, and for how long it holds a connection."""
    return Traffic([at for at, _ in callers], [hold for _, hold in callers], 0)


def test_queue() -> None:
    """Callers wait for the connections that come back first, in the order in which they came."""
    waits = replay(scene((0, 10), (1, 2), (2, 1), (2.5, 1)), Pool(2))
    assert [0.0, 0.0, 1.0, 1.5] == waits.seconds
    assert 0 == waits.overflows


def test_overflow() -> None:
    """Beyond its size the pool opens connections, for which callers wait, and closes them when it is full again."""
    # The second opens a connection, and the third waits for that of the first. The fourth finds that of the second,
    # which took the empty place in the pool; the fifth waits for the fourth. That of the third found the pool full and
    # was closed, so the last one opens another.
    callers = scene((0, 1), (0.1, 1), (0.2, 10), (5, 1), (5.1, 1), (20, 1), (20.1, 1))
    waits = replay(callers, Pool(1, 1, connect_seconds=0.25))
    assert [0.0, 0.0, 0.0, 0.25, 0.25, 0.8, 0.9] == pytest.approx(waits.seconds)
    assert 2 == waits.overflows


def test_timeout() -> None:
    """A caller that would wait for longer gives up after the timeout and takes no connection."""
    waits = replay(scene((0, 10), (1, 5), (9.5, 1), (9.6, 1)), Pool(1, timeout_seconds=1.0))
    assert [0.0, 0.5, 1.0, 1.0] == waits.seconds
    assert 2 == waits.timeouts


def test_ping() -> None:
    """A pre-ping is part of the wait and of the time for which a connection is out."""
    waits = replay(scene((0, 1), (0.5, 1), (5, 1)), Pool(1, ping_seconds=0.1))
    assert [0.1, 0.1, 0.7] == pytest.approx(waits.seconds)
