# SPDX-License-Identifier: Apache-2.0
"""The demo's processes: workers, each with both applications, and the sidecar, which exposes all pools."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, cast

from .errors import DemoError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from .load import App
    from .postgres import Database

HOST = "127.0.0.1"
STOP_SECONDS = 10.0
PROBE_SECONDS = 1


def check_port(port: int) -> None:
    """Raise DemoError if the sidecar cannot listen on `port`; check that before the slow start of the database."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DemoError(
            f"cannot listen on {HOST}:{port}: {reason}; choose another port with --port"
        ) from error


@asynccontextmanager
async def worker(database: Database, segments: Path) -> AsyncIterator[dict[App, str]]:
    """Run a worker for the duration of the block and yield the URLs of its applications.

    Raises:
        DemoError: the worker does not start.
    """
    urls = [database.url(driver).render_as_string(hide_password=False) for driver in ("asyncpg", "psycopg")]
    arguments = ("-m", "demo.worker", *urls)
    async with _running(arguments, r"serving (\S+) (\S+)", "a worker", segments) as said:
        yield {"orders": said[1], "billing": said[2]}


@asynccontextmanager
async def sidecar(database: Database, segments: Path, port: int) -> AsyncIterator[str]:
    """Run the sidecar for the duration of the block and yield its URL.

    Raises:
        DemoError: the sidecar does not start.
    """
    config = segments.with_name("exporter.yaml")
    probe = {
        "name": "demo",
        "dsn": database.dsn,
        "pools": ["orders", "billing", "reports"],
        "interval_seconds": PROBE_SECONDS,
        "timeout_seconds": PROBE_SECONDS,
    }
    config.write_text(json.dumps({"databases": [probe]}))  # JSON is YAML
    options = {"config": config, "listen-address": f"{HOST}:{port}", "directory": segments}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    async with _running(
        ("-m", "demo.sidecar", "serve", *arguments), r"listening on (\S+)", "the sidecar", segments
    ) as said:
        yield said[1]


@asynccontextmanager
async def _running(
    arguments: tuple[str, ...], pattern: str, what: str, segments: Path
) -> AsyncIterator[re.Match[str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env={**os.environ, "SQLALCHEMY_POOL_EXPORTER_DIR": str(segments), "PYTHONUNBUFFERED": "1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches only the demo, which stops its processes cleanly
    )
    stdin = cast("asyncio.StreamWriter", process.stdin)
    stdout = cast("asyncio.StreamReader", process.stdout)
    try:
        said = await _until(stdout, pattern, what)
        rest = asyncio.create_task(_drain(stdout))
        try:
            yield said
        finally:
            rest.cancel()
    finally:
        stdin.close()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _until(stream: asyncio.StreamReader, pattern: str, what: str) -> re.Match[str]:
    line = ""
    async for raw in stream:
        line = raw.decode(errors="replace").strip()
        match = re.search(pattern, line)
        if match:
            return match
    raise DemoError(f"{what} did not start: {line or 'it ended without a word'}")


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass
