# SPDX-License-Identifier: Apache-2.0
"""Incidents in which a worker stands still, connections are recycled together, or the server takes no writes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.segment.event_loop import RECENT_SECONDS
from tests.support.incidents import Incident, Minutes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.incidents import Stage

# Minutes of load before a worker stands still, since it must be known to be at work; and of the incident.
AT_WORK: Final = 12.5
STILL: Final = 15.0
# Minutes in which all is well again: until the alerts have ended, on a busy machine too, and some more.
AFTER: Final = 10.0
# The age at which the connections of the storm are recycled.
RECYCLED: Final = Minutes(25)

# What a worker had in hand when it stopped stays out.
_IN_HAND: Final = {
    ("HeldTooLong", "warning"): "a caller had a connection when its process stopped",
    ("IdleInTransaction", "warning"): "a caller was in a transaction when its process stopped",
}
_STALLED: Final = {("WorkerStalled", "warning"): ("stall_seconds", "stall_for")}
_BLOCKED: Final = {
    **_STALLED,
    ("EventLoopBlocked", "warning"): ("loop_lag_seconds", "loop_lag_for"),
    ("HeldTooLong", "warning"): ("held_seconds", "held_for"),
}


def _stop(stage: Stage, begin: Callable[[], object]) -> None:
    """One worker is stopped, and goes on later."""
    stage.load(2)
    stage.last(AT_WORK)
    begin()
    stage.workers[-1].stop()
    stage.last(STILL * 1.5)  # long enough to follow the runbook
    stage.workers[-1].resume()
    stage.last(STILL / 2)


def _block(stage: Stage, begin: Callable[[], object]) -> None:
    """A handler of one worker calls something that is not asynchronous, while it holds a connection."""
    stage.load(3)
    stage.last(AT_WORK)
    begin()
    stage.workers[0].load(callers=3, act="block", seconds=stage.seconds(STILL), pause=0.5)
    stage.last(STILL)
    # The lag is shown for a minute of the clock, in which the alert goes on: no run makes that shorter.
    time.sleep(RECENT_SECONDS)
    stage.last(AFTER)


def _herd(stage: Stage, begin: Callable[[], object]) -> None:
    """All connections are opened together, and are recycled together when they are old enough."""
    # Often enough that the first checkouts, which all connect, are few of those of the first minutes.
    stage.load(10, seconds=0.1, pause=0.4)
    stage.last(0.9 * RECYCLED)
    begin()
    stage.last(STILL)
    # The callers go, or a second storm comes at twice the age, before the other incidents are over.
    stage.load(0)


WORKER_INCIDENTS: Final = [
    Incident(
        "stopped",
        "a worker is stopped while its neighbours work",
        _stop,
        expected=_STALLED,
        allowed=_IN_HAND,
        pool={"pool_size": 5, "pool_pre_ping": True},
        workers=3,
    ),
    Incident(
        "blocked",
        "the event loop of the only worker is blocked",
        _block,
        expected=_BLOCKED,
        allowed=_IN_HAND,
        pool={"pool_size": 5, "pool_pre_ping": True},
        driver="asyncpg",
        workers=1,
        sites=True,
    ),
    Incident(
        "blockedone",
        "the event loop of one of two workers is blocked",
        _block,
        expected=_BLOCKED,
        allowed=_IN_HAND,
        pool={"pool_size": 5, "pool_pre_ping": True},
        driver="asyncpg",
        sites=True,
    ),
    Incident(
        "storm",
        "connections that were opened together are recycled together, and callers wait for it",
        _herd,
        expected={("RecycleStorm", "warning"): ("storm_window", "storm_for")},
        allowed={
            ("WaitBudgetBurn", "critical"): "in the beginning every checkout connects",
            ("WaitBudgetBurn", "warning"): "in the beginning every checkout connects",
        },
        # Each session starts two seconds late, as behind TLS and a slow directory service.
        pool={
            "pool_size": 10,
            "max_overflow": 0,
            "pool_pre_ping": True,
            "pool_recycle": RECYCLED,
            "connect_args": {"options": "-c post_auth_delay=2"},
        },
    ),
]
