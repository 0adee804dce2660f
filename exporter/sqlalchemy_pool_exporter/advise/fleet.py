# SPDX-License-Identifier: Apache-2.0
"""Whether the pools of all processes fit into what their database server has for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .advice import predicted
from .observation import Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .advice import Advice, Objective
    from .observation import Observation

# PostgreSQL's default of superuser_reserved_connections, where no probe tells.
_RESERVED_BY_DEFAULT: Final = 3.0


@dataclass(frozen=True, slots=True)
class Room:
    """What there is room for in one pool, in proportion to what is advised for all."""

    pool: str
    connections: int
    predicted_seconds: float  # the quantile of the wait with so many; infinite if they cannot keep up


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The connections of one server, and what the pools of all processes can open of them."""

    server: Server
    pools: tuple[str, ...]
    others: float  # connections of other clients, now
    usable: int  # for the pools: without what is reserved, the reserve, and the others
    now: float  # what the pools can open as they are; infinite if one has no limit
    advised: float  # with what is advised; without those below
    without_overflow: float  # the same with max_overflow=0
    unlimited: tuple[str, ...]  # pools without a limit, and without traffic by which to set one
    rooms: tuple[Room, ...]  # where the advice does not fit

    @property
    def fits(self) -> bool:
        """Whether what is advised fits."""
        return self.advised <= self.usable


def with_given(
    found: Sequence[Server], observed: Sequence[Observation], max_connections: int | None
) -> list[Server]:
    """Return the servers, and one more with ``max_connections`` that has all pools of which no probe tells."""
    unknown = {one.pool for one in observed} - {pool for server in found for pool in server.pools}
    if max_connections is None or not unknown:
        return list(found)
    given = Server(
        name="--max-connections",
        pools=frozenset(unknown),
        max_connections=float(max_connections),
        reserved=_RESERVED_BY_DEFAULT,
        connections=None,
        is_behind_pooler=False,
        idle_limit_seconds=None,
        is_probed=False,
    )
    return [*found, given]


def fit(server: Server, advices: Sequence[Advice], objective: Objective, reserve: float) -> Fit:
    """Return whether pools fit into their server.

    Args:
        server: the server.
        advices: for all pools that connect to it.
        objective: what callers may wait.
        reserve: the share that is left for deployments, in which old and new processes overlap, and for people.
    """
    ours = math.fsum(one.observed.open_now for one in advices)
    others = 0.0 if server.connections is None else max(0.0, server.connections - ours)
    usable = math.floor((server.max_connections - server.reserved) * (1.0 - reserve) - others)
    limited = [one for one in advices if not math.isinf(_advised(one))]
    advised = math.fsum(_advised(one) * one.observed.most_instances for one in limited)
    share = max(0, usable) / advised if advised else 1.0
    return Fit(
        server=server,
        pools=tuple(one.observed.pool for one in advices),
        others=others,
        usable=max(0, usable),
        now=math.fsum(_capacity(one) * one.observed.most_instances for one in advices),
        advised=advised,
        without_overflow=math.fsum(
            (one.pool_size or _advised(one)) * one.observed.most_instances for one in limited
        ),
        unlimited=tuple(one.observed.pool for one in advices if one not in limited),
        rooms=tuple(_room(one, share, objective) for one in advices if one.pool_size) if share < 1.0 else (),
    )


def _capacity(advice: Advice) -> float:
    """Return what one pool can open as it is."""
    observed = advice.observed
    if observed.kind == "single":
        return max(1.0, observed.open_now / observed.instances)
    return math.inf if observed.capacity is None else observed.capacity


def _advised(advice: Advice) -> float:
    """Return what one pool could open with what is advised; where that is nothing, what it can open."""
    return _capacity(advice) if advice.capacity is None else float(advice.capacity)


def _room(advice: Advice, share: float, objective: Objective) -> Room:
    connections = math.floor(_advised(advice) * share)
    return Room(advice.observed.pool, connections, predicted(advice, connections, objective))
