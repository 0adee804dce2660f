# SPDX-License-Identifier: Apache-2.0
"""The sidecar's process: start, reload, shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.board.moment import Moments
from sqlalchemy_pool_exporter.builder_cy import Builder
from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.metrics import OTLP_METRICS, RELOAD_METRICS
from sqlalchemy_pool_exporter.segment.directory import Reader

from .probe.families import families as probe_families
from .probe.families import pool_families
from .probe.probe import Probe
from .web import app as web
from .web.config import WebConfig
from .web.daemon_thread import run_in_daemon_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy_pool_exporter.exposition import Family
    from sqlalchemy_pool_exporter.segment.directory import Fleet
    from sqlalchemy_pool_exporter.segment.snapshot import Value

    from .config import Config, Database
    from .otlp.pusher import Pusher
    from .otlp.settings import OTLP
    from .probe.sessions import ServerSide

_logger = logging.getLogger("sqlalchemy_pool_exporter")


class Sidecar:
    """Serves the metrics of the segments and the probed databases, until it is stopped.

    Mutable state: the configuration in force, the collector and the probes made from it, and the result of the last
    reload. A reload replaces all of these; the web server stays.

    Args:
        config: the first configuration.
        load: reads the configuration again, or raises ConfigError.
    """

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        self._config, self._load = config, load
        self._reader: Reader | None = None
        self._fleet = self._make_fleet(config)
        self._pusher: Pusher | None = None
        # One collection at a time, of scrapes and pushes; only threads that collect wait for it.
        self._collecting = threading.Lock()
        self._probes: dict[Database, tuple[Probe, asyncio.Task[None]]] = {}
        self._reload_succeeded, self._reloaded_at = True, time.time()
        self._web_config: WebConfig | None = None
        self._stop, self._reloading = asyncio.Event(), asyncio.Lock()

    async def run(self, started: Callable[[str], object] = lambda _url: None) -> None:
        """Serve until SIGTERM, SIGINT or `stop()`; call ``started`` with the URL.

        Raises:
            ConfigError: the configuration of the web server is wrong.
            EndpointError: it cannot listen on the configured address.
        """
        with self._signals():
            await self._serve(started)

    async def _serve(self, started: Callable[[str], object]) -> None:
        settings = self._config.web
        self._web_config = web_config = WebConfig(settings.config_file) if settings.config_file else None
        moments = Moments(self.read_fleet, self.servers)
        application = web.application(self, settings, reload=self.reload, moments=moments)
        listener = await web.start(application, settings, web_config=web_config)
        try:
            await self._probe_exactly(self._config.databases)
            await self._push_to(self._config.otlp)
            _logger.info("listening on %s", listener.url)
            started(listener.url)
            await self._stop.wait()
            _logger.info("stopping")
        finally:
            await listener.close()
            await self._push_to(None)
            await self._probe_exactly(())

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle signals from before the start to after the end: an unhandled SIGHUP ends the process."""
        loop = asyncio.get_running_loop()
        reloads: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references to tasks

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
        """Let `run()` shut down and return."""
        self._stop.set()

    async def reload(self) -> None:
        """Load the configuration again and apply it, except ``web`` and ``log``, which need a restart.

        Raises:
            ConfigError: the new configuration is wrong; the old one stays in force.
        """
        # One reload at a time, or an older configuration could be applied after a newer one.
        async with self._reloading:
            await self._reload()

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(self._load)
            self._check_web()
        except ConfigError:
            self._reload_succeeded = False
            raise
        if (config.web, config.log) != (self._config.web, self._config.log):
            _logger.warning("changes to web and log take effect at the next start")
        if (config.segments, config.metrics) != (self._config.segments, self._config.metrics):
            self._fleet = self._make_fleet(config)
        self._config = config
        await self._probe_exactly(config.databases)
        await self._push_to(config.otlp)
        self._reload_succeeded, self._reloaded_at = True, time.time()
        _logger.info("configuration reloaded")

    def _check_web(self) -> None:
        """Raise the reason if the web configuration at work is older than its file."""
        if self._web_config is not None:
            self._web_config.current()
            if self._web_config.refusal is not None:
                raise self._web_config.refusal

    def _make_fleet(self, config: Config) -> FleetCollector | None:
        directory = config.segments.directory
        if directory is None:
            return None
        # The reader of a directory is kept, because it holds the counts of files that were deleted.
        if self._reader is None or self._reader.directory != directory:
            self._reader = Reader(directory)
        return FleetCollector(
            self._reader,
            worker_label=config.metrics.worker_label,
            counters_per_worker=config.metrics.counters_per_worker,
            servers=self.servers,
            buckets=config.metrics.buckets,
        )

    async def _reload_quietly(self) -> None:
        try:
            await self.reload()
        except ConfigError as error:
            _logger.error("not reloaded, the old configuration stays: %s", error)  # noqa: TRY400 - the message says all

    async def _probe_exactly(self, databases: Sequence[Database]) -> None:
        """Stop the probes of all other databases and start those that are missing; the rest continue undisturbed."""
        stopping = {
            database: running for database, running in self._probes.items() if database not in databases
        }
        for database, (_, task) in stopping.items():
            del self._probes[database]
            task.cancel()
        await asyncio.gather(*(task for _, task in stopping.values()), return_exceptions=True)
        for database in databases:
            if database not in self._probes:
                probe = Probe(database)
                self._probes[database] = probe, asyncio.create_task(probe.run())

    async def _push_to(self, settings: OTLP | None) -> None:
        """Push over OTLP from now on as these settings say, or no more."""
        before = self._pusher
        if before is not None and before.settings == settings:
            return
        if before is not None:
            self._pusher = None
            await run_in_daemon_thread(before.stop)
        if settings is not None and settings.endpoint is not None:
            # Imported only where it is needed: it comes with an extra.
            from .otlp.pusher import Pusher  # noqa: PLC0415

            self._pusher = Pusher(
                settings, lambda: list(self.collect()), None if before is None else before.status
            )
            self._pusher.start()

    def read_fleet(self) -> Fleet | str:
        """Read all processes for the board; called in a thread, and never during ``collect()``."""
        if self._config.segments.directory is None or self._reader is None:
            return "no directory of applications is configured (segments.directory)"
        with self._collecting:
            return self._reader.read()

    def servers(self) -> list[ServerSide]:
        """Return what the last probes said of single sessions."""
        now = time.monotonic()
        return [probe.status.server_side(now) for probe, _ in list(self._probes.values())]

    def collect(self) -> Iterator[Family]:
        """Yield all metric families that are shown; called in a thread."""
        dropped = self._config.metrics.dropped
        with self._collecting:
            families = list(self._families())
        return (family for family in families if family.name not in dropped)

    def _families(self) -> Iterator[Family]:
        collector, labels = self._fleet, None
        # First: whoever held a connection when a server was asked holds it still, if the segments say so afterwards.
        statuses = [probe.status for probe, _ in list(self._probes.values())]
        servers = self.servers()
        if collector is not None:
            yield from collector.collect()
            labels = collector.labels_by_name
            if collector.fleet is not None:
                yield from pool_families(servers, collector.fleet)
        yield from probe_families(statuses, time.monotonic(), labels)
        current = self._reload_succeeded and (self._web_config is None or self._web_config.ok)
        builder = Builder(RELOAD_METRICS)
        builder.add((), [("exporter_config_last_reload_successful", float(current))])
        builder.add((), [("exporter_config_last_reload_success_timestamp_seconds", self._reloaded_at)])
        yield from builder.families()
        pusher = self._pusher
        if pusher is not None:
            builder = Builder(OTLP_METRICS)
            status = pusher.status
            pushes: Value = {"success": float(status.succeeded), "failure": float(status.failed)}
            builder.add((), [("exporter_otlp_pushes_total", pushes)])
            builder.add((), [("exporter_otlp_last_success_timestamp_seconds", status.last_success)])
            yield from builder.families()
