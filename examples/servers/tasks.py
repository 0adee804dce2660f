# SPDX-License-Identifier: Apache-2.0
"""A Celery application, for ``celery --app examples.servers.tasks worker``; its task returns the process id.

Celery itself reads its broker and its result backend from ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``.
"""

from __future__ import annotations

import os

from celery import Celery
from sqlalchemy import create_engine, text

from sqlalchemy_pool_exporter import instrument

app = Celery("tasks")

engine = create_engine(os.environ["DATABASE_URL"], pool_size=2, max_overflow=1)
instrument(engine, name="orders")


@app.task
def work() -> int:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return os.getpid()
