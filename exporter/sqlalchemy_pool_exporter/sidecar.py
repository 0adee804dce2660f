# SPDX-License-Identifier: Apache-2.0
"""The sidecar's life: start, reload, ordered end."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING, Any

from . import probe, web
from .about import package_version
from .catalogue import RELOAD_METRICS
from .collector import add_value, family
from .config import Config, Database, resolve_dsn
from .errors import ConfigError
from .fleet_collector import FleetCollector
from .webconfig import WebConfig

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
        self._fleet = _fleet(self._config)
        self._probes: dict[probe.Target, tuple[probe.Probe, asyncio.Task[None]]] = {}
        self._targets = _targets(self._config, env)
        self._reload_succeeded, self._reloaded_at = True, time.time()
        self._web_config: WebConfig | None = None
        self._stop = asyncio.Event()

    async def run(self, started: Callable[[str], object] = lambda _url: None) -> None:
        """Serve until SIGTERM, SIGINT or `stop()`; ``started`` is told the URL.

        Raises:
            ConfigError: the configuration of the web server is wrong.
            EndpointError: it cannot listen where it was told to.
        """
        settings = self._config.web
        self._web_config = web_config = WebConfig(settings.config_file) if settings.config_file else None
        application = web.application(self, settings, version=package_version(), reload=self.reload)
        endpoint = await web.start(application, settings, web_config=web_config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(self._reload_quietly()))
        try:
            await self._watch(self._targets)
            _logger.info("listening on %s", endpoint.url)
            started(endpoint.url)
            await self._stop.wait()
            _logger.info("stopping")
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
            await endpoint.close()
            await self._watch([])

    def stop(self) -> None:
        """End `run()`, in order."""
        self._stop.set()

    async def reload(self) -> None:
        """Read the configuration again and put it to work; what it says of ``web`` and ``log`` needs a new start.

        Raises:
            ConfigError: it is wrong; the old one stays.
        """
        try:
            config = await asyncio.to_thread(self._load)
            targets = _targets(config, self._env)
        except ConfigError:
            self._reload_succeeded = False
            raise
        if (config.web, config.log) != (self._config.web, self._config.log):
            _logger.warning("changes to web and log take effect at the next start")
        if (config.segments, config.metrics) != (self._config.segments, self._config.metrics):
            self._fleet = _fleet(config)
        self._config = config
        await self._watch(targets)
        self._reload_succeeded, self._reloaded_at = True, time.time()
        _logger.info("configuration reloaded")

    async def _reload_quietly(self) -> None:
        try:
            await self.reload()
        except ConfigError as error:
            _logger.error("not reloaded, the old configuration stays: %s", error)  # noqa: TRY400 - the message says all

    async def _watch(self, targets: list[probe.Target]) -> None:
        """Have exactly these databases probed, and those that are probed already without a break."""
        leaving = {target: running for target, running in self._probes.items() if target not in targets}
        for target, (_, task) in leaving.items():
            del self._probes[target]
            task.cancel()
        await asyncio.gather(*(task for _, task in leaving.values()), return_exceptions=True)
        for target in targets:
            if target not in self._probes:
                watching = probe.Probe(target)
                self._probes[target] = watching, asyncio.create_task(watching.run())

    def collect(self) -> Iterator[Family]:
        """Yield all families; called in a thread."""
        if self._fleet is not None:
            yield from self._fleet.collect()
        snapshots = [watching.snapshot for watching, _ in list(self._probes.values())]
        yield from probe.families(snapshots, time.monotonic())
        current = self._reload_succeeded and (self._web_config is None or self._web_config.ok)
        values = (float(current), self._reloaded_at)
        for metric, value in zip(RELOAD_METRICS, values, strict=True):
            reloaded: Any = family(metric)
            add_value(reloaded, [], value)
            yield reloaded


def _fleet(config: Config) -> FleetCollector | None:
    if config.segments.directory is None:
        return None
    return FleetCollector(
        config.segments.directory,
        worker_label=config.metrics.worker_label,
        counters_per_worker=config.metrics.counters_per_worker,
    )


def _targets(config: Config, env: Mapping[str, str]) -> list[probe.Target]:
    return [_target(database, env) for database in config.databases]


def _target(database: Database, env: Mapping[str, str]) -> probe.Target:
    tls = database.tls
    dsn = resolve_dsn(database, env)
    return probe.Target(
        database.name,
        dsn.reveal(),
        interval_seconds=database.interval_seconds,
        timeout_seconds=database.timeout_seconds,
        tls=None if tls.mode is None else probe.Tls(tls.mode, tls.ca_file, tls.cert_file, tls.key_file),
        application_names_limit=database.application_names_limit,
    )
