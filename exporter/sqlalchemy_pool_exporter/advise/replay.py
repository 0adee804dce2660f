# SPDX-License-Identifier: Apache-2.0
"""Replays traffic through a pool of a given size, by simulation: how long callers wait.

Arrivals are a Poisson process, hold times are drawn from the recorded histogram, and the pool is SQLAlchemy's
``QueuePool``: callers are served in the order in which they came, a connection beyond ``pool_size`` is opened while the
caller waits and closed when it is returned to a pool that is full. The seed is fixed and all sizes get the same
callers, so answers do not change from run to run, and a larger pool never looks worse by chance.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from .histogram import Histogram

# Enough that 600 callers are beyond the 99th percentile, and that a replay takes some 50 ms.
CALLERS = 60_000  # a test changes it
_SEED: Final = 20_000
# Until the state no longer depends on the empty pool in the beginning, in mean hold times.
_WARM_UP: Final = 10.0


class Traffic(NamedTuple):
    """Callers, one after the other."""

    arrivals: list[float]  # seconds
    holds: list[float]  # seconds
    warm_up: int  # how many callers at the beginning are not counted


def traffic(rate: float, holds: Histogram, *, callers: int | None = None, seed: int = _SEED) -> Traffic:
    """Return callers that arrive at random.

    Args:
        rate: callers a second.
        holds: how long they hold a connection.
        callers: how many are counted; None for as many as are enough.
        seed: of the chance.
    """
    chance = Random(seed)  # noqa: S311 - the same figures must give the same advice
    callers = callers or CALLERS
    warm_up = callers // 10 + int(_WARM_UP * rate * holds.mean)
    number = callers + warm_up
    gaps = [-math.log(1.0 - share) / rate for share in _shares(chance, number)]
    return Traffic(list(accumulate(gaps)), holds.at(_shares(chance, number)), warm_up)


def _shares(chance: Random, number: int) -> list[float]:
    """Return random numbers between 0 and 1, in random order but one in each part of that interval.

    So rate and mean hold time are those that were asked for, and not one percent beside. At a utilisation of 95 % that
    would change the waits by a fifth.
    """
    shares = [(at + chance.random()) / number for at in range(number)]
    chance.shuffle(shares)
    return shares


class Pool(NamedTuple):
    """A pool, and what its connections cost."""

    size: int
    overflow: float = 0  # infinite if it has no limit
    connect_seconds: float = 0.0
    ping_seconds: float = 0.0
    timeout_seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class Waits:
    """How long callers waited, in seconds and in order."""

    seconds: list[float]
    timeouts: int
    overflows: int  # connections opened beyond pool_size

    def quantile(self, share: float) -> float:
        """Return the wait that this share of the callers does not exceed."""
        return self.seconds[min(int(share * len(self.seconds)), len(self.seconds) - 1)]

    @property
    def mean(self) -> float:
        """The mean wait."""
        return math.fsum(self.seconds) / len(self.seconds)


def replay(callers: Traffic, pool: Pool) -> Waits:
    """Return how long the callers wait for a connection of the pool, connecting and pre-ping included."""
    size, overflow, connect, ping, timeout = pool
    idle, opened, overflows, timeouts = size, size, 0, 0
    busy: list[float] = []  # when each connection that is out comes back
    waits: list[float] = []
    most = size + overflow
    pop, push, replace = heapq.heappop, heapq.heappush, heapq.heapreplace
    for now, hold in zip(callers.arrivals, callers.holds, strict=True):
        # Earlier callers have already taken the returns that they waited for.
        while busy and busy[0] <= now:
            pop(busy)
            if idle < size:
                idle += 1
            else:
                opened -= 1
        if idle:
            idle -= 1
            waits.append(ping)
            push(busy, now + ping + hold)
        elif opened < most:
            opened += 1
            overflows += 1
            waits.append(connect)
            push(busy, now + connect + hold)
        elif busy[0] - now > timeout:
            timeouts += 1
            waits.append(timeout)
        else:
            start = busy[0] + ping
            waits.append(start - now)
            replace(busy, start + hold)
    return Waits(sorted(waits[callers.warm_up :]), timeouts, overflows)


def smallest(callers: Traffic, objective: float, share: float, *, ping: float, least: int) -> int | None:
    """Return the smallest ``pool_size``, without overflow, at which this share of the callers waits no longer.

    Args:
        callers: the traffic.
        objective: the longest wait in seconds.
        share: of the callers, such as 0.99.
        ping: how long a pre-ping takes, in seconds.
        least: a size below which the pool cannot keep up.

    Returns:
        None if no size does, because the pre-ping alone takes longer.
    """
    if ping > objective:
        return None

    def holds(size: int) -> bool:
        return replay(callers, Pool(size, ping_seconds=ping)).quantile(share) <= objective

    step, low, high = 1, least - 1, least
    while not holds(high):
        low, high, step = high, high + step, step * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
