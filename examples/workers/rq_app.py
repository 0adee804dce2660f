# SPDX-License-Identifier: Apache-2.0
"""RQ, for ``rq worker --url redis://… --worker-class examples.workers.rq_app.ForkingWorker orders``.

RQ's usual worker forks a process for each job, whose pool ends with it: each job connects anew. ``OneProcessWorker``
runs the jobs in its own process, and keeps the connection.
"""

import os
from typing import Any

from rq import SimpleWorker, Worker
from sqlalchemy import create_engine, text

from sqlalchemy_pool_exporter import instrument, serve

engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=1,
    max_overflow=0,
    connect_args={"application_name": "orders"},
)
instrument(engine, name="orders")


def count_orders() -> int:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return os.getpid()


class ServesPools:
    """Shows the pools of all jobs, also of those that ended; a process that only enqueues jobs serves nothing."""

    def work(self, *args: Any, **options: Any) -> bool:
        serve(int(os.environ.get("METRICS_PORT", "10081")))
        return bool(super().work(*args, **options))  # type: ignore[misc]


class ForkingWorker(ServesPools, Worker):
    """The usual worker."""


class OneProcessWorker(ServesPools, SimpleWorker):
    """A worker that does not fork."""
