# SPDX-License-Identifier: Apache-2.0
"""Which connection the limit closes for a new one, and when."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy_pool_exporter.sidecar.web.connection_limit import (
    GRACE_SECONDS,
    MAX_UNSENT_BYTES,
    ConnectionLimit,
)
from tests.support.wire import HANG

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Clock(asyncio.SelectorEventLoop):
    """An event loop with a fake clock, which jumps to the next timer when no callback is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Client:
    """A connection whose abort is noted in ``aborted``, and which leaves the limit at the loop's next turn."""

    def __init__(self, limit: ConnectionLimit[Client], name: int, aborted: list[int]) -> None:
        self.limit, self.name, self.aborted = limit, name, aborted

    def abort(self) -> None:
        """Note the abort, and leave the limit at the loop's next turn."""
        self.aborted.append(self.name)
        asyncio.get_running_loop().call_soon(self.limit.remove, self)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run ``scenario`` on the fake clock."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(scenario)


def now() -> float:
    """Return the time of the loop."""
    return asyncio.get_running_loop().time()


async def full(maximum: int) -> tuple[ConnectionLimit[Client], list[Client], list[int]]:
    """Return a limit that is reached, its connections, and the list of those that are aborted."""
    limit: ConnectionLimit[Client] = ConnectionLimit(maximum)
    aborted: list[int] = []
    clients = [Client(limit, name, aborted) for name in range(maximum)]
    for client in clients:
        await limit.add(client)
    return limit, clients, aborted


async def add(limit: ConnectionLimit[Client], aborted: list[int]) -> Client:
    """Add one more connection."""
    client = Client(limit, -1, aborted)
    await limit.add(client)
    return client


def test_the_longest_waiting_goes() -> None:
    """The longest idle connection is closed; a request restarts its idle time."""

    async def scenario() -> None:
        limit, clients, aborted = await full(3)
        limit.set_busy(clients[0])
        limit.set_idle(clients[0])
        await asyncio.sleep(GRACE_SECONDS)
        for _ in range(3):
            await add(limit, aborted)
            await asyncio.sleep(GRACE_SECONDS)
        assert aborted[:2] == [1, 2]
        assert len(limit) == 3

    run(scenario())


def test_a_new_connection_is_not_closed_at_once() -> None:
    """A connection is not closed within its grace period; a newcomer waits until the period ends."""

    async def scenario() -> None:
        limit, _, aborted = await full(1)
        await asyncio.sleep(GRACE_SECONDS / 2)
        await add(limit, aborted)
        assert (now(), aborted) == (GRACE_SECONDS, [0])

    run(scenario())


def test_a_free_place_is_taken_at_once() -> None:
    """A newcomer that waits takes a free place at once, without waiting for a grace period."""

    async def scenario() -> None:
        limit, clients, aborted = await full(1)
        asyncio.get_running_loop().call_later(GRACE_SECONDS / 4, limit.remove, clients[0])
        await add(limit, aborted)
        assert (now(), aborted) == (GRACE_SECONDS / 4, [])

    run(scenario())


def test_a_request_in_hand_is_not_interrupted() -> None:
    """A newcomer waits while all connections are busy, until one is idle and its grace period is over."""

    async def scenario() -> None:
        limit, clients, aborted = await full(2)
        for client in clients:
            limit.set_busy(client)
        assert limit.busy == 2
        asyncio.get_running_loop().call_later(HANG, limit.set_idle, clients[1])
        await add(limit, aborted)
        assert (now(), aborted) == (HANG + GRACE_SECONDS, [1])

    run(scenario())


def test_a_kept_alive_scraper_stays() -> None:
    """Clients that connect and send nothing do not displace a connection that has completed a request."""

    async def scenario() -> None:
        limit, clients, aborted = await full(4)
        limit.set_busy(clients[0])
        limit.set_idle(clients[0])
        for _ in range(50):
            await add(limit, aborted)
        assert len(aborted) == 50
        assert clients[0].name not in aborted

    run(scenario())


def test_kept_alive_connections_leave_half_of_the_places() -> None:
    """If all places are kept alive after a request, newcomers get half of them and can send their requests."""

    async def scenario() -> None:
        limit, clients, aborted = await full(4)
        for client in clients:
            limit.set_busy(client)
            limit.set_idle(client)
        await asyncio.sleep(GRACE_SECONDS)
        for _ in range(3):
            await add(limit, aborted)
        assert (now(), aborted) == (2 * GRACE_SECONDS, [0, 1, -1])

    run(scenario())


def test_a_closing_connection_counts_until_it_is_closed() -> None:
    """A newcomer gets the place of an aborted connection only after that connection is closed."""

    async def scenario() -> None:
        limit, clients, aborted = await full(1)
        clients[0].abort = lambda: aborted.append(0)  # type: ignore[method-assign]
        asyncio.get_running_loop().call_later(HANG, limit.remove, clients[0])
        await add(limit, aborted)
        assert (now(), aborted) == (HANG, [0])

    run(scenario())


def test_removing_twice() -> None:
    """Removing a connection again frees no place, and changing its state does not add it again."""

    async def scenario() -> None:
        limit, clients, _ = await full(2)
        for _ in range(2):
            limit.remove(clients[0])
        limit.set_idle(clients[0])
        limit.set_busy(clients[0])
        assert (len(limit), limit.busy) == (1, 0)
        limit.remove(clients[1])
        await limit.emptied()
        assert len(limit) == 0
        limit.abort_one()  # does nothing without connections

    run(scenario())


def test_unread_answers_are_bounded() -> None:
    """If unread answers exceed their bound, the clients that have not read for longest are closed first."""

    async def scenario() -> None:
        limit, clients, aborted = await full(4)
        for client in clients[:3]:
            limit.set_stalled(client, MAX_UNSENT_BYTES // 3)
        limit.set_reading(clients[0])
        limit.set_stalled(clients[3], MAX_UNSENT_BYTES // 3)
        assert aborted == []
        limit.set_stalled(clients[0], MAX_UNSENT_BYTES // 2)
        assert aborted == [1, 2]
        await asyncio.sleep(0)
        assert len(limit) == 2

    run(scenario())


def test_one_large_unread_answer_is_kept() -> None:
    """An answer larger than the bound does not close the only client that has not read all of its own."""

    async def scenario() -> None:
        limit, clients, aborted = await full(2)
        limit.set_stalled(clients[0], 2 * MAX_UNSENT_BYTES)
        assert aborted == []

    run(scenario())
