# SPDX-License-Identifier: Apache-2.0
"""The sidecar's life: start, reload, ordered end."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.about import package_version
from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.families import Builder
from sqlalchemy_pool_exporter.metrics import RELOAD_METRICS
from sqlalchemy_pool_exporter.segment.directory import Reader

from .collector import FleetCollector
from .config import Config, Database, resolve_dsn
from .probe.dsn import Target, Tls
from .probe.families import families as probe_families
from .probe.probe import Probe
from .web import app as web
from .web.config import WebConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric as Family

_logger = logging.getLogger("sqlalchemy_pool_exporter")


class Sidecar:
    """Serves what the segments and the databases say, until it is told to stop.

    Mutable state: the configuration at work and what was made from it, which a reload replaces as a whole.

    Args:
        load: reads the configuration anew, or raises ConfigError.
        env: where secrets named by an environment variable are.
    """

    def __init__(self, load: Callable[[], Config], env: Mapping[str, str]) -> None:
        self._load, self._env = load, env
        self._config = load()
        self._reader: Reader | None = None
        self._fleet = self._fleet_of(self._config)
        self._probes: dict[Target, tuple[Probe, asyncio.Task[None]]] = {}
        self._targets = _targets(self._config, env)
        self._reload_succeeded, self._reloaded_at = True, time.time()
        self._web_config: WebConfig | None = None
        self._stop, self._reloading = asyncio.Event(), asyncio.Lock()

    async def run(self, started: Callable[[str], object] = lambda _url: None) -> None:
        """Serve until SIGTERM, SIGINT or `stop()`; ``started`` is told the URL.

        Raises:
            ConfigError: the configuration of the web server is wrong.
            EndpointError: it cannot listen where it was told to.
        """
        with self._signals():
            await self._serve(started)

    async def _serve(self, started: Callable[[str], object]) -> None:
        settings = self._config.web
        self._web_config = web_config = WebConfig(settings.config_file) if settings.config_file else None
        application = web.application(self, settings, version=package_version(), reload=self.reload)
        endpoint = await web.start(application, settings, web_config=web_config)
        try:
            await self._watch(self._targets)
            _logger.info("listening on %s", endpoint.url)
            started(endpoint.url)
            await self._stop.wait()
            _logger.info("stopping")
        finally:
            await endpoint.close()
            await self._watch([])

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Obey signals from before the start to after the end: what SIGHUP does by default is end the process."""
        loop = asyncio.get_running_loop()
        reloads: set[asyncio.Task[None]] = set()  # asyncio itself keeps no task alive

        def reload() -> None:
            task = loop.create_task(self._reload_quietly())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: reload}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """End `run()`, in order."""
        self._stop.set()

    async def reload(self) -> None:
        """Read the configuration again and put it to work; what it says of ``web`` and ``log`` needs a new start.

        Raises:
            ConfigError: it is wrong; the old one stays.
        """
        # One at a time, or the older of two could be the last to be done.
        async with self._reloading:
            await self._reload()

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(self._load)
            targets = _targets(config, self._env)
        except ConfigError:
            self._reload_succeeded = False
            raise
        if (config.web, config.log) != (self._config.web, self._config.log):
            _logger.warning("changes to web and log take effect at the next start")
        if (config.segments, config.metrics) != (self._config.segments, self._config.metrics):
            self._fleet = self._fleet_of(config)
        self._config = config
        await self._watch(targets)
        self._reload_succeeded, self._reloaded_at = True, time.time()
        _logger.info("configuration reloaded")

    def _fleet_of(self, config: Config) -> FleetCollector | None:
        directory = config.segments.directory
        if directory is None:
            return None
        # The reader of a directory stays: it knows what was counted in files that were deleted since.
        if self._reader is None or self._reader.directory != directory:
            self._reader = Reader(directory)
        return FleetCollector(
            self._reader,
            worker_label=config.metrics.worker_label,
            counters_per_worker=config.metrics.counters_per_worker,
        )

    async def _reload_quietly(self) -> None:
        try:
            await self.reload()
        except ConfigError as error:
            _logger.error("not reloaded, the old configuration stays: %s", error)  # noqa: TRY400 - the message says all

    async def _watch(self, targets: list[Target]) -> None:
        """Have exactly these databases probed, and those that are probed already without a break."""
        leaving = {target: running for target, running in self._probes.items() if target not in targets}
        for target, (_, task) in leaving.items():
            del self._probes[target]
            task.cancel()
        await asyncio.gather(*(task for _, task in leaving.values()), return_exceptions=True)
        for target in targets:
            if target not in self._probes:
                probe = Probe(target)
                self._probes[target] = probe, asyncio.create_task(probe.run())

    def collect(self) -> Iterator[Family]:
        """Yield all families; called in a thread."""
        if self._fleet is not None:
            yield from self._fleet.collect()
        statuses = [probe.status for probe, _ in list(self._probes.values())]
        yield from probe_families(statuses, time.monotonic())
        current = self._reload_succeeded and (self._web_config is None or self._web_config.ok)
        builder = Builder(RELOAD_METRICS)
        builder.add((), [("exporter_config_last_reload_successful", float(current))])
        builder.add((), [("exporter_config_last_reload_success_timestamp_seconds", self._reloaded_at)])
        yield from builder.families()


@dataclass(frozen=True, slots=True)
class _DSN:
    """The DSN of a database, read where it is kept each time it is asked for: a password changes."""

    database: Database
    env: Mapping[str, str] = field(repr=False, compare=False)

    def __call__(self) -> str:
        return resolve_dsn(self.database, self.env).reveal()


def _targets(config: Config, env: Mapping[str, str]) -> list[Target]:
    return [_target(database, env) for database in config.databases]


def _target(database: Database, env: Mapping[str, str]) -> Target:
    tls = database.tls
    dsn = _DSN(database, env)
    dsn()  # one that is missing is a fault of the configuration now, and only later the database's
    return Target(
        database.name,
        dsn,
        interval_seconds=database.interval_seconds,
        timeout_seconds=database.timeout_seconds,
        tls=None if tls.mode is None else Tls(tls.mode, tls.ca_file, tls.cert_file, tls.key_file),
        application_names_limit=database.application_names_limit,
        pools=database.pools,
    )
