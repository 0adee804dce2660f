# SPDX-License-Identifier: Apache-2.0
"""Dramatiq, for ``dramatiq examples.workers.dramatiq_app --processes 2 --threads 4``.

``REDIS_URL`` is redis://…
"""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from sqlalchemy import create_engine, text

from sqlalchemy_pool_exporter import instrument, serve

engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=4,  # one for each thread
    max_overflow=0,
    connect_args={"application_name": "orders"},
)
instrument(engine, name="orders")


class ServePools(dramatiq.Middleware):
    """Serves in the worker processes, and in none that sends messages."""

    def after_process_boot(self, _broker: dramatiq.Broker) -> None:
        # Each process calls this: one serves, the others stand by.
        serve(int(os.environ.get("METRICS_PORT", "10081")))


broker = RedisBroker(url=os.environ["REDIS_URL"])
broker.add_middleware(ServePools())
dramatiq.set_broker(broker)


@dramatiq.actor
def count_orders() -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
