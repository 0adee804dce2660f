# SPDX-License-Identifier: Apache-2.0
"""What was read of all processes at one moment; several requests share it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from .rates import RateKeeper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy_pool_exporter.held_connections import ProbedServer
    from sqlalchemy_pool_exporter.segment.directory import Fleet

    from .schema import Rates

# Requests within this time get the same moment: several viewers cost one read each second.
FRESH_SECONDS: Final = 1.0


class Moment(NamedTuple):
    """A read, and when it was."""

    fleet: Fleet | None  # None if there is nothing to read
    now: float  # seconds of time.monotonic()
    wall: float  # seconds since the epoch
    rates: Mapping[str, Rates]  # by the label of the pool
    servers: Sequence[ProbedServer] = ()  # what the last probes of databases said
    note: str | None = None  # why there may be no pools


class Moments:
    """Reads a fleet at most once in a second.

    Mutable state: the last moment, and what its rates were computed from. The lock lets one thread read at a time.

    Args:
        read: returns the fleet, or a text that says why there is none.
        servers: returns what the last probes of databases said.
        monotonic: the clock of the segments, in seconds.
        wall: Unix time, in seconds.
    """

    def __init__(
        self,
        read: Callable[[], Fleet | str],
        servers: Callable[[], Sequence[ProbedServer]] = tuple,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._read, self._servers, self._monotonic, self._wall = read, servers, monotonic, wall
        self._lock = threading.Lock()
        self._rates = RateKeeper()
        self._last: Moment | None = None

    def get(self) -> Moment:
        """Return the last moment, or a new one."""
        with self._lock:
            last = self._last
            if last is None or not 0.0 <= self._monotonic() - last.now < FRESH_SECONDS:
                last = self._last = self._new()
            return last

    def _new(self) -> Moment:
        servers = self._servers()  # first: who held a connection when the server was asked still does
        read = self._read()
        now, wall = self._monotonic(), self._wall()
        if isinstance(read, str):
            return Moment(None, now, wall, {}, note=read)
        counts = {label: counts for (label, *_), counts in read.counts.items()}
        return Moment(read, now, wall, self._rates.add(counts, now), servers)
