# SPDX-License-Identifier: Apache-2.0
"""Incidents staged on real servers, all at once, before a real Prometheus with our rules.

Each incident has a PostgreSQL, worker processes and a sidecar of its own, so that none disturbs another. Prometheus
tells the incidents apart by ``job``; the pool and the database have the same name as the job. To shorten the run, every
duration among the rules' thresholds is divided by ``FASTER``: a minute becomes two seconds.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy_pool_exporter.alerting import rules
from tests.support import runbook_run
from tests.support.alertmanager import Alertmanager
from tests.support.paths import ROOT
from tests.support.postgres_keeper import _account, _free_port, _programs
from tests.support.prometheus import Prometheus, scraping
from tests.support.sidecar import Sidecar
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FASTER = 30
# The waits of Alertmanager are not as short. A busy machine is late by seconds, which are minutes in this run, and the
# alert that names a cause would come after its symptom was told.
NOTIFIED_FASTER = 5

# The objective for the time of a checkout is not faster in this run. The incident of a storm has two workers with ten
# connections each, and a burst of a second must last for two. A busy machine holds a caller up for more than a second.
_CHANGED = {
    "wait_objective_seconds": "0.25",
    "storm_connections": "16",
    "storm_window": "12s",
    "stall_rest_seconds": "3",
}

Tier = tuple[str, str]  # the alert without its prefix, and the severity


def thresholds(faster: int = FASTER, changed: Mapping[str, str] = _CHANGED) -> dict[str, str]:
    """Return the thresholds of a run: every duration so many times shorter, but for those that are given."""
    values = {}
    for name, threshold in rules.thresholds(rules.source()).items():
        if name.endswith("_seconds"):
            values[name] = f"{float(threshold.default) / faster:g}"
        elif "duration" in threshold.expects:
            values[name] = f"{round(1000 * seconds(threshold.default) / faster)}ms"
    return values | dict(changed)


def seconds(duration: str) -> float:
    """Return the seconds of a duration as Prometheus writes them."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)(ms|[smhd])", duration))


class Database:
    """A PostgreSQL server with settings of its own, which can be restarted."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self._directory = directory
        self._account = _account()
        if self._account:
            os.chown(directory, self._account["user"], self._account["group"])
        self._bin = _programs(directory, self._account)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "16MB",
            "autovacuum": "off",
            "fsync": "off",
            **settings,
        }
        self.port = _free_port()
        initdb = self._spawn(
            "initdb", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-locale", "--no-sync"
        )
        assert initdb.wait(SECONDS) == 0, self._log.read_text()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [self._bin / program, "-D", self._directory / "data", *arguments],
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                **self._account,
            )

    def url(self, driver: str, role: str = "postgres") -> str:
        """Return SQLAlchemy's URL for a driver, or without one the DSN for asyncpg."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{role}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        self._process = self._spawn("postgres", "-p", str(self.port), *options)
        state = self._directory / "data" / "postmaster.pid"
        assert eventually(lambda: state.exists() and "ready" in state.read_text()), self._log.read_text()

    def stop(self) -> None:
        """End all sessions and the server."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class Worker:
    """A worker process of an application; see ``incident_worker``."""

    def __init__(self, name: str, url: str, pool: Mapping[str, Any], directory: Path) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.incident_worker",
                json.dumps({"url": url, "name": name, "pool": pool}),
            ],
            cwd=ROOT,
            env={**os.environ, "SQLALCHEMY_POOL_EXPORTER_DIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.pid = self._process.pid

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
        self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self.kill()


class Stage:
    """The server, the workers and the sidecar of one incident."""

    def __init__(self, incident: Incident, exit_stack: ExitStack) -> None:
        self.incident, self._exit_stack = incident, exit_stack
        self.directory = Path(exit_stack.enter_context(TemporaryDirectory(prefix="pool-incident-")))
        self.directory.chmod(0o755)
        for part in ("database", "pools"):
            (self.directory / part).mkdir()
        self.database = exit_stack.enter_context(Database(self.directory / "database", incident.settings))
        incident.prepare(self.database)
        config = self.directory / "exporter.yaml"
        name, dsn = incident.name, self.database.url("")
        config.write_text(
            json.dumps(
                {
                    "segments": {"directory": str(self.directory / "pools")},
                    "databases": [
                        {
                            "name": name,
                            "dsn": dsn,
                            "interval_seconds": incident.probe_seconds,
                            "timeout_seconds": incident.probe_seconds,
                        }
                    ],
                }
            )
        )
        self.sidecar = exit_stack.enter_context(Sidecar("--config", config))
        self.workers: list[Worker] = []
        self.gone: list[Worker] = []
        self._created = time.monotonic()
        self.starting_seconds = 0.0  # from the sidecar's first scrape until it saw all workers

    def hire(self, count: int | None = None) -> None:
        """Start ``count`` more workers, by default all of the incident's, and wait until the sidecar sees them."""
        incident = self.incident
        url = self.database.url(incident.driver, incident.role)
        for _ in range(incident.workers if count is None else count):
            worker = Worker(incident.name, url, incident.pool, self.directory / "pools")
            self.workers.append(self._exit_stack.enter_context(worker))
        assert eventually(
            lambda: self.sidecar.value("exporter_workers", state="live") == len(self.workers),
            # Sixty processes start at once.
            seconds=4 * SECONDS,
            poll_seconds=0.2,
        ), f"the workers of {incident.name} do not start"
        self.starting_seconds = self.starting_seconds or time.monotonic() - self._created

    def break_exporter(self) -> None:
        """Make the sidecar reload an invalid configuration, and put a file that is no segment into its directory."""
        (self.directory / "exporter.yaml").write_text("databases: {}")
        (self.directory / "pools" / "worker-900").write_bytes(b"not ours" * 1024)
        self.sidecar.send(signal.SIGHUP)

    def kill_one(self, which: int = -1) -> None:
        """Kill a worker, by default the youngest."""
        self.gone.append(self.workers.pop(which))
        self.gone[-1].kill()

    def load(self, callers: int, act: str = "query", *, seconds: float = 0.02, pause: float = 0.1) -> None:
        """Put a load on each worker."""
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
        workers: how many processes have the pool.
        is_configured: the fault is in the configuration, so it exists from the start of the workers.
        prepare: changes the server before the workers start.
        probe_seconds: interval and time limit of the probes.
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
    probe_seconds: float = 1.0


