# SPDX-License-Identifier: Apache-2.0
"""A probe that fails again and again, and the descriptors and the memory that its process keeps.

Run as ``python -m tests.support.probe_failures KIND``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import socket
import sys
import tracemalloc
from pathlib import Path

from sqlalchemy_pool_exporter.sidecar.config import Database
from sqlalchemy_pool_exporter.sidecar.probe.dsn import DSN
from sqlalchemy_pool_exporter.sidecar.probe.probe import Probe

KINDS = ("refused", "hangs up", "talks nonsense", "no socket", "unusable DSN")
# Numbers of failures after which the process is measured. Three, because the interpreter resizes its table of interned
# strings once in a while, by about 1 MiB, which only one of the two differences then contains.
MEASURED = (100, 600, 1100)


class CountedSleep:
    """Replaces each delay between probes, which would take hours in all, by one turn of the event loop."""

    def __init__(self) -> None:
        self.count, self.shortest = 0, float("inf")
        self.begun = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.count, self.shortest = self.count + 1, min(self.shortest, seconds)
        if self.count in MEASURED:
            self.begun.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, says: bytes) -> None:
    """Answer a client's first byte with ``says``, and close the connection."""
    with contextlib.suppress(OSError):
        await reader.read(1)
        writer.write(says)
        await writer.drain()
    writer.close()


async def main(kind: str) -> dict[str, object]:
    """Run a failing probe; return the descriptors and memory in use after each number of failures in `MEASURED`."""
    says = b"HTTP/1.1 400 Bad Request\r\n\r\n" if kind == "talks nonsense" else b""
    listener = await asyncio.start_server(
        lambda reader, writer: serve(reader, writer, says=says), "127.0.0.1", 0
    )
    port = listener.sockets[0].getsockname()[1]
    deaf = socket.socket()
    deaf.bind(
        ("127.0.0.1", 0)
    )  # bound and not listening: connecting is refused, and no other process gets the port
    host = {"refused": f"127.0.0.1:{deaf.getsockname()[1]}", "no socket": "%2Fnowhere"}
    dsn = f"postgresql://watcher:password@{host.get(kind, f'127.0.0.1:{port}')}/postgres"
    if kind == "unusable DSN":
        dsn += "?sslmode=verify-full&sslrootcert=/nowhere"
    sleep = CountedSleep()
    probe = Probe(
        Database(name="orders", dsn=DSN(dsn), timeout_seconds=15.0),
        sleep=sleep.sleep,
        uniform=random.Random(7).uniform,  # noqa: S311 - the same delays each time
    )
    tracemalloc.start()
    descriptors, memory = [], []
    for _ in MEASURED:
        task = asyncio.create_task(probe.run())
        await sleep.begun.wait()
        sleep.begun.clear()
        task.cancel()
        await asyncio.wait([task])
        for _ in range(20):  # let the event loop close its sockets
            await asyncio.sleep(0.001)
        gc.collect()
        descriptors.append(len(list(Path("/proc/self/fd").iterdir())))  # noqa: ASYNC240 - /proc never blocks
        memory.append(tracemalloc.get_traced_memory()[0])
    return {
        "descriptors": descriptors,
        "bytes": memory,
        "probes": probe.status.probes,
        "failures": sum(probe.status.failures.values()),
        "shortest": sleep.shortest,
    }


if __name__ == "__main__":
    json.dump(asyncio.run(main(sys.argv[1])), sys.stdout)
