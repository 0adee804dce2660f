# SPDX-License-Identifier: Apache-2.0
"""Traffic in pools, for the tests of ``advise``: tables of samples, and a thread that uses a real pool."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from sqlalchemy_pool_exporter.advise.histogram import EMPTY
from sqlalchemy_pool_exporter.advise.observation import Observation
from sqlalchemy_pool_exporter.advise.table import Table, table_of
from tests.support.queues import of_durations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


def observed(**facts: Any) -> Observation:
    """Return a pool of one process, with 50 callers a second who hold a connection for 20 ms each."""
    given: dict[str, Any] = {
        "pool": "orders",
        "classes": frozenset(["QueuePool"]),
        "dialects": frozenset(["postgresql"]),
        "seconds": 100.0,
        "at": 1000.0,
        "instances": 1.0,
        "most_instances": 1.0,
        "checkouts": 5000.0,
        "timeouts": 0.0,
        "cancelled": 0.0,
        "busiest": None,
        "has_holds": True,
        "holds": of_durations([0.02] * 5000),
        "waits": EMPTY,
        "connects": of_durations([0.01] * 10),
        "pings": EMPTY,
        "overflow_closes": 0.0,
        "size": 5.0,
        "max_overflow": 10.0,
        "timeout_seconds": 30.0,
        "recycle_seconds": None,
        "pre_ping": False,
        "open_now": 5.0,
        "longest_held_seconds": 0.0,
    }
    return Observation(**given | facts)


def table(text: str) -> Table:
    """Return the samples of a text in Prometheus' format."""
    return table_of(text_string_to_metric_families(text))


@contextmanager
def using(engine: Engine, *, hold: float, pause: float = 0.0) -> Iterator[None]:
    """Let a thread check connections out during the block, one after the other."""
    is_over = threading.Event()

    def use() -> None:
        while not is_over.is_set():
            with engine.connect():
                time.sleep(hold)
            is_over.wait(pause)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
