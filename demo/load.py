# SPDX-License-Identifier: Apache-2.0
"""Users of the two applications: they know nothing but URLs."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import cycle
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from .postgres import Database

    App = Literal["orders", "billing"]

NO_ANSWER = 0  # in the place of a status


class Stage:
    """What a scene can do: send users to the applications, and harm them from the database's side.

    The mutable state, of the scene that is on: `over`, set when it has to end, and `answers`, how often which
    application answered with which HTTP status.
    """

    def __init__(
        self, client: aiohttp.ClientSession, workers: Sequence[Mapping[App, str]], database: Database
    ) -> None:
        self._client = client
        self._workers = workers
        self.database = database
        self.over = False
        self.answers: Counter[tuple[str, int]] = Counter()

    def reset(self) -> None:
        """Make room for the next scene."""
        self.over = False
        self.answers = Counter()

    async def users(
        self, count: int, app: App, path: str, *, pause: float = 0.05, requests: int | None = None
    ) -> None:
        """Have `count` users ask for `path` at the same time, as many of each worker.

        Args:
            count: how many.
            app: whom they ask.
            path: what they ask for, with its query string.
            pause: seconds each waits after an answer.
            requests: after how many answers each leaves, even if the scene is over; by default, when it is.
        """

        async def user(url: str) -> None:
            answered = 0
            while not self.over if requests is None else answered < requests:
                await self._request("GET", app, url + path)
                answered += 1
                await asyncio.sleep(pause)

        async with asyncio.TaskGroup() as group:
            for worker, _ in zip(cycle(self._workers), range(count), strict=False):
                group.create_task(user(worker[app]))

    async def post(self, app: App, path: str) -> None:
        """Send a POST request to each worker."""
        for worker in self._workers:
            await self._request("POST", app, worker[app] + path)

    async def _request(self, method: str, app: App, url: str) -> None:
        try:
            async with self._client.request(method, url) as response:
                await response.read()
                self.answers[app, response.status] += 1
        except (aiohttp.ClientError, TimeoutError):
            self.answers[app, NO_ANSWER] += 1
