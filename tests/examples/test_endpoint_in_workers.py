# SPDX-License-Identifier: Apache-2.0
"""The README's first snippet in real multi-process servers: its endpoint shows every worker, whichever serves."""

from __future__ import annotations

import os
import re
import signal
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.examples.test_servers import IMPATIENT, UWSGI, Client, Server, Tally, _ask
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.samples import key, read_samples
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.pg import Server as DatabaseServer
    from tests.support.samples import Samples

WORKERS = 3
# The applications use the snippet's engine; the response is the process id.
WSGI = """
import os
from sqlalchemy import text

def app(environ, start_response):
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
ASGI = """
import os
from sqlalchemy import text

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""
GUNICORN = ("-m", "gunicorn", "--workers", str(WORKERS), "--bind", "127.0.0.1:0")
UWSGI_WORKERS = (*UWSGI, "--processes", str(WORKERS))
CELERY = """
import os
from celery import Celery
from sqlalchemy import text

app = Celery("snippet")

@app.task(name="work")
def work():
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return os.getpid()
"""
SERVERS = {
    "gunicorn sync": (*GUNICORN, "snippet:app"),
    "gunicorn sync preload": (*GUNICORN, "--preload", "snippet:app"),
    "gunicorn gthread preload": (*GUNICORN, "--preload", "--threads", "2", "snippet:app"),
    "uwsgi": (*UWSGI_WORKERS, "--module", "snippet:app"),
    "uwsgi lazy": (*UWSGI_WORKERS, "--lazy-apps", "--module", "snippet:app"),
    "uvicorn": ("-m", "uvicorn", "--workers", str(WORKERS), "--port", "0", "snippet:app"),
}
MORE = ("gunicorn gthread preload", "uwsgi lazy")  # combinations of features that other entries test


def write_snippet(folder: Path, database: DatabaseServer, port: int, application: str) -> None:
    """Write the README's first snippet, with another URL and another port, and an application."""
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert snippet
    text, urls = re.subn(
        r'"postgresql\+psycopg://[^"]*"',
        repr(database.url("postgresql+psycopg", application_name="snippet")),
        snippet[1],
    )
    text, calls = re.subn(r"serve\(.*?\)", f'serve({port}, "127.0.0.1")', text)
    assert (urls, calls) == (1, 1)
    (folder / "snippet.py").write_text(text + application)


def scrape(port: int) -> Samples:
    """Return the samples of the endpoint; none while nobody serves."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as answer:
            return read_samples(answer.read().decode())
    except OSError:
        return {}


def is_shown(port: int, tally: Tally, *, live: int = WORKERS) -> bool:
    """Return whether the endpoint shows all workers, and all checkouts of the tally."""
    samples = scrape(port)
    found = samples.get(key("exporter_workers", state="live"), 0)
    return samples.get(key("checkouts_total", pool="orders")) == tally.total and found >= live


@pytest.mark.newest
@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[pytest.mark.soak] if what in MORE else []) for what in SERVERS]
)
def test_every_worker_is_shown(what: str, server: DatabaseServer, tmp_path: Path) -> None:
    """All checkouts of all workers are at one port; nothing raises; after ``kill -9`` of a worker it is the same."""
    port, shared = free_port(), tmp_path / "pools"
    shared.mkdir()
    write_snippet(tmp_path, server, port, ASGI if what == "uvicorn" else WSGI)
    environment = {
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(shared),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    with Server(*SERVERS[what], **environment) as served:
        url = served.url()
        if what == "uvicorn":
            served.wait_for(rf"(?s)(startup complete.*){{{WORKERS}}}")
        tally = Tally(lambda: _ask(url))
        # Each of several servers of a machine prefers the worker that is awake: half of them is enough.
        tally.ask_until(lambda seen: len(seen) >= 2)
        assert eventually(lambda: is_shown(port, tally)), scrape(port)
        for killed in sorted(tally.by_process)[:2]:
            os.kill(killed, signal.SIGKILL)
            tally.ask_until(lambda seen, killed=killed: len(seen - {killed}) >= 1)  # type: ignore[misc]
            assert eventually(lambda: is_shown(port, tally)), scrape(port)
        assert "EndpointError" not in served.said


MULES = """
import uwsgi

def work(_=None):
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return uwsgi.SPOOL_OK

uwsgi.spooler = work
plain = app

def app(environ, start_response):
    uwsgi.mule_msg(b"work")
    uwsgi.spool({b"do": b"work"})
    return plain(environ, start_response)
"""
MULE = "import uwsgi, snippet\nwhile uwsgi.mule_get_msg():\n    snippet.work()\n"


@pytest.mark.newest
def test_uwsgi_mules_and_spoolers(server: DatabaseServer, tmp_path: Path) -> None:
    """The checkouts of uWSGI's mules and spoolers, which are forked in C, too, are shown with those of its workers."""
    port, shared, spool = free_port(), tmp_path / "pools", tmp_path / "spool"
    shared.mkdir()
    spool.mkdir()
    write_snippet(tmp_path, server, port, WSGI + MULES)
    (tmp_path / "mule.py").write_text(MULE)
    environment = {
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(shared),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    more = ("--mule=" + str(tmp_path / "mule.py"), "--spooler", str(spool), "--module", "snippet:app")
    with Server(*UWSGI_WORKERS, *more, **environment) as served:
        url = served.url()
        tally = Tally(lambda: _ask(url))
        tally.ask_until(lambda _: tally.total >= 20)
        assert eventually(
            lambda: scrape(port).get(key("checkouts_total", pool="orders")) == 3 * tally.total
        ), scrape(port)
        # A worker that started late may not have served any of these requests.
        assert eventually(lambda: scrape(port).get(key("exporter_workers", state="live")) == WORKERS + 2), (
            scrape(port)
        )
        # SIGTERM is lost in a mule or a spooler that still starts, and uWSGI waits for it: see UWSGI.
        served.kill()


@pytest.mark.newest
@pytest.mark.parametrize(
    "pool", ["prefork", *(pytest.param(p, marks=pytest.mark.soak) for p in ("solo", "threads"))]
)
def test_celery_shows_every_worker(pool: str, server: DatabaseServer, tmp_path: Path) -> None:
    """Celery's main process imports the snippet, forks, and serves; it shows the checkouts of all its children.

    With the pools that do not fork, it is the only worker.

    The test kills none of them: one that waits for a task has billiard's semaphore.
    """
    port, shared = free_port(), tmp_path / "pools"
    shared.mkdir()
    write_snippet(tmp_path, server, port, CELERY + IMPATIENT)
    celery = server.url("postgresql+psycopg", application_name="celery")
    environment = {
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(shared),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "CELERY_BROKER_URL": f"sqla+{celery}",
        "CELERY_RESULT_BACKEND": f"db+{celery}",
    }
    worker = f"-m celery --app snippet worker --pool {pool} --concurrency {WORKERS} --loglevel INFO --without-gossip"
    client = "from celery import Celery\nwork = Celery().signature('work')"
    with Server(*worker.split(), **environment) as served, Client(environment, client) as asking:
        served.wait_for(r" ready\.")
        tally = Tally(asking.ask)
        is_forked = pool == "prefork"
        tally.ask_until(lambda seen: len(seen) >= 2 if is_forked else tally.total >= 20)
        live, parents = (WORKERS, 1) if is_forked else (1, 0)
        assert eventually(lambda: is_shown(port, tally, live=live)), scrape(port)
        assert scrape(port)[key("exporter_workers", state="parent")] == parents