class Played:
    """A finished run: Prometheus, which still answers queries, and Unix times.

    ``start`` and ``end`` are the run's. ``hired`` has the start of each incident's first worker, ``began`` that of each
    incident. ``answers`` has what the runbooks put out.
    """

    def __init__(self, prometheus: Prometheus, alertmanager: Alertmanager, start: float) -> None:
        self.prometheus = prometheus
        self.alertmanager = alertmanager
        self.start = start
        self.end = start
        self.hired: dict[str, float] = {}
        self.began: dict[str, float] = {}
        self.answers: runbook_run.Answers = {}

    def fired(self, name: str) -> dict[Tier, list[float]]:
        """Return the alerts that fired for an incident, each with the Unix times at which it did."""
        fired: dict[Tier, set[float]] = {}
        for label in ("job", "database"):
            query = f'ALERTS{{alertstate="firing",{label}="{name}"}}'
            for series in self.prometheus.query_range(query, self.start, self.end, 1.0):
                tier = series.labels["alertname"].removeprefix("SQLAlchemyPool"), series.labels["severity"]
                fired.setdefault(tier, set()).update(when for when, _ in series.points)
        return {tier: sorted(times) for tier, times in fired.items()}

    def pages(self, name: str) -> set[str]:
        """Return the alerts, without their prefix, that the pager got for an incident."""
        return {
            labels["alertname"].removeprefix("SQLAlchemyPool")
            for labels in self.alertmanager.pages()
            if name in {labels.get("job"), labels.get("database")}
        }


@contextmanager
def play(
    incidents: list[Incident],
    directory: Path,
    *,
    faster: int = FASTER,
    changed: Mapping[str, str] = _CHANGED,
) -> Iterator[Played]:
    """Stage all incidents at once, and yield the finished run while Prometheus still runs."""
    rendered = directory / rules.FILE
    rendered.write_text(rules.render(rules.source(), thresholds(faster, changed)), "utf-8")
    with ExitStack() as stack:
        with ExitStack() as stages_stack, ThreadPoolExecutor(len(incidents) + 1) as executor:
            lock = threading.Lock()

            def stage_of(incident: Incident) -> Stage:
                own = ExitStack()
                with lock:
                    stages_stack.push(own)
                return Stage(incident, own)

            stages = list(executor.map(stage_of, incidents))
            targets = {
                incident.name: [stage.sidecar.url.removeprefix("http://")]
                for incident, stage in zip(incidents, stages, strict=True)
            }
            alertmanager = stack.enter_context(
                Alertmanager(directory / "alertmanager", faster=NOTIFIED_FASTER)
            )
            config = scraping(targets, rules=[rendered], alertmanagers=[alertmanager.address])
            prometheus = stack.enter_context(Prometheus(config, directory / "prometheus"))
            played = Played(prometheus, alertmanager, time.time())

            def hire(incident: Incident, stage: Stage) -> None:
                played.hired[incident.name] = time.time()
                stage.hire()

            def act(incident: Incident, stage: Stage) -> None:
                incident.play(stage, lambda: played.began.setdefault(incident.name, time.time()))

            # No incident begins before all workers have started: thirty processes that start slow each other down.
            list(executor.map(hire, incidents, stages))
            by_name = {incident.name: stage for incident, stage in zip(incidents, stages, strict=True)}
            over = threading.Event()
            reading = executor.submit(runbook_run.follow, by_name, prometheus, over, directory, faster=faster)
            try:
                list(executor.map(act, incidents, stages))
            finally:
                over.set()
            played.end = time.time()
            played.answers = reading.result()
        yield played
