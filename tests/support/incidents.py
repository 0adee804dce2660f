# SPDX-License-Identifier: Apache-2.0
"""Incidents that are staged on real servers: what each consists of, and the servers and processes of one.

Each incident has a PostgreSQL, worker processes and a sidecar of its own, so that none disturbs another. To shorten the
run, every duration among the rules' thresholds is divided by the same number: 15 on a machine that has nothing else to
do, where a minute is four seconds. All minutes here are such minutes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy_pool_exporter.alerting import rules
from tests.support.paths import ROOT
from tests.support.sidecar import Sidecar
from tests.support.staged_database import Database
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack

# The interval of scrapes, rules and probes. Below two seconds a busy machine is late for many, and series have gaps.
INTERVAL_MINUTES: Final = 0.5

# Thresholds that differ from the defaults; durations are divided like all others. A rule can be late by more than a
# scrape. The incident of a storm has two workers with ten connections each, and its burst of two seconds must last for
# the rule's `for`.
CHANGED: Final = {
    "gap_window": "5m",
    "storm_connections": "16",
    "storm_window": "6m",
    "stall_rest_seconds": "75",
}
# Waits are not shorter in a run: on a busy machine a connect takes 250 ms instead of 10 ms.
OBJECTIVE: Final = "1"
# Nor is the minute for which the largest lag of a loop is shown, and a busy machine stops a process for a second.
LAG: Final = "5"

Tier = tuple[str, str]  # the alert without its prefix, and the severity


class Minutes(float):
    """An option of a pool in minutes, which the pool gets in seconds."""


def thresholds(faster: float, changed: Mapping[str, str] = CHANGED) -> dict[str, str]:
    """Return the thresholds of a run whose time passes so many times faster."""
    values = {}
    for name, threshold in rules.thresholds(rules.source()).items():
        value = changed.get(name, threshold.default)
        if name.endswith("_seconds"):
            values[name] = f"{float(value) / faster:g}"
        elif "duration" in threshold.expects:
            values[name] = f"{round(1000 * seconds(value) / faster)}ms"
        elif name in changed:
            values[name] = value
    return values | {"wait_objective_seconds": OBJECTIVE, "loop_lag_seconds": LAG}


def seconds(duration: str) -> float:
    """Return the seconds of a duration as Prometheus writes them."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)(ms|[smhd])", duration))


