# SPDX-License-Identifier: Apache-2.0
"""Who gets a seat at the endpoint, and who has to go for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy_pool_exporter.sidecar.web.seats import GRACE_SECONDS, Seat, Seats

from tests.support.wire import HANG

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when there is nothing else to do, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run ``scenario`` in time that does not take any."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(scenario)


def now() -> float:
    """Return the time of the loop."""
    return asyncio.get_running_loop().time()


async def full(number: int, cut: list[int]) -> tuple[Seats, list[Seat]]:
    """Return seats that are all taken, and note in ``cut`` who loses one."""
    seats = Seats(number)
    taken = [await seats.take() for _ in range(number)]
    for i, seat in enumerate(taken):
        seat.cut = lambda i=i: cut.append(i)  # type: ignore[misc]
    return seats, taken


def test_the_longest_waiting_goes() -> None:
    """Of those without a request in hand the one goes that has waited longest; a request begins the wait anew."""

    async def scenario() -> None:
        cut: list[int] = []
        seats, taken = await full(3, cut)
        taken[0].works()
        taken[0].waits()
        await asyncio.sleep(GRACE_SECONDS)
        for _ in range(3):
            await seats.take()
        assert cut == [1, 2, 0]
        assert len(seats) == 3

    run(scenario())


def test_nobody_goes_at_once() -> None:
    """Whoever has only just come keeps its seat for the grace, and the newcomer waits for that."""

    async def scenario() -> None:
        cut: list[int] = []
        seats, _ = await full(1, cut)
        await asyncio.sleep(GRACE_SECONDS / 2)
        await seats.take()
        assert (now(), cut) == (GRACE_SECONDS, [0])

    run(scenario())


def test_a_free_seat_is_taken_at_once() -> None:
    """A seat that becomes free while a newcomer waits is its, without waiting for the grace."""

    async def scenario() -> None:
        cut: list[int] = []
        seats, taken = await full(1, cut)
        asyncio.get_running_loop().call_later(GRACE_SECONDS / 4, taken[0].leave)
        await seats.take()
        assert (now(), cut) == (GRACE_SECONDS / 4, [])

    run(scenario())


def test_who_works_stays() -> None:
    """While all have a request in hand a newcomer waits, until one has none and its grace is over."""

    async def scenario() -> None:
        cut: list[int] = []
        seats, taken = await full(2, cut)
        for seat in taken:
            seat.works()
        assert seats.working == 2
        asyncio.get_running_loop().call_later(HANG, taken[1].waits)
        await seats.take()
        assert (now(), cut) == (HANG + GRACE_SECONDS, [1])

    run(scenario())


def test_leaving_twice() -> None:
    """A seat that was left, or taken back, frees nothing more, and does not come back to life."""

    async def scenario() -> None:
        seats, taken = await full(2, [])
        for _ in range(2):
            taken[0].leave()
        taken[0].waits()
        taken[0].works()
        assert (len(seats), seats.working) == (1, 0)
        seats.cut_all()
        await seats.emptied()
        assert len(seats) == 0
        seats.cut_one()  # nobody is there, and nothing happens

    run(scenario())
