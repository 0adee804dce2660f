# SPDX-License-Identifier: Apache-2.0
"""Closed formulas of queues, which the replay of ``advise`` is compared with, and histograms of known durations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.advise.histogram import Histogram, of_cumulative
from sqlalchemy_pool_exporter.metrics import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

COUNT = 100_000


def erlang_c(servers: int, load: float) -> float:
    """Return the share of callers that wait in M/M/c, by Erlang's formula; the load is in erlangs."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked / (1.0 - load / servers * (1.0 - blocked))


def wait_quantile(servers: int, rate: float, hold: float, share: float) -> float:
    """Return the wait that this share of the callers of M/M/c does not exceed, in seconds."""
    waiting = erlang_c(servers, rate * hold)
    return max(0.0, math.log(waiting / (1.0 - share)) / (servers / hold - rate))


def mean_wait(servers: int, rate: float, hold: float) -> float:
    """Return the mean wait of M/M/c, in seconds."""
    return erlang_c(servers, rate * hold) / (servers / hold - rate)


def mean_wait_of_one(rate: float, hold: float, spread: float) -> float:
    """Return the mean wait of M/G/1, by Pollaczek and Khinchine, in seconds."""
    use = rate * hold
    return use / (1.0 - use) * hold * (1.0 + spread**2) / 2.0


def exponential(mean: float, bounds: Iterable[float] = BUCKETS) -> Histogram:
    """Return the histogram of exponential durations."""
    return of_distribution(lambda bound: 1.0 - math.exp(-bound / mean), mean, bounds)


def of_distribution(
    share_below: Callable[[float], float], mean: float, bounds: Iterable[float] = BUCKETS
) -> Histogram:
    """Return the histogram of durations of which this share is below a bound."""
    buckets = {bound: COUNT * share_below(bound) for bound in bounds}
    return of_cumulative({**buckets, math.inf: float(COUNT)}, COUNT * mean)


def of_durations(durations: Iterable[float], bounds: Iterable[float] = BUCKETS) -> Histogram:
    """Return the histogram of durations."""
    known = list(durations)
    buckets = {bound: float(sum(one <= bound for one in known)) for bound in (*bounds, math.inf)}
    return of_cumulative(buckets, math.fsum(known))
