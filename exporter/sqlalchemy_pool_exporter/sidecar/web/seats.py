# SPDX-License-Identifier: Apache-2.0
"""How many connections there may be, and who has to go when one more wants in.

A scraper sends its request at once; whoever only sits there does not. So when all seats are taken a newcomer gets that
of whoever has waited longest without a request in hand. Nobody is put out in the first half second, though: clients
that come back as fast as they are cut off would otherwise turn the scraper out before its request has arrived.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE_SECONDS = 0.5


class Seat:
    """One connection's place; ``cut`` is how to take it back from whoever sits there."""

    __slots__ = ("_seats", "cut")

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self.cut: Callable[[], object] = lambda: None

    def waits(self) -> None:
        """Note that the connection has no request in hand, from now on."""
        self._seats.waits(self)

    def works(self) -> None:
        """Note that the connection has a request in hand."""
        self._seats.works(self)

    def leave(self) -> None:
        """Give the seat back; does nothing the second time."""
        self._seats.release(self)


class Seats:
    """A fixed number of seats.

    Mutable state: ``_taken`` (every seat in use) and ``_waiting`` (those of them without a request in hand, and since
    when, who waits longest first). Both belong to the event loop's thread.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._taken: set[Seat] = set()
        self._waiting: dict[Seat, float] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._taken)

    @property
    def working(self) -> int:
        """How many have a request in hand."""
        return len(self._taken) - len(self._waiting)

    async def take(self) -> Seat:
        """Return a seat, as soon as one is free or can be had from who has waited longest."""
        while len(self._taken) >= self.number:
            self._changed.clear()
            longest = next(iter(self._waiting.values()), None)
            left = None if longest is None else longest + GRACE_SECONDS - asyncio.get_running_loop().time()
            if left is not None and left <= 0:
                self.cut_one()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
        seat = Seat(self)
        self._taken.add(seat)
        self.waits(seat)
        return seat

    def cut_one(self) -> None:
        """Cut off who has waited longest, if anybody waits."""
        seat = next(iter(self._waiting), None)
        if seat is not None:
            self.release(seat)
            seat.cut()

    def cut_all(self) -> None:
        """Cut off everybody."""
        for seat in list(self._taken):
            self.release(seat)
            seat.cut()

    async def emptied(self) -> None:
        """Wait until every seat is free."""
        while self._taken:
            self._changed.clear()
            await self._changed.wait()

    def waits(self, seat: Seat) -> None:
        """See ``Seat.waits``."""
        if seat in self._taken:
            self._waiting[seat] = asyncio.get_running_loop().time()
            self._changed.set()

    def works(self, seat: Seat) -> None:
        """See ``Seat.works``."""
        self._waiting.pop(seat, None)

    def release(self, seat: Seat) -> None:
        """See ``Seat.leave``."""
        self._waiting.pop(seat, None)
        self._taken.discard(seat)
        self._changed.set()
