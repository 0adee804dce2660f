# SPDX-License-Identifier: Apache-2.0
"""Celery: a worker of two processes with a result backend of SQLAlchemy, and a broker of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .application import Application

if TYPE_CHECKING:
    from .application import Run

_TASKS = """
import os
from celery import Celery

app = Celery("tasks", backend="db+" + os.environ["RESULTS"], broker="filesystem://")
os.makedirs("queue", exist_ok=True)
os.makedirs("control", exist_ok=True)
app.conf.broker_transport_options = {
    "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"
}
app.conf.result_extended = True

@app.task
def square(number):
    if number == 13:
        raise ValueError("unlucky")
    return number * number
"""
_CALLS = """
from tasks import square
from celery.result import allow_join_result
sent = [square.delay(number) for number in range(40)]
with allow_join_result():
    print([repr(each.get(timeout=120, propagate=False)) for each in sent])
"""


def _use(run: Run) -> Any:
    (run.folder / "tasks.py").write_text(_TASKS)
    run.variables["RESULTS"] = run.url("postgresql+psycopg2")
    run.start("celery", "-A", "tasks", "worker", "--concurrency=2", "--loglevel=warning")
    return run.call("python", "-c", _CALLS)


APPLICATION = Application("Celery", ("celery[sqlalchemy]", "psycopg2-binary"), _use)
