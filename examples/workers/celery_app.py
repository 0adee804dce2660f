# SPDX-License-Identifier: Apache-2.0
"""Celery, for ``celery --app examples.workers.celery_app worker --concurrency 4``.

Celery itself reads ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``.
"""

import os

from celery import Celery
from celery.signals import worker_init, worker_process_init
from sqlalchemy import create_engine, text

from sqlalchemy_pool_exporter import instrument, serve

app = Celery("orders")

engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=2,  # a child runs one task at a time
    max_overflow=1,
    connect_args={"application_name": "orders"},
)
instrument(engine, name="orders")


@worker_init.connect  # only in the worker's main process, and in none that sends tasks
def serve_pools(**_: object) -> None:
    serve(int(os.environ.get("METRICS_PORT", "10081")))


@worker_process_init.connect  # in each child: a connection of the parent must not be used by both
def forget_connections(**_: object) -> None:
    engine.dispose(close=False)


@app.task
def count_orders() -> int:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return os.getpid()
