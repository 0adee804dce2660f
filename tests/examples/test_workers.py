# SPDX-License-Identifier: Apache-2.0
"""Each recipe of a task queue with a real broker, real worker processes and PostgreSQL: one port shows every task."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples.test_servers import IMPATIENT, Client, Server, Tally
from tests.support import redis
from tests.support.ports import free_port
from tests.support.recipes import NAME, checkouts, database_url, scrape
from tests.support.samples import key
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.pg import Server as DatabaseServer
    from tests.support.samples import Samples

pytestmark = pytest.mark.newest
TASKS = 6


@pytest.fixture
def environment(server: DatabaseServer, tmp_path: Path) -> dict[str, str]:
    """Return the variables of the recipes."""
    assert eventually(lambda: server.count(NAME) == 0)  # the recipe before has gone
    shared = tmp_path / "pools"
    shared.mkdir()
    return {
        "DATABASE_URL": database_url(server, "psycopg"),
        "SQLALCHEMY_POOL_EXPORTER_DIR": str(shared),
        "METRICS_PORT": str(free_port()),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }


def shown(environment: dict[str, str]) -> Samples:
    """Return what the worker serves; nothing before it does."""
    try:
        return scrape(f"http://127.0.0.1:{environment['METRICS_PORT']}")
    except OSError:
        return {}


def workers(samples: Samples, state: str) -> float:
    return samples.get(key("exporter_workers", state=state), 0.0)


def test_celery(environment: dict[str, str], server: DatabaseServer, tmp_path: Path) -> None:
    """Celery's main process shows the checkouts of its children; the parent has no connection."""
    # Celery's broker and results are in the same PostgreSQL; its own pools are not instrumented.
    celery = server.url("postgresql+psycopg", application_name="celery")
    environment |= {"CELERY_BROKER_URL": f"sqla+{celery}", "CELERY_RESULT_BACKEND": f"db+{celery}"}
    (tmp_path / "impatient.py").write_text(f"from examples.workers.celery_app import app\n{IMPATIENT}")
    worker = (
        "-m celery --app impatient worker --concurrency 2 --loglevel INFO --without-gossip --without-mingle"
    )
    client = "from examples.workers.celery_app import count_orders as work"
    with Server(*worker.split(), **environment) as served, Client(environment, client) as asking:
        served.wait_for(r" ready\.")
        tally = Tally(asking.ask)
        tally.ask_until(lambda seen: len(seen) == 2 and tally.total >= TASKS)
        assert eventually(lambda: checkouts(shown(environment)) == tally.total)
        samples = shown(environment)
        assert (2, 1) == (workers(samples, "live"), workers(samples, "parent"))
        # Each child has one connection, which it opened itself.
        assert samples[key("connects_total", pool=NAME)] == 2 == server.count(NAME)
        served.kill()  # its warm shutdown takes seconds


@pytest.mark.requires("redis-server")
def test_dramatiq(environment: dict[str, str], tmp_path: Path) -> None:
    """One of Dramatiq's processes serves, and shows the messages that both processed."""
    dramatiq: Any = pytest.importorskip("dramatiq")
    from dramatiq.brokers.redis import RedisBroker  # noqa: PLC0415 - see above

    worker = "-m dramatiq examples.workers.dramatiq_app --processes 2 --threads 2"
    with redis.running(tmp_path) as url, Server(*worker.split(), **environment, REDIS_URL=url):
        broker = RedisBroker(url=url)
        for _ in range(TASKS):
            broker.enqueue(dramatiq.Message("default", "count_orders", (), {}, {}))
        assert eventually(lambda: checkouts(shown(environment)) == TASKS), shown(environment)
        assert eventually(lambda: workers(shown(environment), "live") == 2)
        # A process has a file a moment before it has its pools.
        assert eventually(lambda: shown(environment).get(key("capacity", pool=NAME)) == 8)
        broker.close()


@pytest.mark.requires("redis-server")
@pytest.mark.parametrize(
    ("kind", "processes", "connects"), [("ForkingWorker", TASKS, TASKS), ("OneProcessWorker", 1, 1)]
)
def test_rq(kind: str, processes: int, connects: int, environment: dict[str, str], tmp_path: Path) -> None:
    """The worker shows all jobs: each process of a job connected anew, and a worker that does not fork did so once."""
    rq: Any = pytest.importorskip("rq")
    from redis import Redis  # noqa: PLC0415 - see above

    with redis.running(tmp_path) as url, Redis.from_url(url) as connection:
        worker = f"-m rq.cli worker --url {url} --worker-class examples.workers.rq_app.{kind} orders"
        with Server(*worker.split(), **environment):
            queue = rq.Queue("orders", connection=connection)
            jobs = [queue.enqueue("examples.workers.rq_app.count_orders") for _ in range(TASKS)]
            assert eventually(lambda: all(job.is_finished for job in jobs)), [
                job.get_status() for job in jobs
            ]
            assert processes == len({job.return_value() for job in jobs})
            samples = shown(environment)
            assert (TASKS, connects) == (checkouts(samples), samples[key("connects_total", pool=NAME)])
