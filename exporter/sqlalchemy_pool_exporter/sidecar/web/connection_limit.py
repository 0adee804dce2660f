# SPDX-License-Identifier: Apache-2.0
"""Limits open connections, and chooses the connection that is closed for a new one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

# Age below which a connection is not closed for another. A scraper sends its request within this time, even from 50 ms
# away. Without it, clients that reconnect at once would displace the scraper before its request arrives.
GRACE_SECONDS = 0.1
# Answers of all clients together that wait to be read. 128 clients that do not read would hold 1.7 MB each.
MAX_UNSENT_BYTES = 64 * 1024 * 1024


class Abortable(Protocol):
    """A connection, as the limit sees it."""

    def abort(self) -> None:
        """Close the connection at once; ``remove()`` follows when it is closed."""
        ...


C = TypeVar("C", bound=Abortable)


class ConnectionLimit(Generic[C]):
    """At most ``maximum`` connections.

    At the limit, the longest idle connection is closed for a new one. Connections that have not sent a request are
    closed first. Connections that are kept alive after a request are closed only if they are more than half of the
    maximum, or if no others are idle. A connection whose request is being handled is never closed for another.

    Mutable state: every connection is in one of four collections. ``_new`` (no request yet) and ``_kept`` (idle after a
    request) map it to the loop time at which it became idle, the longest idle first. ``_busy`` holds connections whose
    request is being handled. ``_closing`` holds aborted connections, whose descriptors are still open. ``_unsent`` has
    the bytes that stalled clients have not read. All belong to the event loop's thread.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._new: dict[C, float] = {}
        self._kept: dict[C, float] = {}
        self._busy: set[C] = set()
        self._closing: set[C] = set()
        self._unsent: dict[C, int] = {}  # bytes of connections that do not read, the longest so first
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._new) + len(self._kept) + len(self._busy) + len(self._closing)

    @property
    def busy(self) -> int:
        """The number of connections whose request is being handled."""
        return len(self._busy)

    def connections(self) -> list[C]:
        """Return all connections."""
        return [*self._new, *self._kept, *self._busy, *self._closing]

    async def add(self, connection: C) -> None:
        """Wait until there is room, then add a connection."""
        while len(self) >= self.maximum:
            self._changed.clear()
            seconds = None if self._closing else self._abort_longest_idle()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
        self._new[connection] = asyncio.get_running_loop().time()

    def set_busy(self, connection: C) -> None:
        """Record that a request of ``connection`` is being handled."""
        if self._take_out(connection):
            self._busy.add(connection)

    def set_idle(self, connection: C) -> None:
        """Record that ``connection`` waits for its next request."""
        if self._take_out(connection):
            self._kept[connection] = asyncio.get_running_loop().time()
            self._changed.set()

    def set_stalled(self, connection: C, unsent: int) -> None:
        """Note that ``unsent`` bytes wait for the client; close the longest stalled while there are too many in all."""
        self._unsent[connection] = unsent
        while len(self._unsent) > 1 and sum(self._unsent.values()) > MAX_UNSENT_BYTES:
            longest = next(iter(self._unsent))
            del self._unsent[longest]
            self._abort(longest)

    def set_reading(self, connection: C) -> None:
        """Note that the client has read everything."""
        self._unsent.pop(connection, None)

    def remove(self, connection: C) -> None:
        """Record that ``connection`` is closed; does nothing the second time."""
        self._take_out(connection)
        self._closing.discard(connection)
        self._unsent.pop(connection, None)
        self._changed.set()

    def abort_one(self) -> None:
        """Close the connection that has been idle longest, if there is one."""
        for connection in (*self._new, *self._kept)[:1]:
            self._abort(connection)

    async def emptied(self) -> None:
        """Wait until no connection is left."""
        while len(self):
            self._changed.clear()
            await self._changed.wait()

    def _abort_longest_idle(self) -> float | None:
        """Close the longest idle connection, or return the seconds until it may be closed; None if none is idle."""
        idle = self._kept if len(self._kept) > self.maximum // 2 or not self._new else self._new
        now = asyncio.get_running_loop().time()
        for connection, since in idle.items():
            if since + GRACE_SECONDS > now:
                return since + GRACE_SECONDS - now
            self._abort(connection)
            break
        return None

    def _abort(self, connection: C) -> None:
        self._take_out(connection)
        self._closing.add(connection)
        connection.abort()

    def _take_out(self, connection: C) -> bool:
        """Remove an open connection from its collection; False if it is closing or closed."""
        for idle in (self._new, self._kept):
            if idle.pop(connection, None) is not None:
                return True
        if connection in self._busy:
            self._busy.remove(connection)
            return True
        return False
