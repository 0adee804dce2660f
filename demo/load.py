# SPDX-License-Identifier: Apache-2.0
"""Simulated users, who send HTTP requests to the two applications."""

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

NO_ANSWER = 0  # instead of an HTTP status


class Stage:
    """What a scene works with: users of the applications, and the database, to terminate connections.

    The state of the current scene: `over` tells its users to stop, and `answers` counts the responses by application
    and HTTP status.
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
        """Reset the state for the next scene."""
        self.over = False
        self.answers = Counter()

    async def users(
        self, count: int, app: App, path: str, *, pause: float = 0.05, requests: int | None = None
    ) -> None:
        """Let `count` concurrent users request `path`, spread evenly over the workers.

        Args:
            count: number of users.
            app: the application that they use.
            path: path and query string.
            pause: seconds that each user waits after a response.
            requests: number of requests of each user, even if the scene is over; by default, until it is over.
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
