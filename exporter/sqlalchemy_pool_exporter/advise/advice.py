# SPDX-License-Identifier: Apache-2.0
"""Which size, overflow, timeout and recycling one pool should have, from its traffic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.audit.rules import ALWAYS_CUT, SHORT_RECYCLE_SECONDS

from .replay import Pool, replay, smallest, traffic

if TYPE_CHECKING:
    from .observation import Observation, Server
    from .replay import Traffic, Waits

# Callers in the window below which the tail of the hold times is hardly known.
FEW_CALLERS: Final = 500
# Of the server's idle limit: between the checkout's look at the age and the statement some time passes.
_BELOW_IDLE_LIMIT: Final = 0.8
# A caller that has waited for so many objectives gets an answer too late.
_OBJECTIVES_BEFORE_TIMEOUT: Final = 10.0
_LEAST_TIMEOUT_SECONDS, _MOST_TIMEOUT_SECONDS = 1.0, 30.0
_ROUND: Final = (1.0, 2.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0)
_RECYCLES: Final = (60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0)
_USUAL_RECYCLE_SECONDS: Final = 1800.0
# Beyond, a replay takes too long, and such a pool is no QueuePool of one process.
_MOST_CONNECTIONS: Final = 5000.0


@dataclass(frozen=True, slots=True)
class Objective:
    """What callers may wait, and for how much more traffic than now there should be room."""

    wait_seconds: float = 0.05
    share: float = 0.99  # of the callers, who wait no longer
    burst: float = 1.5  # with overflow, the objective holds at so many times the traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What one pool should have, in each process. None is unknown, or nothing to say."""

    observed: Observation
    has_traffic: bool
    load: float = (
        0.0  # mean connections that one pool needs at once (erlangs), connecting and pre-ping included
    )
    predicted_now_seconds: float | None = None  # the quantile of the wait at the size that it has
    predicted_timeouts: bool = False  # whether callers time out in that replay
    pool_size: int | None = None
    max_overflow: int | None = None
    predicted_seconds: float | None = None  # the same quantile, at the size advised
    is_lower_bound: bool = False
    ping_is_slow: bool = False  # the pre-ping alone takes longer than the objective
    connect_is_slow: bool = False  # a connection takes longer to open than the objective
    pool_timeout_seconds: float | None = None
    pool_recycle_seconds: float | None = None  # infinite: off
    server: Server | None = None

    @property
    def capacity(self) -> int | None:
        """The connections that one pool could open with what is advised."""
        return None if self.pool_size is None else self.pool_size + (self.max_overflow or 0)


def advise(observed: Observation, objective: Objective, server: Server | None) -> Advice:
    """Return what a pool should have.

    Args:
        observed: its traffic.
        objective: what its callers may wait.
        server: the database server, if a probe tells of it.
    """
    recycle = _recycle(observed, server)
    if not observed.checkouts or not observed.holds.number:
        return Advice(observed=observed, has_traffic=False, pool_recycle_seconds=recycle, server=server)
    ping = observed.pings.mean if observed.pre_ping else 0.0
    rate = observed.rate_of_one
    load = rate * (observed.holds.mean + ping)
    if observed.kind == "single" or load > _MOST_CONNECTIONS:
        return Advice(
            observed=observed, has_traffic=True, load=load, pool_recycle_seconds=recycle, server=server
        )
    callers = traffic(rate, observed.holds)
    now = _replay_now(observed, callers, ping)
    connect = observed.connects.mean
    size, overflow, waits = _size(observed, callers, objective, ping, connect)
    return Advice(
        observed=observed,
        has_traffic=True,
        load=load,
        predicted_now_seconds=None if now is None else now.quantile(objective.share),
        predicted_timeouts=now is not None and now.timeouts > 0,
        pool_size=size,
        max_overflow=overflow,
        predicted_seconds=None if waits is None else waits.quantile(objective.share),
        is_lower_bound=observed.is_saturated,
        ping_is_slow=size is None,
        connect_is_slow=connect > objective.wait_seconds,
        pool_timeout_seconds=_timeout(observed, objective),
        pool_recycle_seconds=recycle,
        server=server,
    )


