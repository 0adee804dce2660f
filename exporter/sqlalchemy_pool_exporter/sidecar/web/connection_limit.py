# SPDX-License-Identifier: Apache-2.0
"""The limit of open connections, and which connection is closed for a new one."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

# Time in which a new connection is safe from being closed. A scraper sends its request in this time, be it 50 ms away
# from the sidecar; without it, clients that reconnect as fast as they are closed would have the scraper closed before
# its request arrives.
GRACE_SECONDS = float(os.environ.get("X_GRACE", "0.1"))
_KEPT = int(os.environ.get("X_KEPT", "2"))


class Abortable(Protocol):
    """A connection, as the limit sees it."""

    def abort(self) -> None:
        """Close the connection at once."""
        ...


C = TypeVar("C", bound=Abortable)


class ConnectionLimit(Generic[C]):
    """At most ``maximum`` connections.

    At the limit a new connection takes the place of an idle one: of the one that has waited longest without ever
    sending a request, so that kept-alive scrapers stay. Kept-alive connections are closed only where they fill more
    than half of the places. A connection whose request is being handled is never closed for another.

    Mutable state: ``_new`` (no request yet), ``_kept`` (idle after a request), both with the time since when and the
    longest waiting first, and ``_busy`` (a request is being handled). All belong to the event loop's thread.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._new: dict[C, float] = {}
        self._kept: dict[C, float] = {}
        self._busy: set[C] = set()
        self._closing: set[C] = set()
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
        """Add a connection, as soon as there is room for it."""
        while len(self) >= self.maximum:
            self._changed.clear()
            if not self._closing and not self._abort_due():
                with suppress(TimeoutError):
                    async with asyncio.timeout(GRACE_SECONDS / 4):
                        await self._changed.wait()
            else:
                await self._changed.wait()
        self._new[connection] = asyncio.get_running_loop().time()

    def set_busy(self, connection: C) -> None:
        """Note that a request of ``connection`` is being handled."""
        if self._discard(connection):
            self._busy.add(connection)

    def set_idle(self, connection: C) -> None:
        """Note that ``connection`` waits for its next request from now on."""
        if self._discard(connection):
            self._kept[connection] = asyncio.get_running_loop().time()
            self._changed.set()

    def remove(self, connection: C) -> None:
        """Make the connection's place free; does nothing the second time."""
        self._discard(connection)
        self._closing.discard(connection)
        self._changed.set()

    def abort_one(self) -> None:
        """Close the idle connection that is the first to go, however new it is."""
        for connection in (*self._new, *self._kept)[:1]:
            self._abort(connection)

    async def emptied(self) -> None:
        """Wait until no connection is left."""
        while len(self):
            self._changed.clear()
            await self._changed.wait()

    def _abort(self, connection: C) -> None:
        self._discard(connection)
        self._closing.add(connection)
        connection.abort()

    def _discard(self, connection: C) -> bool:
        known = connection in self._busy or connection in self._new or connection in self._kept
        self._new.pop(connection, None)
        self._kept.pop(connection, None)
        self._busy.discard(connection)
        return known

    def _abort_due(self) -> bool:
        """Close the idle connection that is the first to go, if one has had its time."""
        due = asyncio.get_running_loop().time() - GRACE_SECONDS
        candidates = [self._new]
        if not _KEPT or len(self._kept) > self.maximum // _KEPT or not self._new:
            candidates.append(self._kept)
        for waiting in candidates:
            for connection, since in waiting.items():
                if since > due:
                    break
                self._abort(connection)
                return True
        return False
