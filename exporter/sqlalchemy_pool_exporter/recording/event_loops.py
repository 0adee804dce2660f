# SPDX-License-Identifier: Apache-2.0
"""Watches the event loops that asyncio engines run in: one timer for each loop stores when it should run next.

A loop is found where a connection opens, because that is in the loop that will use it: asyncio drivers bind a
connection to its loop. So nothing is added to a checkout.

The timer is a handle of ``call_later()`` and no task, so it keeps no loop running and is in no list of tasks. Nothing
here keeps a loop alive either: the loop has the timer, and the timer refers weakly to the loop.

A loop that has stopped is not blocked. Python tells nobody when a loop stops. But a running loop has methods of its own
as the hooks for asynchronous generators of its thread, and nothing else refers to the objects that bind them. So a weak
reference to one calls back at the moment at which the loop stops.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.block import LOOP_DUE, LOOP_PEAK, LOOP_PEAK_AT, LOOPS
from sqlalchemy_pool_exporter.segment.event_loop import RECENT_SECONDS

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterator

    from sqlalchemy_pool_exporter.segment.pool_block import PoolBlock

# Between two runs of a timer, each of which takes 5 µs. A block that is shorter can go unseen.
INTERVAL_SECONDS: Final = 0.25


class Watched(Protocol):
    """The part of a recorder that is needed here."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds."""

    @property
    def storage(self) -> PoolBlock:
        """The pages of the pool."""

    @property
    def is_ended(self) -> bool:
        """Whether the pool is gone, or no longer instrumented."""

    def fault(self, error: BaseException) -> bool:
        """Count a fault; return False if ``error`` is the application's."""


# Mutable state: the timers by their loop, and the places in a block that no running loop has. Both are used by threads
# that each run a loop; the operations on the list are atomic.
_timers: Final[weakref.WeakKeyDictionary[AbstractEventLoop, LoopTimer]] = weakref.WeakKeyDictionary()
_free: Final = list(range(LOOP_DUE, LOOP_DUE + LOOPS))


def running_loop() -> AbstractEventLoop | None:
    """Return the event loop that runs in this thread, or None."""
    asyncio: Any = sys.modules.get(
        "asyncio"
    )  # not imported here: an application without it needs no 10 ms for it
    loop: AbstractEventLoop | None = asyncio._get_running_loop() if asyncio is not None else None  # noqa: SLF001 - it is public, for other implementations of loops
    return loop


def watch(recorder: Watched) -> None:
    """Watch the loop of this thread, if one runs, for a pool that uses it."""
    loop = running_loop()
    if loop is None:
        return
    timer = _timers.get(loop)
    if timer is None:
        timer = _timers[loop] = LoopTimer(loop)
    timer.add(recorder)


class LoopTimer:
    """The timer of one loop.

    Mutable state: the pools that use the loop, whether the timer is armed, when it should run, and where in the blocks
    that is stored while the loop runs.
    """

    __slots__ = ("__weakref__", "_context", "_due", "_is_armed", "_loop", "_place", "_pools", "_run")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._pools: list[weakref.ref[Watched]] = []
        # Not a copy of the caller's: that would keep the variables of the first request for ever.
        self._context = Context()
        self._is_armed = False
        self._due = 0.0
        self._place: int | None = None
        self._run: weakref.ref[Any] | None = None

    def add(self, recorder: Watched) -> None:
        """Store the lag for this pool, too."""
        if not any(one is recorder for one in self._recorders()):
            self._pools.append(weakref.ref(recorder))
        if not self._is_armed:
            self._arm(recorder.clock())

    def _recorders(self) -> Iterator[Watched]:
        for reference in self._pools:
            recorder = reference()
            if recorder is not None and not recorder.is_ended:
                yield recorder

    def _arm(self, now: float) -> None:
        loop = self._loop()
        if loop is None or not self._sees_its_stop():
            return
        self._due = now + INTERVAL_SECONDS
        loop.call_later(INTERVAL_SECONDS, self._tick, context=self._context)
        self._is_armed = True
        self._store(self._due)

    def _sees_its_stop(self) -> bool:
        """Return whether this will be told when the loop stops; otherwise a loop that stopped would look blocked."""
        hook = sys.get_asyncgen_hooks().firstiter
        if hook is None:
            return False
        if self._run is None or self._run() is not hook:
            self._run = weakref.ref(hook, self._stopped)
        return True

    def _tick(self) -> None:
        self._is_armed = False
        recorders: list[Watched] = []
        try:
            if not fork.mark[0] and not fork.notice():
                return  # a forked child that is leaving the blocks of its parent
            recorders = list(self._recorders())
            if not recorders:
                return
            # A loop that was stopped and runs again is not late.
            was_running = self._run is not None and self._run() is not None
            now = recorders[0].clock()
            late = max(0.0, now - self._due) if was_running else 0.0
            self._arm(now)
            for recorder in recorders:
                _note(recorder, late, now)
        except Exception as error:
            if not recorders or not recorders[0].fault(error):
                raise
        finally:
            if not self._is_armed:
                self._forget()
                self._pools = []

    def _stopped(self, reference: weakref.ref[Any]) -> None:
        """Note that the loop does not run, unless it runs another time already."""
        if self._run is reference and (fork.mark[0] or fork.notice()):
            self._forget()

    def _forget(self) -> None:
        self._store(0.0)
        place, self._place = self._place, None
        if place is not None:
            _free.append(place)
        self._run = None

    def _store(self, due: float) -> None:
        if self._place is None and due and _free:
            with suppress(IndexError):  # another thread took the last one
                self._place = _free.pop()
        place = self._place
        if place is None or not fork.mark[0]:  # a forked child that is leaving the blocks of its parent
            return
        for recorder in self._recorders():
            _store(recorder, place, due)


def _store(recorder: Watched, place: int, due: float) -> None:
    block = recorder.storage.doubles
    # straight line: when a pool ends, another one gets its block
    if not recorder.is_ended:
        block[place] = due
    # end of straight line


def _note(recorder: Watched, late: float, now: float) -> None:
    """Store how late a loop is, if that is the most in a while."""
    block, recent = recorder.storage.doubles, RECENT_SECONDS
    # straight line: when a pool ends, another one gets its block
    if not recorder.is_ended and (late >= block[LOOP_PEAK] or now - block[LOOP_PEAK_AT] > recent):
        block[LOOP_PEAK] = late
        block[LOOP_PEAK_AT] = now
    # end of straight line
