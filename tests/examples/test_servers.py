# SPDX-License-Identifier: Apache-2.0
"""The examples in real multi-process servers, on a real PostgreSQL, seen through a real sidecar."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.support.paths import ROOT
from tests.support.sidecar import Sidecar
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.pg import Server as DatabaseServer

WORKERS = 2

GUNICORN = ("-m", "gunicorn", "--workers", str(WORKERS), "--bind", "127.0.0.1:0")
WSGI, ASGI = "examples.servers.wsgi:app", "examples.servers.asgi:app"
# A worker that gets SIGTERM while it starts loses it: until uWSGI has set the worker's own handlers, the master's run.
# uWSGI's master would wait for it for 60 s.
UWSGI = (
    *(str(Path(sys.executable).with_name("pyuwsgi")), "--http-socket", "127.0.0.1:0", "--die-on-term"),
    *("--disable-logging", "--master", "--worker-reload-mercy", "5"),
)
UWSGI_SERVER = (*UWSGI, "--processes", str(WORKERS), "--module", WSGI)
# Arguments of Python, driver, and number of parents: with --preload, and in uWSGI, the parent has a pool, too.
SERVERS = {
    "gunicorn sync": ((*GUNICORN, WSGI), "psycopg", 0),
    "gunicorn sync preload": ((*GUNICORN, "--preload", WSGI), "psycopg", 1),
    "gunicorn gthread": (
        (*GUNICORN, "--worker-class", "gthread", "--threads", "2", WSGI),
        "psycopg",
        0,
    ),
    "gunicorn gthread preload": (
        (*GUNICORN, "--worker-class", "gthread", "--threads", "2", "--preload", WSGI),
        "psycopg",
        1,
    ),
    "gunicorn uvicorn": (
        (*GUNICORN, "--worker-class", "uvicorn_worker.UvicornWorker", ASGI),
        "asyncpg",
        0,
    ),
    "gunicorn uvicorn preload": (
        (*GUNICORN, "--worker-class", "uvicorn_worker.UvicornWorker", "--preload", ASGI),
        "asyncpg",
        1,
    ),
    "uwsgi": (UWSGI_SERVER, "psycopg", 1),
    "uwsgi lazy": ((*UWSGI_SERVER, "--lazy-apps"), "psycopg", 0),
    "uvicorn": (("-m", "uvicorn", "--workers", str(WORKERS), "--port", "0", ASGI), "asyncpg", 0),
}

MORE = (
    "gunicorn sync preload",
    "gunicorn gthread",
    "gunicorn uvicorn preload",
    "uwsgi lazy",
)  # combinations of features that other entries test


class Server:
    """A server in its own process group; its output is shown if a test fails."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._said: list[str] = []
        self._has_said = threading.Condition()
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            sys.stdout.write(line)
            with self._has_said:
                self._said.append(line)
                self._has_said.notify_all()

    @property
    def said(self) -> str:
        """Its output until now."""
        return "".join(self._said)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches a pattern."""
        with self._has_said:
            match = self._has_said.wait_for(lambda: re.search(pattern, "".join(self._said)), SECONDS)
        assert match, f"it did not say {pattern!r}"
        return match

    def url(self) -> str:
        """Wait until the server listens, and return its URL."""
        return f"http://{self.wait_for(r'(?:Listening at|[Rr]unning on|TCP address).*?([0-9.]+:[0-9]+)')[1]}"

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it with all its processes at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(SECONDS)
        finally:
            # Kill what the server left running; if it ended cleanly, the process group is gone.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._listening.join()
            assert self._process.stdout is not None
            self._process.stdout.close()


def _ask(url: str) -> int:
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:  # noqa: S310 - a URL of our server
        return int(answer.read())


class Tally:
    """The test's own count of the checkouts."""

    def __init__(self, ask: Callable[[], int]) -> None:
        self._ask = ask
        self.by_process: Counter[int] = Counter()

    @property
    def total(self) -> int:
        return self.by_process.total()

    def ask_until(self, condition: Callable[[set[int]], bool]) -> None:
        """Send requests until the set of processes that answered meets the condition."""
        seen: set[int] = set()

        def holds() -> bool:
            if condition(seen):
                return True
            process = self._ask()
            seen.add(process)
            self.by_process[process] += 1
            return False

        assert eventually(holds, poll_seconds=0.0), seen


