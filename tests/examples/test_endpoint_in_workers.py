# SPDX-License-Identifier: Apache-2.0
"""The README's first snippet in real multi-process servers: its endpoint shows every worker, whichever serves."""

from __future__ import annotations

import os
import re
import signal
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.examples.test_servers import Server, Tally, _ask
from tests.recording.test_standby import free_port
from tests.support.paths import ROOT
from tests.support.samples import key, read_samples
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.pg import Server as DatabaseServer
    from tests.support.samples import Samples

WORKERS = 4
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
SERVERS = {
    "gunicorn sync": (*GUNICORN, "snippet:app"),
    "gunicorn sync preload": (*GUNICORN, "--preload", "snippet:app"),
    "gunicorn gthread preload": (*GUNICORN, "--preload", "--threads", "2", "snippet:app"),
    "uvicorn": ("-m", "uvicorn", "--workers", str(WORKERS), "--port", "0", "snippet:app"),
}


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


@pytest.mark.newest
@pytest.mark.parametrize("what", SERVERS)
def test_every_worker_is_shown(what: str, server: DatabaseServer, tmp_path: Path) -> None:
    """All checkouts of all workers are at one port; nothing raises; after ``kill -9`` of a worker it is the same."""
    port, shared = free_port(), tmp_path / "pools"
    shared.mkdir()
    write_snippet(tmp_path, server, port, ASGI if what == "uvicorn" else WSGI)
    environment = {
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(shared),
        "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}",
    }
    with Server(*SERVERS[what], **environment) as served:
        url = served.wait_for(r"(?:Listening at|running on).*(http://[0-9.:]+)")[1]
        if what == "uvicorn":
            served.wait_for(rf"(?s)(startup complete.*){{{WORKERS}}}")
        tally = Tally(lambda: _ask(url))
        # Each of several servers of a machine prefers the worker that is awake: half of them is enough.
        tally.ask_until(lambda seen: len(seen) >= 2)

        def is_shown() -> bool:
            samples = scrape(port)
            in_use = samples.get(key("exporter_workers", state="live"), 0)
            return samples.get(key("checkouts_total", pool="orders")) == tally.total and in_use >= WORKERS

        assert eventually(is_shown), scrape(port)
        for killed in sorted(tally.by_process)[:2]:
            os.kill(killed, signal.SIGKILL)
            tally.ask_until(lambda seen, killed=killed: len(seen - {killed}) >= 1)  # type: ignore[misc]
            assert eventually(is_shown), scrape(port)
        assert "EndpointError" not in served.said
