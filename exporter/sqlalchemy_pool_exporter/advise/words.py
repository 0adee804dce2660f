# SPDX-License-Identifier: Apache-2.0
"""The reasoning in plain words: what was seen, what that means, and what to do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.audit.rules import SHORT_RECYCLE_SECONDS
from sqlalchemy_pool_exporter.board.words import counted, duration, number, rate

from .advice import FEW_CALLERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .advice import Advice, Objective
    from .fleet import Fit
    from .observation import Observation

_LITTLE: Final = 0.01  # seconds below which a duration is shown with a digit more


def fine(seconds: float) -> str:
    """Return a duration, with a tenth of a millisecond where it is short."""
    return f"{1000.0 * seconds:.2g} ms" if 0.0 < seconds < _LITTLE else duration(seconds)


def share(objective: Objective) -> str:
    """Return the quantile of the objective, such as ``99 %``."""
    return f"{100.0 * objective.share:g} %"


def traffic(advice: Advice) -> Iterator[str]:
    """Yield what was seen of a pool."""
    seen = advice.observed
    if not advice.has_traffic and seen.checkouts and not seen.has_holds:
        yield (
            f"{rate(seen.rate)} callers{_each(seen)}, but hold_seconds is not in what was read, so it cannot be sized: "
            "do not drop that metric"
        )
        return
    if not advice.has_traffic:
        yield f"no checkout was returned in {duration(seen.seconds)}, so there is nothing to size it by"
        return
    processes = _each(seen)
    yield (
        f"{rate(seen.rate)} callers{processes}; a connection is held for {fine(seen.holds.mean)} on average "
        f"(spread {seen.holds.spread:.2g}; median {fine(seen.holds.quantile(0.5))}, 99 % "
        f"{fine(seen.holds.quantile(0.99))})"
    )
    use = f"{seen.in_use:.3g} connections in use on average (rate x hold time)"
    if seen.utilisation is not None:
        use += f", {seen.utilisation:.0%} of {number((seen.capacity or 0.0) * seen.instances)}"
    yield use
    if seen.waits.number:
        low, high = seen.waits.bucket(0.99)
        bound = f"more than {fine(low)}" if math.isinf(high) else f"{fine(low)} to {fine(high)}"
        yield f"wait now: {fine(seen.waits.mean)} on average, 99 % {bound}"
    yield from _warnings(advice)


def _each(seen: Observation) -> str:
    if seen.instances == 1:
        return ""
    busiest = (
        f", {rate(seen.rate_of_one)} in the busiest" if seen.rate_of_one > seen.rate / seen.instances else ""
    )
    return f" in {counted(seen.instances, 'pool')} of this name, {rate(seen.rate / seen.instances)} in each{busiest}"


def _warnings(advice: Advice) -> Iterator[str]:
    seen = advice.observed
    if seen.is_saturated:
        yield (
            "SATURATED: the rate is what the pool could serve, not what was asked for, since callers that wait make no "
            "new requests. So the size below is the least that is needed: set it, and ask again"
        )
    if seen.holds.number < FEW_CALLERS:
        few = counted(seen.holds.number, "checkout")
        yield f"only {few}: the longest hold times are hardly known; watch for longer"
    if seen.longest_held_seconds > max(seen.seconds, 10.0 * seen.holds.quantile(0.99)):
        yield (
            f"a connection is held for {duration(seen.longest_held_seconds)}; the hold times have it only when it is "
            "returned. If that is a leak, a larger pool does not help"
        )


def size(advice: Advice, objective: Objective) -> Iterator[str]:
    """Yield why the size is what it is."""
    seen = advice.observed
    if not advice.has_traffic:
        return
    most, of = fine(objective.wait_seconds), share(objective)
    if seen.kind == "single":
        yield "this kind of pool has one connection for each thread, or one for all: it has no size"
        return
    if advice.ping_is_slow:
        yield (
            f"no size does: the pre-ping alone takes {fine(seen.pings.mean)}, more than callers may wait ({most}). Use "
            "pool_recycle instead of pool_pre_ping, or allow more"
        )
        return
    if advice.pool_size is None:
        yield f"{number(advice.load)} connections are needed at once: too many for one pool"
        return
    if advice.predicted_now_seconds is not None:
        now = fine(advice.predicted_now_seconds)
        timeouts = ", and callers time out" if advice.predicted_timeouts else ""
        yield f"replayed at its present size, {of} wait at most {now}{timeouts}: compare that with the wait now"
    yield (
        f"pool_size={advice.pool_size}: the least at which {of} of the callers wait at most {most}. "
        f"{advice.load:.3g} connections are needed on average, and the rest is for callers that come together"
    )
    times = f"{objective.burst:g} times the traffic"
    if advice.max_overflow:
        connect = fine(seen.connects.mean) if seen.connects.number else "a time unknown"
        yield (
            f"max_overflow={advice.max_overflow}: with them the same holds at {times}. They are opened when they are "
            f"needed, {connect} each, and closed when they are returned"
        )
    else:
        yield f"max_overflow=0: pool_size alone has room for {times}"
    if advice.connect_is_slow:
        yield "to connect takes longer than callers may wait, so pool_size covers what overflow otherwise would"
    if advice.predicted_seconds is not None:
        yield f"replayed with both, {of} wait at most {fine(advice.predicted_seconds)}"
    yield from _present(seen)


def _present(seen: Observation) -> Iterator[str]:
    if seen.kind == "unpooled":
        yield (
            f"it is a NullPool: each checkout opens a connection, for {fine(seen.connects.mean)}. That is right behind "
            "a connection pooler, where the pooler's size is what counts; the figures here are those of a QueuePool in "
            "its place"
        )
    elif seen.kind == "unlimited":
        what = "max_overflow=-1" if seen.size is not None else "pool_size=0"
        yield f"{what} has no limit: the database's is the only one, and it fails for everybody. Set one"
    elif seen.overflow_closes > 0.05 * seen.checkouts:
        yield (
            f"{rate(seen.overflow_closes / seen.seconds)} connections are opened beyond pool_size and thrown away: the "
            "present pool_size is too small"
        )


def timeout(advice: Advice) -> Iterator[str]:
    """Yield what is advised for ``pool_timeout``."""
    wanted, has = advice.pool_timeout_seconds, advice.observed.timeout_seconds
    if wanted is None:
        return
    now = "" if has is None else f" (now {duration(has)})"
    yield (
        f"pool_timeout={wanted:g}{now}: a caller that has waited ten times the objective, or twice as long as 99 % of "
        "the connections are held, is too late, and keeps its thread from others. It must be less than the deadline of "
        "a request"
    )


def recycling(advice: Advice) -> Iterator[str]:
    """Yield what is advised for ``pool_recycle``."""
    wanted, server, seen = advice.pool_recycle_seconds, advice.server, advice.observed
    if wanted is None:
        return
    has = math.inf if seen.recycle_seconds is None else seen.recycle_seconds
    text = f"pool_recycle={_recycle(wanted)} (now {_recycle(has)}): "
    limit = None if server is None else server.idle_limit_seconds
    if limit is not None:
        yield f"{text}the server closes sessions that are idle for {duration(limit)}, and a checkout must not find one"
    elif has < SHORT_RECYCLE_SECONDS:
        yield f"{text}connections are replaced all the time without need, as far as is known"
    elif wanted != has:
        yield f"{text}MySQL and MariaDB close sessions that are idle for wait_timeout, 8 h by default"
    elif server is None or not server.is_probed or server.is_behind_pooler:
        yield (
            f"{text}the server's idle limit is not known (no probe tells, or a pooler is between). Keep it below that, "
            "and below those of firewalls and proxies on the way"
        )
    else:
        yield f"{text}the server has no idle limit; firewalls and proxies on the way may have one"


def _recycle(seconds: float) -> str:
    return "off" if math.isinf(seconds) else f"{seconds:g}"


def fleet(fit: Fit, reserve: float, objective: Objective) -> Iterator[str]:
    """Yield whether the pools of a server fit."""
    server = fit.server
    if server.is_behind_pooler:
        yield (
            "behind a connection pooler: its limit of clients counts, which no probe tells; max_connections is between "
            "the pooler and the server"
        )
        return
    origin = "" if server.is_probed else " (PostgreSQL's default)"
    others = f", {counted(fit.others, 'connection')} of others" if server.connections is not None else ""
    yield (
        f"max_connections {number(server.max_connections)}, less {number(server.reserved)} reserved{origin}, "
        f"{reserve:.0%} for deployments and people{others}: {number(fit.usable)} for these pools"
    )
    now = "any number of" if math.isinf(fit.now) else number(fit.now)
    yield f"as they are they can open {now} connections in all processes, as advised {number(fit.advised)}"
    if fit.unlimited:
        yield f"not counted: {', '.join(fit.unlimited)}, without a limit and without traffic by which to set one"
    if fit.fits:
        yield "so it fits"
        return
    if fit.without_overflow <= fit.usable:
        yield (
            f"so it does not fit; with max_overflow=0 it does ({number(fit.without_overflow)}), without room for bursts"
        )
    else:
        yield (
            "so it does not fit: use fewer processes, hold connections for a shorter time, put a connection pooler "
            "before the server, or raise max_connections"
        )
    for room in fit.rooms:
        wait = (
            "which cannot keep up with its callers"
            if math.isinf(room.predicted_seconds)
            else f"with which {share(objective)} wait at most {fine(room.predicted_seconds)}"
        )
        yield f"there is room for {counted(room.connections, 'connection')} in each {room.pool}, {wait}"


def unknown(pools: Sequence[str]) -> str:
    """Return that the servers of pools are not known."""
    return (
        f"no probe tells of the server of {', '.join(pools)}, so whether the connections fit is not known: ask "
        "a sidecar that probes it, or give --max-connections"
    )
