# SPDX-License-Identifier: Apache-2.0
"""Scenes of services that are well: nothing above ``info`` may fire. Each lasts ten minutes of the rules' time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from tests.support.incidents import Incident

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.incidents import Stage

# A tenth of every duration: in less time a worker does not start. A busy machine holds a caller up for longer than a
# quarter of a second.
FASTER: Final = 10
CHANGED: Final = {"wait_objective_seconds": "1", "stall_rest_seconds": "5"}
HELD: Final = 60.0

_POOL: Final = {"pool_size": 4, "max_overflow": 0, "pool_pre_ping": True, "pool_recycle": 40}


def _until_held(began: float) -> None:
    time.sleep(max(0.0, began + HELD - time.monotonic()))


def _ninety(stage: Stage, begin: Callable[[], object]) -> None:
    """Five callers for four connections, each of which wants one three quarters of its time: about 90 % in use."""
    begin()
    stage.load(5, seconds=0.1, pause=0.035)
    time.sleep(HELD)


def _full(stage: Stage, begin: Callable[[], object]) -> None:
    """As many callers as connections, without a pause: full, and nobody waits."""
    begin()
    stage.load(4, seconds=0.2, pause=0.0)
    time.sleep(HELD)


def _bursts(stage: Stage, begin: Callable[[], object]) -> None:
    """Five seconds with twice as many callers as connections, ten without."""
    began = time.monotonic()
    begin()
    while time.monotonic() < began + HELD:
        stage.load(8, seconds=0.05, pause=0.05)
        time.sleep(5.0)
        stage.load(0)
        time.sleep(10.0)


def _idle(stage: Stage, begin: Callable[[], object]) -> None:
    """A little load, and then none."""
    begin()
    stage.load(2)
    time.sleep(HELD / 2)
    stage.load(0)
    time.sleep(HELD / 2)


def _fifty(stage: Stage, begin: Callable[[], object]) -> None:
    """Fifty connects a second, each with a query."""
    begin()
    stage.load(5, seconds=0.005, pause=0.18)
    time.sleep(HELD)


def _unfair(stage: Stage, begin: Callable[[], object]) -> None:
    """One worker takes all the load, another a little of it first and then none; a third never gets any."""
    begin()
    stage.workers[0].load(callers=3)
    stage.workers[1].load(callers=1, pause=8.0)
    time.sleep(HELD / 2)
    stage.workers[1].load(callers=0)
    time.sleep(HELD / 2)


def _start_first(stage: Stage, begin: Callable[[], object]) -> None:
    """A rolling restart: a worker starts, then an old one ends."""
    _roll(stage, begin, start_first=True)


def _stop_first(stage: Stage, begin: Callable[[], object]) -> None:
    """A rolling restart: a worker ends, then a new one starts."""
    _roll(stage, begin, start_first=False)


def _roll(stage: Stage, begin: Callable[[], object], *, start_first: bool) -> None:
    began = time.monotonic()
    begin()
    stage.load(3)
    time.sleep(HELD / 4)
    for _ in range(len(stage.workers)):
        if start_first:
            stage.hire(1)
        stage.kill_one(0)
        if not start_first:
            stage.hire(1)
        stage.load(3)
        time.sleep(3.0)
    _until_held(began)
    time.sleep(HELD / 2)  # until the connections of the new workers are recycled


def _restart(stage: Stage, begin: Callable[[], object]) -> None:
    """The server is away for 30 seconds."""
    began = time.monotonic()
    stage.load(3)
    time.sleep(HELD / 4)
    begin()
    stage.database.stop()
    time.sleep(30.0 / FASTER)
    stage.database.start()
    _until_held(began)
    time.sleep(HELD / 2)


def _scene(
    name: str,
    what: str,
    play: Callable[[Stage, Callable[[], object]], None],
    *,
    workers: int = 2,
    **pool: Any,
) -> Incident:
    # A busy machine lets a probe wait for longer than a second, and time is not that much shorter here.
    return Incident(name, what, play, pool=pool or _POOL, workers=workers, probe_seconds=5.0)


HEALTHY: Final = [
    _scene("ninety", "about 90 % in use", _ninety),
    _scene("full", "all in use all the time, and nobody waits", _full),
    _scene("bursts", "more callers than connections, now and then", _bursts),
    _scene("idle", "no load any more", _idle),
    _scene("fifty", "a NullPool with fifty connects a second", _fifty, poolclass="NullPool"),
    _scene("unfair", "one worker takes all the load", _unfair, workers=3),
    _scene("startfirst", "rolling restart, new workers first", _start_first, workers=3),
    _scene("stopfirst", "rolling restart, old workers first", _stop_first, workers=3),
    _scene("shortly", "the server is restarted", _restart),
]
