# SPDX-License-Identifier: Apache-2.0
"""A worker that forks children, each of which waits for a connection and holds it within a span of its own.

Arguments: the directory, and how many children. One after the other waits and holds; all stay. It prints a line for
each child, with its trace and its span, and ends when its standard input does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument
from tests.support.fakes import connect
from tests.support.wait import eventually

directory, children = sys.argv[1], int(sys.argv[2])
pool: Any = QueuePool(connect, pool_size=1, max_overflow=0, timeout=600)
tracer = TracerProvider(shutdown_on_exit=False).get_tracer(__name__)


def child(number: int) -> None:
    held = pool.connect()

    def release() -> None:
        assert eventually(lambda: pool._pool.not_empty._waiters)
        time.sleep(0.15 + 0.15 * number)
        held.close()

    threading.Thread(target=release).start()
    with tracer.start_as_current_span("request") as span:
        connection = pool.connect()
        time.sleep(0.12)
        connection.close()
        context = span.get_span_context()
    sys.stdout.write(f"{context.trace_id:032x} {context.span_id:016x}\n")
    sys.stdout.flush()
    os.write(done, b".")
    sys.stdin.read()
    os._exit(0)


instrument(pool, name="orders", registry=CollectorRegistry(), directory=directory)
for number in range(children):
    awaited, done = os.pipe()
    if os.fork() == 0:
        child(number)
    os.close(done)
    os.read(awaited, 1)
for _ in range(children):
    os.wait()
