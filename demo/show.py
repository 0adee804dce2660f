# SPDX-License-Identifier: Apache-2.0
"""Start the processes in order, play the scenes one after the other, and report the result."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp

from . import postgres, processes
from .errors import DemoError
from .load import Stage
from .observe import Window, scrape
from .scenes import SCENES, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .observe import Snapshot
    from .options import Options
    from .scenes import Scene
    from .table import Screen

WORKERS = 2
TICK_SECONDS = 0.25  # between two scrapes
LOOP_SECONDS = 50.0  # one round of all scenes, without --duration
REQUEST_SECONDS = 30.0


async def run(options: Options, screen: Screen) -> int:
    """Run the demo and return its exit status: 0, or 1 if a scene was not visible in the metrics.

    Raises:
        DemoError: the demo cannot start or continue.
    """
    async with AsyncExitStack() as stack:
        # Check the port first: it is the most common failure, and it shows at once.
        processes.check_port(options.port)
        screen.say(f"starting PostgreSQL, {WORKERS} worker processes and the sidecar ...")
        database = await stack.enter_async_context(postgres.running())
        segments = database.directory / "segments"
        segments.mkdir(mode=0o700)
        workers = [
            await stack.enter_async_context(processes.worker(database, segments)) for _ in range(WORKERS)
        ]
        url = await stack.enter_async_context(processes.sidecar(database, segments, options.port))
        client = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS)
            )
        )
        stage = Stage(client, workers, database)
        stack.enter_context(screen)
        where = f"metrics: open {url}/metrics in a browser or scrape it, and {url}/ is the board; Ctrl-C stops the demo"
        screen.say(where)
        theatre = _Theatre(client, url, stage, screen)
        if options.duration is None:
            while True:
                await theatre.perform(SCENES, LOOP_SECONDS, options.patience)
                screen.say(where)  # the line printed at the start has scrolled away
        results = await theatre.perform(SCENES, options.duration, options.patience)
        screen.end(results)
        invisible = [result.scene.name for result in results if not result.visible]
        screen.say(
            f"not visible: {', '.join(invisible)}" if invisible else "every scene was visible in the metrics"
        )
        return 1 if invisible else 0


class _Theatre:
    def __init__(self, client: aiohttp.ClientSession, url: str, stage: Stage, screen: Screen) -> None:
        self._client = client
        self._url = url
        self._stage = stage
        self._screen = screen
        self._clock = asyncio.get_running_loop().time

    async def perform(self, scenes: Sequence[Scene], seconds: float, patience: float) -> list[Result]:
        """Play the scenes for about `seconds`; add up to `patience` seconds if a scene is not visible yet."""
        seconds /= len(scenes)
        results = []
        start = self._clock()
        for number, scene in enumerate(scenes, start=1):
            self._screen.open(number, len(scenes), scene)
            # Count from the start of the first scene, so that the time scenes take to finish does not add up.
            end = max(start + number * seconds, self._clock() + seconds / 2)
            latest = max(end, start + number * seconds + patience)
            result = await self._play(scene, end, latest)
            self._screen.close(result)
            results.append(result)
        return results

    async def _play(self, scene: Scene, end: float, latest: float) -> Result:
        self._stage.reset()
        result = Result(scene, Window(await self._scrape()), self._stage.answers)
        play = asyncio.ensure_future(scene.play(self._stage))
        try:
            while not play.done() and self._clock() < (end if result.visible else latest):
                await asyncio.sleep(TICK_SECONDS)
                self._stage.database.check()
                result.window.add(await self._scrape())
                self._screen.show(result.window)
            self._stage.over = True
            await self._finish(play, scene)
        finally:
            play.cancel()
            await asyncio.wait([play])
        result.window.add(await self._scrape())
        return result

    async def _finish(self, play: asyncio.Future[None], scene: Scene) -> None:
        """Wait for the scene's requests to finish."""
        try:
            await play
        except Exception as error:
            self._stage.database.check()
            raise DemoError(f"the scene {scene.name!r} failed: {error!r}") from error

    async def _scrape(self) -> Snapshot:
        return await scrape(self._client, self._url, at=self._clock())
