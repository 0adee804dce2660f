# SPDX-License-Identifier: Apache-2.0
"""Users of the two applications: they know nothing but URLs."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from .postgres import Database

    App = Literal["orders", "billing"]

NO_ANSWER = 0  # in the place of a status


class Stage:
    """What a scene can do: send users to the applications, and harm them from the database's side.

    The mutable state, of the scene that is on: `over`, set when it has to end, and `answers`, how often which
    application answered with which HTTP status.
    """

    def __init__(self, client: aiohttp.ClientSession, apps: Mapping[App, str], database: Database) -> None:
        self._client = client
        self._apps = apps
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
        """Have `count` users ask for `path` at the same time.

        Args:
            count: how many.
            app: whom they ask.
            path: what they ask for, with its query string.
            pause: seconds each waits after an answer.
            requests: after how many answers each leaves, even if the scene is over; by default, when it is.
        """

        async def user() -> None:
            answered = 0
            while not self.over if requests is None else answered < requests:
                await self._request("GET", app, path)
                answered += 1
                await asyncio.sleep(pause)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(user())

    async def post(self, app: App, path: str) -> None:
        """Send one POST request."""
        await self._request("POST", app, path)

    async def _request(self, method: str, app: App, path: str) -> None:
        try:
            async with self._client.request(method, self._apps[app] + path) as response:
                await response.read()
                self.answers[app, response.status] += 1
        except (aiohttp.ClientError, TimeoutError):
            self.answers[app, NO_ANSWER] += 1
