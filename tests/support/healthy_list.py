# SPDX-License-Identifier: Apache-2.0
"""Scenes of services that are well: nothing above ``info`` may fire. Each lasts ten minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tests.support.incidents import Incident, Minutes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.incidents import Stage

# A tenth of every duration: in less time a worker does not start.
FASTER: Final = 10
CHANGED: Final = {"stall_rest_seconds": "50"}
HELD: Final = 10.0

_POOL: Final = {"pool_size": 4, "max_overflow": 0, "pool_pre_ping": True, "pool_recycle": Minutes(6.5)}


def _ninety(stage: Stage, begin: Callable[[], object]) -> None:
    """Five callers for four connections, each of which wants one three quarters of its time: about 90 % in use."""
    begin()
    stage.load(5, seconds=0.2, pause=0.07)
    stage.last(HELD)


def _full(stage: Stage, begin: Callable[[], object]) -> None:
    """As many callers as connections, without a pause: full, and nobody waits."""
    begin()
    stage.load(4, seconds=0.2, pause=0.0)
    stage.last(HELD)


def _bursts(stage: Stage, begin: Callable[[], object]) -> None:
    """A minute with twice as many callers as connections, and one and a half without."""
    begin()
    for _ in range(4):
        # With a longer pause, half of the callers could always have a connection while the others pause.
        stage.load(8, seconds=0.1, pause=0.07)
        stage.last(1.0)
        stage.load(0)
        stage.last(1.5)


def _idle(stage: Stage, begin: Callable[[], object]) -> None:
    """A little load, and then none."""
    begin()
    stage.load(2)
    stage.last(HELD / 2)
    stage.load(0)
    stage.last(HELD / 2)


def _fifty(stage: Stage, begin: Callable[[], object]) -> None:
    """Fifty connects a second, each with a query; fewer by a quarter where each takes a tenth of a second."""
    begin()
    stage.load(10, seconds=0.005, pause=0.37)
    stage.last(HELD)


def _unfair(stage: Stage, begin: Callable[[], object]) -> None:
    """One worker takes all the load, another a little of it first and then none; a third never gets any."""
    begin()
    stage.workers[0].load(callers=3, pause=0.5)
    stage.workers[1].load(callers=1, pause=stage.seconds(1.3))
    stage.last(HELD / 2)
    stage.workers[1].load(callers=0)
    stage.last(HELD / 2)


def _nested(stage: Stage, begin: Callable[[], object]) -> None:
    """Callers that hold two connections each, fewer than the pool has: it is full at times, and somebody goes on."""
    begin()
    stage.load(3, "nest", seconds=0.1, pause=0.2)
    stage.last(HELD)


def _loop(stage: Stage, begin: Callable[[], object]) -> None:
    """Ten tasks for four connections, in an event loop."""
    begin()
    stage.load(10, seconds=0.1, pause=0.12)  # they want 4.5 connections
    stage.last(HELD)


def _start_first(stage: Stage, begin: Callable[[], object]) -> None:
    """A rolling restart: a worker starts, then an old one ends."""
    _roll(stage, begin, start_first=True)


def _stop_first(stage: Stage, begin: Callable[[], object]) -> None:
    """A rolling restart: a worker ends, then a new one starts."""
    _roll(stage, begin, start_first=False)


def _roll(stage: Stage, begin: Callable[[], object], *, start_first: bool) -> None:
    begin()
    stage.load(3, pause=0.3)
    stage.last(HELD / 4)
    for _ in range(len(stage.workers)):
        if start_first:
            stage.hire(1)
        stage.kill_one(0)
        if not start_first:
            stage.hire(1)
        stage.load(3, pause=0.3)
        stage.last(0.5)
    stage.last(HELD)  # until the connections of the new workers are recycled


def _restart(stage: Stage, begin: Callable[[], object]) -> None:
    """The server is away for 30 seconds."""
    stage.load(3, pause=0.3)
    stage.last(HELD / 4)
    begin()
    stage.database.stop()
    stage.last(0.5)
    stage.database.start()
    stage.last(HELD)


def _scene(
    name: str,
    what: str,
    play: Callable[[Stage, Callable[[], object]], None],
    *,
    workers: int = 2,
    driver: str = "psycopg",
    **pool: Any,
) -> Incident:
    return Incident(name, what, play, pool=pool or _POOL, workers=workers, driver=driver)


HEALTHY: Final = [
    _scene("ninety", "about 90 % in use", _ninety),
    _scene("full", "all in use all the time, and nobody waits", _full),
    _scene("bursts", "more callers than connections, now and then", _bursts),
    _scene("idle", "no load any more", _idle),
    _scene("fifty", "a NullPool with fifty connects a second", _fifty, poolclass="NullPool"),
    _scene("unfair", "one worker takes all the load", _unfair, workers=3),
    _scene("nested", "callers that hold two connections, in a pool with enough", _nested),
    _scene("loop", "an asyncio engine", _loop, driver="asyncpg"),
    _scene("startfirst", "rolling restart, new workers first", _start_first, workers=3),
    _scene("stopfirst", "rolling restart, old workers first", _stop_first, workers=3),
    _scene("shortly", "the server is restarted", _restart),
]