class Worker:
    """A worker process of an application; see ``incident_worker``. ``log`` is the file that it logs to."""

    def __init__(self, incident: Incident, url: str, pool: Mapping[str, Any], directory: Path) -> None:
        options = {
            "url": url,
            "name": incident.name,
            "pool": pool,
            "acts": incident.acts,
            "leak_after": incident.leak_after,
            "sites": incident.sites,
        }
        with NamedTemporaryFile(dir=directory.parent, prefix="worker-log-", delete=False) as file:
            self.log = Path(file.name)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.incident_worker", json.dumps(options)],
                cwd=ROOT,
                env={
                    **os.environ,
                    "SQLALCHEMY_POOL_EXPORTER_DIR": str(directory),
                    **incident.environment,
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                text=True,
            )
        self.pid = self._process.pid

    def __repr__(self) -> str:
        status = self._process.poll()
        return f"<Worker {self.pid} {'runs' if status is None else f'ended with {status}'}>"

    def load(self, **load: Any) -> None:
        """Replace the load."""
        assert self._process.stdin is not None
        print(json.dumps(load), file=self._process.stdin, flush=True)

    def stop(self) -> None:
        """Stop the process with SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # a load that it had not read
            self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self.kill()


class Stage:
    """The server, the workers and the sidecar of one incident."""

    sidecar: Sidecar

    def __init__(self, incident: Incident, exit_stack: ExitStack) -> None:
        self.incident, self._exit_stack = incident, exit_stack
        directory = TemporaryDirectory(prefix="pool-incident-", ignore_cleanup_errors=True)
        self.directory = Path(exit_stack.enter_context(directory))
        self.directory.chmod(0o755)
        for part in ("database", "pools"):
            (self.directory / part).mkdir()
        self.database = exit_stack.enter_context(Database(self.directory / "database", incident.settings))
        incident.prepare(self.database)
        self.workers: list[Worker] = []
        self.gone: list[Worker] = []
        self.starting_seconds = 0.0  # from the sidecar's first scrape until it saw all workers
        self.hired = 0.0  # Unix time

    def open(self, faster: float) -> None:
        """Start the sidecar, for a run whose time passes so many times faster."""
        self.faster = faster
        self._opened = time.monotonic()
        config = self.directory / "exporter.yaml"
        probing = {
            "interval_seconds": self.seconds(INTERVAL_MINUTES),
            "timeout_seconds": self.seconds(INTERVAL_MINUTES),
        }
        database = {"name": self.incident.name, "dsn": self.database.url(""), **probing}
        segments = {"directory": str(self.directory / "pools")}
        config.write_text(json.dumps({"segments": segments, "databases": [database]}))
        self.sidecar = self._exit_stack.enter_context(Sidecar("--config", config))

    def seconds(self, minutes: float) -> float:
        """Return how many seconds so many minutes last."""
        return 60 * minutes / self.faster

    def hire(self, count: int) -> None:
        """Start so many more workers, and wait until the sidecar sees them."""
        incident = self.incident
        url = self.database.url(incident.driver, incident.role)
        pool = {
            name: round(self.seconds(option)) if isinstance(option, Minutes) else option
            for name, option in incident.pool.items()
        }
        self.hired = self.hired or time.time()
        for _ in range(count):
            worker = Worker(incident, url, pool, self.directory / "pools")
            self.workers.append(self._exit_stack.enter_context(worker))

        def all_seen() -> bool:
            with suppress(OSError):  # the sidecar answers too late
                return self.sidecar.value("exporter_workers", state="live") == len(self.workers)
            return False

        # Sixty processes start at once.
        assert eventually(all_seen, seconds=4 * SECONDS, poll_seconds=0.2), (
            f"not all are seen of {self.workers}: {''.join(self.sidecar.log)}"
        )
        self.starting_seconds = self.starting_seconds or time.monotonic() - self._opened

    def last(self, minutes: float) -> None:
        """Let so many minutes pass."""
        time.sleep(self.seconds(minutes))

    def break_exporter(self) -> None:
        """Make the sidecar reload an invalid configuration, and put a file that is no segment into its directory."""
        (self.directory / "exporter.yaml").write_text("databases: {}")
        (self.directory / "pools" / "worker-900").write_bytes(b"not ours" * 1024)
        self.sidecar.send(signal.SIGHUP)

    def kill_one(self, which: int = -1) -> None:
        """Kill a worker, by default the youngest."""
        self.gone.append(self.workers.pop(which))
        self.gone[-1].kill()

    def load(self, callers: int, act: str = "query", *, seconds: float = 0.02, pause: float = 1.0) -> None:
        """Put a load on each worker, by default a small one: thirty incidents share the machine."""
        for worker in self.workers:
            worker.load(callers=callers, act=act, seconds=seconds, pause=pause)


def _nothing(_database: Database) -> None:
    """Leave a server as it is."""


@dataclass(frozen=True, slots=True)
class Incident:
    """A fault to stage, and the alerts that must and may fire for it.

    Args:
        name: of its job, its pool and its database.
        what: description of the fault.
        play: puts load on the stage; calls its second argument at the moment from which alerts are due, and returns
            when the incident is over.
        expected: alerts that must fire, each with the thresholds that add up to the longest it may take.
        allowed: alerts that may fire, each with the reason.
        settings: of the server.
        pool: arguments of ``create_engine()``.
        driver: what SQLAlchemy connects with, in the name of ``role``.
        workers: how many processes have the pool from the start.
        is_configured: the fault is in the configuration, so it exists from the start of the workers.
        prepare: changes the server before the workers start.
        acts: module with the functions that the callers call, each with the engine and the seconds; without one, those
            of ``incident_worker``.
        leak_after: of the pool, in seconds.
        sites: of ``instrument()``; True where the culprit has few of the pool's connections and is to be named.
        environment: of the workers.
    """

    name: str
    what: str
    play: Callable[[Stage, Callable[[], object]], None]
    expected: Mapping[Tier, tuple[str, ...]] = field(default_factory=dict)
    allowed: Mapping[Tier, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    pool: Mapping[str, Any] = field(default_factory=dict)
    driver: str = "psycopg"
    role: str = "postgres"
    workers: int = 2
    is_configured: bool = False
    prepare: Callable[[Database], None] = _nothing
    acts: str = ""
    leak_after: float = 30.0
    sites: bool | float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
