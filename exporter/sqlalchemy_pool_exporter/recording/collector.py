# SPDX-License-Identifier: Apache-2.0
"""From blocks to metric families: the collector that a registry calls at each scrape.

With a directory it shows the pools of every process that shares it, as the sidecar does. Pools that are in no directory
it reads from the memory of this process.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

import sqlalchemy
from prometheus_client import REGISTRY
from prometheus_client.registry import Collector

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.about import hot_path, package_version
from sqlalchemy_pool_exporter.builder_cy import Builder
from sqlalchemy_pool_exporter.fleet_collector import OWNER, FleetCollector, without_names
from sqlalchemy_pool_exporter.metrics import (
    APPLICATION_METRICS,
    EXPORTER_METRICS,
    FLEET_METRICS,
    POOL_METRICS,
    PROCESS_METRICS,
)
from sqlalchemy_pool_exporter.pausing import pausing
from sqlalchemy_pool_exporter.segment import fork

from .at_fork import count_children
from .clashes import clashing
from .fleets import Fleets, joined
from .own_pools import OwnPools, Read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from sqlalchemy_pool_exporter.builder_cy import Kept
    from sqlalchemy_pool_exporter.exposition import Family
    from sqlalchemy_pool_exporter.segment.directory import Fleet
    from sqlalchemy_pool_exporter.segment.ledger import View

    from .recorder import Recorder

_logger = logging.getLogger("sqlalchemy_pool_exporter")

_MULTIPROCESS: Final = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")  # prometheus_client's own


class _Process:
    """What belongs to one process: a forked child must share neither with its parent.

    The lock serializes scrapes. No checkout ever takes it.
    """

    def __init__(self) -> None:
        self.id = os.getpid()
        self.lock = threading.Lock()
        self.fleets = Fleets()
        self.fleet_collector = FleetCollector(self.fleets, worker_label=True, counters_per_worker=False)


class PoolCollector(Collector):
    """Collects the pools that are shown in one registry.

    The mutable state is those pools, and what each log line has said already. ``instrument()`` and ``Handle.close()``
    call ``add()`` and ``remove()`` under one lock.

    Args:
        registry: the registry.
        fold: folds the counts of pools that are gone.
        names_elsewhere: returns the names of pools that this process shows in other registries alone.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        fold: Callable[[], None],
        names_elsewhere: Callable[[PoolCollector], set[str]] = lambda _: set(),
    ) -> None:
        self._registry = weakref.ref(registry)
        self._names_elsewhere = names_elsewhere
        self._fold = fold
        self.own = OwnPools()
        self._directories: set[Path] = set()  # of endpoints
        self._kept: Kept | None = None
        self._process = _Process()
        self._said: set[object] = set()

    def add(self, recorder: Recorder, *, is_alone: bool = False) -> None:
        """Show a pool, from the next scrape on; ``is_alone`` if it replaces the one of its name."""
        self._register()
        self.own.add(recorder, is_alone=is_alone)
        self._clashing()
        self._warn_of_multiprocess_mode()

    def add_directory(self, directory: Path) -> None:
        """Show all pools of a directory, for an endpoint of this process."""
        self._register()
        self._directories.add(directory)

    @property
    def names(self) -> set[str]:
        """The names of the pools of this process that are shown here."""
        return self.own.names

    def _register(self) -> None:
        registry = self._registry()
        # Check each time: an application that wants no default collectors may have unregistered all collectors.
        if registry is not None and self not in registry._collector_to_names:  # noqa: SLF001 - there is no other way to ask
            registry.register(self)

    def describe(self) -> Iterable[Family]:
        """Reserve no name: the application's own metric of such a name would fail, when it is made after our pools."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Yield fresh families of all pools; a pool that cannot be read is left out and counted."""
        self._enter_process()
        clashing_ = self._clashing()
        with self._process.lock, pausing():
            families = [family for family in self._families() if family.name not in clashing_]
        yield from families

    def fleet(self) -> Fleet | str:
        """Read the pools that ``collect()`` shows, for the board; return why there are none if there are none."""
        self._enter_process()
        with self._process.lock, pausing():
            self._fold()
            fleets = self._read_directories()
            read = self.own.read()
            of_directories: Fleet | None = None
            if fleets and not environment.is_on(environment.SIDECAR):
                every = fleets.read(beside=read.identities)
                of_directories = without_names(every, self._names_elsewhere(self))
            elif fleets and not read.pools:
                return f"a sidecar shows the pools of this application ({environment.SIDECAR} is set)"
            if of_directories is not None and not read.pools:
                return of_directories
            beside = of_directories.view if of_directories is not None else None
            own = self.own.fleet(read, beside, number=f"pid{self._process.id}")
            return own if of_directories is None else joined([own, of_directories])

    def ready_fleet(self) -> Fleet | None:
        """Read the pools whose readiness counts: as for the board, and of this process where a sidecar shows them."""
        if not environment.is_on(environment.SIDECAR):
            fleet = self.fleet()
            return None if isinstance(fleet, str) else fleet
        self._enter_process()
        with self._process.lock, pausing():
            every = Read([], self.own.every())
            return self.own.fleet(every, number=f"pid{self._process.id}")

    def _enter_process(self) -> None:
        fork.notice()
        if self._process.id != os.getpid():
            self._process = _Process()

    def _read_directories(self) -> Fleets:
        fleets = self._process.fleets
        directories = self.own.directories | self._directories
        fleets.add(directory for directory in directories if directory is not None)
        return fleets

    def _families(self) -> Iterator[Family]:
        began = time.perf_counter()
        self._fold()
        directories = self.own.directories | self._directories
        fleets = self._read_directories()
        read = self.own.read()
        if not self.own and not (fleets and self._directories):
            return
        is_silent = environment.is_on(environment.SIDECAR)
        metrics = (
            *POOL_METRICS,
            *EXPORTER_METRICS,
            *PROCESS_METRICS,
            *APPLICATION_METRICS,
            *(FLEET_METRICS if fleets else ()),
        )
        builder = Builder(metrics, owner=OWNER, known=self._kept)
        beside: View | None = None
        if fleets and not is_silent:
            beside = self._process.fleet_collector.add_to(
                builder, without=self._names_elsewhere(self), beside=read.identities
            )
        else:
            builder.add_info((), "exporter_build_info", versions())
        self.own.add_to(builder, read, beside, self._process.id)
        if not directories - {None}:
            self._add_forks(builder)
        builder.add((), [("exporter_scrape_errors_total", float(self.own.errors))])
        builder.add((), [("exporter_scrape_duration_seconds", time.perf_counter() - began)])
        self._kept = builder.kept
        yield from builder.families(with_empty=not is_silent)

    # -- what is not shown, said once

    def _say_once(self, key: object, message: str, *arguments: object) -> None:
        if key not in self._said:
            self._said.add(key)
            _logger.warning(message, *arguments)

    def _add_forks(self, builder: Builder) -> None:
        forked = count_children()
        builder.add((), [("exporter_forked_processes", float(forked))])
        if forked:
            self._say_once(
                "forks",
                "this process forked %d others since it instrumented its first pool, and its endpoint shows none of "
                "their pools: set %s for all of them, and every endpoint shows every process",
                forked,
                environment.DIRECTORY,
            )

    def _clashing(self) -> frozenset[str]:
        found = clashing(self._registry())
        if found:
            self._say_once(
                found,
                "not shown in this registry, because other metrics in it have their names: %s. To see them, pass a "
                "registry of its own to instrument(engine, registry=…), and to serve(), wsgi_app() or asgi_app()",
                ", ".join(sorted(found)),
            )
        return found

    def _warn_of_multiprocess_mode(self) -> None:
        if self._registry() is not REGISTRY or environment.is_on(environment.SIDECAR):
            return
        if any(name in os.environ for name in _MULTIPROCESS):
            self._say_once(
                "multiprocess mode",
                "with %s a /metrics page made by prometheus_client's MultiProcessCollector does not show pools. Mount "
                "wsgi_app() or asgi_app() beside it, or call serve(), with %s set for all processes; or pass the "
                "registry of that page to instrument(engine, registry=…)",
                _MULTIPROCESS[0],
                environment.DIRECTORY,
            )


def versions() -> dict[str, str]:
    """Return the labels of the metric ``exporter_build_info``."""
    return {
        "version": package_version(),
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
        "hot_path": hot_path(),
    }