def predicted(advice: Advice, capacity: int, objective: Objective) -> float:
    """Return the quantile of the wait in a pool of so many connections, in seconds; infinite if it cannot keep up."""
    if capacity <= advice.load:
        return math.inf
    observed = advice.observed
    ping = observed.pings.mean if observed.pre_ping else 0.0
    callers = traffic(observed.rate_of_one, observed.holds)
    return replay(callers, Pool(capacity, ping_seconds=ping)).quantile(objective.share)


def _replay_now(observed: Observation, callers: Traffic, ping: float) -> Waits | None:
    """Return the waits at the size that the pool has; None if nothing is pooled."""
    if observed.size is None:
        return None
    return replay(
        callers,
        Pool(
            max(1, round(observed.size)),
            math.inf if observed.max_overflow is None else round(observed.max_overflow),
            observed.connects.mean,
            ping,
            math.inf if observed.timeout_seconds is None else observed.timeout_seconds,
        ),
    )


def _size(
    observed: Observation, callers: Traffic, objective: Objective, ping: float, connect: float
) -> tuple[int | None, int | None, Waits | None]:
    """Return ``pool_size``, ``max_overflow`` and the waits with them.

    The size alone meets the objective; with the overflow a burst does. Where it takes longer to connect than callers
    may wait, those that find nothing idle wait for a connection to be opened instead of one to be returned: then the
    size grows until these are few enough.
    """
    rate, holds = observed.rate_of_one, observed.holds
    size = smallest(
        callers, objective.wait_seconds, objective.share, ping=ping, least=_least(rate, holds.mean + ping)
    )
    if size is None:
        return None, None, None
    more = rate * objective.burst
    burst = traffic(more, holds)
    most = smallest(
        burst, objective.wait_seconds, objective.share, ping=ping, least=_least(more, holds.mean + ping)
    )
    most = max(size, most or size)
    while True:
        waits = replay(callers, Pool(size, most - size, connect, ping))
        if waits.quantile(objective.share) <= objective.wait_seconds or size >= most:
            break
        size += 1
    return size, most - size, waits


def _least(rate: float, seconds: float) -> int:
    """Return the smallest number of connections that can keep up with so many callers a second."""
    return math.floor(rate * seconds) + 1


def _timeout(observed: Observation, objective: Objective) -> float:
    """Return a round ``pool_timeout``: longer than any wait that is still useful, and than a usual hold.

    One that the pool has and that is shorter stays, as long as it is not near the objective.
    """
    wanted = max(
        _LEAST_TIMEOUT_SECONDS,
        _OBJECTIVES_BEFORE_TIMEOUT * objective.wait_seconds,
        2.0 * observed.holds.quantile(objective.share),
    )
    # A caller that may wait for that long must not give up before.
    least = 2.0 * objective.wait_seconds
    most = max(next((one for one in _ROUND if one >= wanted), _MOST_TIMEOUT_SECONDS), float(math.ceil(least)))
    has = observed.timeout_seconds
    return has if has is not None and least <= has <= most else most


def _recycle(observed: Observation, server: Server | None) -> float | None:
    """Return ``pool_recycle``: what the pool has where that is right, infinite for off, None if nothing is pooled."""
    if observed.kind in {"unpooled", "single"}:
        return None
    has = math.inf if observed.recycle_seconds is None else observed.recycle_seconds
    limit = None if server is None else server.idle_limit_seconds
    if limit is not None:
        most = _BELOW_IDLE_LIMIT * limit
        if has <= most and (has >= SHORT_RECYCLE_SECONDS or limit <= SHORT_RECYCLE_SECONDS):
            return has
        return max(
            (one for one in _RECYCLES if one <= min(most, _USUAL_RECYCLE_SECONDS)),
            default=max(1.0, math.floor(most)),
        )
    # MySQL's wait_timeout cannot be switched off; it is 8 h by default, and often less.
    is_always_cut = math.isinf(has) and not observed.pre_ping and bool(observed.dialects & ALWAYS_CUT)
    return _USUAL_RECYCLE_SECONDS if has < SHORT_RECYCLE_SECONDS or is_always_cut else has
