# SPDX-License-Identifier: Apache-2.0
"""A Celery application, for ``celery --app examples.servers.tasks worker``; its task returns the process id.

Its broker is the directory ``CELERY_DIRECTORY``, so that the example needs no broker's server.
"""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery
from sqlalchemy import create_engine, text

from sqlalchemy_pool_exporter import instrument

_directory = Path(os.environ["CELERY_DIRECTORY"])
app = Celery("tasks", broker="filesystem://", backend=(_directory / "results").as_uri())
app.conf.broker_transport_options = {
    "data_folder_in": _directory / "queue",
    "data_folder_out": _directory / "queue",
    "control_folder": _directory / "control",
    "polling_interval": 0.1,
}

engine = create_engine(os.environ["DATABASE_URL"], pool_size=2, max_overflow=1)
instrument(engine, name="orders")


@app.task
def work() -> int:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return os.getpid()