def _holds(
    tally: Tally, sidecar: Sidecar, database: DatabaseServer, name: str, *, live: int = WORKERS, parents: int
) -> None:
    """Assert that the sidecar's metrics agree with the tally and the database server."""
    samples = sidecar.samples()

    def value(key: str, **labels: str) -> float:
        return samples["sqlalchemy_pool_" + key, frozenset({"pool": "orders", **labels}.items())]

    assert value("checkouts_total") == value("checkins_total") == tally.total
    assert value("hold_seconds_count") == tally.total
    workers = {dict(labels)["worker"] for key, labels in samples if key == "sqlalchemy_pool_connections"}
    assert len(workers) == live
    assert value("capacity") == 3 * live
    states = [
        value("connections", worker=worker, state=state) for worker in workers for state in ("in_use", "idle")
    ]
    assert eventually(lambda: database.count(name) == sum(states))
    assert sum(value("untracked_connections", worker=worker) for worker in workers) == 0
    assert sidecar.value("exporter_workers", state="live") == live
    assert sidecar.value("exporter_workers", state="parent") == parents


# With the oldest dependencies: a pool in the parent, processes that C forks, and asyncpg.
WITH_THE_OLDEST = ("gunicorn gthread preload", "uwsgi", "uvicorn")


def _marks(what: str) -> list[pytest.MarkDecorator]:
    if what in MORE:
        return [pytest.mark.soak]
    return [] if what in WITH_THE_OLDEST else [pytest.mark.newest]


@pytest.mark.parametrize("what", [pytest.param(what, marks=_marks(what)) for what in SERVERS])
def test_server(
    what: str,
    server: DatabaseServer,
    application_name: str,
    tmp_path: Path,
) -> None:
    """Each worker has its own lease, a killed worker's counts are not lost, and the sums equal the tally."""
    arguments, driver, parents = SERVERS[what]
    environment = {
        "DATABASE_URL": server.url(f"postgresql+{driver}", application_name=application_name),
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(tmp_path),
    }
    with Sidecar("--directory", tmp_path) as sidecar, Server(*arguments, **environment) as served:
        url = served.url()
        if what == "uvicorn":  # it listens before its workers are ready
            served.wait_for(rf"(?s)(startup complete.*){{{WORKERS}}}")
        tally = Tally(lambda: _ask(url))
        tally.ask_until(lambda seen: len(seen) == WORKERS)
        _holds(tally, sidecar, server, application_name, parents=parents)
        killed = min(tally.by_process)
        os.kill(killed, signal.SIGKILL)
        tally.ask_until(lambda seen: len(seen - {killed}) == WORKERS)
        assert eventually(lambda: sidecar.value("exporter_workers", state="live") == WORKERS)
        _holds(tally, sidecar, server, application_name, parents=parents)
    assert _files_in(tmp_path) == WORKERS + parents


def test_hypercorn(server: DatabaseServer, application_name: str, tmp_path: Path) -> None:
    """Hypercorn ends if one of its workers is killed; started again, its counts go on from there."""
    pytest.importorskip("hypercorn")
    environment = {
        "DATABASE_URL": server.url("postgresql+asyncpg", application_name=application_name),
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(tmp_path),
    }
    arguments = ("-m", "hypercorn", "--workers", str(WORKERS), "--bind", "127.0.0.1:0", ASGI)
    by_process: Counter[int] = Counter()
    with Sidecar("--directory", tmp_path) as sidecar:
        for _ in range(2):
            with Server(*arguments, **environment) as served:
                url = served.url()
                tally = Tally(lambda url=url: _ask(url))  # type: ignore[misc]
                before = {*by_process}
                tally.by_process = by_process
                tally.ask_until(lambda seen: len(seen) == WORKERS)
                # Two lives of each file: only the workers that live have states.
                _holds(tally, sidecar, server, application_name, parents=0)
                # Not simply the largest number: the system may begin anew with small ones.
                os.kill(max(tally.by_process.keys() - before), signal.SIGKILL)
                assert eventually(lambda served=served: served.ended)  # type: ignore[misc]
    assert _files_in(tmp_path) == WORKERS


def test_uwsgi_under_load(server: DatabaseServer, application_name: str, tmp_path: Path) -> None:
    """UWSGI's workers, forked in C, count each of hundreds of concurrent checkouts, also after one was killed."""
    environment = {
        "DATABASE_URL": server.url("postgresql+psycopg", application_name=application_name),
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(tmp_path),
    }
    arguments = (*UWSGI_SERVER, "--processes", "3", "--threads", "4")
    with Sidecar("--directory", tmp_path) as sidecar, Server(*arguments, **environment) as served:
        url = served.url()
        # As with --lazy-apps: each worker counts before it has been asked for anything.
        assert eventually(lambda: sidecar.value("exporter_workers", state="live") == 3)
        # A worker has a file a moment before it has its pools.
        assert eventually(lambda: sidecar.value("capacity", pool="orders") == 9)
        tally = Tally(lambda: _ask(url))

        def load() -> None:
            with ThreadPoolExecutor(12) as callers:
                tally.by_process.update(callers.map(_ask, [url] * 300))

        load()
        _holds(tally, sidecar, server, application_name, live=3, parents=1)
        killed = min(tally.by_process)
        os.kill(killed, signal.SIGKILL)
        tally.ask_until(lambda seen: len(seen - {killed}) == 3)
        load()
        assert eventually(lambda: sidecar.value("exporter_workers", state="live") == 3)
        _holds(tally, sidecar, server, application_name, live=3, parents=1)
    assert _files_in(tmp_path) == 4


@pytest.mark.newest
def test_celery(server: DatabaseServer, application_name: str, tmp_path: Path) -> None:
    """The same holds for Celery's prefork pool, whose parent has a pool, too, and after a restart of the whole worker.

    The test kills no process of it: the process that waits for the next task holds billiard's semaphore. If it is
    killed, the others get no more tasks, instrumented or not.
    """
    # Celery's own pools have another name on the server. They are not instrumented.
    celery = server.url("postgresql+psycopg", application_name="celery")
    environment = {
        "DATABASE_URL": server.url("postgresql+psycopg", application_name=application_name),
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(tmp_path),
        "CELERY_BROKER_URL": f"sqla+{celery}",
        "CELERY_RESULT_BACKEND": f"db+{celery}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    (tmp_path / "impatient.py").write_text(f"from examples.servers.tasks import app\n{IMPATIENT}")
    worker = f"-m celery --app impatient worker --concurrency {WORKERS} --loglevel INFO"
    with Sidecar("--directory", tmp_path) as sidecar, Client(environment) as client:
        tally = Tally(client.ask)
        for _ in range(2):
            with Server(*worker.split(), "--without-gossip", "--without-mingle", **environment) as served:
                served.wait_for(r" ready\.")
                tally.ask_until(lambda seen: len(seen) == WORKERS)
                _holds(tally, sidecar, server, application_name, parents=1)
    assert _files_in(tmp_path) == WORKERS + 1


def _files_in(directory: Path) -> int:
    return len(list(directory.glob("worker-*")))


# Celery asks a broker in a database for tasks once a second.
IMPATIENT = "from kombu.transport.virtual import Transport\nTransport.polling_interval = 0.05\n"


class Client:
    """Sends tasks from a process of its own, as an application does."""

    def __init__(
        self, environment: dict[str, str], work: str = "from examples.servers.tasks import work"
    ) -> None:
        program = (
            f"import sys\n{work}\n"
            "for line in sys.stdin: print(work.delay().get(timeout=60, interval=0.05), flush=True)"
        )
        without = {"SQLALCHEMY_POOL_EXPORTER_DIR": ""}  # its pool must not count as a worker's
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, **environment, **without},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate(timeout=SECONDS)
